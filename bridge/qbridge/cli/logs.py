"""What is shown of the library's loggers, all of them below `qbridge`: waits for servers always, the rest by -v."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from qbridge.findings.hints import printable

_LOGGER = logging.getLogger("qbridge")
_SERVERS = logging.getLogger("qbridge.source.web")  # what is asked of whom, and how much is read
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)  # of no -v, -v, -vv

_TIMED = "%(relativeCreated)6d ms %(levelname)s %(name)s: %(message)s"


class _Printable(logging.Formatter):
    """Records in lines, in which a name from a file moves no cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


@contextmanager
def shown_logs(verbose: int, quiet: bool = False) -> Iterator[None]:
    """Show records on stderr: from `info` on where `verbose` is 1, from `debug` on where it is more."""
    if quiet and not verbose:
        yield
        return
    logger, level = (_LOGGER, _LEVELS[min(verbose, 2)]) if verbose else (_SERVERS, logging.INFO)
    handler, before = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(_Printable(_TIMED if verbose else "%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
