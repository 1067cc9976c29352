"""Where a tensor lies."""

from __future__ import annotations

from typing import NamedTuple

from qbridge.ir.dtypes import DType
from qbridge.source.storage import File


class StoredTensor(NamedTuple):
    """Where a tensor lies: byte offsets are absolute in its file. A tuple, for a checkpoint may have 100 000.

    `kind` is the type by which its file's container calls it, where that says more than the dtype (blocks of ggml).
    """

    name: str
    file: File
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int
    kind: str = ""
