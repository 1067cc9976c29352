"""Whether a folder is the output of a conversion already, seen without its values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from qbridge.plan.output_files import Shard, index_of
from qbridge.source.reader import Source
from qbridge.source.weight_files import INDEX
from qbridge.write.writer import Document, text_of


def is_finished(
    dst: Path, source: Source, shards: Sequence[Shard], documents: Mapping[str, Document], sides: Sequence[Path]
) -> bool:
    """Whether `dst` has the very headers, documents and sizes that a conversion writes, later than its source.

    The values of tensors are not read: who wants to know more compares them (`verify`).
    """
    texts = {name: text_of(value) for name, value in documents.items()}
    if len(shards) > 1:
        texts[INDEX] = text_of(index_of(shards))
    wanted = {shard.name: shard.size for shard in shards} | {str(file): 0 for file in sides}
    try:
        there = {str(file.relative_to(dst)) for file in dst.rglob("*") if file.is_file()}
        sizes = all((dst / file).stat().st_size == (source.path / file).stat().st_size for file in sides)
        return (
            there == texts.keys() | wanted.keys()
            and sizes
            and all((dst / name).read_bytes() == text.encode() for name, text in texts.items())
            and all(_is_shard(dst / shard.name, shard) for shard in shards)
            and _latest(source.shards) <= os.stat(dst / next(iter(documents))).st_mtime_ns
        )
    except OSError:
        return False


def _is_shard(file: Path, shard: Shard) -> bool:
    if shard.file is not None:  # linked to the source's
        return os.path.samefile(file, shard.file) or _same_beginning(file, shard.file)
    with open(file, "rb") as stream:
        return file.stat().st_size == shard.size and stream.read(len(shard.header)) == shard.header


def _latest(files: Sequence[Path]) -> int:
    """When the last of some files was changed, in ns."""
    return max((os.stat(file).st_mtime_ns for file in files), default=0)


def _same_beginning(file: Path, other: Path) -> bool:
    """Whether two shards have the same size and header."""
    with open(file, "rb") as one, open(other, "rb") as two:
        length = 8 + int.from_bytes(one.read(8), "little")
        one.seek(0)
        return file.stat().st_size == other.stat().st_size and one.read(length) == two.read(length)
