"""The text of a tensor, which is PyTorch's.

References
----------
https://docs.pytorch.org/docs/stable/generated/torch.set_printoptions.html
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fastlayers.autograd.tensor import Tensor

__all__ = ["get_printoptions", "printoptions", "set_printoptions", "text"]


@dataclass
class _Options:
    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_options = _Options()
_PROFILES: dict[str, dict[str, float]] = {
    "default": {"precision": 4, "threshold": 1000, "edgeitems": 3, "linewidth": 80},
    "short": {"precision": 2, "threshold": 1000, "edgeitems": 2, "linewidth": 80},
    "full": {"precision": 4, "threshold": math.inf, "edgeitems": 3, "linewidth": 80},
}


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Set how tensors are printed, by all threads.

    Parameters
    ----------
    precision : int
        Digits after the point, 4 at first.
    threshold : float
        With more elements than this, 1000 at first, only the ends of axes are printed.
    edgeitems : int
        How many of each end, 3 at first.
    linewidth : int
        Characters of a line, 80 at first.
    profile : str
        "default", "short" or "full": values for all of these, before the others are set.
    sci_mode : bool, optional
        Whether there are exponents; None for where they are needed, also if it isn't given.

    Raises
    ------
    ValueError
        If there is no such profile.
    """
    if profile is not None and profile not in _PROFILES:
        raise ValueError(
            f"set_printoptions: profile must be one of {sorted(_PROFILES)}, got {profile!r}"
        )
    given = {
        "precision": precision,
        "threshold": threshold,
        "edgeitems": edgeitems,
        "linewidth": linewidth,
    }
    chosen = dict(_PROFILES[profile]) if profile else {}
    chosen.update((key, value) for key, value in given.items() if value is not None)
    for key, value in chosen.items():
        setattr(_options, key, value)
    _options.sci_mode = sci_mode


def get_printoptions() -> dict[str, Any]:
    """How tensors are printed, as `set_printoptions` takes it."""
    return asdict(_options)


@contextlib.contextmanager
def printoptions(**options: Any) -> Iterator[None]:
    """Context with other options of `set_printoptions`."""
    before = get_printoptions()
    set_printoptions(**options)
    try:
        yield
    finally:
        set_printoptions(**before)


class _Format:
    """How the elements are written, all in the same width."""

    def __init__(self, values: np.ndarray) -> None:
        self.is_float = values.dtype.kind == "f"
        self.has_exponents, self.are_whole, self.width = False, True, 1
        if not self.is_float:
            self.width = max((len(str(value)) for value in values.tolist()), default=1)
            return
        values = values[np.isfinite(values) & (values != 0)]
        if not values.size:
            return
        sizes = np.abs(values).astype(np.float64)
        least, most = sizes.min(), sizes.max()
        self.are_whole = bool((values == np.ceil(values)).all())
        self.has_exponents = bool(most / least > 1000 or most > 1e8 or least < 1e-4)
        if _options.sci_mode is not None:
            self.has_exponents = _options.sci_mode
        self.width = max(len(self.written(value)) for value in values.tolist())

    def written(self, value: Any) -> str:
        if not self.is_float:
            return str(value)
        if self.has_exponents:
            return f"{value:.{_options.precision}e}"
        if self.are_whole:
            return f"{value:.0f}" + "." * math.isfinite(value)
        return f"{value:.{_options.precision}f}"

    def __call__(self, value: Any) -> str:
        return self.written(value).rjust(self.width)


def _ends(x: np.ndarray) -> np.ndarray:
    """The elements that a summary has."""
    edge = _options.edgeitems
    for axis, size in enumerate(x.shape):
        if size > 2 * edge:
            x = np.take(x, [*range(edge), *range(size - edge, size)], axis)
    return x


def _vector(x: np.ndarray, indent: int, shortened: bool, form: _Format) -> str:
    edge = _options.edgeitems
    if shortened and not edge:
        items = ["..."]
    elif shortened and len(x) > 2 * edge:
        items = [*map(form, x[:edge].tolist()), " ...", *map(form, x[-edge:].tolist())]
    else:
        items = list(map(form, x.tolist()))
    count = max(1, (_options.linewidth - indent) // (form.width + 2))
    lines = [", ".join(items[i : i + count]) for i in range(0, len(items), count)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def _body(x: np.ndarray, indent: int, shortened: bool, form: _Format) -> str:
    if not x.ndim:
        return form(x.item())
    if x.ndim == 1:
        return _vector(x, indent, shortened, form)
    edge, count = _options.edgeitems, len(x)
    rows = list(range(count))
    cut = shortened and count > 2 * edge
    if cut:
        rows = [*range(edge), *range(count - edge, count)]
    parts = [_body(x[i], indent + 1, shortened, form) for i in rows]
    if cut:
        parts.insert(edge, "...")
    return "[" + ("," + "\n" * (x.ndim - 1) + " " * (indent + 1)).join(parts) + "]"


def _suffixes(tensor: Tensor) -> list[str]:
    found, kind = [], tensor.dtype
    empty = not tensor.numel()
    if (empty and tensor.ndim != 1) or not (empty or _options.edgeitems):
        found.append(f"size={tuple(tensor.shape)}")
    if kind != np.float32 and (empty or kind not in (np.int64, np.bool_)):
        found.append(f"dtype=torch.{kind.name}")
    if tensor.grad_fn is not None:
        found.append(f"grad_fn=<{tensor.grad_fn.name()}>")
    elif tensor.requires_grad:
        found.append("requires_grad=True")
    return found


def text(tensor: Tensor) -> str:
    """What `repr` gives."""
    name = type(tensor).__name__
    prefix = "tensor(" if name in ("Tensor", "Parameter") else f"{name}("
    x, indent = tensor.array(), len(prefix)
    body = "[]"
    if x.size:
        shortened = x.size > _options.threshold
        form = _Format((_ends(x) if shortened else x).reshape(-1))
        body = _body(x, indent, shortened, form)
    out = prefix + body
    length = len(out) - out.rfind("\n") + 1
    for suffix in _suffixes(tensor):
        if length + len(suffix) + 2 > _options.linewidth:
            out += ",\n" + " " * indent + suffix
            length = indent + len(suffix)
        else:
            out += ", " + suffix
            length += len(suffix) + 2
    return out + ")"
