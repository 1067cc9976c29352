"""What llama-quantize does: a float32 GGUF file in another type, by llama.cpp's own function.

    python llama_quantize.py IN.gguf --out OUT.gguf --type NUMBER --library LIBLLAMA --json report.json

NUMBER is one of llama.h's enum llama_ftype. Embedding and head become F16, which every reader takes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from pathlib import Path

F16 = 1  # ggml.h, enum ggml_type


class Parameters(ctypes.Structure):
    """llama_model_quantize_params: the first fields, and room for those that follow in any version."""

    _fields_ = (
        ("threads", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("head", ctypes.c_int32),
        ("embedding", ctypes.c_int32),
        ("more", ctypes.c_char * 112),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--out", required=True)
    parser.add_argument("--type", type=int, required=True)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--json", required=True)
    wanted = parser.parse_args()
    for name in ("libggml-base", "libggml"):
        for helper in sorted(wanted.library.parent.glob(f"{name}.*")):
            ctypes.CDLL(str(helper), ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(wanted.library), ctypes.RTLD_GLOBAL)
    llama.llama_backend_init()
    llama.llama_model_quantize_default_params.restype = Parameters
    parameters = llama.llama_model_quantize_default_params()
    parameters.threads, parameters.type, parameters.head, parameters.embedding = 1, wanted.type, F16, F16
    llama.llama_model_quantize.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters))
    llama.llama_model_quantize.restype = ctypes.c_uint32
    status = llama.llama_model_quantize(wanted.file.encode(), wanted.out.encode(), ctypes.byref(parameters))
    with open(wanted.json, "w") as stream:
        json.dump({"status": status}, stream)


if __name__ == "__main__":
    main()
