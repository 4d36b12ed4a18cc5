"""What kernels are written in: vectors, runs and loops as LLVM IR."""

from fastlayers.runtime.modules import on_use

_MODULES = ("lanes", "named", "runs", "shared", "vectors")
__getattr__, __dir__ = on_use(__name__, _MODULES)
