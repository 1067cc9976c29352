"""Prove that llama.cpp loads a GGUF file.

    PYTHON prover.py CKPT... [--json F] [--trace]     with a Python that has a libllama below its prefix: that of
                                                      llama-cpp-python, or of node-llama-cpp

Real: llama_model_load_from_file with its defaults: the reader, the names, types and shapes of all tensors that the
model class wants, and their count. A tensor too many is one that llama.cpp did not say it loads. proving.py
beside this folder describes the report. Source: llama.cpp, include/llama.h and src/llama-model-loader.cpp.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VERSIONS = ("0.4", "0.5")  # of libllama: 0.5.0 is what node-llama-cpp 3.22.1 brings
PARAMETERS = 1024  # bytes, more than llama_model_params has in any version; all of it is passed on the stack
LIBRARIES = ("libllama*.so*", "libllama*.dylib")
LOADED = re.compile(r"loading tensor (\S+)|create_tensor: .*?tensor '?([\w.]+)")
MISSING = re.compile(r"missing tensor '([^']+)'|tensor '([^']+)' not found")
MISSHAPEN = re.compile(r"tensor '([^']+)' has wrong shape; expected (.*?), got (.*?)$", re.MULTILINE)
PLAIN = {0: "F32", 1: "F16", 30: "BF16"}  # ggml.h, enum ggml_type
STRING, ARRAY = 8, 9  # gguf.h, enum gguf_type
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of its numbers
Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _Parameters(ctypes.Structure):
    """llama_model_params as bytes: nothing in it is changed."""

    _fields_ = (("bytes", ctypes.c_char * PARAMETERS),)


def _helper(name: str) -> Any:
    """A module beside this folder, by its path."""
    spec = importlib.util.spec_from_file_location(f"qbridge_{name}", HERE.parent / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _library() -> Path | None:
    """libllama below the prefix of this Python, or None."""
    roots = [Path(sys.prefix)]
    if spec := importlib.util.find_spec("llama_cpp"):
        roots.insert(0, Path(spec.origin or "").parent)
    for root in roots:
        for pattern in LIBRARIES:
            files = [path for path in root.rglob(pattern) if "common" not in path.name]
            if files:
                return min(files, key=lambda path: len(str(path)))
    return None


def _version(library: Path) -> str:
    """The version in the library's name, or that of the package that brings it."""
    if match := re.search(r"v?(\d+\.\d+\.\d+)", library.name):
        return match[1]
    return importlib.metadata.version("llama_cpp_python")


class LlamaCpp:
    """libllama, and its proof of one checkpoint."""

    def __init__(self, proving: Any) -> None:
        """Find the library; Unproved where there is none."""
        self.proving, library = proving, _library()
        if library is None:
            raise proving.Unproved(f"there is no libllama below {sys.prefix}", "engine")
        self.library, self.version = library, _version(library)

    def prove(self, path: str, report: dict[str, Any]) -> None:
        """Load one checkpoint and complete its report."""
        file = _first_file(path)
        types = _stored_types(file)
        report["config"] = {"class": file.name, "method": "gguf", "quantization": None, "dtype": None}
        lines: list[str] = []
        loads = self._load(file, lines)
        text = "".join(lines)
        if match := re.search(r"arch\s*=\s*(\S+)", text):
            report["model"] = match[1]
        report["modules"] = {
            name.rpartition(".")[0]: {"class": kind, "method": None if kind in PLAIN.values() else kind}
            for name, kind in types.items()
            if name.endswith(".weight")
        }
        report["quantized"] = {name: entry["method"] is not None for name, entry in report["modules"].items()}
        report["stored"] = dict(report["quantized"])
        report["missing"] = sorted({first or second for first, second in MISSING.findall(text)})
        report["misshapen"] = [
            {"tensor": name, "parameter": name, "given": _numbers(given), "wanted": _numbers(wanted)}
            for name, wanted, given in MISSHAPEN.findall(text)
        ]
        taken = {first or second for first, second in LOADED.findall(text)}
        if taken and not report["missing"] and not report["misshapen"]:
            report["unexpected"] = sorted(types.keys() - taken)
        if not loads:
            raise RuntimeError(_reason(text))

    def _load(self, file: Path, lines: list[str]) -> bool:
        """Whether llama.cpp loads a file; what it says goes to the lines."""
        folder = self.library.parent
        for name in ("libggml-base", "libggml"):
            for helper in sorted(folder.glob(f"{name}.*")):
                ctypes.CDLL(str(helper), ctypes.RTLD_GLOBAL)
        llama = ctypes.CDLL(str(self.library), ctypes.RTLD_GLOBAL)
        hear = Log(lambda level, text, data: lines.append((text or b"").decode(errors="replace")))
        llama.llama_log_set(hear, None)
        if backends := next(folder.glob("libggml.*"), None):
            ctypes.CDLL(str(backends)).ggml_backend_load_all_from_path(os.fsencode(folder))
        llama.llama_backend_init()
        llama.llama_model_default_params.restype = _Parameters
        llama.llama_model_load_from_file.argtypes = (ctypes.c_char_p, _Parameters)
        llama.llama_model_load_from_file.restype = ctypes.c_void_p
        parameters = llama.llama_model_default_params()
        return bool(llama.llama_model_load_from_file(os.fsencode(file), parameters))


def _first_file(path: str) -> Path:
    """The first GGUF file of a checkpoint."""
    given = Path(path)
    files = (
        [given] if given.is_file() else sorted(given.glob("*.gguf"), key=lambda path: ("mmproj" in path.name, path))
    )
    if not files:
        raise FileNotFoundError(f"{path} has no GGUF file")
    return files[0]


def _stored_types(first: Path) -> dict[str, str]:
    """{tensor: its type} of a file, and of those that continue it (name-00001-of-00003.gguf)."""
    family = re.sub(r"-\d{5}-of-", "-*-of-", first.name)
    return {name: kind for file in sorted(first.parent.glob(family)) for name, kind in _types_in(file).items()}


def _types_in(file: Path) -> dict[str, str]:
    """{tensor: its type} of one file, from its header (ggml/src/gguf.cpp): numbers of ggml but for plain floats."""
    with file.open("rb") as stream:

        def number(form: str) -> int:
            return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])

        def text() -> str:
            return stream.read(number("<Q")).decode(errors="replace")

        def skip(kind: int) -> None:
            if kind == STRING:
                text()
            elif kind == ARRAY:
                inner, count = number("<I"), number("<Q")
                for _ in range(count if inner in (STRING, ARRAY) else 0):
                    skip(inner)
                stream.seek(WIDTHS.get(inner, 0) * count, os.SEEK_CUR)
            else:
                stream.seek(WIDTHS[kind], os.SEEK_CUR)

        stream.seek(8)  # the magic and the version
        tensors, keys = number("<Q"), number("<Q")
        for _ in range(keys):
            text()
            skip(number("<I"))
        types = {}
        for _ in range(tensors):
            name = text()
            stream.seek(8 * number("<I"), os.SEEK_CUR)
            kind = number("<I")
            types[name] = PLAIN.get(kind, f"type {kind}")
            number("<Q")
    return types


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _reason(text: str) -> str:
    """The last error in what llama.cpp says."""
    errors = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    return errors[0] if errors else text.strip()[-300:] or "llama.cpp says nothing"


def main() -> int:
    """Prove the checkpoints of the command line; the exit status."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    proving = _helper("proving")
    args = proving.arguments(__doc__).parse_args()
    proving.settle(args.emulate)
    begin = proving.on_one_rank("llama.cpp", lambda: LlamaCpp(proving))
    return int(proving.main("llama.cpp", "", VERSIONS, args, begin))


if __name__ == "__main__":
    sys.exit(main())
