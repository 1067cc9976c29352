"""Compiled loops: numba, without the GIL, cached where the user may write."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

Kernel = Callable[..., Any]

_TRIED = ("0.68.",)  # releases of numba

_LOCK = threading.Lock()
_kernels: dict[str, Kernel] = {}
_listeners: list[Callable[[], object]] = []


@contextlib.contextmanager
def announced(listener: Callable[[], object]) -> Iterator[None]:
    """Within this, call `listener` before the first kernel that no cache holds is compiled, which takes seconds."""
    _listeners.append(listener)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # it has been called
            _listeners.remove(listener)


def _announce() -> None:
    while _listeners:
        with contextlib.suppress(IndexError):  # another thread was first
            _listeners.pop()()


def cache_folder() -> Path | None:
    """Where compiled kernels are kept, if anywhere: $NUMBA_CACHE_DIR, $XDG_CACHE_HOME/qbridge, ~/.cache/qbridge."""
    import numba

    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR)
    given, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    if os.path.isabs(given):  # the specification says to ignore any other
        return Path(given) / "qbridge"
    return Path(home) / ".cache" / "qbridge" if os.path.isabs(home) else None


def compiled(function: Kernel) -> Kernel:
    """The function compiled at its first call; compiled anew in every process where no cache can be written.

    The same function over the same constants is the same kernel, whichever thread asks for it.
    """
    with _LOCK:  # the place of a cache is numba's global setting
        identity = _identity(function)
        if identity not in _kernels:
            _kernels[identity] = _compiled(function, identity)
        return _kernels[identity]


def _compiled(function: Kernel, identity: str) -> Kernel:
    import numba

    kernel: Kernel = numba.njit(nogil=True)(function)
    folder = cache_folder()
    if folder is None:
        _announce()
        return kernel
    own, given = folder / identity, numba.config.CACHE_DIR
    try:  # the place is chosen when the cache is made
        numba.config.CACHE_DIR = str(own)
        found = _cautious()(function)
    except (RuntimeError, OSError):  # an install and a home that are both read-only
        _announce()
        return kernel
    finally:
        numba.config.CACHE_DIR = given
    if Path(found.cache_path).is_relative_to(own):  # not in a place that kernels share
        kernel._cache = found  # type: ignore[attr-defined]
    return kernel


def _identity(function: Kernel) -> str:
    """The digest that tells one function over one set of constants on one kind of processor from every other.

    numba numbers the kernels of a function in one index: of two processes that compile two of them at once, or of
    one that is killed, it may hand out the code of one kernel for the other.
    """
    from numba.core.registry import cpu_target

    constants = [repr(cell.cell_contents) for cell in function.__closure__ or ()]
    text = [inspect.getsource(inspect.getmodule(function) or function), function.__qualname__, constants]
    processor = cpu_target.target_context.codegen().magic_tuple()
    return hashlib.sha256(repr((*text, processor)).encode()).hexdigest()[:24]


@cache
def _cautious() -> Any:
    """numba's cache, which a full or damaged disk costs time and nothing else.

    Before it loads machine code, numba imports all that compiling may need, half a second of it. What is loaded needs
    the run-time system alone; so it is in the releases that this was tried with.
    """
    import numba
    from numba.core.caching import FunctionCache
    from numba.core.runtime import rtsys

    quick = numba.__version__.startswith(_TRIED)

    class Cautious(FunctionCache):  # type: ignore[misc]
        def load_overload(self, sig: Any, target_context: Any) -> Any:
            try:
                if quick:
                    rtsys.initialize(target_context)
                    found = self._load_overload(sig, target_context)
                else:
                    found = super().load_overload(sig, target_context)
            except Exception:  # pickle raises whatever the bytes say
                with contextlib.suppress(OSError):
                    self.flush()
                found = None
            if found is not None and tuple(found.signature.args) == tuple(sig):
                return found
            _announce()
            return None

        def save_overload(self, sig: Any, data: Any) -> None:
            with contextlib.suppress(Exception):
                super().save_overload(sig, data)

    return Cautious
