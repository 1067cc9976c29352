"""AutoRound's own checkpoints: GPTQ's or AWQ's tensors under one config, whose packing_format says which.

packing_format            tensors of                       zero-points                  written for
auto_round:auto_gptq      GPTQ, without g_idx              version 1 (minus 1)          symmetric weights
auto_round:gptqmodel      GPTQ                             version 2 (as they are)      on the way back
auto_round                GPTQ, without g_idx              version 2                    anything else
auto_round:auto_awq       AWQ in its GEMM layout           as they are                  4 bits, some asymmetric

Linears that were float8 with a scale per block before may stay so (`float8_blocks`); such a mixture is read alone,
and so are checkpoints of which all linears are so (auto_round:fp8).
Codes of 3, 5, 6 and 7 bits are a stream across words, for AWQ with every eight in its order. Which modules are
quantized is decided by the tensors: AutoRound lists some in extra_config that it has left alone. Sources: auto-round
0.16.1, export/export_to_autoround, export/export_to_awq/utils.py and inference/convert_model.py; vllm 0.32.0,
model_executor/layers/quantization/inc.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_head, module_of
from qbridge.architecture.quantization_block import NO_BLOCK, Block, find_block, without_quantization
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.assumed import Assumed
from qbridge.formats.common_rules import (
    first_of,
    multiples,
    no_blocks,
    no_kv_scales,
    scales_per_row,
    stored_scales,
    weights_only,
    widths,
    zeros_fit,
)
from qbridge.formats.patterns import Matches, matches
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme
from qbridge.ir.slots import Slot
from qbridge.source.reader import Source
from qbridge_formats._shared import awq_linear as _awq_layers
from qbridge_formats._shared import float8_blocks as _float8
from qbridge_formats._shared import gptq_linear as _gptq_layers
from qbridge_formats._shared.assumed_integers import assumed_linear, require
from qbridge_formats._shared.gptq_linear import Scheme, Zeros, modules_of, zero_biases
from qbridge_formats._shared.gptq_lists import within_layer
from qbridge_formats._shared.scope import Scope
from qbridge_formats._shared.skip_lists import PLAIN
from qbridge_formats._shared.stacked_experts import as_stored, under_name_of_class
from qbridge_formats._shared.unquantized import Unquantized, whole_experts, with_fused

NAME = "auto-round"
SUMMARY = "AutoRound's own format: 2 to 8 bits in GPTQ's or AWQ's tensors"
ALIASES: tuple[str, ...] = ()

GPTQ, GPTQMODEL, RAW, AWQ = "auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round", "auto_round:auto_awq"
FLOAT8 = "auto_round:fp8"
_ZEROS = {GPTQ: Zeros("v1"), GPTQMODEL: Zeros("v2"), RAW: Zeros("v2")}
CONFIG_FILES = ("quantization_config.json",)
_METHODS = (NAME, f"intel/{NAME}")
_UNQUANTIZED = 16


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json, and modules with a qweight."""
    method = (find_block(source.config) or NO_BLOCK).method
    if method not in _METHODS:
        return f"quant_method is {method!r}"
    if packed := modules_of(source):
        return Match(2, f"quant_method is {method!r} and {len(packed)} modules have a qweight")
    coded = _float8.float8_modules(source)
    return Match(2, f"quant_method is {method!r} and {len(coded)} modules are float8") if coded else "no qweight"


def read(source: Source, findings: Findings) -> Model:
    """Every module with a qweight is a layer, of the scheme that the config gives it."""
    found_block = find_block(source.config) or NO_BLOCK
    key_path, block = found_block.key, found_block.raw
    packing = _packing_format(block)
    _check_block(found_block, findings)
    if findings.errors:
        return assemble(NAME, source, {}, {}, Findings())
    found: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    refused: set[str] = set()
    modules = modules_of(source)
    empty, architecture = zero_biases(source, modules), Architecture.of(source.config)
    scope = Scope.of(key_path, modules)
    stored = {*modules, *(module_of(name)[0] for name in source.tensors)}
    matched = _matched(stored, block, modules, scope)
    for module in modules:
        try:
            scheme, skipped = _scheme(block, scope.names(module), matched)
            if skipped:
                findings.add("QB019", module, ("extra_config leaves it unquantized, and it has a qweight",))
            spec = _spec(source, module, scheme, packing, module in empty, findings)
            spec = under_name_of_class(spec, modules, architecture)
            found[spec.name] = (spec, layout(spec))
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            refused.add(module)
    for module, own in _float8.float8_modules(source).items():
        try:
            spec = _float8.read_spec(module, own, _inputs(block, scope.names(module), module, findings))
            found[module] = (spec, layout(spec))
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            refused.add(module)
    config = without_quantization(source.config)
    return assemble(NAME, source, config, found, findings, refused=refused)


def _check_block(found_block: Block, findings: Findings) -> None:
    """Findings for a block that says too little (QB013), another packing or data type (QB101), or more (QB102)."""
    key_path, block, packing = found_block.key, found_block.raw, _packing_format(found_block.raw)
    if packing == FLOAT8:
        _check_float8(found_block, findings)
        return
    for key, kind in (("bits", int), ("group_size", int), ("sym", bool)):
        if type(block.get(key)) is not kind:
            findings.add("QB013", f"{key_path}.{key}", (f"it is {block.get(key)!r}",))
    if packing not in (*_ZEROS, AWQ) or block.get("data_type", "int") != "int":
        findings.add("QB101", key_path, (f"AutoRound {packing!r}, {block.get('data_type', 'int')}",))
    if block.get("rotation_config"):
        findings.add("QB102", f"{key_path}.rotation_config")


def _check_float8(found_block: Block, findings: Findings) -> None:
    """QB101 for float8 of another kind than e4m3 with a scale per block and dynamic inputs."""
    block = found_block.raw
    read = {"bits": 8, "group_size": [128, 128], "act_bits": 8, "act_dynamic": True}
    assumed = {"fmt": "e4m3", "sym": True, "activation_scheme": "dynamic"}
    others = {key: block.get(key) for key, value in read.items() if block.get(key) != value}
    others |= {key: block[key] for key, value in assumed.items() if block.get(key, value) != value}
    if others:
        facts = ", ".join(f"{key} {value!r}" for key, value in others.items())
        findings.add("QB101", found_block.key, (f"AutoRound {FLOAT8!r}, {facts}",))


def assumed(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Assumed] | None:
    """From config.json alone: the linears of the blocks that it names, by the model's scheme and extra_config.

    ValueError for a block that `read` refuses, for floats in extra_config, whose scales only tensors show, and for a
    head in it: AutoRound 0.16.1 names one that it has left unquantized.
    """
    found_block, findings = find_block(config) or NO_BLOCK, Findings()
    block = found_block.raw
    if found_block.method not in _METHODS:
        return None
    _check_block(found_block, findings)
    require(block, findings)
    if _packing_format(block) == FLOAT8:
        raise ValueError("which linears are float8 only tensors show")
    if any(_is_float(entry) for entry in _extra(block).values()):
        raise ValueError("extra_config has linears of floats")
    if any(is_head(key) and not _skips(entry) for key, entry in _extra(block).items()):
        raise ValueError("extra_config has the head, which the tool names where it is not quantized, too")
    scope = Scope.of(found_block.key, names)
    matched = _matched(names, block, names, scope)
    schemes = {name: _scheme(block, scope.names(name), matched) for name in _in_blocks(block, names)}
    dialect = (("packing_format", _packing_format(block)),)
    return {
        name: assumed_linear(scheme, dialect=dialect) for name, (scheme, skipped) in schemes.items() if not skipped
    }


def _is_float(entry: Any) -> bool:
    return isinstance(entry, dict) and not _skips(entry) and str(entry.get("data_type", "int")) != "int"


def _in_blocks(block: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The linears in block_name_to_quantize, a list or names with commas; all where none is there by that name."""
    listed = block.get("block_name_to_quantize")
    blocks = listed.split(",") if isinstance(listed, str) else listed if isinstance(listed, list) else []
    starts = tuple(f"{entry}.".replace(" ", "") for entry in blocks)
    return [name for name in names if name.startswith(starts)] or list(names)


def _inputs(
    block: Mapping[str, Any], names: tuple[str, ...], module: str, findings: Findings
) -> ActivationScheme | None:
    """How the inputs of a float8 linear are quantized, as extra_config says; assumed (QB021) where it does not."""
    own = next((entry for name in names if isinstance(entry := _extra(block).get(name), dict)), {})
    if _packing_format(block) == FLOAT8:
        own = {**block, **own}
    if own.get("act_bits") == _UNQUANTIZED:
        return None
    if own.get("act_bits") != 8 or own.get("act_dynamic", True) is not True:
        fact = f"extra_config does not say it of a float8 linear; {_float8.DYNAMIC} would be assumed"
        findings.add("QB021", module, (fact,))
    return _float8.DYNAMIC


def _packing_format(block: Mapping[str, Any]) -> str:
    """The packing that a config means; before 0.5 the key `backend` named it.

    Sources: auto-round 0.3 and 0.4.2, export/export_to_autoround/export.py (what each backend packed); 0.16.1,
    inference/convert_model.py (other spellings, and auto_gptq where nothing is named, as transformers and vLLM do).
    """
    named, backend = str(block.get("packing_format", "auto")), str(block.get("backend", "auto"))
    if named != "auto":
        return {"auto_round:gptq": GPTQ, "auto_round:awq": AWQ}.get(named, named)
    if str(block.get("data_type")) in ("fp", "fp8") and isinstance(block.get("group_size"), list):
        return FLOAT8
    if "gptqmodel" in backend:
        return GPTQMODEL
    if "awq" in backend:
        return AWQ
    return GPTQ if "gptq" in backend or backend == "auto" else RAW


def _spec(source: Source, module: str, scheme: Scheme, packing: str, empty_bias: bool, findings: Findings) -> Spec:
    if packing == AWQ:
        version = _awq_layers.GEMM if scheme.bits == 4 else _awq_layers.ORDERED
        spec = _awq_layers.read_spec(source, module, version, scheme.bits, scheme.group_size)
    else:
        spec = _gptq_layers.read_spec(source, module, scheme, _ZEROS[packing], empty_bias, findings)
    return replace(spec, dialect=tuple(sorted((*spec.dialect, ("packing_format", packing)))))


def _extra(block: Mapping[str, Any]) -> Mapping[str, Any]:
    extra = block.get("extra_config")
    return extra if isinstance(extra, dict) else {}


def _matched(stored: Iterable[str], block: Mapping[str, Any], modules: Sequence[str], scope: Scope) -> Matches:
    """What the keys of extra_config match that are no names themselves; AutoRound lists every module that differs."""
    known = {name for module in stored for name in scope.names(module)}
    return scope.matches((key for key in _extra(block) if key not in known), modules, whole=True)


def _scheme(block: Mapping[str, Any], names: tuple[str, ...], matched: Matches) -> tuple[Scheme, bool]:
    """(the scheme of a module with a qweight, whether extra_config leaves it unquantized all the same).

    The model's scheme with what extra_config says: by one of the module's names, a regex, or the name's end.
    """
    extra, module = _extra(block), names[0]
    key = next((name for name in names if name in extra), None)
    if key is None and matched.faults:
        raise ValueError(f"extra_config: {next(iter(matched.faults.values()))}")
    key = key or next((key for key in extra if module in matched.of(key)), None)
    key = key or next((key for key in extra if module.endswith(f".{key}")), None)
    own = extra.get(key) if key else {}
    keys = {**block, **(own if isinstance(own, dict) else {})}
    skipped = keys["bits"] == _UNQUANTIZED
    if skipped:
        keys, own = {**block}, {}
    if (type(keys["bits"]), type(keys["group_size"]), type(keys["sym"])) != (int, int, bool):
        raise ValueError(f"extra_config says {own!r}")
    return Scheme(keys["bits"], keys["group_size"], keys["sym"]), skipped


def _layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the packing format that is settled, else of the one for such a layer alone."""
    if spec.weight.type == "e4m3fn":
        return _float8.layout(spec)
    packing = dict(spec.dialect).get("packing_format") or _packing([spec])
    return _awq_layers.layout(spec) if packing == AWQ else _gptq_layers.layout(spec)


layout = as_stored(_layout)


def _packing(specs: list[Spec]) -> str:
    """The packing format that AutoRound itself takes for such layers."""
    if all(spec.weight.symmetric and spec.weight.bits in (2, 3, 4, 8) and not spec.g_idx for spec in specs):
        return GPTQ
    whole = all(spec.weight.bits == 4 and spec.in_features % (spec.weight.group_size or 1) == 0 for spec in specs)
    return AWQ if whole else RAW


def settle(model: Model) -> Model:
    """One packing format and one version of zero-points for the model."""
    specs = [spec for spec in model.specs.values() if spec.weight.type == "int"]
    kept = {dict(spec.dialect).get("packing_format") for spec in specs}
    packing = str(kept.pop()) if len(kept) == 1 and None not in kept else _packing(specs)
    added = {"packing_format": packing}
    if packing != AWQ:
        added |= {"zeros": _ZEROS[packing].version, **({} if packing == GPTQMODEL else {"g_idx": "absent"})}
    return replace(
        model,
        specs={
            name: replace(spec, dialect=tuple(sorted({**added, **dict(spec.dialect)}.items())))
            if spec.weight.type == "int"
            else spec
            for name, spec in model.specs.items()
        },
    )


def config(model: Model) -> dict[str, Any]:
    """The commonest scheme for the model, extra_config for what differs and for what is not quantized."""
    schemes_of = {name: _scheme_of(spec) for name, spec in model.specs.items()}
    schemes = Counter(schemes_of.values())
    base = schemes.most_common(1)[0][0]
    extra = _left_alone(model)
    apart = {name: scheme for name, scheme in schemes_of.items() if scheme != base or name == "lm_head"}
    for name, scheme in apart.items():
        extra[name] = _words(scheme)
    for scheme in set(apart.values()):  # engines build the experts of a block as one
        others = [name for name, other in schemes_of.items() if other != scheme]
        whole = whole_experts([name for name, other in apart.items() if other == scheme], others)
        extra |= {block: _words(scheme) for block in whole}
    first = next(iter(model.specs.values()))
    blocks = dict.fromkeys(layers for layers, _ in map(within_layer, model.specs) if layers)
    return {
        "quant_method": NAME,
        "bits": base.bits,
        "group_size": base.group_size,
        "sym": base.sym,
        "data_type": "int",
        "packing_format": dict(first.dialect).get("packing_format") or _packing(list(model.specs.values())),
        "block_name_to_quantize": ",".join(blocks) or None,
        **({"extra_config": extra} if extra else {}),
    }


def _words(scheme: Scheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.sym, "data_type": "int"}


def _left_alone(model: Model) -> dict[str, dict[str, Any]]:
    """What is not quantized by full names, and what engines build under others within layers by regexes.

    Outside of the layers that block_name_to_quantize has, nothing is quantized that is not listed.
    """
    rest = Unquantized.of(model)
    own = model.block.get("extra_config") if model.origin == NAME else None
    kept = {key: value for key, value in own.items() if _skips(value)} if isinstance(own, dict) else {}
    text = "".join(f".{name}\n" for name in rest.quantized)
    hits = matches((key for key in kept if not PLAIN.fullmatch(key)), rest.quantized, whole=True)
    found = {
        key: value
        for key, value in kept.items()
        if f".{key}\n" not in text and key not in hits.faults and not hits.of(key)
    }
    for name in with_fused(rest.linears, usual=rest.nested):
        if name != "lm_head":
            found.setdefault(name, {"bits": _UNQUANTIZED})
    for tree in rest.subtrees:
        if tree.numbered:
            found.setdefault(tree.whole, {"bits": _UNQUANTIZED})
    return found


def _skips(value: Any) -> bool:
    bits = value.get("bits") if isinstance(value, dict) else None
    return isinstance(bits, int) and bits >= _UNQUANTIZED


def _scheme_of(spec: Spec) -> Scheme:
    return Scheme(spec.weight.bits, spec.weight.group_size or -1, spec.weight.symmetric)


_TOOL = "AutoRound"
_SOURCE = "auto-round 0.16.1, export/export_to_autoround/export.py"
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", first_of(weights_only(_TOOL), no_blocks(_TOOL), multiples(_TOOL, 32, 32)), _SOURCE),
    widths(_TOOL, range(2, 9), _SOURCE),
    scales_per_row(_TOOL, _SOURCE),
    stored_scales(_TOOL, DType.F16, _SOURCE),
    zeros_fit(_SOURCE),
    no_kv_scales(_SOURCE),
)
