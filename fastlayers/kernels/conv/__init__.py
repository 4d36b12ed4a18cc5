"""Convolutions, a file for an algorithm."""

from fastlayers.runtime.modules import on_use

_MODULES = (
    "depthwise",
    "direct",
    "direct_weight",
    "grouped_tile",
    "padded",
    "panels",
    "planar",
    "pooled",
    "pooled_tile",
    "slabs",
    "unfold",
    "winograd",
)
__getattr__, __dir__ = on_use(__name__, _MODULES)
