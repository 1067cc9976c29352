"""Where a tensor lies."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from qbridge.ir.dtypes import DType


class StoredTensor(NamedTuple):
    """Where a tensor lies: byte offsets are absolute in its file. A tuple, for a checkpoint may have 100 000."""

    name: str
    file: Path
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int
