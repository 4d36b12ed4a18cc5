"""Errors for names that a module lacks: whether PyTorch has them, and what may be meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

__all__ = ["absent", "out_of_scope"]

# What is out of scope, by words in PyTorch's names.
_OUT_OF_SCOPE = {
    "recurrent layers": r"RNN|LSTM|GRU|^(rnn|lstm|gru)_",
    "attention layers": r"Transformer|[Aa]ttention",
    "embeddings": r"[Ee]mbedding",
    "quantised layers": r"[Qq]uanti[sz]|QuantStub|qat",
}
# The rest of what PyTorch 2.13 has and this library lacks.
_PYTORCH = {
    "nn": """
        AdaptiveAvgPool1d AdaptiveAvgPool3d AdaptiveLogSoftmaxWithLoss AdaptiveMaxPool1d
        AdaptiveMaxPool2d AdaptiveMaxPool3d AlphaDropout AvgPool1d AvgPool3d BCELoss BatchNorm3d
        Bilinear Buffer CELU CTCLoss ChannelShuffle CircularPad1d CircularPad2d CircularPad3d
        ConstantPad1d ConstantPad2d ConstantPad3d Container Conv1d Conv3d ConvTranspose1d
        ConvTranspose2d ConvTranspose3d CosineSimilarity CrossMapLRN2d DataParallel Dropout3d ELU
        FeatureAlphaDropout Fold FractionalMaxPool2d FractionalMaxPool3d GLU GaussianNLLLoss
        GroupNorm Hardshrink Hardsigmoid Hardtanh HuberLoss InstanceNorm1d InstanceNorm2d
        InstanceNorm3d KLDivLoss L1Loss LPPool1d LPPool2d LPPool3d LayerNorm LazyBatchNorm1d
        LazyBatchNorm2d LazyBatchNorm3d LazyConv1d LazyConv2d LazyConv3d LazyConvTranspose1d
        LazyConvTranspose2d LazyConvTranspose3d LazyInstanceNorm1d LazyInstanceNorm2d
        LazyInstanceNorm3d LazyLinear LinearCrossEntropyLoss LinearCrossEntropyOptions
        LocalResponseNorm LogSigmoid MarginRankingLoss MaxPool1d MaxPool3d MaxUnpool1d MaxUnpool2d
        MaxUnpool3d Mish MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss
        NLLLoss2d PReLU PairwiseDistance ParameterDict PixelShuffle PixelUnshuffle
        PoissonNLLLoss RMSNorm RReLU ReLU6 ReflectionPad1d ReflectionPad2d ReflectionPad3d
        ReplicationPad1d ReplicationPad2d ReplicationPad3d SELU SmoothL1Loss SoftMarginLoss
        Softmax2d Softmin Softplus Softshrink Softsign SyncBatchNorm Tanhshrink Threshold
        TripletMarginLoss TripletMarginWithDistanceLoss Unflatten Unfold UninitializedBuffer
        UninitializedParameter Upsample UpsamplingBilinear2d UpsamplingNearest2d ZeroPad1d ZeroPad2d
        ZeroPad3d modules parameter
    """,
    "nn.functional": """
        adaptive_avg_pool1d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool1d_with_indices
        adaptive_max_pool2d adaptive_max_pool2d_with_indices adaptive_max_pool3d
        adaptive_max_pool3d_with_indices affine_grid alpha_dropout avg_pool1d avg_pool3d bilinear
        binary_cross_entropy celu celu_ channel_shuffle conv1d conv3d conv_transpose1d
        conv_transpose2d conv_transpose3d cosine_similarity ctc_loss dropout3d elu elu_
        feature_alpha_dropout fold fractional_max_pool2d fractional_max_pool2d_with_indices
        fractional_max_pool3d fractional_max_pool3d_with_indices gaussian_nll_loss glu grid_sample
        group_norm gumbel_softmax hardshrink hardsigmoid hardtanh hardtanh_ huber_loss
        instance_norm interpolate kl_div l1_loss layer_norm leaky_relu_ linear_cross_entropy
        local_response_norm logsigmoid lp_pool1d lp_pool2d lp_pool3d margin_ranking_loss max_pool1d
        max_pool1d_with_indices max_pool2d_with_indices max_pool3d max_pool3d_with_indices
        max_unpool1d max_unpool2d max_unpool3d mish multi_margin_loss multilabel_margin_loss
        multilabel_soft_margin_loss normalize pairwise_distance pdist pixel_shuffle
        pixel_unshuffle poisson_nll_loss prelu relu6 relu_ rms_norm rrelu rrelu_ selu selu_
        smooth_l1_loss soft_margin_loss softmin softplus softshrink softsign tanhshrink threshold
        threshold_ triplet_margin_loss triplet_margin_with_distance_loss unfold upsample
        upsample_bilinear upsample_nearest
    """,
    "optim": """
        ASGD Adadelta Adafactor Adagrad Adamax LBFGS Muon NAdam RAdam RMSprop Rprop SparseAdam
        swa_utils
    """,
    "optim.lr_scheduler": """
        ChainedScheduler CosineAnnealingWarmRestarts CyclicLR MultiplicativeLR PolynomialLR
    """,
}


def absent(module: str, name: str, known: Collection[str]) -> AttributeError:
    """The error for a name that a module lacks, with what may be meant.

    Parameters
    ----------
    module : str
        Its name below the package: "nn.functional".
    name : str
        The requested name.
    known : collection of str
        The names that the module has.
    """
    text = f"{module}: name must be one that it has, got {name!r}"
    if name.startswith("__"):  # requested by Python itself
        return AttributeError(text)
    if name in _PYTORCH.get(module, "").split():
        return AttributeError(f"{text}, which of PyTorch's is not in this library")
    folded = {other.lower().replace("_", ""): other for other in known}
    close = difflib.get_close_matches(name.lower().replace("_", ""), folded, 1, 0.75)
    if close:
        return AttributeError(f"{text}; did you mean {folded[close[0]]!r}?")
    what = out_of_scope(name)
    if what:
        return AttributeError(
            f"{text}, which is not in this library and won't be: {what} are out of its scope"
        )
    return AttributeError(text)


def out_of_scope(name: str) -> str | None:
    """What a name of PyTorch's is for, such as "recurrent layers", if that won't be here."""
    for what, pattern in _OUT_OF_SCOPE.items():
        if re.search(pattern, name):
            return what
    return None
