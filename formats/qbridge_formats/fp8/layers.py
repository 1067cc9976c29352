"""Which modules of an fp8 checkpoint are quantized, and how: the block of config.json against headers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from qbridge.architecture.names import is_embedding
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import ActivationScheme, CodeType, Dialect, Granularity, WeightScheme
from qbridge.source.reader import Source
from qbridge.source.stored import StoredTensor
from qbridge_formats._shared.modules import ModuleTensors, SpecsByKind, headers
from qbridge_formats._shared.stacked_experts import Modules, modules_of, under_known_name
from qbridge_formats.fp8 import float4
from qbridge_formats.fp8.config import Said

FLOAT8: Mapping[DType, CodeType] = {DType.F8_E4M3: "e4m3fn", DType.F8_E5M2: "e5m2"}
BLOCK_SCALES = ("weight_scale_inv", "scale")  # names that say block where config.json does not
SCALES = ("weight_scale", *BLOCK_SCALES)
INPUT_SCALES = ("input_scale", "activation_scale")
_BLOCK = (128, 128)  # transformers' default of weight_block_size


def read_layers(source: Source, said: Said, findings: Findings) -> tuple[list[Spec], set[str]]:
    """(the layers that can be read, the modules about which there is a finding instead)."""
    specs: list[Spec] = []
    refused: set[str] = set()
    known, modules = SpecsByKind(), modules_of(source)
    for module, fault in modules.faults.items():
        findings.add("QB016", module, (fault,))
        refused.add(module)
    for module, own in modules.tensors.items():
        if module in refused:
            continue
        problem = _problem(module, own, said)
        if problem is None and _is_quantized(own):
            try:
                alike = headers(own), modules.dialects.get(module)
                spec = known.spec(module, alike, partial(_stacked_spec, module, modules, said))
                specs.append(under_known_name(module, spec, modules))
                if said.lists(module):
                    findings.add("QB019", module, (f"{said.key} lists it as not quantized",))
                continue
            except ValueError as fault:
                problem = "QB016", str(fault)
        if problem is not None:
            findings.add(problem[0], module, (problem[1],))
            refused.add(module)
    return specs, refused


def _is_quantized(own: ModuleTensors) -> bool:
    return "weight" in own and (own["weight"].dtype in FLOAT8 or float4.is_float4(own))


def _problem(module: str, own: ModuleTensors, said: Said) -> tuple[str, str] | None:
    """(code, fact) of a module that is not read; None for a layer, and for one that is not quantized."""
    if float4.is_float4(own):
        return None
    fused = [
        leaf for leaf, tensor in own.items() if tensor.dtype in FLOAT8 and (leaf != "weight" or _rank(tensor) > 2)
    ]
    if fused:
        return "QB101", f"{fused[0]} is float8 of {_rank(own[fused[0]])} axes: experts fused into one tensor"
    weight, scale = own.get("weight"), next((leaf for leaf in SCALES if leaf in own), None)
    if weight is None:
        return None
    if weight.dtype not in FLOAT8:
        if scale is None or _rank(weight) != 2:
            return None
        if weight.dtype.is_float:
            return "QB016", f"weight is {weight.dtype} beside a {scale}: it is not quantized"
        return "QB101", f"weight is {weight.dtype} beside a {scale} of {own[scale].dtype}{list(own[scale].shape)}"
    if _rank(weight) != 2 or 0 in weight.shape:
        return "QB016", f"weight has the shape {list(weight.shape)}, not [out_features, in_features]"
    if is_embedding(module):
        return "QB101", "a float8 embedding"
    return None


def _rank(tensor: StoredTensor) -> int:
    return len(tensor.shape)


def _stacked_spec(module: str, modules: Modules, said: Said) -> Spec:
    """The spec of a module, which may be an expert that shares its tensors."""
    return modules.kept(module, _spec(module, modules.tensors[module], said))


def _spec(module: str, own: ModuleTensors, said: Said) -> Spec:
    """The spec of a module; ValueError where its tensors do not fit together."""
    weight, bias = own["weight"], own.get("bias")
    if weight.dtype not in FLOAT8:
        beside = WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=said.block or _BLOCK)
        return float4.read_spec(module, own, activation_of(beside, said))
    kind = FLOAT8[weight.dtype]
    leaf = next((leaf for leaf in SCALES if leaf in own), None)
    scheme = _weight(kind, weight, leaf, own.get(leaf or ""), said)
    stored = next((name for name in INPUT_SCALES if name in own), INPUT_SCALES[0]) if said.static else None
    given = own.get(stored or "")
    return Spec(
        name=module,
        out_features=weight.shape[0],
        in_features=weight.shape[1],
        weight=scheme,
        scale_dtype=_scale_dtype(own.get(leaf or "")),
        activation=activation_of(scheme, said),
        input_scale_dtype=(given.dtype if given and given.dtype.is_float else DType.F32) if stored else None,
        bias=bias.dtype if bias else None,
        dialect=_dialect(own, scheme, leaf, stored),
    )


def _weight(
    kind: CodeType, weight: StoredTensor, leaf: str | None, scale: StoredTensor | None, said: Said
) -> WeightScheme:
    rows = weight.shape[0]
    shape = None if scale is None else scale.shape
    if said.limit is not None:
        return WeightScheme(8, Granularity.CHANNEL, type=kind)
    if said.block:
        return WeightScheme(8, Granularity.BLOCK, type=kind, block=said.block)
    if shape is None or all(dim == 1 for dim in shape):
        return WeightScheme(8, Granularity.TENSOR, type=kind)
    if shape in ((rows,), (rows, 1)):
        return WeightScheme(8, Granularity.CHANNEL, type=kind)
    if leaf in BLOCK_SCALES:
        return WeightScheme(8, Granularity.BLOCK, type=kind, block=_BLOCK)
    raise ValueError(f"{leaf} has the shape {list(shape)}: no scale per tensor or channel")


def _scale_dtype(scale: StoredTensor | None) -> DType:
    """The dtype of the values of a scale: bytes are exponents."""
    if scale is None:
        return DType.F32
    if scale.dtype in (DType.U8, DType.F8_E8M0):
        return DType.F8_E8M0
    if not scale.dtype.is_float:
        raise ValueError(f"its scale is {scale.dtype}")
    return scale.dtype


def activation_of(weight: WeightScheme, said: Said) -> ActivationScheme:
    """How the inputs of a layer are quantized."""
    if said.static:
        return ActivationScheme(8, Granularity.TENSOR, False, type=weight.type)
    if weight.block is None:
        return ActivationScheme(8, Granularity.TOKEN, True, type=weight.type, limit=said.limit)
    size, rounded = weight.block[1], said.power_of_two
    return ActivationScheme(8, Granularity.GROUP, True, type=weight.type, group_size=size, power_of_two=rounded)


def _dialect(own: ModuleTensors, weight: WeightScheme, leaf: str | None, stored: str | None) -> Dialect:
    """What differs from what is written today: names, and shapes with other dims of 1."""
    found: dict[str, str] = {}
    rows, columns = own["weight"].shape
    usual = "weight_scale_inv" if weight.block else "weight_scale"
    if leaf is not None:
        scale = own[leaf]
        wanted = (1,) if weight.granularity is Granularity.TENSOR else weight.scale_shape(rows, columns)
        found |= {"scale": leaf} if leaf != usual else {}
        found |= {"scale.dtype": "U8"} if scale.dtype is DType.U8 else {}
        found |= _shape("scale.shape", scale, wanted)
    if stored is not None and stored in own:
        found |= {"input_scale": stored} if stored != INPUT_SCALES[0] else {}
        found |= _shape("input_scale.shape", own[stored], (1,))
    return tuple(sorted(found.items()))


def _shape(key: str, tensor: StoredTensor, usual: tuple[int, ...]) -> dict[str, str]:
    """The shape, where it differs only by dims of 1."""
    alike = [dim for dim in tensor.shape if dim != 1] == [dim for dim in usual if dim != 1]
    return {key: "x".join(map(str, tensor.shape))} if alike and tensor.shape != usual else {}
