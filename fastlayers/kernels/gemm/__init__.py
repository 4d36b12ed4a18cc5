"""Matrix products: the register tile, and the GEMM of such tiles."""

from fastlayers.runtime.modules import on_use

_MODULES = ("gemm", "operands", "tile")
__getattr__, __dir__ = on_use(__name__, _MODULES)
