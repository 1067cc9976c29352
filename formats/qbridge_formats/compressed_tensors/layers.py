"""Which modules of a compressed-tensors checkpoint are quantized, and how: config groups against headers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod

from qbridge.architecture.names import is_embedding, is_router
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.source.reader import Source
from qbridge.source.stored import StoredTensor
from qbridge_formats._shared.modules import ModuleTensors
from qbridge_formats._shared.scope import Scope
from qbridge_formats._shared.siblings import Siblings, family, names_elsewhere
from qbridge_formats._shared.stacked_experts import Modules, modules_of
from qbridge_formats.compressed_tensors import floats as _ct_floats
from qbridge_formats.compressed_tensors.config import Group, Matcher, Parsed
from qbridge_formats.compressed_tensors.reader import Reader

INFERRED = "inferred"
_CODES_OF: Mapping[str, tuple[DType, ...]] = {
    "int": (DType.I8, DType.I32),
    "e4m3fn": (DType.F8_E4M3,),
    "e2m1": (DType.U8,),
}
_CODES = frozenset(dtype for dtypes in _CODES_OF.values() for dtype in dtypes)
_PARTS = frozenset(
    {"weight_packed", "weight_scale", "weight_global_scale", "weight_zero_point", "weight_shape", "weight_g_idx"}
    | {"input_scale", "input_global_scale", "input_zero_point"}
)
ASSUMED = ActivationScheme(8, Granularity.TOKEN, dynamic=True)


@dataclass(frozen=True, slots=True)
class Found:
    """The layers that can be read, and the modules about which there is a finding instead."""

    specs: list[Spec] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)


def listed_layers(source: Source, block: Parsed, findings: Findings) -> Found | None:
    """The layers that the block's groups claim; whatever config and tensors disagree on is a finding.

    None with findings (QB013) if a target or an ignore entry is no regular expression.
    """
    every = modules_of(source)
    modules, reader, found = _matrices(source, every), Reader(source, block.raw, every), Found()
    _refuse_stacks(every, found, findings)
    coded = [module for module, own in modules.items() if _is_quantized(own)]
    scope = Scope.of(block.key, coded)
    matcher = Matcher(block, modules, scope)
    for pattern, fault in matcher.faults.items():
        findings.add("QB013", f"{block.key}: {pattern!r}", (f"not a regular expression: {fault}",))
    if matcher.faults:
        return None
    quantized = _Quantized(block, matcher, {module: modules[module] for module in coded}, reader)
    for module in coded:
        group = quantized.group(module, findings)
        if group is not None:
            _add(found, reader, module, modules[module], group, findings)
        else:
            found.refused.add(module)
    plain = [module for module in modules if module not in quantized.modules and scope.covers(module)]
    found.refused.update(_lost(source, block, plain, matcher, coded, findings))
    return found


def inferred_layers(source: Source, findings: Findings) -> Found:
    """The layers that the tensors show where config.json has no block.

    Static activations show, by their scales. Their absence may mean dynamic ones or none, so that is assumed only
    with `--allow assumed-activations` (QB021).
    """
    every = modules_of(source)
    reader, found = Reader(source, {}, every), Found()
    _refuse_stacks(every, found, findings)
    for module, own in _matrices(source, every).items():
        if not _is_quantized(own):
            continue
        try:
            group = _inferred(own)
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            found.refused.add(module)
            continue
        _add(found, reader, module, own, group, findings)
        if group.activation is ASSUMED and module not in found.refused:
            findings.add("QB021", module, (f"no tensor shows its activation scheme; {ASSUMED} would be assumed",))
    return found


def _refuse_stacks(every: Modules, found: Found, findings: Findings) -> None:
    """A finding for each block of stacked experts that does not fit together."""
    for module, fault in every.faults.items():
        findings.add("QB016", module, (fault,))
        found.refused.add(module)


def _matrices(source: Source, every: Modules) -> dict[str, ModuleTensors]:
    """Modules that own a weight matrix, packed or not, in the order of these, with all their tensors."""
    matrices = dict[str, ModuleTensors]()
    for name, tensor in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight_packed" or (leaf == "weight" and len(tensor.shape) == 2):
            matrices[module] = every.tensors[module]
    return matrices | {module: every.tensors[module] for module in every.dialects}


def _is_quantized(own: ModuleTensors) -> bool:
    return not _PARTS.isdisjoint(own) or own["weight"].dtype in _CODES


class _Quantized:
    """The modules whose tensors are codes, each with the group that it is of, whatever the lists say."""

    def __init__(self, block: Parsed, matcher: Matcher, modules: Mapping[str, ModuleTensors], reader: Reader) -> None:
        """No module is matched before it is asked for."""
        self.modules = modules
        self._matcher, self._reader = matcher, reader
        self._groups = [group for group in block.groups if group.weight is not None]
        self._of_family: dict[str, dict[str, Group]] = {}

    def group(self, module: str, findings: Findings) -> Group | None:
        """The group of a module; None with a finding where several are possible, or none is."""
        group = self._matcher.group(module)
        if group is None or group.weight is None:
            group = self._fitting(module)
            if group is None:
                findings.add("QB013", module, ("its weight is quantized and no config group targets it",))
                return None
            findings.add("QB019", module, (f"no config group targets it: it is read as {group.name} says",))
            return group
        rivals = {rival.name for rival in self._matcher.rivals(module)}
        if len(rivals) > 1:
            findings.add("QB014", module, (f"targets of groups {' and '.join(sorted(rivals))} match it alike",))
            return None
        if self._matcher.ignored(module):
            findings.add("QB019", module, ("the ignore list has it",))
        return group

    def _fitting(self, module: str) -> Group | None:
        """The one group that a module can be of which no target names: its siblings' first, then any."""
        own = self.modules[module]
        if not self._of_family:
            for other in self.modules:
                group = self._matcher.group(other)
                if group is not None and group.weight is not None:
                    self._of_family.setdefault(family(other), {})[group.name] = group
        for groups in ([*self._of_family.get(family(module), {}).values()], self._groups):
            fitting = [group for group in groups if self._fits(module, own, group)]
            if fitting:
                return fitting[0] if len(fitting) == 1 else None
        return None

    def _fits(self, module: str, own: ModuleTensors, group: Group) -> bool:
        """Whether the codes, the scales and the scales of inputs are those that the group's scheme has."""
        scale, code = own.get("weight_scale"), own.get("weight_packed") or own["weight"]
        if scale is None or code.dtype not in _CODES_OF.get(group.weight.type if group.weight else "", ()):
            return False
        try:
            spec = self._reader.spec(module, own, group)
        except ValueError:
            return False
        static = {"input_scale", "input_global_scale"} & own.keys()
        return _elements(scale) == prod(spec.scale_shape) and bool(static) == (spec.input_scale_dtype is not None)


def _lost(
    source: Source, block: Parsed, plain: list[str], matcher: Matcher, coded: list[str], findings: Findings
) -> list[str]:
    """The modules of float weights that must have lost their codes: a target names them, or their siblings have some.

    Any other that a target takes for quantized is not (QB042).
    """
    doubted, others = dict[str, str](), []
    claimed = [module for module in plain if _takes_in(module, matcher)]
    siblings = Siblings((*plain, *coded) if claimed else (), coded if claimed else (), source.config)
    for module in claimed:
        sibling = siblings.of(module)
        if matcher.names(module):
            doubted[module] = "a target is its name"
        elif sibling is not None:
            doubted[module] = f"{sibling} is quantized"
        else:
            others.append(module)
    elsewhere = _ignored_elsewhere(block, doubted)
    others += elsewhere
    lost = {module: fact for module, fact in doubted.items() if module not in elsewhere}
    for module, fact in lost.items():
        weight = source.tensors[f"{module}.weight"]
        findings.add("QB015", module, (f"its weight is {weight.dtype} without any scale, and {fact}",))
    if others:
        findings.add("QB042", others)
    return list(lost)


def _takes_in(module: str, matcher: Matcher) -> bool:
    """Whether a target takes a module for quantized, and no entry of ignore has it."""
    group = matcher.group(module)
    if group is None or group.weight is None or matcher.ignored(module):
        return False
    # transformers 5 has routers and embeddings as classes of their own, which the target Linear does not mean
    return matcher.named(module) is not None or not (is_router(module) or is_embedding(module))


def _ignored_elsewhere(block: Parsed, modules: Collection[str]) -> set[str]:
    """The modules that the ignore list has under the names of another release of transformers."""
    names = {module: names_elsewhere(module) for module in modules}
    every = dict.fromkeys(name for others in names.values() for name in others)
    if not every:
        return set()
    matcher = Matcher(block, every)
    return {module for module, others in names.items() if any(matcher.ignored(name) for name in others)}


def _inferred(own: ModuleTensors) -> Group:
    """The scheme that a module's own tensors show."""
    weight, scale = own.get("weight"), own.get("weight_scale")
    granularity, size = Granularity.CHANNEL, None
    if scale is not None and weight is not None:
        columns = scale.shape[1] if len(scale.shape) == 2 else 1
        if _elements(scale) == 1 < weight.shape[0]:
            granularity = Granularity.TENSOR
        elif columns > 1:
            granularity, size = Granularity.GROUP, -(-weight.shape[1] // columns)
    scheme = WeightScheme(8, granularity, "weight_zero_point" not in own, group_size=size)
    symmetric = "input_zero_point" not in own
    activation = ActivationScheme(8, Granularity.TENSOR, False, symmetric) if "input_scale" in own else ASSUMED
    return Group(INFERRED, (), scheme, activation, None, False)


def _elements(tensor: StoredTensor) -> int:
    return (tensor.end - tensor.begin) // tensor.dtype.itemsize


def _add(found: Found, reader: Reader, module: str, own: ModuleTensors, group: Group, findings: Findings) -> None:
    """The module's spec to the found ones, or a finding and the module to the refused ones."""
    not_read = _not_read(own, group, reader.version)
    if not_read:
        findings.add("QB101", module, (not_read,))
        found.refused.add(module)
        return
    weight = own.get("weight")
    if weight and weight.dtype.is_float and "weight_scale" in own:
        fact = f"weight is {weight.dtype} beside a weight_scale: saved before it was compressed"
        findings.add("QB016", f"{module}.weight", (fact,), ("save it again with save_compressed=True",))
        found.refused.add(module)
        return
    try:
        found.specs.append(reader.spec(module, own, group))
    except ValueError as fault:
        findings.add("QB013", module, (str(fault),))
        found.refused.add(module)


def _not_read(own: ModuleTensors, group: Group, version: str) -> str | None:
    """Why a sound layer is not read here, in the format's own names; None if it is."""
    packed = own.get("weight_packed")
    if packed is not None and group.name == INFERRED:
        return "packed weights without a quantization block, which alone has their bits"
    if group.name == INFERRED and own["weight"].dtype in (DType.F8_E4M3, DType.F8_E5M2):
        return f"{own['weight'].dtype} weights without a quantization block, which alone has their activations"
    zero = own.get("weight_zero_point")
    if zero is not None and zero.dtype.is_float and not (packed is None and own["weight"].dtype.is_float):
        return f"zero-points are {zero.dtype}, floats of the scales' shape, which need not be whole numbers"
    return _ct_floats.not_read(group, own.get("weight_scale"), version)
