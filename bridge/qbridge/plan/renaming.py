"""Other beginnings of names (`--rename-prefix`): tensors, layers, lists of the config; and the way back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qbridge.architecture.prefixes import (
    Prefix,
    check_prefixes,
    inverse,
    known_pairs,
    modules_of,
    renamed,
    renamed_lists,
    renamed_names,
)
from qbridge.findings.finding import Findings
from qbridge.findings.way import Way
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.slots import Slot
from qbridge.source.reader import Source


@dataclass(frozen=True, slots=True)
class Renaming:
    """Prefixes that were replaced; `apart` has, by new name, the former names that the pairs alone do not give."""

    pairs: tuple[Prefix, ...] = ()
    apart: Mapping[str, str] = field(default_factory=dict)

    def back(self, name: str) -> str:
        """The name that a tensor or layer had."""
        return self.apart.get(name) or renamed(name, inverse(self.pairs))

    def as_dict(self) -> dict[str, Any]:
        """The renaming as the manifest records it."""
        return {"pairs": [list(pair) for pair in self.pairs], "apart": dict(self.apart)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any] | None) -> Renaming:
        """What a manifest records, nothing if it records nothing; ValueError or TypeError for what makes no sense."""
        if value is None:
            return cls()
        pairs = tuple((str(old), str(new)) for old, new in value["pairs"])
        check_prefixes(pairs)
        return cls(pairs, {str(name): str(former) for name, former in value["apart"].items()})


def rename(source: Source, model: Model, pairs: tuple[Prefix, ...], findings: Findings) -> tuple[Model, Renaming]:
    """The model under other names, of its tensors in `source` too; every problem becomes a finding.

    Findings: QB320 where a prefix begins no name, QB033 where two tensors would get one name.
    """
    wanted = {name: renamed(name, pairs) for name in source.tensors}
    for pair in pairs:
        if not any(renamed(name, (pair,)) != name for name in source.tensors):
            _unmatched(pair, model, source, findings)
    former: dict[str, list[str]] = defaultdict(list)
    for name, new in wanted.items():
        former[new].append(name)
    for new, names in former.items():
        if len(names) > 1:
            findings.add("QB033", names, (f"--rename-prefix would call each of them {new}",))
        elif not new:
            findings.add("QB033", names, ("--rename-prefix would leave nothing of its name",))
    findings.stop_on_errors()
    source.rename({name: new for name, new in wanted.items() if name != new})
    return _renamed_model(model, pairs), Renaming(pairs, _apart(model, pairs))


def _unmatched(pair: Prefix, model: Model, source: Source, findings: Findings) -> None:
    """A prefix that begins no name, and those that do."""
    first = sorted({name.partition(".")[0] for name in source.tensors})
    known = known_pairs(model.config, source.tensors)
    ways = tuple(Way("--rename-prefix", f"{old}={new}") for old, new in known)
    findings.add("QB320", "=".join(pair), (f"names begin with {', '.join(first[:8])}",), ways)


def _renamed_model(model: Model, pairs: tuple[Prefix, ...]) -> Model:
    def name_of(name: str) -> str:
        return renamed(name, pairs)

    modules = modules_of(info.stored for info in model.tensors.values()) | modules_of(
        slot.tensor for slots in model.slots.values() for slot in slots.values()
    )
    return replace(
        model,
        config=renamed_names(model.config, pairs, modules),
        specs={name_of(name): renamed_spec(spec, name_of) for name, spec in model.specs.items()},
        slots={
            name_of(name): {part: _slot(slot, name_of) for part, slot in slots.items()}
            for name, slots in model.slots.items()
        },
        tensors={name_of(name): replace(info, stored=name_of(info.stored)) for name, info in model.tensors.items()},
        block=renamed_lists(model.block, pairs, {name.partition(".")[0] for name in modules}),
    )


def renamed_spec(spec: Spec, name_of: Callable[[str], str]) -> Spec:
    """A spec under another name, and under another one on disk where that differs."""
    dialect = tuple((key, name_of(value) if key == "stored_as" else value) for key, value in spec.dialect)
    return replace(spec, name=name_of(spec.name), dialect=dialect)


def _slot(slot: Slot, name_of: Callable[[str], str]) -> Slot:
    inner = replace(slot.slice, tensor=name_of(slot.slice.tensor)) if slot.slice else None
    return replace(slot, tensor=name_of(slot.tensor), slice=inner)


def _apart(model: Model, pairs: tuple[Prefix, ...]) -> dict[str, str]:
    """By new name, the former names that the inverse of the pairs does not give."""
    names = {*model.specs, *model.tensors, *(info.stored for info in model.tensors.values())}
    names |= {value for spec in model.specs.values() for key, value in spec.dialect if key == "stored_as"}
    back = inverse(pairs)
    return {new: name for name in sorted(names) if renamed(new := renamed(name, pairs), back) != name}
