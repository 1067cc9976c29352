"""Specs, slots, passes and the like as JSON: a table in which each object stands once, after those that it names.

Read back, the table gives tuples, mappings and objects of a few classes of the house, a codec's or a pass's among
them, whoever brought that; nothing is imported or called by a name that stands in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np

from qbridge.findings.finding import Finding, Severity
from qbridge.findings.way import Way
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.ir.slots import Codec, Slice, Slot
from qbridge.passes import Pass
from qbridge.plan.plan import LayerPlan, OutputTensor
from qbridge.source.storage import File

_PLAIN = (type(None), bool, int, float, str)
_CLASSES = (Spec, WeightScheme, ActivationScheme, Slot, Slice, LayerPlan, OutputTensor, Finding, Way)
_ENUMS = (DType, Granularity, Severity)
_TUPLE, _MAP, _SET, _FILE = "tuple", "map", "set", "file"


@dataclass(slots=True)
class Table:
    """Objects as they are written: `entries` is JSON; files of sources are named by their number in `files`."""

    files: Mapping[File, int]
    entries: list[list[Any]] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)
    _seen: dict[int, tuple[object, list[int]]] = field(default_factory=dict)
    _classes: Mapping[str, type[Any]] = field(default_factory=lambda: _known())

    def add(self, value: Any) -> Any:
        """What stands for a value: itself where JSON has it, or [number of its entry]; TypeError."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, np.integer):
            return int(value)
        if id(value) not in self._seen:
            kind, parts = self._apart(value)
            entry = [kind, *map(self.add, parts)]
            number = self._numbers.setdefault(repr(entry), len(self.entries))
            if number == len(self.entries):
                self.entries.append(entry)
            self._seen[id(value)] = value, [number]
        return self._seen[id(value)][1]

    def _apart(self, value: Any) -> tuple[str, Sequence[Any]]:
        """The kind of an entry, and what it is made of."""
        if isinstance(value, File):
            return _FILE, (self.files[value],)
        if isinstance(value, Enum):
            return _name(type(value)), (value.value,)
        if is_dataclass(value) and _name(type(value)) in self._classes:
            return _name(type(value)), [getattr(value, each.name) for each in fields(value)]
        if isinstance(value, tuple | list):
            return _TUPLE, value
        if isinstance(value, frozenset | set):
            return _SET, sorted(value)
        if isinstance(value, Mapping):
            return _MAP, [each for pair in value.items() for each in pair]
        raise TypeError(f"{type(value).__name__} has no JSON")


class Objects:
    """The objects of a table that was read."""

    def __init__(self, entries: Sequence[Sequence[Any]], files: Sequence[File]) -> None:
        """LookupError, TypeError or ValueError for what no table has."""
        self._objects: list[Any] = []
        known = _known()
        for kind, *parts in entries:
            self._objects.append(self._object(str(kind), [self[part] for part in parts], known, files))

    def __getitem__(self, part: Any) -> Any:
        """What stands for a value in a table, as that value."""
        return self._objects[part[0]] if isinstance(part, list) else part

    @staticmethod
    def _object(kind: str, parts: list[Any], known: Mapping[str, type[Any]], files: Sequence[File]) -> Any:
        if kind == _FILE:
            return files[parts[0]]
        if kind == _TUPLE:
            return tuple(parts)
        if kind == _SET:
            return frozenset(parts)
        if kind == _MAP:
            return dict(zip(parts[::2], parts[1::2], strict=True))
        return known[kind](*parts)


def _name(kind: type[Any]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _known() -> dict[str, type[Any]]:
    """The classes of which a table has objects: those above, every codec and every pass that is loaded."""
    return {_name(kind): kind for kind in (*_CLASSES, *_ENUMS, *_below(Codec), *_below(Pass))}


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)
