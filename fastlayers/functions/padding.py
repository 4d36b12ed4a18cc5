"""Padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.arrangement import taken
from fastlayers.functions.shape import sizes
from fastlayers.functions.table import result

__all__ = ["pad"]

_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Add elements before and after along the last axes; negative numbers remove some.

    Parameters
    ----------
    input : Tensor
        Of any shape for "constant"; for the other modes (C, L), (C, H, W) or (C, D, H, W) with or
        without a batch axis in front, whose L, or H and W, or D, H and W are padded.
    pad : sequence of int
        Before and after along the last axis, then the one before it, and so on.
    mode : str
        "constant", "reflect" (without the edge), "replicate" or "circular".
    value : float
        What "constant" adds; 0 by default.

    Returns
    -------
    Tensor

    Raises
    ------
    NotImplementedError
        If the mode is unknown, or does not support the number of axes.
    RuntimeError
        If there is not one pair per axis, or the input is too small.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.pad.html
    """
    x, widths = tensor(input), sizes("pad", (pad,), "pad")
    if len(widths) % 2 or len(widths) > 2 * x.ndim:
        raise RuntimeError(
            f"pad: pad must be a pair of integers for each of at most {x.ndim} axes (padding "
            f"length must be divisible by 2), got {widths}"
        )
    pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)]
    around = [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    for at, (before, after) in enumerate(around):
        if x.shape[at] + before + after < 0:
            raise RuntimeError(
                f"pad: pad must leave lengths that are non-negative, got {widths} for shape "
                f"{tuple(x.shape)}"
            )
    if mode == "constant":
        return _constant(x, around, 0 if value is None else value)
    _check_mode(x, pairs, mode, value)
    for at, (before, after) in enumerate(around[-len(pairs) :], x.ndim - len(pairs)):
        x = taken("pad", x, at, _source(x.shape[at], before, after, mode))
    return x


def _check_mode(x: Tensor, pairs: list[tuple[int, int]], mode: str, value: Any) -> None:
    if mode not in _MODES:
        raise NotImplementedError(
            f"pad: mode must be 'constant', 'reflect', 'replicate' or 'circular', got {mode!r}"
        )
    if value is not None and value != 0:
        raise RuntimeError(f"pad: value must be None in mode {mode!r}, got {value}")
    if not 1 <= len(pairs) <= 3 or x.ndim not in (len(pairs) + 1, len(pairs) + 2):
        raise NotImplementedError(
            f"pad: pad in mode {mode!r} must be for 1, 2 or 3 axes of an input with one or two "
            f"axes more, got {2 * len(pairs)} numbers for {x.ndim} axes"
        )
    for i, pair in enumerate(pairs):
        size = x.shape[-1 - i]
        left = size + min(pair[0], 0) + min(pair[1], 0)
        # "circular" goes round what is left once at most, of which PyTorch 2.13 checks less.
        most = {"reflect": size - 1, "circular": left}.get(mode, max(pair))
        if size == 0 or max(pair) > most:
            raise RuntimeError(
                f"pad: pad must be {'less than' if mode == 'reflect' else 'at most'} the input's "
                f"length in mode {mode!r}, got {pair} for a length of {size}"
            )


def _source(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """The indices along an axis that the padded axis holds."""
    kept = np.arange(size)
    cut = slice(max(-before, 0), -max(-after, 0) or None)
    if mode == "circular":  # goes round what is left
        kept, cut = kept[cut], slice(None)
    margin = max(before, 0), max(after, 0)
    padded: np.ndarray = np.pad(kept, margin, _MODES[mode])  # type: ignore[call-overload]
    return padded[cut]


def _constant(x: Tensor, around: list[tuple[int, int]], value: Any) -> Tensor:
    array = x.array()
    inside = tuple(
        slice(max(-before, 0), size - max(-after, 0))
        for size, (before, after) in zip(array.shape, around, strict=True)
    )
    kept = array[inside]
    margins = [(max(before, 0), max(after, 0)) for before, after in around]
    target = tuple(
        slice(before, before + size) for size, (before, _) in zip(kept.shape, margins, strict=True)
    )
    shape = tuple(
        before + size + after for size, (before, after) in zip(kept.shape, margins, strict=True)
    )

    def gradient(dy: np.ndarray) -> np.ndarray:
        dx = np.zeros_like(array, dy.dtype)
        dx[inside] = dy[target]
        return dx

    with np.errstate(all="ignore"):
        out = np.full(shape, value, array.dtype)
    out[target] = kept
    return result("pad", out, (x,), gradient)
