"""The tensors of a checkpoint by module, and specs that modules with like tensors share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping

from qbridge.ir.layer import Kind, Spec
from qbridge.source.reader import Source
from qbridge.source.stored import StoredTensor

ModuleTensors = Mapping[str, StoredTensor]  # the tensors of a module by the last part of their names


def tensors_of_modules(source: Source) -> dict[str, ModuleTensors]:
    """Every module with its tensors, in the order of the first of these."""
    modules: defaultdict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for name, tensor in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        modules[module][leaf] = tensor
    return dict(modules)


def headers(tensors: ModuleTensors) -> Hashable:
    """All that modules with like tensors have in common: names, dtypes, shapes."""
    return tuple([(leaf, tensor.dtype, tensor.shape) for leaf, tensor in tensors.items()])


class SpecsByKind:
    """Specs that are worked out once for all modules that are alike."""

    def __init__(self) -> None:
        """None yet."""
        self._kinds: dict[Hashable, Kind] = {}

    def spec(self, name: str, alike: Hashable, find: Callable[[], Spec]) -> Spec:
        """The spec of a module; `find` gives it, unless one was found for the same `alike`."""
        if alike not in self._kinds:
            self._kinds[alike] = find().kind
        return Spec(name, *self._kinds[alike])
