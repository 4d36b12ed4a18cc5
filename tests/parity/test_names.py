"""Of every class and function of PyTorch's modules, whether it is here can be told."""

import inspect

import pytest

from fastlayers import nn, optim

torch = pytest.importorskip("torch")

# Helpers of PyTorch's own files, which no program asks for.
INTERNAL = """
    DType ScalingType SwizzleType boolean_dispatch assert_int_or_pair Any Counter Optimizer
    SupportsFloat Tensor TypedDict bisect_right cast override partial ref wraps factory_kwargs
    conv_tbc grouped_mm swap_in_optimizer_params_and_state
"""
HIDDEN = ("_", "has_torch", "handle_torch", "native_", "scaled_")
PLACES = [
    (nn, torch.nn),
    (nn.functional, torch.nn.functional),
    (optim, torch.optim),
    (optim.lr_scheduler, torch.optim.lr_scheduler),
]


@pytest.mark.parametrize(("ours", "theirs"), PLACES)
def test_every_name_is_there_or_explained(ours, theirs):
    wrong = []
    for name, value in vars(theirs).items():
        is_public = inspect.isclass(value) or inspect.isroutine(value)
        if not is_public or name.startswith(HIDDEN) or hasattr(ours, name):
            continue
        try:
            getattr(ours, name)
        except AttributeError as error:
            if name not in INTERNAL.split() and "is not in this library" not in str(error):
                wrong.append(str(error))
    assert not wrong
