"""The public names of `fastlayers.data`, where PyTorch has them."""

from typing import Any

import fastlayers.data
from fastlayers.data import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return getattr(fastlayers.data, name)
