"""Of every class and function of PyTorch's modules, whether it is here can be told."""

from pathlib import Path

import pytest

from fastlayers import nn, optim

torch = pytest.importorskip("torch")
document = pytest.importorskip("parity.document")

PLACES = [
    (nn, torch.nn),
    (nn.functional, torch.nn.functional),
    (optim, torch.optim),
    (optim.lr_scheduler, torch.optim.lr_scheduler),
]


@pytest.mark.parametrize(("ours", "theirs"), PLACES)
def test_every_name_is_there_or_explained(ours, theirs):
    wrong = []
    for name in document.public(theirs):
        try:
            getattr(ours, name)
        except AttributeError as error:
            if "is not in this library" not in str(error):
                wrong.append(str(error))
    assert not wrong


def test_the_document_says_so():
    path = Path(__file__).parents[2] / "docs/parity.md"
    assert path.read_text("utf-8") == document.document() + "\n"
