"""Dropout, and the random numbers that it draws."""

from fastlayers.runtime.modules import on_use

_MODULES = ("dropout", "philox")
_STAND_INS = {"dropout": "fastlayers.reference.kernels.dropout"}
__getattr__, __dir__ = on_use(__name__, _MODULES, stand_ins=_STAND_INS)
