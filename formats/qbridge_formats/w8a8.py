"""w8a8: SGLang's own methods for 8-bit weights and inputs, w8a8_int8, w8a8_fp8 and blockwise_int8.

tensor                  dtype           shape                       meaning (N = out_features, K = in_features)
<L>.weight              int8            [N, K]                      codes, of w8a8_fp8 float8_e4m3fn
<L>.weight_scale        float32         [N, 1]                      one per output channel
<L>.weight_scale_inv    float32         [ceil(N / bn), ceil(K / bk)]   of blockwise_int8: one per block, multiplied
<L>.bias                model dtype     [N]                         not quantized

W = weight * scale. Inputs are quantized while the model runs, to the codes' own type, symmetric: per token, and of
blockwise_int8 per token and group of bk. `weight_block_size` [bn, bk] gives the blocks. What is not quantized stands
in `ignore` (w8a8_int8: by whole names, their endings, or regexes after `re:`) or in `ignored_layers` (blockwise_int8:
by whole names and beginnings of them); w8a8_fp8 has no list.
Sources: sglang 0.5.23, srt/layers/quantization/w8a8_int8.py, w8a8_fp8.py, blockwise_int8.py,
compressed_tensors/utils.py (should_ignore_layer) and utils.py (is_layer_skipped).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qbridge.architecture.names import dense_linears, is_decoder_linear, is_router
from qbridge.architecture.quantization_block import NO_BLOCK, Block, find_block, without_quantization
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.common_rules import no_kv_scales, stored_scales
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, CodeType, Granularity, WeightScheme
from qbridge.ir.slots import Slot
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.symmetrize import Symmetrize
from qbridge.source.reader import Source
from qbridge.source.stored import StoredTensor
from qbridge_formats._shared.modules import ModuleTensors, tensors_of_modules
from qbridge_formats._shared.skip_lists import exact_entries, source_entries
from qbridge_formats._shared.unquantized import with_fused

NAME = "w8a8"
SUMMARY = "SGLang's own W8A8: int8 or float8 with a scale per output channel, or int8 in blocks"
ALIASES: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Method:
    """One of the methods: its codes, the last name of its scales, and the key of its list of unquantized modules."""

    name: str
    dtype: DType
    type: CodeType
    scale: str
    listed: str
    keys: frozenset[str]


INT8 = Method(
    "w8a8_int8", DType.I8, "int", "weight_scale", "ignore", frozenset({"is_dynamic", "packed_modules_mapping"})
)
FLOAT8 = Method("w8a8_fp8", DType.F8_E4M3, "e4m3fn", "weight_scale", "", frozenset())
BLOCKS = Method(
    "blockwise_int8",
    DType.I8,
    "int",
    "weight_scale_inv",
    "ignored_layers",
    frozenset({"weight_block_size", "activation_scheme"}),
)
METHODS: Mapping[str, Method] = {method.name: method for method in (INT8, FLOAT8, BLOCKS)}


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json."""
    block = find_block(source.config) or NO_BLOCK
    if block.method in METHODS:
        return Match(2, f"{block.key}.quant_method is {block.method!r}")
    return f"{block.key}.quant_method is none of {', '.join(METHODS)}"


def read(source: Source, findings: Findings) -> Model:
    """Every matrix of the method's codes is a layer; its scale must lie beside it."""
    block = find_block(source.config) or NO_BLOCK
    method = METHODS.get(block.method)
    if method is None:
        findings.add("QB013", block.key, (f"its quant_method is none of {', '.join(METHODS)}",))
        return assemble(NAME, source, {}, {}, Findings())
    unknown = sorted(block.raw.keys() - method.keys - {"quant_method", method.listed})
    if unknown:
        findings.add("QB103", [f"{block.key}.{key}" for key in unknown])
    size = _block_size(block, method, findings)
    if method is BLOCKS and size is None:
        return assemble(NAME, source, {}, {}, Findings())
    layers: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    refused: set[str] = set()
    for module, own in tensors_of_modules(source).items():
        if not _is_quantized(own.get("weight"), method):
            continue
        try:
            spec = _spec(module, own, method, size)
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            refused.add(module)
            continue
        layers[module] = (spec, layout(spec))
    return assemble(NAME, source, without_quantization(source.config), layers, findings, refused=refused)


def _block_size(block: Block, method: Method, findings: Findings) -> tuple[int, int] | None:
    """The size of the blocks of blockwise_int8; a finding (QB013) where it says none, or static inputs."""
    if method is not BLOCKS:
        return None
    size, acts = block.raw.get("weight_block_size"), block.raw.get("activation_scheme")
    if acts != "dynamic":
        fact = f"it is {acts!r}, and {method.name} has 'dynamic' alone"
        findings.add("QB013", f"{block.key}.activation_scheme", (fact,))
        return None
    if not isinstance(size, list) or len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
        findings.add("QB013", f"{block.key}.weight_block_size", (f"{size!r} is no pair of positive numbers",))
        return None
    return size[0], size[1]


def _is_quantized(weight: StoredTensor | None, method: Method) -> bool:
    return weight is not None and len(weight.shape) == 2 and weight.dtype is method.dtype and 0 not in weight.shape


def _spec(module: str, own: ModuleTensors, method: Method, size: tuple[int, int] | None) -> Spec:
    """The spec of a module; ValueError where its scale is no float, or the sizes have no meaning."""
    weight, scale, bias = own["weight"], own.get(method.scale), own.get("bias")
    if scale is not None and not scale.dtype.is_float:
        raise ValueError(f"{method.scale} is {scale.dtype}")
    return Spec(
        name=module,
        out_features=weight.shape[0],
        in_features=weight.shape[1],
        weight=WeightScheme(8, Granularity.BLOCK if size else Granularity.CHANNEL, type=method.type, block=size),
        scale_dtype=DType.F32 if scale is None else scale.dtype,
        activation=_inputs(method.type, size),
        bias=bias.dtype if bias else None,
    )


def _inputs(kind: CodeType, size: tuple[int, int] | None) -> ActivationScheme:
    """How the inputs of weights are quantized, by the type of their codes and the size of their blocks."""
    if size is None:
        return ActivationScheme(8, Granularity.TOKEN, dynamic=True, type=kind)
    return ActivationScheme(8, Granularity.GROUP, dynamic=True, type=kind, group_size=size[1])


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above."""
    method = _method_of(spec)
    slots = {
        "code": Slot(f"{spec.name}.weight", method.dtype, spec.dims),
        "scale": Slot(f"{spec.name}.{method.scale}", spec.scale_dtype, spec.scale_shape),
    }
    if spec.bias is not None:
        slots["bias"] = Slot(f"{spec.name}.bias", spec.bias, (spec.out_features,))
    return slots


def _method_of(spec: Spec) -> Method:
    """The method that a layer is of, of those that the rules let through."""
    if spec.weight.block:
        return BLOCKS
    return FLOAT8 if spec.weight.type == FLOAT8.type else INT8


def settle(model: Model) -> Model:
    """Every layer stands for itself."""
    return model


def config(model: Model) -> dict[str, Any]:
    """The block; parts of a linear that is built as one are listed by their names and by its own."""
    spec = next(iter(model.specs.values()))
    method = _method_of(spec)
    block: dict[str, Any] = {"quant_method": method.name}
    if spec.weight.block:
        block |= {"weight_block_size": list(spec.weight.block), "activation_scheme": "dynamic"}
    if method.listed:
        entries = exact_entries(model, source_entries(model, NAME, (method.listed,)))
        block[method.listed] = with_fused(entries)
    return block


def _other_weights(spec: Spec, model: Model) -> Problem | None:
    weight = spec.weight
    sides = (Granularity.CHANNEL, Granularity.TENSOR, Granularity.BLOCK)
    kinds = (INT8.type, FLOAT8.type) if not weight.block else (BLOCKS.type,)
    if weight.bits == 8 and weight.type in kinds and weight.granularity in sides and not spec.g_idx:
        return None
    order = ", act-order" if spec.g_idx else ""
    return Problem((f"weights {weight}{order}: it has int8 and float8 per output channel, and int8 in blocks",))


def _zero_points(spec: Spec, model: Model) -> Problem | None:
    return None if spec.weight.symmetric else Problem((f"weights {spec.weight}: it has no zero-points",))


def _per_tensor(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.granularity is not Granularity.TENSOR:
        return None
    return Problem((f"weights {spec.weight}: it has one scale per output channel",))


def _per_channel(spec: Spec, model: Model) -> Pass:
    return Broadcast()


def _other_inputs(spec: Spec, model: Model) -> Problem | None:
    """Dynamic ones, whose details every format without a word for them refuses apart."""
    plain = None if spec.activation is None else replace(spec.activation, limit=None, power_of_two=False)
    if _other_weights(spec, model) or plain == _inputs(spec.weight.type, spec.weight.block):
        return None
    return Problem((f"{spec.scheme}: it quantizes inputs as they come, symmetric, per token",))


def _one_method(model: Model) -> Iterator[Problem]:
    """One method, and one size of blocks, for the model."""
    found: dict[str, list[str]] = {}
    for name, spec in model.specs.items():
        size = f" {spec.weight.block[0]}x{spec.weight.block[1]}" if spec.weight.block else ""
        found.setdefault(f"{_method_of(spec).name}{size}", []).append(name)
    if len(found) > 1:
        fewest = min(found.values(), key=len)
        yield Problem((f"layers of {' and '.join(sorted(found))}",), where=tuple(fewest))


def _all_quantized(model: Model) -> Iterator[Problem]:
    """w8a8_fp8 has no list, so every linear of the decoder is taken for a quantized one."""
    if not any(_method_of(spec) is FLOAT8 for spec in model.specs.values()):
        return
    where = [name for name in dense_linears(model.tensors) if is_decoder_linear(name) and not is_router(name)]
    if where:
        yield Problem(
            (f"{FLOAT8.name} quantizes every linear: it has no list of those that are not",), where=tuple(where)
        )


_INT8 = "sglang 0.5.23, srt/layers/quantization/w8a8_int8.py (create_weights)"
_FLOAT8 = "sglang 0.5.23, srt/layers/quantization/w8a8_fp8.py (get_quant_method)"
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", _other_weights, _INT8),
    LayerRule("QB110", _zero_points, _INT8, lambda spec, model: Symmetrize()),
    LayerRule("QB110", _per_tensor, _INT8, _per_channel),
    LayerRule("QB110", _other_inputs, _INT8),
    stored_scales("w8a8", DType.F32, _INT8),
    ModelRule("QB110", _one_method, "sglang 0.5.23, srt/configs/model_config.py (one quant_method)"),
    ModelRule("QB110", _all_quantized, _FLOAT8),
    no_kv_scales(_INT8),
)
