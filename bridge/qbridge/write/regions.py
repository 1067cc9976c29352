"""An output tensor, or a region of it, in memory instead of in a file.

Of the source about as much is read as a region needs, where its layout allows it: ranges of rows and columns of what
is copied, ranges of output or of input features of codes that are moved from words to words, and ranges of output
features of what is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from qbridge.codecs.code_moves import Block, CodeMove
from qbridge.ir.dtypes import Array
from qbridge.plan.plan import OutputTensor, Plan, Writer
from qbridge.plan.windows import EVERYTHING
from qbridge.source.reader import Source
from qbridge.source.regions import Rectangle
from qbridge.write.jobs import CODES, Encoded, encoded_whole
from qbridge.write.workspace import Workspace

Region = tuple[tuple[int, int], ...]  # of each dim, the first index and the one behind the last
_OTHERS = 16  # times as many codes are in a window of a part that is not codes: there are fewer scales
Part = tuple[Region, Array]  # where in the whole tensor it lies, and what is stored there


def encoded(source: Source, plan: Plan, tensor: OutputTensor, limit: int, region: Region) -> Array:
    """The stored array of a region of an output tensor; errors as `parts`."""
    out = np.empty(_shape(region), tensor.dtype.numpy)
    for bounds, array in parts(source, plan, tensor, limit, region):
        if bounds == region:
            return array.reshape(out.shape)
        out[_inside(bounds, region)] = array
    return out


def parts(source: Source, plan: Plan, tensor: OutputTensor, limit: int, region: Region) -> Iterator[Part]:
    """A region of an output tensor in parts, each valid until the next is asked for.

    Parts have at most `limit` bytes where the layouts allow it. ValueError for a region that the tensor does not
    have, QBridgeError (QB304) for a value that its slot cannot hold.
    """
    bounds = zip(region, tensor.shape, strict=False)
    if len(region) != len(tensor.shape) or any(not 0 <= first <= last <= size for (first, last), size in bounds):
        raise ValueError(f"{tensor.name} has shape {list(tensor.shape)}, and no region {list(region)}")
    if 0 in _shape(region):
        return iter(())
    if tensor.slices:
        return _of_slices(source, plan, tensor, limit, region)
    layer = plan.layer_of(tensor)
    if layer is None or tensor.origin:
        return _of_copy(source, tensor, limit, region)
    move = layer.code_move() if tensor.part == "code" and len(region) == 2 else None
    return _moved(source, move, limit, region) if move else _decoded(source, layer, tensor, region)


def _shape(region: Region) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in region)


def _inside(bounds: Region, region: Region) -> tuple[slice, ...]:
    """Where in a region something lies."""
    return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in zip(bounds, region, strict=True))


def _cut(whole: Array, tensor: OutputTensor, region: Region) -> Iterator[Part]:
    """A region of a tensor that is there as a whole."""
    yield region, whole.reshape(tensor.shape)[tuple(slice(*bounds) for bounds in region)]


def _of_slices(source: Source, plan: Plan, tensor: OutputTensor, limit: int, region: Region) -> Iterator[Part]:
    """A region of a stack; only the slices in it are made."""
    (first, last), *rest = region
    for index in range(first, last):
        piece, at = tensor.slices[index], (index, index + 1)
        if piece.shape == tensor.shape[1:]:
            for bounds, array in parts(source, plan, piece, limit, tuple(rest)):
                yield (at, *bounds), array[None]
            continue
        every = tuple((0, size) for size in piece.shape)
        whole = encoded(source, plan, piece, limit, every).reshape(tensor.shape[1:])
        yield (at, *rest), whole[tuple(slice(*bounds) for bounds in rest)][None]


def _of_copy(source: Source, tensor: OutputTensor, limit: int, region: Region) -> Iterator[Part]:
    """A region of a tensor whose bytes do not change: whole rows, or columns of a matrix."""
    whole_rows = _shape(region)[1:] == tensor.shape[1:]
    if tensor.origin in source.memory or not tensor.shape or not (whole_rows or len(region) == 2):
        yield from _cut(source.read(tensor.origin), tensor, region)
        return
    (first, last), *rest = region
    width, columns = math.prod(tensor.shape[1:]), math.prod(_shape(tuple(rest)))
    step = max(1, limit // (columns * tensor.dtype.itemsize))
    for top in range(first, last, step):
        bottom = min(top + step, last)
        array = np.empty((bottom - top, *_shape(tuple(rest))), tensor.dtype.numpy)
        if whole_rows:  # one stretch
            rectangle = Rectangle((1, tensor.shape[0] * width), 0, top * width, 1, array.size)
        else:
            rectangle = Rectangle((tensor.shape[0], width), top, rest[0][0], bottom - top, columns)
        source.read_rectangle(tensor.origin, rectangle, array.reshape(rectangle.rows, rectangle.columns))
        yield ((top, bottom), *rest), array


def _moved(source: Source, move: CodeMove, limit: int, region: Region) -> Iterator[Part]:
    """The words of a region, moved from words."""
    workspace = Workspace()
    for block in _blocks(move, region, limit):
        stored = workspace.words("stored", move.read, block.source)
        words = workspace.words("moved", move.write, block.written)
        source.read_rectangle(move.read.tensor, block.source, stored)
        block.run(stored, words)
        yield _common(words, block.written, region)


def _blocks(move: CodeMove, region: Region, limit: int) -> Iterator[Block]:
    """Blocks that cover a region, along the axis on which they cover little else."""
    axes = [[block for block in move.units(axis) if _overlaps(block.written, region)] for axis in (0, 1)]
    if not all(axes):
        return
    axis = min((0, 1), key=lambda axis: len(axes[axis]) * move.step(axis) / move.target_dims[axis])
    start, end = axes[axis][0].start, axes[axis][-1].end
    size = max(slot.dtype.itemsize * math.prod(slot.shape) for slot in (move.read, move.write))
    step = move.step(axis)
    share = max(step, move.target_dims[axis] * limit // max(1, size) // step * step)
    for begin in range(start, end, share):
        yield Block(move, axis, begin, min(begin + share, end))


def _decoded(source: Source, layer: Writer, tensor: OutputTensor, region: Region) -> Iterator[Part]:
    """A region that is decoded window by window; as a whole where windows of this part are no rectangles."""
    job = Encoded(tensor, layer, 0)
    is_part = len(region) == 2 and (tensor.part == "code" or _shape(region) != tensor.shape)
    limit = CODES if tensor.part == "code" else _OTHERS * CODES
    windows = list(layer.windows(limit)) if is_part else [EVERYTHING]
    rectangles = [job.rectangle(window) for window in windows]
    if None in rectangles:
        yield from _cut(encoded_whole(source, layer, tensor), tensor, region)
        return
    for window, rectangle in zip(windows, rectangles, strict=True):
        if rectangle is not None and _overlaps(rectangle, region):
            yield _common(job.encoded(source, window), rectangle, region)


def _overlaps(rectangle: Rectangle, region: Region) -> bool:
    (top, bottom), (left, right) = region
    rows = max(top, rectangle.top) < min(bottom, rectangle.top + rectangle.rows)
    return rows and max(left, rectangle.left) < min(right, rectangle.left + rectangle.columns)


def _common(words: Array, rectangle: Rectangle, region: Region) -> Part:
    """What a rectangle of words has of a region."""
    (top, bottom), (left, right) = region
    rows = max(top, rectangle.top), min(bottom, rectangle.top + rectangle.rows)
    columns = max(left, rectangle.left), min(right, rectangle.left + rectangle.columns)
    within = _inside((rows, columns), ((rectangle.top, 0), (rectangle.left, 0)))
    return (rows, columns), words.reshape(rectangle.rows, rectangle.columns)[within]
