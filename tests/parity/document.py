"""Writes docs/parity.md: which of PyTorch's names are here, differ or are absent.

    python -m tests.parity.document > docs/parity.md

It needs PyTorch, for its names; those of torchvision, whose package is not needed, stand here.
"""

import inspect
import re
import textwrap
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch

import fastlayers as fl
from fastlayers.names import out_of_scope
from fastlayers.vision import transforms

WIDTH = 112
# Helpers of PyTorch's own files, which no program asks for.
INTERNAL = """
    DType ScalingType SwizzleType boolean_dispatch assert_int_or_pair Any Counter Optimizer
    SupportsFloat Tensor TypedDict bisect_right cast override partial ref wraps factory_kwargs
    Callable conv_tbc grouped_mm swap_in_optimizer_params_and_state
"""
HIDDEN = ("_", "has_torch", "handle_torch", "native_", "scaled_")
# Classes of torchvision 0.28's `transforms`.
TRANSFORMS = """
    AugMix AutoAugment AutoAugmentPolicy CenterCrop ColorJitter Compose ConvertImageDtype
    ElasticTransform FiveCrop GaussianBlur Grayscale InterpolationMode Lambda
    LinearTransformation Normalize PILToTensor Pad RandAugment RandomAdjustSharpness
    RandomAffine RandomApply RandomAutocontrast RandomChoice RandomCrop RandomEqualize
    RandomErasing RandomGrayscale RandomHorizontalFlip RandomInvert RandomOrder
    RandomPerspective RandomPosterize RandomResizedCrop RandomRotation RandomSolarize
    RandomVerticalFlip Resize TenCrop ToPILImage ToTensor TrivialAugmentWide
"""


class Difference(NamedTuple):
    """What is not as in PyTorch, although the name is the same."""

    names: str
    here: str
    there: str
    reason: str


OTHER_DEVICES = (
    r"cuda|xpu|mtia|ipu|xla|hpu|^pin_|pinned|shared|share_memory|is_(?:meta|maia|mps|vulkan)|mkldnn"
)
REASONS = {
    "complex numbers": r"complex|conj|^(?:real|imag|angle|sgn|H|mH)$|^is_conj|resolve_neg|adjoint",
    "sparse tensors": r"sparse|coalesce|^(?:crow|ccol|row|col|values|indices|smm|sspadd|to_dense)",
    "quantised tensors": r"^q_|quanti[sz]|int_repr|^qscheme",
    "other devices and shared memory": OTHER_DEVICES,
    "named dimensions": r"names?$|align_|refine",
    "decompositions and solvers": (
        r"cholesky|eig|^lu|^qr$|svd|solve|^ormqr|^geqrf|^orgqr|inverse|det$|pinverse|^lstsq"
        r"|matrix_(?:exp|power)|logdet|slogdet"
    ),
    "special functions": (
        r"gamma|bessel|^i0|erfc|erfinv|polygamma|mvlgamma|sinc|^igam|xlogy|lgamma|digamma|nextafter"
        r"|heaviside|logit|frexp|ldexp|float_power|logaddexp|hypot|cauchy|geometric|log_normal"
    ),
    "spectral transforms": r"^(?:stft|istft)$",
}
DIFFERENT = {
    "torch.nn and torch.nn.functional": [
        Difference(
            "all layers and functions of images",
            "results lie in channels-last memory; shapes and values are PyTorch's",
            "the input's memory format",
            "kernels run over channels",
        ),
        Difference(
            "Dropout, Dropout1d, Dropout2d",
            "other masks for the same seed; a dropped element is 0 also where it was NaN",
            "NaN times 0 is NaN",
            "masks do not depend on the number of threads, and are stored as bits",
        ),
        Difference(
            "MaxPool2d, max_pool2d",
            "of several NaNs in a window, the index and the gradient are the first's",
            "the last's",
            "a later NaN does not replace one that was found",
        ),
        Difference(
            "Conv2d, conv2d",
            "where Winograd's algorithm serves, NaN or infinity makes a tile of outputs NaN",
            "over the outputs that read it",
            'tiles are transformed as a whole; `algorithm="direct"` of `ops.conv2d` keeps it there',
        ),
        Difference(
            "CrossEntropyLoss, cross_entropy",
            "the gradient of an ignored sample is 0",
            "NaN if its logits are",
            "it takes no part in the loss",
        ),
        Difference(
            "BCEWithLogitsLoss",
            "an infinite logit that predicts the other class gives an infinite loss",
            "NaN for all logits of minus infinity",
            "that is the limit",
        ),
        Difference(
            "init",
            "the same distributions, other numbers for the same seed",
            "its own generator",
            "numbers are NumPy's",
        ),
    ],
    "torch.optim": [
        Difference(
            "foreach, fused, capturable, differentiable",
            "`foreach` and `fused` change nothing; the others must be off",
            "choose a loop",
            "there is one loop, compiled",
        ),
    ],
    "torch.Tensor": [
        Difference(
            "view",
            "copies where the memory layout requires it",
            "raises a RuntimeError",
            "images lie in channels-last memory",
        ),
        Difference(
            "half, dtypes",
            "float16 for NumPy's operations, no bfloat16; layers take float32 and float64",
            "layers compute with them",
            "CPUs without the instructions would compute them in float32",
        ),
        Difference(
            "random methods",
            "the same distributions, other numbers for the same seed",
            "its own generator",
            "numbers are NumPy's",
        ),
    ],
    "torchvision.transforms": [
        Difference(
            "all transforms",
            "take arrays (H, W, C) or (H, W) too, which Pillow's images become",
            "only Pillow's images and tensors",
            "Pillow is not needed",
        ),
    ],
}


class Place(NamedTuple):
    """A module or class of PyTorch's, and what has its names here."""

    title: str
    ours: Any
    names: list[str]


def public(module: Any) -> Iterator[str]:
    """Names of a module's classes and functions that programs use."""
    for name, value in vars(module).items():
        known = inspect.isclass(value) or inspect.isroutine(value)
        if known and not name.startswith(HIDDEN) and name not in INTERNAL.split():
            yield name


def places() -> list[Place]:
    """All of them, with sorted names."""
    found = [
        Place("torch.nn", fl.nn, [*public(torch.nn)]),
        Place("torch.nn.functional", fl.nn.functional, [*public(torch.nn.functional)]),
        Place("torch.optim", fl.optim, [*public(torch.optim)]),
        Place(
            "torch.optim.lr_scheduler",
            fl.optim.lr_scheduler,
            [*public(torch.optim.lr_scheduler)],
        ),
        Place(
            "torch.Tensor", fl.Tensor, [name for name in dir(torch.Tensor) if name[0] not in "_"]
        ),
        Place("torchvision.transforms", transforms, TRANSFORMS.split()),
    ]
    return [place._replace(names=sorted(set(place.names), key=_by_letters)) for place in found]


def _by_letters(name: str) -> tuple[str, str]:
    """Where a name stands; `T` is before `t`, whatever the order of a set."""
    return name.lower(), name


def reason(name: str) -> str:
    """Why a name is absent."""
    scope = out_of_scope(name)
    if scope:
        return f"out of scope: {scope}"
    for what, pattern in REASONS.items():
        if re.search(pattern, name):
            return what
    return "not yet"


def paragraph(text: str) -> str:
    """Text in lines of the documents' width."""
    return "\n".join(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def listed(names: Collection[str]) -> str:
    """Names of code in a sentence."""
    return ", ".join(f"`{name}`" for name in names)


def section(place: Place) -> Iterator[str]:
    """The Markdown of one place."""
    here = [name for name in place.names if hasattr(place.ours, name)]
    absent: dict[str, list[str]] = {}
    for name in place.names:
        if name not in here:
            absent.setdefault(reason(name), []).append(name)
    yield f"## {place.title}: {len(here)} of {len(place.names)}"
    yield paragraph(f"Here: {listed(here)}.")
    for why in sorted(absent):
        yield paragraph(f"Absent, {why}: {listed(absent[why])}.")


def differences() -> Iterator[str]:
    """The Markdown of what differs."""
    for title, rows in DIFFERENT.items():
        yield f"### {title}"
        lines = ["| name | here | PyTorch | reason |", "|---|---|---|---|"]
        yield "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def document() -> str:
    """The whole file."""
    version = torch.__version__.partition("+")[0]
    parts = [
        "# PyTorch's names",
        paragraph(
            f"Which names of PyTorch {version} and torchvision 0.28 are here, which are absent and "
            "why, and what differs. Where PyTorch's releases differ, this library follows the one "
            "named. Made by `python -m tests.parity.document > docs/parity.md`; `tests/parity` "
            "compares values and gradients of what is here."
        ),
        "## What differs",
        *differences(),
        *(part for place in places() for part in section(place)),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(document())
