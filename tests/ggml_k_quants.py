"""The weights of blocks of ggml that have no one scale to a code, by the formulas of ggml-quants.c.

Each function gets the bytes of a block and what reads the float16 that begins at one of them.
"""

from __future__ import annotations


def q4_1(b, f16):
    return [f16(0) * (b[4 + j % 16] >> 4 * (j // 16) & 15) + f16(2) for j in range(32)]


def q5_1(b, f16):
    high = int.from_bytes(bytes(b[4:8]), "little")
    return [f16(0) * (b[8 + j % 16] >> 4 * (j // 16) & 15 | (high >> j & 1) << 4) + f16(2) for j in range(32)]


def two_bits(b, at, j):
    """The two bits of weight `j` that begin at byte `at`."""
    return b[at + 32 * (j // 128) + j % 32] >> 2 * (j % 128 // 32) & 3


def q2_k(b, f16):
    return [f16(80) * (b[j // 16] & 15) * two_bits(b, 16, j) - f16(82) * (b[j // 16] >> 4) for j in range(256)]


def q3_k(b, f16):
    def scale(i):
        return (b[96 + i % 8] >> 4 * (i // 8) & 15) + ((b[104 + i % 4] >> 2 * (i // 4) & 3) << 4) - 32

    def code(j):
        return two_bits(b, 32, j) - (0 if b[j % 32] >> j // 32 & 1 else 4)

    return [f16(108) * scale(j // 16) * code(j) for j in range(256)]


def six_bits(s, i, minimum):
    """get_scale_min_k4: a scale of the 12 bytes `s`, or a minimum."""
    if i < 4:
        return s[i + 4 * minimum] & 63
    return (s[i + 4] >> 4 * minimum & 15) | (s[i - 4 + 4 * minimum] >> 6) << 4


def nibble(b, at, j, run):
    return b[at + run * (j // (2 * run)) + j % run] >> 4 * (j % (2 * run) // run) & 15


def q4_k(b, f16):
    s = b[4:16]
    return [
        f16(0) * six_bits(s, j // 32, 0) * nibble(b, 16, j, 32) - f16(2) * six_bits(s, j // 32, 1) for j in range(256)
    ]


def q5_k(b, f16):
    s = b[4:16]
    codes = [nibble(b, 48, j, 32) + ((b[16 + j % 32] >> j // 32 & 1) << 4) for j in range(256)]
    return [f16(0) * six_bits(s, j // 32, 0) * codes[j] - f16(2) * six_bits(s, j // 32, 1) for j in range(256)]


def q6_k(b, f16):
    scales = [v - 256 if v > 127 else v for v in b[192:208]]
    codes = [(nibble(b, 0, j, 64) | two_bits(b, 128, j) << 4) - 32 for j in range(256)]
    return [f16(208) * scales[j // 16] * codes[j] for j in range(256)]


WITHOUT_ONE_SCALE = {
    **{"Q4_1": q4_1, "Q5_1": q5_1, "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k},
}
