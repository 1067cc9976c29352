"""Codes and scales of every layout, packed by rounding to nearest, independently of every library and of qbridge.

Each packer takes float32 weights [out_features, in_features] and gives the tensors of one linear by their last names,
and the values that the codes stand for, float64. A stored tensor is `(dtype as safetensors writes it, numpy array)`;
bfloat16 and float8 are held as their bits.
"""

from __future__ import annotations

import numpy as np

F8_MAX, F4_MAX = 448.0, 6.0
F4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def bf16(values):
    """Bits of the nearest bfloat16, ties to even, of float64 or float32 that is no NaN."""
    single = np.asarray(values, np.float32)
    bits = single.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def f8_values():
    """The 127 finite values of float8 e4m3fn without a sign, by their bits."""
    bits = np.arange(127)
    exponent, mantissa = bits >> 3, bits & 7
    return np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


def nearest(values, table):
    """The number of the nearest entry of an ascending table, ties to the even one; larger values to the last."""
    after = np.clip(np.searchsorted(table, values), 1, len(table) - 1)
    low, high = values - table[after - 1], table[after] - values
    return np.where((low < high) | ((low == high) & (after % 2 == 1)), after - 1, after)


def f8(values):
    """Bits of the nearest float8 e4m3fn, and the values that they are."""
    table = f8_values()
    code = nearest(np.abs(values), table)
    return (code | np.where(np.signbit(values), 128, 0)).astype(np.uint8), np.copysign(table[code], values)


def bf16_scale(values):
    bits = bf16(np.maximum(values, 1e-8))
    return ("BF16", bits), from_bf16(bits).astype(np.float64)


def fp8_channel(w):
    """float8 with one scale a row, as llm-compressor's FP8_DYNAMIC."""
    stored, scale = bf16_scale(np.abs(w).max(1, keepdims=True) / F8_MAX)
    codes, values = f8(np.clip(w / scale, -F8_MAX, F8_MAX))
    return {"weight": ("F8_E4M3", codes), "weight_scale": stored}, values * scale


def fp8_block(w, size=128):
    """float8 with one float32 scale a block of 128 x 128, the last ones cut off, as DeepSeek's."""
    rows, columns = (-(-n // size) for n in w.shape)
    padded = np.zeros((rows * size, columns * size))
    padded[: w.shape[0], : w.shape[1]] = w
    blocks = padded.reshape(rows, size, columns, size)
    scale = np.maximum(np.abs(blocks).max((1, 3)) / F8_MAX, 1e-8).astype(np.float32)
    full = np.repeat(np.repeat(scale.astype(np.float64), size, 0), size, 1)[: w.shape[0], : w.shape[1]]
    codes, values = f8(np.clip(w / full, -F8_MAX, F8_MAX))
    return {"weight": ("F8_E4M3", codes), "weight_scale_inv": ("F32", scale)}, values * full


def fp8_tensor(w, largest):
    """float8 with one float32 scale, and one of the input, as ModelOpt's; fused linears have one scale in common."""
    scale = np.float32(largest / F8_MAX)
    codes, values = f8(np.clip(w / np.float64(scale), -F8_MAX, F8_MAX))
    small = {"weight_scale": ("F32", np.array(scale)), "input_scale": ("F32", np.array(0.02, np.float32))}
    return {"weight": ("F8_E4M3", codes), **small}, values * np.float64(scale)


def int8_channel(w):
    """int8 with one scale a row, as llm-compressor's W8A8."""
    stored, scale = bf16_scale(np.abs(w).max(1, keepdims=True) / 127)
    codes = np.clip(np.rint(w / scale), -127, 127).astype(np.int8)
    return {"weight": ("I8", codes), "weight_scale": stored}, codes * scale


def pairs(codes):
    """Two codes of four bits in a byte, the first in the low half."""
    return (codes[:, ::2] | (codes[:, 1::2] << 4)).astype(np.uint8)


def nvfp4(w, largest, divides):
    """float4 with a float8 scale for 16 of them, over or times a global scale of float32."""
    w = w.astype(np.float64)
    bound = np.float32(F8_MAX * F4_MAX / largest if divides else largest / (F8_MAX * F4_MAX))
    unit = 1 / np.float64(bound) if divides else np.float64(bound)
    groups = w.reshape(w.shape[0], -1, 16)
    scale_codes, scale = f8(np.maximum(np.abs(groups).max(2) / F4_MAX / unit, 2.0**-9))
    step = scale / np.float64(bound) if divides else scale * np.float64(bound)
    code = nearest(np.abs(groups) / step[..., None], F4)
    values = (np.copysign(F4[code], groups) * step[..., None]).reshape(w.shape)
    signed = (code | np.where(np.signbit(groups), 8, 0)).reshape(w.shape)
    return pairs(signed), scale_codes, bound, values


def nvfp4_compressed(w, largest):
    packed, scale, bound, values = nvfp4(w, largest, divides=True)
    one = {"weight_global_scale": np.array([bound]), "input_global_scale": np.array([40.0], np.float32)}
    return {
        "weight_packed": ("U8", packed),
        "weight_scale": ("F8_E4M3", scale),
        **{name: ("F32", array) for name, array in one.items()},
    }, values


def nvfp4_modelopt(w, largest):
    packed, scale, bound, values = nvfp4(w, largest, divides=False)
    one = {"weight_scale_2": np.array(bound), "input_scale": np.array(0.001, np.float32)}
    return {
        "weight": ("U8", packed),
        "weight_scale": ("F8_E4M3", scale),
        **{name: ("F32", array) for name, array in one.items()},
    }, values


def mxfp4(w):
    """float4 with one power of two for 32 of them, as gpt-oss's: [..., groups, 16] bytes and [..., groups]."""
    groups = w.astype(np.float64).reshape(*w.shape[:-1], -1, 32)
    exponent = np.floor(np.log2(np.maximum(np.abs(groups).max(-1), 1e-30))) - 2
    step = 2.0**exponent
    code = nearest(np.abs(groups) / step[..., None], F4)
    signed = (code | np.where(np.signbit(groups), 8, 0)).reshape(-1, 32)
    blocks = pairs(signed).reshape(*groups.shape[:-1], 16)
    values = (np.copysign(F4[code], groups) * step[..., None]).reshape(w.shape)
    return ("U8", blocks), ("U8", (exponent + 127).astype(np.uint8)), values


def grouped(w, size, symmetric, scale_dtype):
    """Codes 0 to 15 [out, in], zero-points [out, groups], the stored scales and their values [out, groups]."""
    groups = w.astype(np.float64).reshape(w.shape[0], -1, size)
    if symmetric:
        wanted, zero = np.abs(groups).max(2) / 7.5, np.full(groups.shape[:2], 8)
    else:
        low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
        wanted = (high - low) / 15
        zero = np.clip(np.rint(-low / np.maximum(wanted, 1e-8)), 1, 15).astype(int)
    if scale_dtype == "BF16":
        stored, scale = bf16_scale(wanted)
    else:
        half = np.maximum(wanted, 1e-4).astype(np.float16)
        stored, scale = ("F16", half), half.astype(np.float64)
    codes = np.clip(np.rint(groups / scale[..., None]) + zero[..., None], 0, 15).astype(np.int64)
    values = (codes - zero[..., None]) * scale[..., None]
    return codes.reshape(w.shape), zero, stored, scale, values.reshape(w.shape)


def words(codes, order=range(8)):
    """Eight codes of four bits in an int32, along the last dim; `order` says which code is where, low bits first."""
    parts = codes.reshape(*codes.shape[:-1], -1, 8)[..., list(order)].astype(np.uint32)
    return (parts << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32).view(np.int32)


def compressed_int4(w, size=128):
    """pack-quantized: codes along in_features."""
    codes, _, stored, _, values = grouped(w, size, symmetric=True, scale_dtype="BF16")
    shape = ("I64", np.array(w.shape, np.int64))
    return {"weight_packed": ("I32", words(codes)), "weight_scale": stored, "weight_shape": shape}, values


def gptq(w, size=128):
    """qweight [in / 8, out] packed along in_features, zero-points less one, a group of each input."""
    codes, zero, (dtype, scale), _, values = grouped(w, size, symmetric=True, scale_dtype="F16")
    return {
        "qweight": ("I32", np.ascontiguousarray(words(codes).T)),
        "qzeros": ("I32", words(np.ascontiguousarray(zero.T) - 1)),
        "scales": (dtype, np.ascontiguousarray(scale.T)),
        "g_idx": ("I32", (np.arange(w.shape[1]) // size).astype(np.int32)),
    }, values


def auto_round(w, size=128):
    """GPTQ's, without the groups of inputs."""
    parts, values = gptq(w, size)
    return {name: tensor for name, tensor in parts.items() if name != "g_idx"}, values


def awq(w, size=128):
    """qweight [in, out / 8] packed along out_features in AWQ's order, with zero-points."""
    codes, zero, (dtype, scale), _, values = grouped(w, size, symmetric=False, scale_dtype="F16")
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": ("I32", words(np.ascontiguousarray(codes.T), order)),
        "qzeros": ("I32", words(np.ascontiguousarray(zero.T), order)),
        "scales": (dtype, np.ascontiguousarray(scale.T)),
    }, values
