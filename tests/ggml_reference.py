"""The weights of blocks of ggml by the formulas of ggml-quants.c, an element at a time; no codec is asked."""

from __future__ import annotations

import numpy as np

from ggml_k_quants import WITHOUT_ONE_SCALE
from qbridge.ir.floats import VALUES


def reference(kind, block, number=float):
    """The weights of one block by the formulas of ggml-quants.c, an element at a time, in float or Fraction."""
    f16 = lambda at: number(float(np.array(block[at : at + 2], np.uint8).view(np.float16)[0]))  # noqa: E731
    b = [int(byte) for byte in block]
    if kind == "Q4_0":
        return [f16(0) * ((b[2 + j % 16] >> 4 * (j // 16) & 15) - 8) for j in range(32)]
    if kind == "Q5_0":
        high = int.from_bytes(bytes(b[2:6]), "little")
        return [f16(0) * ((b[6 + j % 16] >> 4 * (j // 16) & 15 | (high >> j & 1) << 4) - 16) for j in range(32)]
    if kind == "Q8_0":
        return [f16(0) * (v - 256 if v > 127 else v) for v in b[2:]]
    if kind == "Q1_0":
        return [f16(0) if b[2 + j // 8] >> j % 8 & 1 else -f16(0) for j in range(128)]
    if kind == "Q2_0":
        return [f16(0) * ((b[2 + j // 4] >> 2 * (j % 4) & 3) - 1) for j in range(64)]
    if kind == "TQ2_0":
        return [f16(64) * ((b[32 * (j // 128) + j % 32] >> 2 * (j // 32 % 4) & 3) - 1) for j in range(256)]
    if kind == "TQ1_0":
        at = [(m, n) for n in range(5) for m in range(32)] + [(32 + m, n) for n in range(5) for m in range(16)]
        at += [(48 + m, n) for n in range(4) for m in range(4)]
        return [f16(52) * ((((b[m] * 3**n & 255) * 3) >> 8) - 1) for m, n in at]
    if kind in WITHOUT_ONE_SCALE:
        return WITHOUT_ONE_SCALE[kind](b, f16)
    e2m1 = VALUES["e2m1"]
    if kind == "MXFP4":
        return [e2m1[b[1 + j % 16] >> 4 * (j // 16) & 15] * 2.0 ** (b[0] - 127) for j in range(32)]
    e4m3 = VALUES["e4m3fn"]
    place = [(j // 16, 4 + 8 * (j // 16) + j % 8, j % 16 // 8) for j in range(64)]
    return [e2m1[b[at] >> 4 * high & 15] * e4m3[b[sub]] for sub, at, high in place]


def tensor(kind, dims, data):
    """float32 weights [dims, the innermost last] of a tensor's bytes."""
    plain = {"F32": np.float32, "F16": np.float16}
    if kind in plain:
        return np.frombuffer(data, plain[kind]).astype(np.float32).reshape(dims)
    if kind == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(dims)
    size = SIZES[kind]
    blocks = np.frombuffer(data, np.uint8).reshape(-1, size)
    return np.array([reference(kind, block) for block in blocks], np.float64).astype(np.float32).reshape(dims)


SIZES = {
    **{"Q4_1": 20, "Q5_1": 24, "Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210},
    "Q4_0": 18,
    "Q5_0": 22,
    "Q8_0": 34,
    "Q1_0": 18,
    "Q2_0": 18,
    "TQ1_0": 54,
    "TQ2_0": 66,
    "MXFP4": 17,
    "NVFP4": 36,
}
