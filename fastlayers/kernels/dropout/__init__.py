"""Dropout, and the random numbers that it draws."""

from fastlayers.runtime.modules import on_use

_MODULES = ("dropout", "philox")
__getattr__, __dir__ = on_use(__name__, _MODULES)
