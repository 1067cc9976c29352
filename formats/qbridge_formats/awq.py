"""AWQ in its GEMM layout, as AutoAWQ and lmdeploy.lite write it.

tensor         dtype    shape          meaning (N = out_features, K = in_features, G = groups)
<L>.qweight    int32    [K, N / 8]     codes + 8, eight output features to a word
<L>.qzeros     int32    [G, N / 8]     zero-points + 8, the same way; also for symmetric weights
<L>.scales     float16  [G, N]
<L>.bias       float16  [N]            not quantized

W = (code - zero) * scale.  The nibble at bits 4i of a word holds its output feature 0, 2, 4, 6, 1, 3, 5, 7 for
i = 0 .. 7.  Sources: autoawq 0.2.9, awq/modules/linear/gemm.py and awq/utils/packing_utils.py; lmdeploy 0.18.0,
pytorch/backends/default/awq_modules.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qbridge.codes import BitPacked
from qbridge.dtypes import DType
from qbridge.findings import Findings
from qbridge.formats import Match, assemble
from qbridge.hf_config import without_quantization
from qbridge.ir import Granularity, Model, Spec, WeightScheme
from qbridge.layout import TRANSPOSED, Codec, Filled, Slot
from qbridge.passes.recast import Recast
from qbridge.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.source import Source
from qbridge.topology import dense_linears

NAME = "awq"
SUMMARY = "AutoAWQ's format in its GEMM layout: 4 bits, one zero-point and scale per group"
ALIASES: tuple[str, ...] = ()

PACKED = BitPacked(4, 0, 8, transposed=True, order=(0, 2, 4, 6, 1, 3, 5, 7))
_FILES = ("quant_config.json", "quantize_config.json")
_ALIASES = {"w_bit": "bits", "q_group_size": "group_size"}
_OTHERS = ("gemv", "gemv_fast", "llm-awq", "marlin", "exllama", "ipex")


def _block(source: Source) -> dict[str, Any]:
    block = source.config.get("quantization_config")
    raw = block if isinstance(block, dict) else {}
    return {**{_ALIASES[k]: v for k, v in raw.items() if k in _ALIASES}, **raw}


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json, and modules with a qweight."""
    method = str(_block(source).get("quant_method", "")).lower()
    packed = [name for name in source.tensors if name.endswith(".qweight")]
    if method == "awq" and packed:
        return Match(2, f"quant_method is 'awq' and {len(packed)} modules have a qweight")
    return f"quant_method is {method!r}" if packed else "no module has a qweight"


def read(source: Source, findings: Findings) -> Model:
    """Every module with a qweight is a layer; a symmetric one is known by its zero-points."""
    block = _block(source)
    version = str(block.get("version", "gemm")).lower()
    if version in _OTHERS or block.get("bits", 4) != 4:
        findings.add("QB101", "quantization_config", (f"AWQ {version}, {block.get('bits', 4)} bits",))
        return assemble(NAME, source, {}, {}, Findings())
    size = block.get("group_size", 128)
    if type(size) is not int or size == 0 or version != "gemm":
        findings.add("QB013", "quantization_config", (f"group_size is {size!r}, version {version!r}",))
        return assemble(NAME, source, {}, {}, Findings())
    layers: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    refused: set[str] = set()
    for module in [name.removesuffix(".qweight") for name in source.tensors if name.endswith(".qweight")]:
        try:
            spec = _spec(source, module, size)
            layers[module] = (spec, layout(spec))
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            refused.add(module)
    config = without_quantization(source.config)
    files = [name for name in _FILES if (source.path / name).is_file()]
    return assemble(NAME, source, config, layers, findings, refused=refused, consumed=files)


def _spec(source: Source, module: str, size: int) -> Spec:
    codes, scales = source.tensors[f"{module}.qweight"], source.tensors.get(f"{module}.scales")
    if scales is None or len(scales.shape) != 2 or len(codes.shape) != 2 or not scales.dtype.is_float:
        raise ValueError("qweight and scales are not two matrices")
    bias, grouped = source.tensors.get(f"{module}.bias"), size > 0
    spec = Spec(
        name=module,
        out_features=codes.shape[1] * 8,
        in_features=codes.shape[0],
        weight=WeightScheme(
            4,
            Granularity.GROUP if grouped else Granularity.CHANNEL,
            symmetric=False,
            group_size=size if grouped else None,
        ),
        scale_dtype=scales.dtype,
        bias=bias.dtype if bias else None,
    )
    zeros = source.tensors.get(f"{module}.qzeros")
    wanted = PACKED.stored_shape(spec.scale_shape)
    if zeros is None or (zeros.dtype, zeros.shape) != (DType.I32, wanted):
        is_ = "absent" if zeros is None else f"{zeros.dtype}{list(zeros.shape)}"
        raise ValueError(f"qzeros is {is_}, the scheme gives I32{list(wanted)}")
    symmetric = not np.any(PACKED.decode(source.read(zeros.name), DType.I16, spec.scale_shape))
    return replace(spec, weight=replace(spec.weight, symmetric=symmetric))


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above."""
    name, (rows, columns) = spec.name, spec.scale_shape
    shape = (spec.out_features, spec.in_features)
    zeros: Codec = Filled(PACKED, 0, spec.scale_shape) if spec.weight.symmetric else PACKED
    found = {
        "code": Slot(f"{name}.qweight", DType.I32, PACKED.stored_shape(shape), PACKED),
        "scale": Slot(f"{name}.scales", spec.scale_dtype, (columns, rows), TRANSPOSED),
        "zero": Slot(f"{name}.qzeros", DType.I32, PACKED.stored_shape(spec.scale_shape), zeros),
    }
    if spec.bias is not None:
        found["bias"] = Slot(f"{name}.bias", spec.bias, (spec.out_features,))
    return found


def settle(model: Model) -> Model:
    """Every layer stands for itself."""
    return model


def config(model: Model) -> dict[str, Any]:
    """The block that AutoAWQ, LMDeploy, vLLM and transformers read; zero-points are stored in any case."""
    skipped = [module for module in dense_linears(model.tensors) if module != "lm_head"]
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": next(spec.weight.group_size or -1 for spec in model.specs.values()),
        "zero_point": True,
        "modules_to_not_convert": skipped or None,
    }


def _unwritable(spec: Spec, model: Model) -> Problem | None:
    weight = spec.weight
    if weight.type != "int" or weight.bits != 4:
        return Problem((f"weights {weight}: AWQ has 4 bits",))
    if spec.activation is not None or spec.g_idx:
        return Problem((f"{spec.scheme}: AWQ has weights only, in their own order",))
    if weight.granularity not in (Granularity.CHANNEL, Granularity.GROUP):
        return Problem((f"weights {weight}: AWQ has scales per channel or group",))
    if spec.out_features % 8 or spec.in_features % (weight.group_size or 1):
        return Problem((f"{spec.out_features} x {spec.in_features} is not whole words of 8 and whole groups",))
    return None


def _one_group_size(model: Model) -> Iterator[Problem]:
    sizes = {spec.weight.group_size for spec in model.specs.values()}
    if len(sizes) > 1:
        named = ", ".join(str(size or "channel") for size in sorted(sizes, key=lambda size: size or 0))
        yield Problem((f"group sizes {named}: AWQ has one for the whole model",), where=tuple(model.specs))


def _scale_dtype(spec: Spec, model: Model) -> Problem | None:
    return None if spec.scale_dtype is DType.F16 else Problem((f"scales are {spec.scale_dtype}, AWQ stores F16",))


_SOURCE = "autoawq 0.2.9, awq/modules/linear/gemm.py"
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", _unwritable, _SOURCE),
    LayerRule("QB301", _scale_dtype, _SOURCE, lambda spec: Recast(DType.F16)),
    ModelRule("QB110", _one_group_size, _SOURCE),
)
