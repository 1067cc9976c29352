"""What is done for each stretch of an output file, and how it is proved; every job is independent of all others.

A proof reads back what was written and compares it with what was read, by the way back where there is one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from qbridge.codecs.code_moves import Block
from qbridge.codecs.parts import encode_part, parts_inside
from qbridge.findings.finding import error
from qbridge.ir.dtypes import Array, nbytes
from qbridge.ir.slots import Slot
from qbridge.plan.output_files import Shard
from qbridge.plan.plan import OutputTensor, Writer, Writers
from qbridge.plan.windows import EVERYTHING, Window, part_of
from qbridge.source.reader import Source
from qbridge.source.regions import Rectangle
from qbridge.source.storage import File
from qbridge.write.output import Output
from qbridge.write.workspace import Workspace, same_bytes, same_values

_COPY = 32 << 20  # bytes of a copy that are one job
_PIECE = 1 << 20  # bytes of moved words that are written, and read back, at a time: they stay in a core's cache
CODES = 1 << 20  # codes that are decoded at a time: they stay in a core's cache
_COMPARED = 1 << 20  # bytes of a copy that are compared at a time


class Job(Protocol):
    """Writes `size` bytes of an output file."""

    @property
    def size(self) -> int:
        """Bytes that it writes."""

    def run(self, source: Source, out: Output, workspace: Workspace) -> None:
        """Write them."""

    def read(self, source: Source, workspace: Workspace) -> None:
        """Hold in the workspace what `prove` compares with and does not read by itself; `run` does it, too."""

    def prove(self, source: Source, out: Output, workspace: Workspace) -> str:
        """After `run` or `read` in the same workspace: the tensor that is not what it should be, or nothing."""


@dataclass(frozen=True, slots=True)
class Copied:
    """Bytes that are contiguous in a source file and in the output."""

    file: File
    begin: int
    offset: int
    size: int

    def run(self, source: Source, out: Output, workspace: Workspace) -> None:
        """Copy inside the kernel, or through a buffer where the file system cannot."""
        descriptor, written, done = self.file.descriptor, out.descriptor, 0
        if descriptor is not None and written is not None and hasattr(os, "copy_file_range"):
            with contextlib.suppress(OSError):  # other file system, old kernel, network mount: the buffer below
                while done < self.size:
                    count = os.copy_file_range(
                        descriptor, written, self.size - done, self.begin + done, self.offset + done
                    )
                    if count == 0:
                        break
                    done += count
        while done < self.size:
            block = workspace.bytes("copied", min(_COMPARED, self.size - done))
            _read_source(self.file, block, self.begin + done)
            out.write(block.data, self.offset + done)
            done += block.nbytes

    def read(self, source: Source, workspace: Workspace) -> None:
        """Nothing: `prove` reads block by block."""

    def prove(self, source: Source, out: Output, workspace: Workspace) -> str:
        """Byte by byte."""
        for start in range(0, self.size, _COMPARED):
            size = min(_COMPARED, self.size - start)
            was, now = workspace.bytes("copied", size), workspace.bytes("proved", size)
            _read_source(self.file, was, self.begin + start)
            if not (out.read_into(self.offset + start, now) and same_bytes(was, now)):
                return f"{self.file.name} from byte {self.begin + start}"
        return ""


@dataclass(frozen=True, slots=True)
class Moved:
    """A block of a layer's codes, moved into other words; `offset` is where the whole tensor begins."""

    tensor: str
    block: Block
    offset: int

    @property
    def size(self) -> int:
        """Bytes that it writes."""
        return self.block.written.words * self.block.move.write.dtype.itemsize

    def run(self, source: Source, out: Output, workspace: Workspace) -> None:
        """Read, move, write."""
        move, stored = self.block.move, self._stored(workspace)
        self.read(source, workspace)
        for piece in self.block.pieces(_PIECE):
            words = workspace.words("moved", move.write, piece.written)
            self.block.run(stored, words, piece)
            for begin, part in _segments(piece, words):
                out.write(part.data, self.offset + begin)

    def read(self, source: Source, workspace: Workspace) -> None:
        """The words of the source."""
        source.read_rectangle(self.block.move.read.tensor, self.block.source, self._stored(workspace))

    def _stored(self, workspace: Workspace) -> Array:
        return workspace.words("stored", self.block.move.read, self.block.source)

    def prove(self, source: Source, out: Output, workspace: Workspace) -> str:
        """What was written, moved back, is what was read."""
        move, stored = self.block.move, self._stored(workspace)
        for piece in self.block.pieces(_PIECE):
            words = workspace.words("moved", move.write, piece.written)
            there = all(out.read_into(self.offset + begin, part) for begin, part in _segments(piece, words))
            if not there or self.block.differs(stored, words, piece):
                return self.tensor
        return ""


def _segments(piece: Block, words: Array) -> Iterator[tuple[int, Array]]:
    """(offset in the tensor, bytes) of each contiguous stretch of a piece's words."""
    data, done = words.reshape(-1).view(np.uint8), 0
    for offset, length in piece.written.segments(words.itemsize):
        yield offset, data[done : done + length]
        done += length


@dataclass(frozen=True, slots=True)
class Encoded:
    """A window of a part of a layer after its passes, or a whole tensor of the source that lies in no file."""

    tensor: OutputTensor
    layer: Writer | None
    offset: int
    window: Window = EVERYTHING

    @property
    def size(self) -> int:
        """Bytes that it writes."""
        return nbytes(self.tensor.dtype, self._slot(self.window).shape)

    def run(self, source: Source, out: Output, workspace: Workspace) -> None:
        """Decode, apply the passes, encode, write."""
        for span, windows in self._spans():
            if len(windows) == 1:
                stored = np.ascontiguousarray(self.encoded(source, span))
            else:
                stored = self._gathered(workspace, span)
                for window in windows:
                    self._part(stored, span, window)[...] = self.encoded(source, window)
            for begin, part in self._segments(stored, span):
                out.write(part.data, self.offset + begin)

    def read(self, source: Source, workspace: Workspace) -> None:
        """Nothing: `prove` runs the layer again."""

    def prove(self, source: Source, out: Output, workspace: Workspace) -> str:
        """What was written, decoded, is what the layer has after its passes."""
        for span, windows in self._spans():
            stored = self._gathered(workspace, span)
            if not all(out.read_into(self.offset + begin, part) for begin, part in self._segments(stored, span)):
                return self.tensor.name
            for window in windows:
                if not self._holds(source, self._slot(window), self._part(stored, span, window), window):
                    return self.tensor.name
        return ""

    def _spans(self) -> Iterator[tuple[Window, Sequence[Window]]]:
        """(what is written at once, the windows of it that are encoded one by one).

        Windows of codes stay in a core's cache. A window that does not lie in one stretch is not written by itself.
        """
        layer = self.layer if self.tensor.part == "code" else None
        windows = list(layer.windows(CODES, self.window)) if layer else [self.window]
        place = self.rectangle(windows[0])
        if place and place.columns < place.shape[1]:
            yield self.window, windows
        else:
            yield from ((window, [window]) for window in windows)

    def _gathered(self, workspace: Workspace, span: Window) -> Array:
        """Memory for what is stored of a span."""
        slot = self._slot(span)
        return workspace.bytes("encoded", nbytes(slot.dtype, slot.shape)).view(slot.dtype.numpy).reshape(slot.shape)

    def _part(self, stored: Array, span: Window, window: Window) -> Array:
        """What of a span's stored words belongs to a window."""
        whole, own = self.rectangle(span), self.rectangle(window)
        if own is None:
            return stored
        top, left = (own.top - whole.top, own.left - whole.left) if whole else (own.top, own.left)
        return stored[top : top + own.rows, left : left + own.columns]

    def encoded(self, source: Source, window: Window) -> Array:
        """What is stored of a window."""
        if self.layer is None or window == EVERYTHING:
            return encoded_whole(source, self.layer, self.tensor)
        part = self.tensor.part
        with _unfit(self.tensor):
            return encode_part(self.layer.run(source, frozenset({part}), window), part, self._slot(window))

    def rectangle(self, window: Window) -> Rectangle | None:
        """Where a window lies in the written matrix; None if it is all of the tensor."""
        if self.layer is None or window == EVERYTHING:
            return None
        part = self.tensor.part
        return part_of(self.layer.write[part], part, self.layer.after, window)

    def _slot(self, window: Window) -> Slot:
        if self.layer is None:
            return Slot(self.tensor.name, self.tensor.dtype, self.tensor.shape)
        slot, place = self.layer.write[self.tensor.part], self.rectangle(window)
        return replace(slot, shape=(place.rows, place.columns)) if place else slot

    def _segments(self, stored: Array, window: Window) -> Iterator[tuple[int, Array]]:
        """(offset in the tensor, bytes) of each contiguous stretch of what is stored."""
        data, done, place = stored.reshape(-1).view(np.uint8), 0, self.rectangle(window)
        for offset, length in place.segments(stored.itemsize) if place else ((0, data.nbytes),):
            yield offset, data[done : done + length]
            done += length

    def _holds(self, source: Source, slot: Slot, stored: Array, window: Window) -> bool:
        if self.layer is None:
            return same_values(stored, source.read(self.tensor.origin))
        part = self.tensor.part
        layer = self.layer.run(source, frozenset({part}), window)
        if slot.codec.fixed or slot.codec.rounds or part not in layer.arrays:
            return same_values(stored, encode_part(layer, part, slot))
        inside = parts_inside(self.layer.write, part)
        codecs = {part: slot.codec, **{other: self.layer.write[other].codec for other in inside}}
        try:
            return all(
                same_values(codec.decode(stored, *layer.spec.parts()[own], layer.arrays), layer.arrays[own])
                for own, codec in codecs.items()
            )
        except ValueError:
            return False


def jobs_of(source: Source, plan: Writers, shard: Shard, limit: int) -> Iterator[Job]:
    """The jobs of a shard in the order of the file; codes in blocks of at most `limit` bytes."""
    run: Copied | None = None
    for tensor, offset in _pieces_of(shard):
        if tensor.origin and tensor.origin not in source.memory:
            stored = source.tensors[tensor.origin]
            length = stored.end - stored.begin
            ends = (run.begin + run.size, run.offset + run.size) if run else None
            if run and run.file == stored.file and ends == (stored.begin, offset):
                run = Copied(run.file, run.begin, run.offset, run.size + length)
                continue
            yield from _pieces(run)
            run = Copied(stored.file, stored.begin, offset, length)
            continue
        yield from _pieces(run)
        run = None
        layer = plan.layer_of(tensor)
        move = layer.code_move() if layer and tensor.part == "code" and not tensor.origin else None
        if move:
            yield from (Moved(tensor.name, block, offset) for block in move.blocks(limit))
        elif layer and tensor.part == "code" and not tensor.origin:
            codes = limit * 8 // max(layer.before.weight.bits, layer.after.weight.bits)
            yield from (Encoded(tensor, layer, offset, window) for window in layer.windows(codes))
        else:
            yield Encoded(tensor, None if tensor.origin else layer, offset)
    yield from _pieces(run)


def _pieces_of(shard: Shard) -> Iterator[tuple[OutputTensor, int]]:
    """(tensor or slice of one, where it begins in the file), in the order of the file."""
    for tensor, offset in zip(shard.tensors, shard.offsets, strict=True):
        begin = offset
        for piece in tensor.slices or (tensor,):
            yield piece, begin
            begin += nbytes(piece.dtype, piece.shape)


def _pieces(run: Copied | None) -> Iterator[Copied]:
    if run is not None:
        for start in range(0, run.size, _COPY):
            yield Copied(run.file, run.begin + start, run.offset + start, min(_COPY, run.size - start))


def encoded_whole(source: Source, layer: Writer | None, tensor: OutputTensor) -> Array:
    """The stored array of an output tensor without slices; QBridgeError (QB304) for a value that does not fit."""
    if layer is None or tensor.origin:
        return source.read(tensor.origin)
    with _unfit(tensor):
        return layer.encoded(source, tensor.part)


@contextlib.contextmanager
def _unfit(tensor: OutputTensor) -> Iterator[None]:
    try:
        yield
    except ValueError as fault:  # a checkpoint edited after the conversion that its manifest records
        raise error("QB304", tensor.layer, (str(fault),)) from fault


def _read_source(file: File, buffer: Array, offset: int) -> None:
    if not file.read_into(offset, buffer):
        raise error("QB004", file.name, ("the file ended while it was copied",))
