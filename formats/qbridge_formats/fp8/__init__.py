"""fp8: float8 weights and activations as DeepSeek, transformers, AutoFP8 and FBGEMM store them.

tensor                 dtype              shape               meaning (N = out_features, K = in_features)
<L>.weight             float8_e4m3fn      [N, K]              codes; or float8_e5m2
<L>.weight_scale_inv   float32, bfloat16  [ceil(N / bn), ceil(K / bk)]   one per block, despite its name multiplied
                       or float8_e8m0 (also as uint8)
<L>.weight_scale       float32            [] or [1]           one per tensor; or [N], [N, 1]: one per output channel
<L>.input_scale        float32            [] or [1]           only static activations
<L>.bias               model dtype        [N]                 not quantized

W = weight * scale. Under quant_method fp8, `weight_block_size` [bn, bk] says that scales are per block, and
`activation_scheme` whether inputs have a stored scale (static) or one that is taken as they come (dynamic): per token
and group of bk for blocks, else per token, as vLLM does it where its kernels can (elsewhere, per tensor). `scale_fmt`
ue8m0 rounds the scales of inputs up to powers of two. quant_method fbgemm_fp8 has scales per channel and dynamic
activations per token, clipped to `activation_scale_ub`. The scale is also called scale (DeepSeek-V4), and that of
static inputs activation_scale (transformers).
Sources: transformers 5.17.0, integrations/finegrained_fp8.py and fbgemm_fp8.py, utils/quantization_config.py;
vllm 0.33.0, model_executor/layers/quantization/fp8.py and fbgemm_fp8.py; lmdeploy 0.18.0,
pytorch/nn/linear/blocked_fp8.py and static_fp8.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_kv_scale
from qbridge.architecture.quantization_block import NO_BLOCK, find_block, without_quantization
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.assumed import Assumed
from qbridge.formats.common_rules import FLOAT8_CACHE, float8_kv_scales, kv_scales_are_stored
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, CodeType, Granularity, WeightScheme
from qbridge.ir.slots import Slot, by_kind
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.recast import Recast
from qbridge.source.reader import Source
from qbridge_formats._shared.skip_lists import exact_entries, source_entries
from qbridge_formats._shared.stacked_experts import as_stored
from qbridge_formats.fp8 import float4
from qbridge_formats.fp8.config import FBGEMM, LISTS, METHOD, METHODS, float8_block, parse
from qbridge_formats.fp8.layers import FLOAT8, activation_of, read_layers

NAME = "fp8"
SUMMARY = "float8 weights with scales per block (DeepSeek, Qwen), tensor or channel (AutoFP8, FBGEMM)"
ALIASES: tuple[str, ...] = ()
KEEPS_INPUT_DETAILS = True  # activation_scale_ub and scale_fmt

_SCALES = (DType.F32, DType.BF16, DType.F8_E8M0)


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json."""
    block = float8_block(source.config)
    if block is None:
        return f"no quant_method in config.json is one of {', '.join(METHODS)}"
    if not block.method:
        return Match(2, f"{block.key} has activation_scheme or weight_block_size, and no quant_method")
    return Match(2, f"{block.key}.quant_method is {block.raw['quant_method']!r}")


def read(source: Source, findings: Findings) -> Model:
    """Every float8 matrix is a layer; its scale must lie beside it."""
    block = float8_block(source.config)
    if block is None:
        key = (find_block(source.config) or NO_BLOCK).key
        findings.add("QB013", key, (f"its quant_method is none of {', '.join(METHODS)}",))
        return assemble(NAME, source, {}, {}, Findings())
    said = parse(block, findings)
    if said is None:
        return assemble(NAME, source, {}, {}, Findings())
    specs, refused = read_layers(source, said, findings)
    kv_cache = FLOAT8_CACHE if any(is_kv_scale(name) for name in source.tensors) else {}
    layers = {spec.name: (spec, layout(spec)) for spec in specs}
    config = without_quantization(source.config)
    return assemble(NAME, source, config, layers, findings, kv_cache, refused)


def assumed(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Assumed] | None:
    """From config.json alone: scales per block where it gives their size, per channel of FBGEMM, else per tensor."""
    block = float8_block(config)
    said = None if block is None else parse(block, Findings())
    if said is None:
        return None
    kind: CodeType = "e5m2" if block is not None and "e5m2" in str(block.raw.get("fmt")) else "e4m3fn"
    where = Granularity.CHANNEL if said.limit is not None else Granularity.TENSOR
    weight = WeightScheme(8, Granularity.BLOCK if said.block else where, type=kind, block=said.block)
    entry = Assumed(weight, activation_of(weight, said), DType.F8_E8M0 if said.power_of_two else DType.F32)
    return {name: entry for name in names if not said.lists(name) and not name.endswith(".indexer.weights_proj")}


def _slots(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above, in the shapes and under the names that the dialect keeps."""
    if spec.weight.type == "e2m1":
        return float4.slots(spec)
    dialect = dict(spec.dialect)
    code = next(dtype for dtype, kind in FLOAT8.items() if kind == spec.weight.type)
    blocks = spec.weight.granularity is Granularity.BLOCK

    def shape(key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        kept = dialect.get(key)
        return default if kept is None else tuple(int(dim) for dim in kept.split("x") if dim)

    scale_shape = (1,) if spec.weight.granularity is Granularity.TENSOR else spec.scale_shape
    scale_dtype = DType(dialect.get("scale.dtype", spec.scale_dtype.value))
    leaf = dialect.get("scale", "weight_scale_inv" if blocks else "weight_scale")
    found = {
        "code": Slot(".weight", code, spec.dims),
        "scale": Slot(f".{leaf}", scale_dtype, shape("scale.shape", scale_shape)),
    }
    if spec.input_scale_dtype is not None:
        leaf = dialect.get("input_scale", "input_scale")
        found["input_scale"] = Slot(f".{leaf}", spec.input_scale_dtype, shape("input_scale.shape", (1,)))
    if spec.bias is not None:
        found["bias"] = Slot(".bias", spec.bias, (spec.out_features,))
    return found


layout = as_stored(by_kind(_slots))


def settle(model: Model) -> Model:
    """Every layer stands for itself; classes with float4 experts have their own name for the scale of blocks."""
    if not Architecture.of_model(model).row.float4_experts:
        return model
    return replace(model, specs={name: _native(spec) for name, spec in model.specs.items()})


def _native(spec: Spec) -> Spec:
    if not spec.weight.block or "scale" in dict(spec.dialect):
        return spec
    return replace(spec, dialect=tuple(sorted((*spec.dialect, ("scale", "scale")))))


def config(model: Model) -> dict[str, Any]:
    """The block in the keys that vLLM, LMDeploy 0.18.0 and transformers read alike.

    `modules_to_not_convert` is what all three read (`skip_lists` says how); `weight_block_size` null must be there,
    for transformers takes [128, 128] where it is not.
    """
    float8 = (spec for spec in model.specs.values() if spec.weight.type != "e2m1")
    first = next(float8, next(iter(model.specs.values())))
    acts = first.activation
    skipped = exact_entries(model, source_entries(model, NAME, LISTS))
    if acts is not None and acts.limit is not None:
        return {"quant_method": FBGEMM, "activation_scale_ub": acts.limit, "modules_to_not_convert": skipped}
    block = first.weight.block
    rounded = {"scale_fmt": "ue8m0"} if acts is not None and acts.power_of_two else {}
    return {
        "quant_method": METHOD,
        "fmt": "e5m2" if first.weight.type == "e5m2" else "e4m3",
        "activation_scheme": "dynamic" if acts is None or acts.dynamic else "static",
        "weight_block_size": list(block) if block else None,
        **rounded,
        **float4.block_entries(model),
        "modules_to_not_convert": skipped,
    }


def _other_weights(spec: Spec, model: Model) -> Problem | None:
    weight = spec.weight
    if float4.has_place(spec, model):
        return None
    if weight.type not in FLOAT8.values() or spec.g_idx:
        return Problem((f"weights {weight}{', act-order' if spec.g_idx else ''}: fp8 has float8 codes",))
    if weight.granularity is Granularity.GROUP:
        return Problem((f"weights {weight}: fp8 has scales per tensor, channel or block",))
    return None


def _other_activations(spec: Spec, model: Model) -> Problem | None:
    """What no value of activation_scheme says."""
    if _other_weights(spec, model):
        return None  # named already
    if spec.weight.type == "e2m1":
        return _other_float4_inputs(spec, model)
    acts, kind = spec.activation, spec.weight.type
    if acts is None:
        return Problem((f"{spec.scheme}: fp8 quantizes activations too",))
    possible = [ActivationScheme(8, Granularity.TOKEN, True, type=kind, limit=acts.limit)]
    possible.append(ActivationScheme(8, Granularity.TENSOR, False, type=kind))
    if spec.weight.block:
        size = spec.weight.block[1]
        rounded = acts.power_of_two
        possible = [
            ActivationScheme(8, Granularity.GROUP, True, type=kind, group_size=size, power_of_two=rounded),
        ]
    return None if acts in possible else Problem((f"activations {acts} with weights {spec.weight}",))


def _other_float4_inputs(spec: Spec, model: Model) -> Problem | None:
    """Those of NVFP4 have a stored scale; those of MXFP4 are quantized as those of the float8 layers."""
    beside = {other.activation for other in model.specs.values() if other.weight.type != "e2m1"}
    possible = {float4.NVFP4_INPUTS} if spec.weight.global_scale else beside or {spec.activation}
    if spec.activation in possible:
        return None
    return Problem((f"activations {spec.activation} with weights {spec.weight}",))


def _limited_per_tensor(spec: Spec, model: Model) -> Problem | None:
    limited = spec.activation is not None and spec.activation.limit is not None
    if not limited or spec.weight.granularity is not Granularity.TENSOR:
        return None
    return Problem((f"weights {spec.weight}: {FBGEMM} has one scale per output channel",))


def _one_per_channel(spec: Spec, model: Model) -> Pass:
    return Broadcast()


def _other_scales(spec: Spec, model: Model) -> Problem | None:
    if spec.scale_dtype in _SCALES or float4.has_place(spec, model):
        return None
    return Problem((f"scales are {spec.scale_dtype}, fp8 stores {DType.F32}",))


def _one_scheme(model: Model) -> Iterator[Problem]:
    """One activation_scheme and one weight_block_size for the model, one kind of codes beside float4 experts."""
    found: dict[str, list[str]] = {}
    for name, spec in model.specs.items():
        if float4.has_place(spec, model):
            continue
        key = f"{spec.weight.type} {f'blocks {spec.weight.block}' if spec.weight.block else 'no blocks'}"
        found.setdefault(f"{key}, activations {spec.activation}", []).append(name)
    if len(found) > 1:
        fewest = min(found.values(), key=len)
        yield Problem(tuple(sorted(found)), where=tuple(fewest))


_LINEAR = "vllm 0.33.0, model_executor/layers/quantization/fp8.py"
_KV_CACHE = "vllm 0.33.0, model_executor/layers/quantization/kv_cache.py"
_CONFIG = "transformers 5.17.0, utils/quantization_config.py (FineGrainedFP8Config, FbgemmFp8Config)"
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", _other_weights, _LINEAR),
    LayerRule("QB110", _other_activations, _LINEAR),
    LayerRule("QB110", _limited_per_tensor, _CONFIG, _one_per_channel),
    LayerRule("QB301", _other_scales, _LINEAR, lambda spec, model: Recast(DType.F32)),
    ModelRule("QB110", _one_scheme, _CONFIG),
    float8_kv_scales("QB113", _KV_CACHE),
    kv_scales_are_stored(_KV_CACHE),
)
