"""Which tensor of a checkpoint was written to which elements of which parameter, whatever loader did it.

Loaded by path in an engine's own Python, like proving.py beside it; needs torch. A dispatch mode sees every operator
that runs: it follows the tensors of the checkpoint through views, casts and concatenations, and marks the bytes of
parameters that are written from them. A copy from another tensor, which the loader made up (a bias of zeros for a
projection that has none), counts as a write and is noted; an initialisation in place (zero_, fill_) marks nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WRITTEN_BY_INDEX = ("index_put_", "index_copy_", "masked_scatter_", "masked_fill_", "index_fill_")


class WeightTrace(TorchDispatchMode):  # type: ignore[misc]
    """Follows tensors of a checkpoint into the parameters and buffers of a model while it is active."""

    def __init__(self, model: Any) -> None:
        """Watch the parameters and buffers that a model has now."""
        super().__init__()
        self.model = model
        self.given: set[str] = set()  # tensors that the engine was given
        self.last: str | None = None  # the one of them that it was given last
        self.complete = False  # whether the engine has asked for all of them
        self.taken: set[str] = set()  # tensors that were written somewhere in the model
        self.supplied: set[str] = set()  # parameters that the loader copied tensors of its own into
        self.zeros: set[str] = set()  # biases and zero-points that hold nothing but zeros
        self.origins: dict[str, set[str]] = {}
        self._names: dict[int, list[str]] = {}
        self._masks: dict[int, Any] = {}
        self._storages: dict[int, Any] = {}  # holds what is followed, so that no address is used twice
        self._sources: dict[int, frozenset[str]] = {}
        self._scalar: frozenset[str] = frozenset()
        for name, tensor in self._named(model):
            self._register(name, tensor)

    def _named(self, model: Any) -> Iterator[tuple[str, Any]]:
        yield from model.named_parameters(remove_duplicate=False)
        yield from model.named_buffers(remove_duplicate=False)

    def _register(self, name: str, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._names.setdefault(key, []).append(name)
        self._storages[key] = storage
        if key not in self._masks:
            self._masks[key] = torch.zeros(max(storage.nbytes(), 1), dtype=torch.bool)

    def follow(self, weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """The same names and tensors, each noted as a tensor of the checkpoint."""
        for name, tensor in weights:
            self.begin(name, tensor)
            yield name, tensor
        self.complete = True

    def begin(self, name: str, tensor: Any) -> None:
        """Note a tensor of the checkpoint that the engine is about to be given."""
        self.given.add(name)
        self.last = name
        if name.endswith((".bias", "_zero_point")) and not tensor.any():
            self.zeros.add(name)
        self._taint(tensor, frozenset([name]))

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Stop following; an error of the loader learns which tensor was given to it last."""
        super().__exit__(kind, error, traceback)
        if error is not None:
            error.tensor_given_last = self.last

    def _taint(self, tensor: Any, sources: frozenset[str]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._masks and sources:
            self._storages[key] = storage
            self._sources[key] = self._sources.get(key, frozenset()) | sources

    def _sources_of(self, values: Any) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                found |= self._sources.get(value.untyped_storage()._cdata, frozenset())
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = self._sources_of((args, kwargs))
        result = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if name in ("_local_scalar_dense", "item"):  # the latter in inference mode
            self._scalar = sources
        written = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, torch.Tensor)
        ]
        for value in written:
            # a loader may fill a single number with tensor.item()
            origin = sources or (self._scalar if name == "fill_" else frozenset())
            self._write(name, value, args, origin)
        if not written and sources:
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    self._taint(value, sources)
        return result

    def _write(self, name: str, target: Any, args: Any, sources: frozenset[str]) -> None:
        key = target.untyped_storage()._cdata
        if not sources and (name != "copy_" or key not in self._masks):
            return
        if not sources:
            self.supplied.update(self._names[key])
        if key not in self._masks:
            self._taint(target, sources)
            return
        self.taken |= sources
        for parameter in self._names[key]:
            self.origins.setdefault(parameter, set()).update(sources)
        mask = _bytes_of(self._masks[key], target)
        if name == "index_put_":
            mask[tuple(slice(None) if index is None else index.cpu() for index in args[1])] = True
        elif name == "index_copy_":
            mask.index_fill_(args[1], args[2].cpu(), True)
        elif name == "masked_scatter_":
            mask[args[1].expand(target.shape).cpu()] = True
        elif name not in WRITTEN_BY_INDEX:
            mask.fill_(True)

    def finish(self) -> tuple[list[str], list[dict[str, str]]]:
        """(parameters that nothing was written to, [{parameter, empty}] of those written in part)."""
        missing, unfilled = [], []
        for name, parameter in self.model.named_parameters():
            storage = parameter.untyped_storage()
            key = storage._cdata
            if parameter.numel() == 0:
                continue
            if key not in self._masks or name not in self._names[key]:
                # the loader put another tensor in the place of the first one
                sources = self._sources.get(key, frozenset())
                self.taken |= sources
                if sources:
                    self.origins.setdefault(name, set()).update(sources)
                else:
                    missing.append(name)
                continue
            mask = _bytes_of(self._masks[key], parameter).all(-1)
            if not mask.any():
                missing.append(name)
            elif not mask.all():
                unfilled.append({"parameter": name, "empty": empty_slices(mask)})
        return missing, unfilled


def _bytes_of(mask: Any, tensor: Any) -> Any:
    """The bytes of a tensor's elements in the mask of its storage: bool, the tensor's shape and one axis more."""
    size = tensor.element_size()
    shape = (*tensor.shape, size)
    strides = (*(stride * size for stride in tensor.stride()), 1)
    return torch.as_strided(mask, shape, strides, tensor.storage_offset() * size)


def empty_slices(mask: Any) -> str:
    """Which part of a partly filled parameter is empty: "[3, 16:32]" is rows 16 to 31 of expert 3."""
    if mask.dim() < 2:
        return f"[{_ranges(mask)}]"
    rows = mask.flatten(1).all(1)
    if mask.dim() > 2:
        first = int((~rows).nonzero()[0])
        inner = empty_slices(mask[first]).strip("[]")
        return f"[{_ranges(rows)}; {first}: {inner}]" if int((~rows).sum()) > 1 else f"[{first}, {inner}]"
    columns = mask[~rows].all(0)
    if columns.any():
        return f"[{_ranges(rows)}; columns {_ranges(columns)}]"
    return f"[{_ranges(rows)}]"


def _ranges(filled: Any) -> str:
    numbers = (~filled).nonzero().flatten().tolist()
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1][1] += 1
        else:
            spans.append([number, number + 1])
    return ", ".join(str(first) if end == first + 1 else f"{first}:{end}" for first, end in spans)
