"""The former place of `fastlayers.state`."""

from __future__ import annotations

from fastlayers.state import load, save

__all__ = ["load", "save"]
