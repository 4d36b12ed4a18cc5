import pytest

from fastlayers import nn, optim
from fastlayers.nn import functional as F
from fastlayers.optim import lr_scheduler

NAMES = {
    (nn, "Relu"): "did you mean 'ReLU'",
    (nn, "conv2d"): "did you mean 'Conv2d'",
    (nn, "Cross_Entropy_Loss"): "did you mean 'CrossEntropyLoss'",
    (nn, "SyncBatchnorm"): "did you mean 'SyncBatchNorm'",
    (nn, "ELU"): "which of PyTorch's is not in this library",
    (
        nn,
        "LSTM",
    ): "which is not in this library and won't be: recurrent layers are out of its scope",
    (nn, "MultiheadAttention"): "attention layers are out of its scope",
    (nn, "TransformerEncoderLayer"): "attention layers are out of its scope",
    (F, "cross_entropy_loss"): "did you mean 'cross_entropy'",
    (F, "embedding"): "embeddings are out of its scope",
    (F, "elu"): "which of PyTorch's is not in this library",
    (optim, "Sgd"): "did you mean 'SGD'",
    (optim, "RMSprop"): "which of PyTorch's is not in this library",
    (lr_scheduler, "CosineAnealingLR"): "did you mean 'CosineAnnealingLR'",
    (lr_scheduler, "CyclicLR"): "which of PyTorch's is not in this library",
    (nn, "blorb"): "got 'blorb'$",
    (nn, "__wrapped__"): "got '__wrapped__'$",
}


@pytest.mark.parametrize(("place", "message"), NAMES.items(), ids=[n for _, n in NAMES])
def test_absent_names_say_what_is_meant(place, message):
    module, name = place
    where = module.__name__.removeprefix("fastlayers.")
    with pytest.raises(
        AttributeError, match=f"^{where}: name must be one that it has, .*{message}"
    ):
        getattr(module, name)
    assert not hasattr(module, name)
