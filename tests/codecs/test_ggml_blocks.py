"""Blocks of ggml against the formulas of their structs, an element at a time; tests/engines asks ggml."""

from __future__ import annotations

import numpy as np
import pytest

from ggml_reference import reference
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
