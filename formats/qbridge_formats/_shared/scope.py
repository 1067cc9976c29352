"""Which modules a quantization block speaks of, and under which names.

A block at the top of config.json speaks of the whole model, under the names on disk. One in the text model's own
config speaks of that submodel alone, mostly under the names that the text model has by itself: Kimi-K2.5's ignores
`lm_head`, which is `language_model.lm_head` on disk, and leaves the vision tower out without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from qbridge.architecture.names import is_head
from qbridge.architecture.quantization_block import is_nested_key
from qbridge.formats.patterns import Matches, matches

_EVERYWHERE = frozenset({"model", "transformer"})  # parts of a text model's own names


@dataclass(frozen=True, slots=True)
class Scope:
    """The submodel of a block, by the first parts of its modules' names; none for the whole model."""

    path: tuple[str, ...] = ()

    @classmethod
    def of(cls, key: str, quantized: Iterable[str]) -> Scope:
        """The scope of a block, by its key path in config.json and the modules that are `quantized`."""
        if not is_nested_key(key):
            return cls()
        heads = Counter(_head(module) for module in quantized)
        path = heads.most_common(1)[0][0] if heads else ()
        named = [place for place, part in enumerate(path) if part not in _EVERYWHERE]
        return cls(path[: named[-1] + 1] if named else ())

    def covers(self, module: str) -> bool:
        """Whether the block speaks of a module."""
        return not self.path or self._rest(module) is not None or ("." not in module and is_head(module))

    def names(self, module: str) -> tuple[str, ...]:
        """The names by which the block may call a module, the one on disk first."""
        rest = self._rest(module) if self.path else None
        if rest is None:
            return (module,)
        shared = [part for part in self.path if part in _EVERYWHERE]
        return tuple(dict.fromkeys((module, ".".join((*shared, rest)), rest)))

    def matches(self, patterns: Iterable[str], modules: Collection[str], whole: bool = False) -> Matches:
        """What `patterns.matches` gives, a module being matched where one of its names is."""
        if not self.path:
            return matches(patterns, modules, whole)
        named = {module: self.names(module) for module in modules}
        found = matches(patterns, dict.fromkeys(name for names in named.values() for name in names), whole)
        by_module = {
            pattern: frozenset(module for module, names in named.items() if not hits.isdisjoint(names))
            for pattern, hits in found.names.items()
        }
        return Matches(by_module, found.faults)

    def _rest(self, module: str) -> str | None:
        """The name below the submodel; None for a module outside of it."""
        parts = module.split(".")
        size = len(self.path)
        return ".".join(parts[size:]) if tuple(parts[:size]) == self.path and len(parts) > size else None


WHOLE_MODEL = Scope()


def _head(module: str) -> tuple[str, ...]:
    """The parts of a name before the word that is counted (`layers`), else before the last one."""
    parts = module.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdecimal()), len(parts))
    return tuple(parts[: max(number - 1, 0)])
