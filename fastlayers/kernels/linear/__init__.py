"""Linear maps."""

from fastlayers.runtime.modules import on_use

_MODULES = ("blocks", "dots", "products", "ranks", "small", "tile")
__getattr__, __dir__ = on_use(__name__, _MODULES)
