"""What -v shows: the records of the library's loggers, all of them below `qbridge`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from qbridge.findings.hints import printable

_LOGGER = logging.getLogger("qbridge")
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)  # of no -v, -v, -vv


class _Printable(logging.Formatter):
    """Records in lines, in which a name from a file moves no cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


@contextmanager
def shown_logs(verbose: int) -> Iterator[None]:
    """Show records on stderr: from `info` on where `verbose` is 1, from `debug` on where it is more."""
    if not verbose:
        yield
        return
    handler, before = logging.StreamHandler(sys.stderr), _LOGGER.level
    handler.setFormatter(_Printable("%(relativeCreated)6d ms %(levelname)s %(name)s: %(message)s"))
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(_LEVELS[min(verbose, 2)])
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(before)
