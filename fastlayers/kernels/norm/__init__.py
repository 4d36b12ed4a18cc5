"""Normalisation over the channels."""

from fastlayers.runtime.modules import on_use

_MODULES = ("batchnorm", "matrix", "pooled", "rows", "window_loops", "windows")
__getattr__, __dir__ = on_use(__name__, _MODULES)
