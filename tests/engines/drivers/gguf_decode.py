"""Every tensor of a GGUF file as float32, by llama.cpp's own code: the gguf package, or ggml's C library.

    python gguf_decode.py MODEL.gguf --out weights.npz [--library libggml-base.so] --json report.json

The package reads the file. With --library each type that the package decodes is decoded in C as well, and types that
it does not know are decoded in C alone. The report lists tensors that the two decode unlike each other.
"""

from __future__ import annotations

import argparse
import ctypes
import json

import gguf
import numpy as np

PLAIN = {"F32": np.float32, "F16": np.float16}


def in_c(library, kind, data, count):
    """float32 [count] of the bytes of a tensor, by the decoder that ggml exports for its type."""
    decode = getattr(library, f"dequantize_row_{kind.lower()}")
    decode.restype, decode.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    stored, out = np.ascontiguousarray(data), np.empty(count, np.float32)
    decode(stored.ctypes.data, out.ctypes.data, count)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--out", required=True)
    parser.add_argument("--library")
    parser.add_argument("--json", required=True)
    wanted = parser.parse_args()
    library = ctypes.CDLL(wanted.library) if wanted.library else None
    found, unlike, types = {}, [], {}
    for tensor in gguf.GGUFReader(wanted.file).tensors:
        kind, shape = tensor.tensor_type.name, tuple(int(size) for size in reversed(tensor.shape))
        if kind in PLAIN:
            values = np.asarray(tensor.data).view(PLAIN[kind]).astype(np.float32)
        else:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if library and kind != "BF16":
                other = in_c(library, kind, tensor.data, values.size)
                unlike += [] if np.array_equal(other, values.reshape(-1)) else [tensor.name]
        types[kind] = types.get(kind, 0) + 1
        found[tensor.name] = values.reshape(shape)
    np.savez(wanted.out, **found)
    with open(wanted.json, "w") as stream:
        json.dump({"types": types, "unlike": unlike, "in_c": bool(library)}, stream)


if __name__ == "__main__":
    main()
