"""Maxima and means over windows."""

from fastlayers.runtime.modules import on_use

_MODULES = ("avg_pool", "loops", "max_pool", "windows", "windows_gradient", "windows_mean")
__getattr__, __dir__ = on_use(__name__, _MODULES)
