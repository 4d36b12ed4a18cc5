"""What the library tells its user by the way; no call fails because nobody can be told.

``sys.stderr`` may be missing, closed, a full disk, or a user's logger, which may raise anything.
"""

from __future__ import annotations

import contextlib
import sys
import warnings

__all__ = ["tell", "warn"]


def tell(text: str) -> None:
    """Write lines to stderr at once, between the bars of tqdm rather than through them."""
    with contextlib.suppress(Exception):
        if sys.stderr is None:  # which means stdout to `tqdm.write`
            return
        if bars := sys.modules.get("tqdm"):
            bars.tqdm.write(text, file=sys.stderr)
        else:
            sys.stderr.write(f"{text}\n")  # in one call, or another process could come between
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
