"""Where files for a far place grow until they are sent: a temporary folder of this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qbridge.findings.finding import error
from qbridge.findings.hints import size
from qbridge.findings.way import Way

SHARD = 5 * 10**9  # bytes of data of an output file that is sent, unless another size is asked for


@contextmanager
def spool_folder(name: str) -> Iterator[Path]:
    """A folder below TMPDIR that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"qbridge-{name}-") as folder:
        yield Path(folder)


def spool_room(largest: int) -> int:
    """How many files of at most so many bytes fit; QBridgeError (QB402) where not one does."""
    there = tempfile.gettempdir()
    free = shutil.disk_usage(there).free
    if largest > free:
        fact = f"the largest output file has {size(largest)}, and {size(free)} are free below {there}"
        ways = (Way("--max-shard-size", f"{max(1, free // 2 // 10**6)}MB"),)
        raise error("QB402", there, (fact,), ways, "Name a folder with more room in TMPDIR.")
    return max(1, free // max(largest, 1))
