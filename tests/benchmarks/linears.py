"""Linears of random codes in every format: the tensors of each, and the config that says how to read them.

Float codes are random bits without those of NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from standin import SIZES, Data, Tensor, dims, trivial_groups

BLOCK = 1 << 22  # elements made at a time
GROUP = 128


class Maker:
    """Makes tensors; their data comes in blocks when they are written."""

    def __init__(self, sparse: bool) -> None:
        """With `sparse` codes and what is not quantized are holes."""
        self.sparse = sparse
        self.random = np.random.Generator(np.random.SFC64(0))

    def codes(self, name: str, dtype: str, *shape: int) -> Tensor:
        """Random bytes, or a hole."""
        return self.noise(name, dtype, *shape) if not self.sparse else (name, dtype, shape, None)

    def noise(self, name: str, dtype: str, *shape: int) -> Tensor:
        """Random bytes."""

        def make(count: int) -> np.ndarray:
            return np.frombuffer(self.random.bytes(count * SIZES[dtype]), np.uint8)

        return name, dtype, shape, _blocks(make, shape)

    def float8(self, name: str, *shape: int) -> Tensor:
        """Random e4m3 codes of both signs and at most 1.875."""

        def make(count: int) -> np.ndarray:
            return np.frombuffer(self.random.bytes(count), np.uint8) & 0xBF

        return name, "F8_E4M3", shape, None if self.sparse else _blocks(make, shape)

    def small(self, name: str, dtype: str, lowest: int, highest: int, *shape: int) -> Tensor:
        """Random bytes in a range: scales of one byte, e4m3 or e8m0."""

        def make(count: int) -> np.ndarray:
            return self.random.integers(lowest, highest, count, np.uint8, endpoint=True)

        return name, dtype, shape, _blocks(make, shape)

    def scales(self, name: str, dtype: str, *shape: int) -> Tensor:
        """Random scales, all positive and normal numbers."""
        kind = {"F16": np.float16, "F32": np.float32}[dtype]

        def make(count: int) -> np.ndarray:
            return (self.random.random(count, np.float32) * np.float32(0.009) + np.float32(0.001)).astype(kind)

        return name, dtype, shape, _blocks(make, shape)

    def same(self, name: str, value: float) -> Tensor:
        """One float32."""
        return name, "F32", (1,), lambda: [np.array([value], np.float32)]

    def middle(self, name: str, *shape: int) -> Tensor:
        """Zero-points of version 1 for symmetric 4-bit codes: 8, stored minus 1."""
        return name, "I32", shape, _blocks(lambda count: np.full(count, 0x77777777, np.uint32), shape)

    def dense(self, name: str, *shape: int) -> Tensor:
        """A tensor that is not quantized."""
        return name, "F16", shape, None if self.sparse else _blocks(lambda n: np.full(n, 0.01, np.float16), shape)


def _blocks(make: Callable[[int], np.ndarray], shape: tuple[int, ...]) -> Data:
    count = int(np.prod(shape))
    return lambda: (make(min(BLOCK, count - start)) for start in range(0, count, BLOCK))


def w8a8(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """compressed-tensors: int8 codes, a scale per channel."""
    yield maker.codes(f"{module}.weight", "I8", rows, columns)
    yield maker.scales(f"{module}.weight_scale", "F16", rows, 1)


def smooth_quant(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """LMDeploy: int8 codes, a scale per channel."""
    yield maker.codes(f"{module}.weight", "I8", rows, columns)
    yield maker.scales(f"{module}.scale", "F32", rows, 1)


def awq(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """AutoAWQ's GEMM layout: codes and zero-points in words of eight output features."""
    groups = columns // GROUP
    yield maker.codes(f"{module}.qweight", "I32", columns, rows // 8)
    yield maker.noise(f"{module}.qzeros", "I32", groups, rows // 8)
    yield maker.scales(f"{module}.scales", "F16", groups, rows)


def auto_round(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """GPTQ's tensors without g_idx, symmetric."""
    groups = columns // GROUP
    yield maker.codes(f"{module}.qweight", "I32", columns // 8, rows)
    yield maker.middle(f"{module}.qzeros", groups, rows // 8)
    yield maker.scales(f"{module}.scales", "F16", groups, rows)


def gptq(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """Symmetric, zero-points of version 1, groups in their own order."""
    yield from auto_round(maker, module, rows, columns)
    yield f"{module}.g_idx", "I32", (columns,), trivial_groups(columns, GROUP)


def marlin(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """AutoGPTQ's names; any order of random codes is random codes."""
    yield maker.codes(f"{module}.B", "I32", columns // 16, 2 * rows)
    yield maker.scales(f"{module}.s", "F16", columns // GROUP, rows)


def packed(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """compressed-tensors' pack-quantized, symmetric."""
    yield maker.codes(f"{module}.weight_packed", "I32", rows, columns // 8)
    yield maker.scales(f"{module}.weight_scale", "F16", rows, columns // GROUP)
    yield f"{module}.weight_shape", "I64", (2,), dims(rows, columns)


def packed_asym(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """The same with zero-points, in words of eight output features."""
    yield from packed(maker, module, rows, columns)
    yield maker.noise(f"{module}.weight_zero_point", "I32", rows // 8, columns // GROUP)


def fp8_blocks(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """DeepSeek's: e4m3 codes, a scale for each block of 128 x 128."""
    yield maker.float8(f"{module}.weight", rows, columns)
    yield maker.scales(f"{module}.weight_scale_inv", "F32", rows // GROUP, columns // GROUP)


def fp8_tensors(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """AutoFP8's: e4m3 codes, one scale."""
    yield maker.float8(f"{module}.weight", rows, columns)
    yield maker.scales(f"{module}.weight_scale", "F32", 1)


def fp8_channels(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """compressed-tensors: e4m3 codes, a scale per channel."""
    yield maker.float8(f"{module}.weight", rows, columns)
    yield maker.scales(f"{module}.weight_scale", "F32", rows, 1)


def nvfp4(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """compressed-tensors: e2m1 codes, e4m3 scales of 16 codes, a global scale that divides."""
    yield maker.codes(f"{module}.weight_packed", "U8", rows, columns // 2)
    yield maker.small(f"{module}.weight_scale", "F8_E4M3", 0x08, 0x7E, rows, columns // 16)
    yield maker.same(f"{module}.weight_global_scale", 2048.0)


def nvfp4_modelopt(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """ModelOpt: the same with a global scale that multiplies."""
    yield maker.codes(f"{module}.weight", "U8", rows, columns // 2)
    yield maker.small(f"{module}.weight_scale", "F8_E4M3", 0x08, 0x7E, rows, columns // 16)
    yield maker.same(f"{module}.weight_scale_2", 1 / 2048)


def mxfp4(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """compressed-tensors: e2m1 codes, e8m0 scales of 32 codes."""
    yield maker.codes(f"{module}.weight_packed", "U8", rows, columns // 2)
    yield maker.small(f"{module}.weight_scale", "U8", 110, 125, rows, columns // 32)


def _compressed(kind: str, weights: dict[str, Any], activations: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _integers(bits: int, strategy: str, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, **more}


def _floats(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "symmetric": True, "strategy": strategy, **more}


INT4 = {"bits": 4, "group_size": GROUP}
GPTQMODEL = {"checkpoint_format": "gptq", "pack_dtype": "int32", "meta": {"quantizer": ["gptqmodel:7.7.0"]}}
Linear = Callable[[Maker, str, int, int], Iterator[Tensor]]
FORMATS: dict[str, tuple[int, Linear, dict[str, Any]]] = {  # bits, the tensors of a linear, quantization_config
    "w8a8": (
        8,
        w8a8,
        _compressed("int-quantized", _integers(8, "channel"), _integers(8, "token", dynamic=True)),
    ),
    "compressed-tensors": (
        4,
        packed,
        _compressed("pack-quantized", _integers(4, "group", group_size=GROUP)),
    ),
    "compressed-tensors-asym": (
        4,
        packed_asym,
        _compressed("pack-quantized", _integers(4, "group", False, group_size=GROUP)),
    ),
    "awq": (4, awq, {"quant_method": "awq", "version": "gemm", **INT4, "zero_point": True}),
    "gptq": (4, gptq, {"quant_method": "gptq", **INT4, "sym": True, "desc_act": False, **GPTQMODEL}),
    "auto-round": (
        4,
        auto_round,
        {
            "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq",
            **INT4,
            "sym": True,
            "data_type": "int",
        },
    ),
    "marlin": (
        4,
        marlin,
        {"quant_method": "gptq", **INT4, "sym": True, "desc_act": False, "is_marlin_format": True},
    ),
    "smooth-quant": (8, smooth_quant, {"quant_method": "smooth_quant", "quant_dtype": "int8"}),
    "fp8-blocks": (
        8,
        fp8_blocks,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [GROUP, GROUP]},
    ),
    "fp8-tensors": (8, fp8_tensors, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "fp8-channels": (
        8,
        fp8_channels,
        _compressed("float-quantized", _floats(8, "channel"), _floats(8, "token", dynamic=True)),
    ),
    "nvfp4": (
        4,
        nvfp4,
        _compressed(
            "nvfp4-pack-quantized",
            _floats(4, "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn"),
        ),
    ),
    "nvfp4-modelopt": (
        4,
        nvfp4_modelopt,
        {
            "quant_method": "modelopt",
            "quant_algo": "W4A16_NVFP4",
            "ignore": ["lm_head", "model.embed_tokens"],
            "producer": {"name": "modelopt", "version": "0.47.0"},
        },
    ),
    "mxfp4": (
        4,
        mxfp4,
        _compressed("mxfp4-pack-quantized", _floats(4, "group", group_size=32, scale_dtype="torch.uint8")),
    ),
}
