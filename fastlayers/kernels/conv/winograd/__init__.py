"""Winograd's convolutions: products of transformed tiles and rows."""

from fastlayers.runtime.modules import on_use

_MODULES = ("filters", "forward", "matrices", "rows", "rows_tiles", "tiles", "transform", "weight")
__getattr__, __dir__ = on_use(__name__, _MODULES)
