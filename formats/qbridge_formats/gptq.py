"""GPTQ, as GPTQModel and AutoGPTQ write it, with zero-points of version 1 (stored minus 1) and 2.

tensor         dtype    shape              meaning (N = out_features, K = in_features, G = groups, b = bits)
<L>.qweight    int32    [K b / 32, N]      codes + 2^(b-1), a bit stream down each column
<L>.qzeros     int32    [G, N b / 32]      zero-points + 2^(b-1), minus 1 in version 1; also for symmetric weights
<L>.scales     float16  [G, N]             (bfloat16 in some files)
<L>.g_idx      int32    [K]                group of each input; i // group_size unless the order is act-order
<L>.bias       float16  [N]                AutoGPTQ also stores all-zero ones for linears without a bias

W = (code - zero) * scale.  GPTQModel makes version 1 from 2 by one subtraction per 32-bit word, so a zero-point of 0
borrows from its neighbour; its own files are read the same way. Sources: gptqmodel 7.7.0, nn_modules/qlinear and
utils/model.py; auto-gptq 0.7.1, nn_modules/qlinear/qlinear_cuda.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qbridge.codes import BitPacked
from qbridge.dtypes import DType
from qbridge.findings import Findings
from qbridge.formats import Match, assemble
from qbridge.hf_config import without_quantization
from qbridge.ir import Granularity, Model, Spec, WeightScheme
from qbridge.layout import PLAIN, TRANSPOSED, ZEROS, Codec, Filled, GroupIndex, Slot
from qbridge.passes import Pass
from qbridge.passes.recast import Recast
from qbridge.rules import LayerRule, Problem, Rule
from qbridge.source import Source
from qbridge.topology import dense_linears
from qbridge_formats._gptq_config import GptqConfig, Scheme, find_config, parse

NAME = "gptq"
SUMMARY = "GPTQModel's and AutoGPTQ's format: 2, 3, 4 and 8 bits, zero-points of version 1 and 2"
ALIASES: tuple[str, ...] = ()

WIDTHS = (2, 3, 4, 8)
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json or quantize_config.json, and tensors packed along in_features."""
    raw, _ = find_config(source)
    method = str(raw["quant_method"]).lower() if raw.get("quant_method") else None
    packed = [name for name in source.tensors if name.endswith(".qweight")]
    if method == "gptq" and packed:
        return Match(2, f"quant_method is 'gptq' and {len(packed)} modules have a qweight")
    if method is None and "bits" in raw and packed and any(name.endswith(".g_idx") for name in source.tensors):
        return Match(1, "no quant_method, but modules with qweight and g_idx")
    return f"quant_method is {method!r}" if packed else "no module has a qweight"


def read(source: Source, findings: Findings) -> Model:
    """Every module with a qweight is a layer; its zero-points and g_idx are judged by content."""
    raw, files = find_config(source)
    parsed = parse(raw, files, findings)
    if parsed is None:
        return assemble(NAME, source, {}, {}, Findings())
    layers: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    refused: set[str] = set()
    modules = [name.removesuffix(".qweight") for name in source.tensors if name.endswith(".qweight")]
    empty = _zero_biases(source, modules)
    for module in modules:
        try:
            spec = _spec(source, module, parsed, module in empty, findings)
            layers[module] = (spec, layout(spec))
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            refused.add(module)
    config = without_quantization(source.config)
    return assemble(NAME, source, config, layers, findings, refused=refused, consumed=files)


def _spec(source: Source, module: str, parsed: GptqConfig, empty_bias: bool, findings: Findings) -> Spec:
    scheme = parsed.scheme_of(module)
    if scheme is None:
        raise ValueError("the config leaves it unquantized (dynamic), and it has a qweight")
    codes, scales = source.tensors[f"{module}.qweight"], source.tensors.get(f"{module}.scales")
    if scales is None or len(scales.shape) != 2 or len(codes.shape) != 2 or not scales.dtype.is_float:
        raise ValueError("qweight and scales are not two matrices")
    bias = source.tensors.get(f"{module}.bias")
    grouped = scheme.group_size > 0
    spec = Spec(
        name=module,
        out_features=codes.shape[1],
        in_features=codes.shape[0] * 32 // scheme.bits,
        weight=WeightScheme(
            scheme.bits,
            Granularity.GROUP if grouped else Granularity.CHANNEL,
            group_size=scheme.group_size if grouped else None,
        ),
        scale_dtype=scales.dtype,
        bias=bias.dtype if bias and not empty_bias else None,
    )
    dialect = {"bias": "zeros"} if empty_bias else {}
    act_order = _act_order(source, spec, dialect)
    symmetric = _zeros(source, spec, parsed, scheme, dialect, findings)
    weight = replace(spec.weight, symmetric=symmetric)
    return replace(spec, weight=weight, g_idx=act_order, dialect=tuple(sorted(dialect.items())))


def _act_order(source: Source, spec: Spec, dialect: dict[str, str]) -> bool:
    """Whether g_idx permutes the groups; a trivial one says nothing, and it may be absent."""
    tensor = source.tensors.get(f"{spec.name}.g_idx")
    if tensor is None:
        dialect["g_idx"] = "absent"
        return False
    if tensor.shape != (spec.in_features,) or tensor.dtype is not DType.I32:
        raise ValueError(f"g_idx is {tensor.dtype}{list(tensor.shape)}, not I32[{spec.in_features}]")
    index = source.read(tensor.name).astype(np.int64)
    if (index == np.arange(spec.in_features) // (spec.weight.group_size or spec.in_features)).all():
        return False
    if index.min() < 0 or index.max() >= spec.scale_shape[1]:
        raise ValueError(f"g_idx has groups from {index.min()} to {index.max()} of {spec.scale_shape[1]}")
    return True


def _zeros(
    source: Source, spec: Spec, parsed: GptqConfig, scheme: Scheme, dialect: dict[str, str], findings: Findings
) -> bool:
    """Whether every zero-point is the middle code; how they are stored goes to the dialect, by value."""
    tensor = source.tensors.get(f"{spec.name}.qzeros")
    bits = spec.weight.bits
    if tensor is None:
        dialect["zeros"] = "absent"
        return True
    wanted = _zero_codec(bits, "v2").stored_shape(spec.scale_shape)
    if tensor.shape != wanted or tensor.dtype is not DType.I32:
        raise ValueError(f"qzeros is {tensor.dtype}{list(tensor.shape)}, the scheme gives I32{list(wanted)}")
    plain = _zero_codec(bits, "v2").decode(source.read(tensor.name), DType.I16, spec.scale_shape).astype(np.int64)
    version = "v2" if parsed.checkpoint_format == "gptq_v2" else "v1"
    if version == "v1" and "gptqmodel" in parsed.producer:
        version = "v1-words" if bits in _ONES else "v1-wraps"
    if version != "v2" and scheme.sym and (plain == 0).all():
        version = "v2"  # said to be version 1, and the middle code only if it is version 2
        findings.add("QB022", spec.name, ("symmetric, and every stored zero-point is that of version 2",))
    if version == "v1" and (plain == 2 ** (bits - 1) - 1).any():
        readings = f"0 by wrapping, {2**bits} by adding"
        findings.add("QB023", spec.name, (f"stored zero-points of all ones: {readings}",))
    dialect["zeros"] = version
    found = _zero_codec(bits, version).decode(source.read(tensor.name), DType.I16, spec.scale_shape)
    return not np.any(found)


def _zero_biases(source: Source, modules: list[str]) -> set[str]:
    """Modules whose bias is all zero in every layer: those that AutoGPTQ added to linears without one."""
    by_leaf: dict[str, list[str]] = {}
    for module in modules:
        if f"{module}.bias" in source.tensors:
            by_leaf.setdefault(module.rpartition(".")[2], []).append(module)
    return {
        module
        for names in by_leaf.values()
        if not any(np.any(source.read(f"{name}.bias")) for name in names)
        for module in names
    }


def _zero_codec(bits: int, version: str) -> BitPacked:
    middle = 2 ** (bits - 1)
    if version == "v1-words":
        return BitPacked(bits, 0, middle, True, word_minus=_ONES[bits])
    if version == "v1-wraps":
        return BitPacked(bits, 0, middle - 1, True, wraps=True)
    return BitPacked(bits, 0, middle - (version == "v1"), True)


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above; zero-points of version 1 where symmetric, else of 2, unless settled."""
    dialect, name, bits = dict(spec.dialect), spec.name, spec.weight.bits
    codes = BitPacked(bits, 1, 2 ** (bits - 1), True)
    rows, columns = spec.scale_shape
    zeros = _zero_codec(bits, dialect.get("zeros", "v1" if spec.weight.symmetric else "v2"))
    zero_shape = zeros.stored_shape(spec.scale_shape)
    zero_codec: Codec = Filled(zeros, 0, spec.scale_shape) if spec.weight.symmetric else zeros
    index: Codec = PLAIN if spec.g_idx else GroupIndex(spec.weight.group_size or spec.in_features)
    found = {
        "code": Slot(f"{name}.qweight", DType.I32, codes.stored_shape((spec.out_features, spec.in_features)), codes),
        "scale": Slot(f"{name}.scales", spec.scale_dtype, (columns, rows), TRANSPOSED),
    }
    if dialect.get("zeros") != "absent":
        found["zero"] = Slot(f"{name}.qzeros", DType.I32, zero_shape, zero_codec)
    if dialect.get("g_idx") != "absent":
        found["g_idx"] = Slot(f"{name}.g_idx", DType.I32, (spec.in_features,), index)
    if spec.bias is not None:
        found["bias"] = Slot(f"{name}.bias", spec.bias, (spec.out_features,))
    elif dialect.get("bias") == "zeros":
        found["bias"] = Slot(f"{name}.bias", spec.scale_dtype, (spec.out_features,), ZEROS)
    return found


def settle(model: Model) -> Model:
    """One version of zero-points for the model: 1 if every layer is symmetric, else 2."""
    kept = {dict(spec.dialect).get("zeros") for spec in model.specs.values()} - {None, "absent"}
    if len(kept) == 1:
        version = str(kept.pop())
    else:
        version = "v1" if all(spec.weight.symmetric for spec in model.specs.values()) else "v2"
    specs = {
        name: replace(spec, dialect=tuple(sorted({"zeros": version, **dict(spec.dialect)}.items())))
        for name, spec in model.specs.items()
    }
    return replace(model, specs=specs)


def config(model: Model) -> dict[str, Any]:
    """The commonest scheme for the model, `dynamic` for what differs, and what transformers needs to skip modules."""
    schemes = Counter(_scheme_of(spec) for spec in model.specs.values())
    base = schemes.most_common(1)[0][0]
    versions = {dict(spec.dialect).get("zeros", "v1") for spec in model.specs.values()} - {"absent"}
    dynamic: dict[str, dict[str, Any]] = {}
    for module in dense_linears(model.tensors):
        if module != "lm_head":
            dynamic[f"-:{_exactly(module)}"] = {}
    for spec in model.specs.values():
        scheme = _scheme_of(spec)
        if scheme != base:
            keys = {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.sym}
            dynamic[f"+:{_exactly(spec.name)}"] = keys
    return {
        "quant_method": "gptq",
        "bits": base.bits,
        "group_size": base.group_size,
        "sym": base.sym,
        "desc_act": any(spec.g_idx for spec in model.specs.values()),
        "checkpoint_format": "gptq_v2" if "v2" in versions else "gptq",
        "pack_dtype": "int32",
        "lm_head": "lm_head" in model.specs,
        **({"dynamic": dynamic} if dynamic else {}),
        **({"modules_in_block_to_quantize": [_in_blocks(model)]} if dynamic else {}),
        **({"meta": {"quantizer": ["gptqmodel:7.7.0"]}} if versions & {"v1-words", "v1-wraps"} else {}),
    }


def _scheme_of(spec: Spec) -> Scheme:
    return Scheme(spec.weight.bits, spec.weight.group_size or -1, spec.weight.symmetric)


def _exactly(module: str) -> str:
    return module.replace(".", r"\.") + "$"


def _in_blocks(model: Model) -> list[str]:
    """Names of quantized linears within a decoder layer, as transformers matches them."""
    leaves = [spec.name.partition(".layers.")[2].partition(".")[2] for spec in model.specs.values()]
    return list(dict.fromkeys(leaf for leaf in leaves if leaf))


def _unwritable(spec: Spec, model: Model) -> Problem | None:
    weight = spec.weight
    if weight.type != "int" or weight.bits not in WIDTHS:
        return Problem((f"weights {weight}: GPTQ has {', '.join(map(str, WIDTHS))} bits",))
    if spec.activation is not None:
        return Problem((f"activations {spec.activation}: GPTQ quantizes weights only",))
    if weight.granularity not in (Granularity.CHANNEL, Granularity.GROUP):
        return Problem((f"weights {weight}: GPTQ has scales per channel or group",))
    if spec.in_features * weight.bits % 32 or spec.out_features * weight.bits % 32:
        return Problem((f"{spec.out_features} x {spec.in_features} at {weight.bits} bits fill no whole words",))
    return None


def _scale_dtype(spec: Spec, model: Model) -> Problem | None:
    if spec.scale_dtype in (DType.F16, DType.BF16):
        return None
    return Problem((f"scales are {spec.scale_dtype}, GPTQ stores F16",))


def _to_float16(spec: Spec) -> Pass | None:
    return Recast(DType.F16)


_SOURCE = "gptqmodel 7.7.0, nn_modules/qlinear/__init__.py"
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", _unwritable, _SOURCE),
    LayerRule("QB301", _scale_dtype, _SOURCE, _to_float16),
)
