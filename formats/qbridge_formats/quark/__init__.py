"""AMD Quark's Hugging Face exports: int4, uint4, int8, fp8, MXFP8, MXFP4 and NVFP4, alone or mixed.

N = out_features, K = in_features, G = groups.

kind     tensor                  dtype           shape            meaning
all      <L>.bias                model dtype     [N]              not quantized
int4     <L>.weight              int32           [K, N / 8]       two's complement, eight output features to a word
         <L>.weight_scale        any float       [G, N]
         <L>.weight_zero_point   int32           [G, N / 8]       zeros, packed the same way
uint4    the same                                                 codes + 8 and zero-points + 8
int8     <L>.weight              int8            [N, K]           codes
         <L>.weight_scale        any float       [N] or []
         <L>.weight_zero_point   int8            as its scales    zeros; and input_zero_point [], of static inputs
fp8      <L>.weight              float8_e4m3fn   [N, K]           codes
         <L>.weight_scale        any float       [N], [], or [N / 128, K / 128] of blocks
mxfp8    <L>.weight              float8_e4m3fn   [N, K]           codes
         <L>.weight_scale        uint8           [N, K / 32]      e8m0: 2^(byte - 127)
mxfp4    <L>.weight              uint8           [N, K / 2]       e2m1, the even one in low bits; scales as mxfp8
nvfp4    <L>.weight              uint8           [N, K / 2]       e2m1, the even one in low bits
         <L>.weight_scale        float8_e4m3fn   [N, K / 16]
         <L>.weight_scale_2      float32         []               multiplies the ones before
         <L>.input_scale_2       float32         []               of groups of 16 of the input
static   <L>.input_scale         any float       []               of int8 and fp8

W = (weight - weight_zero_point) * weight_scale [* weight_scale_2]. The nibble at bits 4i of a word holds its output
feature 0, 2, 4, 6, 1, 3, 5, 7 for i = 0 .. 7, with pack_method `order` i. Names of another exporter: `tensors.py`.
Sources: amd-quark 0.13, torch/utils/pack.py and torch/export; vllm 0.33.0, model_executor/layers/quantization/quark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qbridge.architecture.names import is_decoder_linear, is_router, is_vision
from qbridge.architecture.quantization_block import NO_BLOCK, find_block, without_quantization
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.assumed import Assumed
from qbridge.formats.common_rules import global_scales, multiples, no_kv_scales
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.ir.slots import Slot
from qbridge.passes.recast import Recast
from qbridge.passes.widen import Widen
from qbridge.source.reader import Source
from qbridge_formats._shared.modules import ModuleTensors
from qbridge_formats._shared.scope import Scope
from qbridge_formats._shared.siblings import Siblings, names_elsewhere
from qbridge_formats._shared.skip_lists import exact_entries, source_entries
from qbridge_formats._shared.stacked_experts import modules_of, under_known_name
from qbridge_formats.quark.config import IN_ORDER, METHOD, REORDERED, Excluded, Said, Scheme, said_by, scheme_of
from qbridge_formats.quark.schemes import UnknownScheme, entries_of
from qbridge_formats.quark.tensors import PACK, by_linear, with_stored
from qbridge_formats.quark.tensors import layout as layout

NAME = "quark"
SUMMARY = (
    "AMD Quark's exports: int4, int8, FP8, MXFP8, MXFP4 and NVFP4, alone or mixed; names of old exports repaired"
)
ALIASES: tuple[str, ...] = ()

_TENSOR, _CHANNEL, _GROUP = Granularity.TENSOR, Granularity.CHANNEL, Granularity.GROUP
_FLOATS = (DType.F16, DType.BF16, DType.F32)


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json."""
    block = find_block(source.config) or NO_BLOCK
    if block.method == METHOD:
        return Match(2, f"{block.key}.quant_method is {METHOD!r}")
    return f"{block.key}.quant_method is not {METHOD!r}"


def read(source: Source, findings: Findings) -> Model:
    """Every module whose weight is codes is a layer of the scheme that the config gives it."""
    block, plain = find_block(source.config) or NO_BLOCK, without_quantization(source.config)
    if block.method != METHOD:
        findings.add("QB013", block.key, (f"its quant_method is not {METHOD!r}",))
    said = said_by(block, findings) if block.method == METHOD else None
    if said is None:
        return assemble(NAME, source, plain, {}, Findings())
    every = modules_of(source)
    linears, names = by_linear(every.tensors)
    matrices = {module: own for module, own in linears.items() if "weight" in own and len(own["weight"].shape) == 2}
    coded = [module for module, own in matrices.items() if not own["weight"].dtype.is_float or _has_scale(own)]
    scope = Scope.of(said.key, coded)
    excluded = Excluded(said.exclude, matrices, scope)
    layers: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    refused = set(every.faults)
    for module, fault in every.faults.items():
        findings.add("QB016", module, (fault,))
    for module in coded:
        if module in excluded:
            findings.add("QB019", module, ("exclude has it",))
        try:
            scheme = scheme_of(said.entry(scope.names(module)))
            spec = _spec(module, matrices[module], scheme)
            spec = with_stored(spec, matrices[module], names.get(module, ""), said.pack)
            spec = under_known_name(module, every.kept(module, spec), every)
        except UnknownScheme as fault:
            findings.add("QB101", module, (str(fault),))
            refused.add(module)
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            refused.add(module)
        else:
            layers[spec.name] = (spec, layout(spec))
    _judge_plain([module for module in matrices if module not in coded], coded, excluded, source.config, findings)
    return assemble(NAME, source, plain, layers, findings, refused=refused)


def _has_scale(own: ModuleTensors) -> bool:
    return "weight_scale" in own or "weight_scale_inv" in own


def _spec(module: str, own: ModuleTensors, scheme: Scheme | None) -> Spec:
    """The spec of a module; ValueError where its tensors do not fit together, UnknownScheme without a scheme."""
    if scheme is None:
        raise UnknownScheme("its weight is quantized, and no entry of the config says how")
    weight, acts = scheme.weight, scheme.activation
    rows, columns = own["weight"].shape
    if weight.type == "int" and weight.bits == 4:
        rows, columns = _features_of_words(own)
    columns = 2 * columns if weight.type == "e2m1" else columns
    if columns % (weight.group_size or 1):
        raise ValueError(f"{columns} input features are no whole groups of {weight.group_size}")
    scale, bias = own.get("weight_scale", own.get("weight_scale_inv")), own.get("bias")
    stored = scheme.scale or (scale.dtype if scale and scale.dtype in _FLOATS else DType.F32)
    leaf = "input_scale_2" if acts and acts.global_scale else "input_scale"
    inputs = own.get(leaf)
    return Spec(
        name=module,
        out_features=rows,
        in_features=columns,
        weight=weight,
        scale_dtype=stored,
        activation=acts,
        input_scale_dtype=(inputs.dtype if inputs and inputs.dtype in _FLOATS else DType.F32)
        if acts is not None and acts.is_stored
        else None,
        bias=bias.dtype if bias else None,
    )


def _features_of_words(own: ModuleTensors) -> tuple[int, int]:
    """Output and input features of codes of 4 bits, of which a short last word holds fewer than eight."""
    words, scale = own["weight"], own.get("weight_scale")
    if scale is None or len(scale.shape) != 2 or words.shape[1] != -(-scale.shape[1] // 8):
        raise ValueError("weight and weight_scale are no words of eight codes and their scales [groups, out]")
    return scale.shape[1], words.shape[0]


def _judge_plain(
    plain: Sequence[str], coded: Sequence[str], excluded: Excluded, config: Mapping[str, Any], findings: Findings
) -> None:
    """Float weights that the config takes for quantized: they lost their codes (QB015), or never had any (QB042)."""
    siblings = Siblings([*plain, *coded], coded, config)
    noted = []
    for module in plain:
        if module in excluded or is_router(module) or is_vision(module) or not is_decoder_linear(module):
            continue
        sibling = siblings.of(module)
        if sibling and not any(name in excluded for name in names_elsewhere(module)):
            findings.add("QB015", module, (f"no weight_scale lies beside its weight: {sibling} is quantized",))
        else:
            noted.append(module)
    if noted:
        findings.add("QB042", noted)


def assumed(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Assumed] | None:
    """From config.json alone: the scheme that it names for each linear."""
    block = find_block(config) or NO_BLOCK
    said = said_by(block, Findings()) if block.method == METHOD else None
    if said is None:
        return None
    scope = Scope.of(said.key, names)
    excluded = Excluded(said.exclude, names, scope)
    found = {name: _assumed(said, scope.names(name)) for name in names if name not in excluded}
    return {name: linear for name, linear in found.items() if linear}


def _assumed(said: Said, names: Sequence[str]) -> Assumed | None:
    try:
        scheme = scheme_of(said.entry(names))
    except UnknownScheme:
        return None
    return Assumed(scheme.weight, scheme.activation, scheme.scale or DType.BF16) if scheme else None


def settle(model: Model) -> Model:
    """One packing for the model: `order` only where all layers are to have it."""
    packs = {dict(spec.dialect).get(PACK) for spec in model.specs.values() if _is_packed(spec.weight)}
    if len(packs) < 2:
        return model
    return replace(model, specs={name: _reordered(spec) for name, spec in model.specs.items()})


def _reordered(spec: Spec) -> Spec:
    return replace(spec, dialect=tuple(pair for pair in spec.dialect if pair[0] != PACK))


def _is_packed(weight: WeightScheme) -> bool:
    return weight.type == "int" and weight.bits == 4


def config(model: Model) -> dict[str, Any]:
    """The block that Quark 0.13 writes; what is not quantized stands in it by full names."""
    kinds = Counter((spec.weight, spec.activation) for spec in model.specs.values())
    most = kinds.most_common(1)[0][0]
    entries = {name: entries_of(spec) for name, spec in model.specs.items()}
    every = next(entries[name] for name, spec in model.specs.items() if (spec.weight, spec.activation) == most)
    apart = {name: entry for name, entry in entries.items() if entry != every}
    ordered = any((PACK, IN_ORDER) in spec.dialect for spec in model.specs.values())
    return {
        "algo_config": None,
        "exclude": exact_entries(model, source_entries(model, NAME, ("exclude",))),
        "export": {
            "kv_cache_group": [],
            "min_kv_scale": 0.0,
            "pack_method": IN_ORDER if ordered else REORDERED,
            "weight_format": "real_quantized",
            "weight_merge_groups": None,
        },
        "global_quant_config": every,
        "kv_cache_post_rope": False,
        "kv_cache_quant_config": {},
        "layer_quant_config": apart,
        "layer_type_quant_config": {},
        "quant_method": METHOD,
        "quant_mode": "eager_mode",
        "softmax_quant_spec": None,
        "version": "0.13",
    }


def _unwritable(spec: Spec, model: Model) -> Problem | None:
    """What no pass brings in."""
    weight = replace(spec.weight, global_scale="multiply") if spec.weight.global_scale else spec.weight
    acts = spec.activation
    if acts is not None and acts.global_scale:
        acts = replace(acts, global_scale="multiply")
    if spec.g_idx or not (_writable_weight(weight, spec.scale_dtype) and _writable_inputs(weight, acts)):
        return Problem((spec.scheme,))
    if spec.in_features % (weight.group_size or 1):
        return Problem((f"weights {weight}: {spec.in_features} input features are no whole groups",))
    if spec.input_scale_dtype not in (None, *_FLOATS):
        return Problem((f"input scales of {spec.input_scale_dtype}",))
    return _words(spec, model) if _is_packed(weight) else None


_words = multiples("Quark", 8, 1)


def _writable_weight(weight: WeightScheme, scale: DType) -> bool:
    """Whether an entry of Quark says how weights are quantized."""
    floats = scale in (*_FLOATS, DType.F64)
    if weight.type == "int":
        if weight.bits <= 4:
            return weight.granularity is _GROUP and floats
        return weight.bits == 8 and weight.symmetric and weight.granularity in (_TENSOR, _CHANNEL) and floats
    if weight.type == "e2m1":
        size, dtype = (16, DType.F8_E4M3) if weight.global_scale else (32, DType.F8_E8M0)
        return (weight.group_size, scale) == (size, dtype)
    if weight.type != "e4m3fn" or weight.global_scale:
        return False
    if weight.granularity is _GROUP:
        return (weight.group_size, scale) == (32, DType.F8_E8M0)
    return floats


def _writable_inputs(weight: WeightScheme, acts: ActivationScheme | None) -> bool:
    """Whether an entry of Quark says how the inputs beside some weights are quantized."""
    if acts is None:
        return True
    acts = replace(acts, limit=None, power_of_two=False)
    if acts.type not in ("int", "e4m3fn", "e2m1") or not acts.symmetric or (acts.type, acts.bits) == ("int", 4):
        return False
    if acts.global_scale:
        return bool(weight.global_scale) and acts.group_size == 16
    if acts.granularity is _GROUP:
        return acts.dynamic and acts.type != "int" and acts.group_size in (32, 128) and not weight.global_scale
    return acts.bits == 8 and acts.type != "e2m1" and acts.granularity in (_TENSOR, Granularity.TOKEN)


def _narrow(spec: Spec, model: Model) -> Problem | None:
    weight = spec.weight
    if weight.type != "int" or weight.bits >= 4:
        return None
    return Problem((f"weights {weight}: Quark's engines have 4 and 8 bits",))


def _scales(spec: Spec, model: Model) -> Problem | None:
    if spec.scale_dtype is not DType.F64:
        return None
    return Problem((f"scales are {spec.scale_dtype}, Quark stores floats of up to 32 bits",))


_SOURCE = "amd-quark 0.13, torch/quantization/config/config.py and torch/utils/pack.py"
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", _unwritable, _SOURCE),
    LayerRule("QB110", _narrow, _SOURCE, lambda spec, model: Widen(4)),
    global_scales("Quark", "multiply", _SOURCE),
    LayerRule("QB301", _scales, _SOURCE, lambda spec, model: Recast(DType.F32)),
    no_kv_scales(_SOURCE),
)
