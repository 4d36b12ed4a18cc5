"""Messages to the user; no call fails because a message can't be shown.

``sys.stderr`` may be missing, closed, on a full disk, or a user's logger, which may raise anything.
"""

from __future__ import annotations

import contextlib
import sys
import warnings

__all__ = ["tell", "warn"]


def tell(text: str) -> None:
    """Write lines to stderr in one call, above tqdm's bars rather than through them."""
    with contextlib.suppress(Exception):
        if sys.stderr is None:  # which means stdout to `tqdm.write`
            return
        if bars := sys.modules.get("tqdm"):
            bars.tqdm.write(text, file=sys.stderr)
        else:
            sys.stderr.write(f"{text}\n")  # in one call, or another process could write in between
            sys.stderr.flush()


def warn(text: str, stacklevel: int = 1) -> None:
    """Issue a RuntimeWarning, which raises only if a filter turns it into an error.

    `stacklevel` is 1 for the line that calls this function.
    """
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=stacklevel + 1)
    except RuntimeWarning:
        raise
    except Exception:  # from showing it
        return
