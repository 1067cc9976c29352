"""Compiled loops: numba, without the GIL, cached where the user may write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Kernel = Callable[..., Any]


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/qbridge, or .cache/qbridge at home."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "qbridge"


def compiled(function: Kernel) -> Kernel:
    """The function compiled at its first call; compiled anew in every process where no cache can be written."""
    import numba

    given = numba.config.CACHE_DIR
    try:  # the place is chosen while the function is decorated
        numba.config.CACHE_DIR = given or str(cache_folder())
        kernel: Kernel = numba.njit(nogil=True, cache=True)(function)
    except (RuntimeError, OSError):  # an install and a home that are both read-only
        kernel = numba.njit(nogil=True)(function)
    finally:
        numba.config.CACHE_DIR = given
    return kernel
