"""Blocks of ggml against the formulas of their structs, an element at a time; tests/engines asks ggml."""

from __future__ import annotations

import numpy as np
import pytest

from qbridge.codecs.ggml_blocks import STRUCTS, BlockCodes, BlockScales, PairedRows
from qbridge.ir.dtypes import DType, to_float64
from qbridge.ir.floats import VALUES
from qbridge.ir.slots import PLAIN, Slot

RANGES = {
    **{"Q4_0": range(-8, 8), "Q5_0": range(-16, 16), "Q8_0": range(-128, 128), "Q1_0": (-1, 1)},
    **{"Q2_0": range(-2, 2), "TQ1_0": (-1, 0, 1), "TQ2_0": range(-2, 2), "MXFP4": range(16), "NVFP4": range(16)},
}


def some(kind, rows=4, blocks=3, seed=0):
    """(codes, scales, slot) of random blocks."""
    rng, struct = np.random.default_rng(seed), STRUCTS[kind]
    columns = blocks * struct.elements
    dtype = np.uint8 if kind.endswith("FP4") else np.int8
    codes = rng.choice(np.array(RANGES[kind]), (rows, columns)).astype(dtype)
    groups = columns // (struct.group or struct.elements)
    if struct.scale_dtype is DType.F16:
        scales = rng.standard_normal((rows, groups)).astype(np.float16)
    else:
        scales = rng.integers(1, 126, (rows, groups), np.uint8)
    return codes, scales, Slot("a", DType.U8, (rows, struct.row_bytes(columns)))


@pytest.mark.parametrize("kind", STRUCTS)
def test_there_and_back(kind):
    codes, scales, slot = some(kind)
    stored = BlockCodes(kind).encode(codes, slot, {"scale": scales})
    assert stored.dtype == np.uint8 and stored.shape == slot.shape
    dtype = DType.U8 if kind.endswith("FP4") else DType.I8
    again = BlockCodes(kind).decode(stored, dtype, codes.shape)
    assert again.dtype == codes.dtype and (again == codes).all()
    found = BlockScales(kind).decode(stored, STRUCTS[kind].scale_dtype, scales.shape)
    assert found.tobytes() == scales.tobytes()


def reference(kind, block):
    """The weights of one block by the formulas of ggml-quants.c, an element at a time."""
    f16 = lambda at: float(np.array(block[at : at + 2], np.uint8).view(np.float16)[0])  # noqa: E731
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
    e2m1 = VALUES["e2m1"]
    if kind == "MXFP4":
        return [e2m1[b[1 + j % 16] >> 4 * (j // 16) & 15] * 2.0 ** (b[0] - 127) for j in range(32)]
    e4m3 = VALUES["e4m3fn"]
    place = [(j // 16, 4 + 8 * (j // 16) + j % 8, j % 16 // 8) for j in range(64)]
    return [e2m1[b[at] >> 4 * high & 15] * e4m3[b[sub]] for sub, at, high in place]


@pytest.mark.parametrize("kind", STRUCTS)
def test_any_bytes_have_the_value_that_ggml_gives_them(kind):
    struct = STRUCTS[kind]
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 256, (2, 2 * struct.size), np.uint8)
    for start in range(0, 2 * struct.size, struct.size):
        if struct.scale_dtype is DType.F16:
            stored[:, start + struct.scale_at : start + struct.scale_at + 2] = [[0x12, 0x3C], [0x34, 0xB8]]
        else:
            stored[:, start : start + struct.scale_bytes] = rng.integers(1, 126, (2, struct.scale_bytes))
    columns = 2 * struct.elements
    dtype = DType.U8 if kind.endswith("FP4") else DType.I8
    codes = BlockCodes(kind).decode(stored, dtype, (2, columns))
    group = struct.group or struct.elements
    scales = BlockScales(kind).decode(stored, struct.scale_dtype, (2, columns // group))
    values = (VALUES["e2m1"][codes] if kind.endswith("FP4") else codes) * np.repeat(
        to_float64(scales, struct.scale_dtype), group, axis=1
    )
    wanted = [[v for block in row.reshape(2, -1) for v in reference(kind, block)] for row in stored]
    assert (values == np.array(wanted)).all()


@pytest.mark.parametrize(("kind", "code"), [("Q4_0", 8), ("Q5_0", -17), ("Q1_0", 0), ("Q2_0", 2), ("TQ1_0", 2)])
def test_codes_that_do_not_fit_are_refused(kind, code):
    codes, scales, slot = some(kind)
    codes[1, 7] = code
    with pytest.raises(ValueError, match=r"fit|codes"):
        BlockCodes(kind).encode(codes, slot, {"scale": scales})


def test_rows_of_heads_take_turns():
    rows = np.arange(16, dtype=np.float32).reshape(16, 1)
    codec, slot = PairedRows(PLAIN, 8), Slot("a", DType.F32, (16, 1))
    stored = codec.encode(rows, slot)
    assert stored[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert (codec.decode(stored, DType.F32, (16, 1)) == rows).all()
    assert codec.step(4) == 8 and codec.rows((16, 1), (16, 1), (4, 8), 4) is None
    codes, scales, slot = some("Q4_0", rows=16)
    stored = PairedRows(BlockCodes("Q4_0"), 8).encode(codes, slot, {"scale": scales})
    plain = BlockCodes("Q4_0").encode(codes, slot, {"scale": scales})
    assert (stored[1] == plain[4]).all()


def test_a_row_of_broken_blocks_is_refused():
    with pytest.raises(ValueError, match="33 inputs"):
        BlockCodes("Q4_0").stored_size((1, 33), 1)
