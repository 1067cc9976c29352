"""Writing a checkpoint: shards planned to the byte, streamed into a temporary sibling, renamed once at the end.

Tensors lie by dtype, widest first, then by name, as the safetensors library lays them, so that every one is
aligned and runs of copied tensors stay contiguous. Headers carry only {"format": "pt"}.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbridge.dtypes import Array, nbytes
from qbridge.findings import error
from qbridge.plan import OutputTensor
from qbridge.source import INDEX, SINGLE, Source

BLOCK = 8 << 20
_AHEAD = 96 << 20  # bytes of encoded tensors that may wait to be written
_DIRTY = 192 << 20  # bytes written before the disk is asked to take them
LOCK = ".qbridge.lock"

Document = str | Mapping[str, Any]
Encode = Callable[[OutputTensor], Array]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One output file; `offsets` are absolute positions of its tensors' data."""

    name: str
    header: bytes
    tensors: Sequence[OutputTensor]
    offsets: Sequence[int]

    @property
    def data_size(self) -> int:
        """Bytes of its tensors."""
        return sum(nbytes(tensor.dtype, tensor.shape) for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self.data_size


def plan_shards(outputs: Sequence[OutputTensor], max_size: int | None = None) -> list[Shard]:
    """The output files: at the source's shard boundaries, or filled in order up to `max_size` bytes of data."""
    order = sorted(outputs, key=lambda t: (t.shard, t.layer or t.name, t.name))
    groups: list[list[OutputTensor]] = []
    filled, last = 0, None
    for tensor in order:
        size = nbytes(tensor.dtype, tensor.shape)
        new = tensor.shard != last if max_size is None else bool(groups) and filled + size > max_size
        if new or not groups:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled, last = filled + size, tensor.shard
    many = len(groups)
    names = [SINGLE] if many == 1 else [f"model-{i + 1:05}-of-{many:05}.safetensors" for i in range(many)]
    return [_shard(name, group) for name, group in zip(names, groups, strict=True)]


def _shard(name: str, group: Sequence[OutputTensor]) -> Shard:
    tensors = sorted(group, key=lambda t: (-t.dtype.itemsize, str(t.dtype), t.name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position, begins = 0, []
    for tensor in tensors:
        begins.append(position)
        end = position + nbytes(tensor.dtype, tensor.shape)
        entries[tensor.name] = {
            "dtype": str(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return Shard(name, header, tensors, [len(header) + begin for begin in begins])


def index_of(shards: Sequence[Shard]) -> dict[str, Any]:
    """model.safetensors.index.json with the total size of all tensors."""
    tensors = sorted((t.name, shard.name) for shard in shards for t in shard.tensors)
    total = sum(nbytes(t.dtype, t.shape) for shard in shards for t in shard.tensors)
    return {"metadata": {"total_size": total}, "weight_map": dict(tensors)}


def write_document(path: Path, value: Document) -> None:
    """A text as it is, anything else as indented JSON with a final newline, flushed to the disk."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        stream.write(value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def staged(dst: Path, src: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `dst` that becomes `dst` when the block ends well and vanishes otherwise."""
    check_destination(dst, src, overwrite)
    made = [folder for folder in dst.parents if not folder.exists()]
    temporary = dst.parent / f".{dst.name}.qbridge-part"
    lock = None
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(temporary)
        yield temporary
        (temporary / LOCK).unlink()
        _fsync_folder(temporary)
        _put(temporary, dst)
    except BaseException:
        if lock is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # innermost first, as far as they are empty
            for folder in made:
                folder.rmdir()
        raise
    finally:
        if lock is not None:
            os.close(lock)


def check_destination(dst: Path, src: Path, overwrite: bool) -> None:
    """QBridgeError (QB031) if writing `dst` would touch the source or anything that was not offered."""
    here, there = dst.resolve(), src.resolve()
    if here == there or here.is_relative_to(there) or there.is_relative_to(here):
        raise error("QB031", str(dst), ("SRC and DST lie in each other",))
    if not (dst.exists() or dst.is_symlink()):
        return
    if not overwrite:
        raise error("QB031", str(dst), ("it exists",), ("--overwrite",))
    if dst.is_symlink():
        raise error("QB031", str(dst), ("it is a link; name the folder that it leads to",))
    if not dst.is_dir() or (any(dst.iterdir()) and not (dst / "config.json").is_file()):
        raise error("QB031", str(dst), ("it is no checkpoint, so --overwrite does not remove it",))


def _locked(temporary: Path) -> int:
    """Make the temporary folder ours: a stale one is emptied, one that is being written is refused.

    Only a real folder that is empty or has our lock file is ours to empty.
    """
    if temporary.is_symlink() or (temporary.exists() and not temporary.is_dir()):
        raise error("QB031", str(temporary), ("it is no folder of qbridge",))
    temporary.mkdir(exist_ok=True)
    if any(temporary.iterdir()) and not (temporary / LOCK).is_file():
        raise error("QB031", str(temporary), ("it holds files and no lock of qbridge",), ("remove it yourself",))
    lock = os.open(temporary / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise error("QB031", str(temporary), ("another qbridge is writing it",)) from None
    for entry in temporary.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return lock


def _put(temporary: Path, dst: Path) -> None:
    """The one moment at which DST appears; an old DST is moved aside first and removed last."""
    aside = dst.parent / f".{dst.name}.qbridge-old"
    if dst.exists():
        if aside.exists():
            shutil.rmtree(aside)
        dst.rename(aside)
    try:
        temporary.rename(dst)
    except OSError:
        if aside.exists():
            aside.rename(dst)
        raise
    _fsync_folder(dst.parent)
    if aside.exists():
        shutil.rmtree(aside)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checkpoint(
    folder: Path,
    source: Source,
    shards: Sequence[Shard],
    encode: Encode,
    documents: Mapping[str, Document],
    sides: Sequence[Path],
    progress: Progress,
) -> None:
    """Shards, index, side files (relative paths) and `documents` into `folder`, each flushed to the disk."""
    with ThreadPoolExecutor(1, "qbridge-encode") as encoding, ThreadPoolExecutor(1, "qbridge-sync") as flushing:
        flushed: list[Future[None]] = []
        for shard in shards:
            out = os.open(folder / shard.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            work = _ahead(_runs(source, shard), encode, encoding)
            try:
                _write_shard(out, source, shard, _flushing(work, out, flushing, flushed), progress)
            except BaseException:
                os.close(out)
                raise
            flushed.append(flushing.submit(_flush, out))
        for flush in flushed:
            flush.result()
    if len(shards) > 1:
        write_document(folder / INDEX, index_of(shards))
    for relative in sides:
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        with open(source.path / relative, "rb") as read, open(folder / relative, "wb") as write:
            shutil.copyfileobj(read, write, BLOCK)
            write.flush()
            os.fsync(write.fileno())
    for name, value in documents.items():
        write_document(folder / name, value)


def _write_shard(out: int, source: Source, shard: Shard, work: Iterator[_Work], progress: Progress) -> None:
    _write_all(out, shard.header, 0)
    for run in work:
        if isinstance(run, _Run):
            _copy(source.descriptor(run.file), out, run, progress)
        else:
            offset, encoded = run
            data = encoded.result()
            _write_all(out, data.reshape(-1).view("u1").data, offset)
            progress(data.nbytes)


def _flushing(
    work: Iterator[_Work], out: int, flushing: ThreadPoolExecutor, flushed: list[Future[None]]
) -> Iterator[_Work]:
    """The same work; every so often what is written goes to the disk meanwhile, so that the end need not wait."""
    begun = 0
    for run in work:
        position = run.offset if isinstance(run, _Run) else run[0]
        if position - begun > _DIRTY and (not flushed or flushed[-1].done()):
            begun = position
            flushed.append(flushing.submit(os.fdatasync, out))
        yield run


def _flush(out: int) -> None:
    """Wait until a finished shard is on the disk."""
    try:
        os.fsync(out)
    finally:
        os.close(out)


def _ahead(
    runs: Iterator[_Run | tuple[OutputTensor, int]], encode: Encode, encoding: ThreadPoolExecutor
) -> Iterator[_Work]:
    """The runs in their order, tensors as futures that are encoded while what comes before them is written."""
    waiting: deque[tuple[int, _Work]] = deque()
    held = 0
    for run in runs:
        if isinstance(run, _Run):
            waiting.append((0, run))
        else:
            tensor, offset = run
            size = nbytes(tensor.dtype, tensor.shape)
            while waiting and held + size > _AHEAD:
                freed, ready = waiting.popleft()
                held -= freed
                yield ready
            held += size
            waiting.append((size, (offset, encoding.submit(encode, tensor))))
    while waiting:
        yield waiting.popleft()[1]


@dataclass(slots=True)
class _Run:
    """Bytes that are contiguous in a source file and in the output."""

    file: Path
    begin: int
    offset: int
    length: int


_Work = _Run | tuple[int, Future[Array]]


def _runs(source: Source, shard: Shard) -> Iterator[_Run | tuple[OutputTensor, int]]:
    run: _Run | None = None
    for tensor, offset in zip(shard.tensors, shard.offsets, strict=True):
        if not tensor.origin or tensor.origin in source.memory:
            yield from [run] if run else []
            run = None
            yield tensor, offset
            continue
        stored = source.tensors[tensor.origin]
        length = stored.end - stored.begin
        if run and run.file == stored.file and run.begin + run.length == stored.begin:
            run.length += length
            continue
        yield from [run] if run else []
        run = _Run(stored.file, stored.begin, offset, length)
    if run:
        yield run


def _copy(descriptor: int, out: int, run: _Run, progress: Progress) -> None:
    """Copy a run inside the kernel, or through a buffer where the file system cannot."""
    done = 0
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError):  # other file system, old kernel, network mount: the buffer below
            while done < run.length:
                size = min(BLOCK * 8, run.length - done)
                count = os.copy_file_range(descriptor, out, size, run.begin + done, run.offset + done)
                if count == 0:
                    break
                done += count
                progress(count)
    buffer = memoryview(bytearray(min(BLOCK, run.length - done)))
    while done < run.length:
        count = os.preadv(descriptor, [buffer[: run.length - done]], run.begin + done)
        if count == 0:
            raise error("QB004", run.file.name, ("the file ended while it was copied",))
        _write_all(out, buffer[:count], run.offset + done)
        done += count
        progress(count)


def _write_all(out: int, data: bytes | memoryview, offset: int) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(out, view[done:], offset + done)
