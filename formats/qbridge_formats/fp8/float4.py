"""Experts with float4 codes in a float8 checkpoint: DeepSeek-V4's MXFP4, and NVFP4 in its place.

tensor                dtype            shape          meaning (N = out_features, K = in_features)
<L>.weight            int8 or uint8    [N, K / 2]     e2m1 codes, the even one in the low four bits
<L>.scale             float8_e8m0      [N, K / 32]    MXFP4: one per group of 32; also uint8, and weight_scale(_inv)
<L>.weight_scale      float8_e4m3fn    [N, K / 16]    NVFP4: one per group of 16
<L>.weight_scale_2    float32          [] or [1]      multiplies the ones before
<L>.input_scale       float32          [] or [1]      of groups of 16 of the input

Inputs of MXFP4 are quantized as those of the float8 layers beside it. Sources: vllm 0.33.0,
models/deepseek_v4/quant_config.py and nvidia/model.py (_make_deepseek_v4_weights_mapper); transformers 5.24.0,
integrations/finegrained_fp8.py (FP8Experts).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_routed
from qbridge.codecs.bits import NIBBLES
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import GLOBAL_SCALE, ActivationScheme, Granularity, WeightScheme
from qbridge.ir.slots import Slot
from qbridge_formats._shared.modules import ModuleTensors

_GROUP = Granularity.GROUP
MXFP4 = WeightScheme(4, _GROUP, type="e2m1", group_size=32)
NVFP4 = WeightScheme(4, _GROUP, type="e2m1", group_size=16, global_scale="multiply")
NVFP4_INPUTS = ActivationScheme(4, _GROUP, True, type="e2m1", group_size=16, global_scale="multiply")
SCALES = ("scale", "weight_scale", "weight_scale_inv")
_CODES = (DType.I8, DType.U8)
_ALONE = ("weight_scale_2", "input_scale")


def is_float4(own: ModuleTensors) -> bool:
    """Whether a module's tensors are those of float4 codes, by dtypes and shapes."""
    return _scheme(own) is not None


def _scheme(own: ModuleTensors) -> WeightScheme | None:
    weight, scale = own.get("weight"), next((own[leaf] for leaf in SCALES if leaf in own), None)
    if weight is None or scale is None or weight.dtype not in _CODES or len(weight.shape) != 2:
        return None
    rows, columns = weight.shape[0], 2 * weight.shape[1]
    if scale.dtype is DType.F8_E4M3 and "weight_scale_2" in own and scale.shape == (rows, columns / 16):
        return NVFP4
    exponents = scale.dtype in (DType.F8_E8M0, DType.U8) and "weight_scale_2" not in own
    return MXFP4 if exponents and scale.shape == (rows, columns / 32) else None


def read_spec(module: str, own: ModuleTensors, inputs: ActivationScheme | None) -> Spec:
    """The spec of such a module, where inputs of float8 layers are quantized as `inputs` says."""
    scheme, weight = _scheme(own), own["weight"]
    if scheme is None:
        raise ValueError("its tensors are not those of float4 codes")
    leaf = next(leaf for leaf in SCALES if leaf in own)
    dialect = {} if weight.dtype is (DType.I8 if scheme is MXFP4 else DType.U8) else {"code.dtype": str(weight.dtype)}
    static, bias = own.get("input_scale"), own.get("bias")
    if scheme is MXFP4:
        dialect |= {"scale": leaf} if leaf != "scale" else {}
        dialect |= {"scale.dtype": "U8"} if own[leaf].dtype is DType.U8 else {}
    else:
        inputs = NVFP4_INPUTS if static else None
        alone = {name: own[name].shape for name in _ALONE if name in own}
        dialect |= {f"{name}.shape": "1" for name, shape in alone.items() if shape == (1,)}
    return Spec(
        name=module,
        out_features=weight.shape[0],
        in_features=2 * weight.shape[1],
        weight=scheme,
        scale_dtype=DType.F8_E8M0 if scheme is MXFP4 else DType.F8_E4M3,
        activation=inputs,
        input_scale_dtype=static.dtype if scheme is NVFP4 and static else None,
        bias=bias.dtype if bias else None,
        dialect=tuple(sorted(dialect.items())),
    )


def slots(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above, without the module's name."""
    dialect, nv = dict(spec.dialect), spec.weight.global_scale is not None
    code = DType(dialect.get("code.dtype", "U8" if nv else "I8"))
    scale = DType(dialect.get("scale.dtype", spec.scale_dtype.value))
    leaf = "weight_scale" if nv else dialect.get("scale", "scale")
    found = {
        "code": Slot(".weight", code, NIBBLES.stored_shape(spec.dims, 8), NIBBLES),
        "scale": Slot(f".{leaf}", scale, spec.scale_shape),
    }
    alone = {name: (1,) if dialect.get(f"{name}.shape") else () for name in _ALONE}
    if nv:
        found["global_scale"] = Slot(".weight_scale_2", GLOBAL_SCALE, alone["weight_scale_2"])
    if spec.input_scale_dtype is not None:
        found["input_global_scale"] = Slot(".input_scale", spec.input_scale_dtype, alone["input_scale"])
    if spec.bias is not None:
        found["bias"] = Slot(".bias", spec.bias, (spec.out_features,))
    return found


def has_place(spec: Spec, model: Model) -> bool:
    """Whether it is an expert with such codes, of a class whose float8 checkpoints have them."""
    row = Architecture.of_model(model).row
    fits = (spec.weight, spec.scale_dtype) in ((MXFP4, DType.F8_E8M0), (NVFP4, DType.F8_E4M3))
    return fits and row.float4_experts and is_routed(spec.name) and not spec.g_idx


def block_entries(model: Model) -> Mapping[str, Any]:
    """The keys of the quantization block that say that experts are NVFP4; MXFP4 needs none."""
    nv = any(spec.weight == NVFP4 for spec in model.specs.values())
    return {"moe_quant_algo": "NVFP4"} if nv else {}
