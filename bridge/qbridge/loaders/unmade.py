"""A tensor of a conversion that is made when its values are asked for, and of which a slice makes its own part alone.

Weight loaders of an engine take a rank's share of a tensor with narrow, chunk or an index, and copy it into a
parameter. Such a tensor notes the slices; the copy reads, converts and writes its region block by block, so that
memory holds the parameter and a block. Every other operation is done with the region as an ordinary tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.utils._pytree import tree_map

from qbridge.commands.streaming import Stream
from qbridge.ir.dtypes import DType
from qbridge.ir.torch_tensors import kind_of
from qbridge.write.regions import Region

_ATEN = torch.ops.aten


class UnmadeTensor(torch.Tensor):  # type: ignore[misc]
    """A region of a tensor of a stream; `dropped` are the dims of size 1 that an index has taken away."""

    stream: Stream
    tensor_name: str
    bounds: Region
    dropped: frozenset[int]

    @staticmethod
    def __new__(
        cls, stream: Stream, name: str, bounds: Region, dropped: frozenset[int] = frozenset()
    ) -> UnmadeTensor:
        """The region by its bounds in the whole tensor."""
        shape = [stop - start for dim, (start, stop) in enumerate(bounds) if dim not in dropped]
        kind = kind_of(DType(stream.shapes[name][0]))
        made: UnmadeTensor = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=kind)
        made.stream, made.tensor_name, made.bounds, made.dropped = stream, name, bounds, dropped
        return made

    @classmethod
    def whole(cls, stream: Stream, name: str) -> UnmadeTensor:
        """A tensor of a stream before any of it is made."""
        return cls(stream, name, tuple((0, size) for size in stream.shapes[name][1]))

    def made(self) -> torch.Tensor:
        """Its values, read and converted now."""
        return self.stream.region(self.tensor_name, self.bounds).reshape(self.shape)

    def within(self, dim: int, start: int, stop: int, drop: bool = False) -> UnmadeTensor:
        """A slice along one of the dims that it has."""
        at = [axis for axis in range(len(self.bounds)) if axis not in self.dropped][dim]
        first = self.bounds[at][0]
        bounds = (*self.bounds[:at], (first + start, first + stop), *self.bounds[at + 1 :])
        return UnmadeTensor(self.stream, self.tensor_name, bounds, self.dropped | ({at} if drop else set()))

    def numpy(self, *, force: bool = False) -> Any:
        """The values as an array."""
        return self.made().numpy(force=force)

    def tolist(self) -> Any:
        """The values as lists of numbers."""
        return self.made().tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"UnmadeTensor({self.tensor_name!r}, {self.bounds})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """A slice is a slice of the region; a copy is made part by part; all else is done with the values."""
        kwargs = kwargs or {}
        if (take := _SLICES.get(func)) and isinstance(args[0], cls):
            taken = take(*args, **kwargs)
            if taken is not None:
                return taken
        if func is _ATEN.copy_.default and isinstance(args[1], cls) and not isinstance(args[0], cls):
            return _copied(*args)
        return func(*tree_map(_values, args), **tree_map(_values, kwargs))


def _values(value: Any) -> Any:
    return value.made() if isinstance(value, UnmadeTensor) else value


def _copied(target: torch.Tensor, source: UnmadeTensor, non_blocking: bool = False) -> torch.Tensor:
    """The target, filled part by part; each part's memory is that of the next one."""
    if target.shape != source.shape:
        return target.copy_(source.made())
    dims = [dim for dim in range(len(source.bounds)) if dim not in source.dropped]
    for where, part in source.stream.parts(source.tensor_name, source.bounds):
        place = tuple(
            slice(where[dim][0] - source.bounds[dim][0], where[dim][1] - source.bounds[dim][0]) for dim in dims
        )
        target[place].copy_(part.reshape(target[place].shape))
    return target


def _sliced(
    tensor: UnmadeTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> UnmadeTensor | None:
    if step != 1:
        return None
    dim %= tensor.dim()
    first, last, _ = slice(start, end).indices(tensor.shape[dim])
    return tensor.within(dim, first, max(first, last))


def _selected(tensor: UnmadeTensor, dim: int, index: int) -> UnmadeTensor:
    dim %= tensor.dim()
    index %= tensor.shape[dim]
    return tensor.within(dim, index, index + 1, drop=True)


def _split(tensor: UnmadeTensor, size: int, dim: int = 0) -> list[UnmadeTensor] | None:
    if size == 0:
        return None
    whole = tensor.shape[dim]
    return [tensor.within(dim % tensor.dim(), at, min(at + size, whole)) for at in range(0, whole, size)]


def _split_by_sizes(tensor: UnmadeTensor, sizes: Sequence[int], dim: int = 0) -> list[UnmadeTensor]:
    ends = list(accumulate(sizes))
    return [tensor.within(dim % tensor.dim(), end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _itself(tensor: UnmadeTensor) -> UnmadeTensor:
    return UnmadeTensor(tensor.stream, tensor.tensor_name, tensor.bounds, tensor.dropped)


_SLICES: Mapping[Any, Callable[..., Any]] = {
    _ATEN.slice.Tensor: _sliced,
    _ATEN.select.int: _selected,
    _ATEN.split.Tensor: _split,
    _ATEN.split_with_sizes.default: _split_by_sizes,
    _ATEN.detach.default: _itself,
    _ATEN.alias.default: _itself,
}
