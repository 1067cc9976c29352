"""The base installation, and systems that lack calls of Linux."""

from __future__ import annotations

import pytest

import bare

WINDOWS = {"modules": bare.UNIX_MODULES, "calls": bare.UNIX_CALLS, "no_folders": True}
BASE = {"modules": bare.OPTIONAL}

EVERY_MODULE = """
import importlib, pkgutil, qbridge, qbridge_formats
# in an engine's own Python, or beside torch; the face of the laws
apart = {apart!r}
for package in (qbridge, qbridge_formats):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not any(word in module.name for word in apart):
            importlib.import_module(module.name)
"""
APART = (
    "prover",
    "weight_trace",
    "turbomind_native",
    "absent",
    "__main__",
    "torch_tensors",
    "unmade",
    "qbridge.testing",
)


@pytest.fixture
def src(fixtures):
    return fixtures / "compressed_tensors/llama_w8a8/model"


@pytest.mark.parametrize("hidden", [BASE, WINDOWS], ids=["base", "windows"])
def test_every_module_is_imported(hidden):
    done = bare.python(EVERY_MODULE.format(apart=APART), **hidden)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("hidden", [BASE, WINDOWS], ids=["base", "windows"])
@pytest.mark.parametrize("words", [["--help"], ["convert", "--help"], ["formats"], ["targets"]], ids=" ".join)
def test_help_is_printed(hidden, words):
    done = bare.qbridge(*words, **hidden)
    assert done.returncode == 0 and done.stdout and not done.stderr


@pytest.mark.parametrize("hidden", [BASE, WINDOWS], ids=["base", "windows"])
@pytest.mark.parametrize(
    ("case", "target"), [("compressed_tensors/llama_w8a8", "lmdeploy"), ("gptq/llama_2bit", "vllm")]
)
def test_a_conversion_is_the_same_model(hidden, case, target, fixtures, tmp_path):
    src = fixtures / case / "model"
    done = bare.qbridge("convert", src, tmp_path / "out", "--to", target, **hidden)
    assert done.returncode == 0, done.stderr
    done = bare.qbridge("verify", src, tmp_path / "out", **hidden)
    assert done.returncode == 0 and "the same model" in done.stdout, done.stderr


def test_links_are_made_without_shared_blocks(src, tmp_path):
    done = bare.qbridge("convert", src, tmp_path / "out", "--to", "llm-compressor", "--link", **WINDOWS)
    assert done.returncode == 0, done.stderr


def test_pickles_name_the_extra(fixtures, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text((fixtures / "gptq/llama_2bit/model/config.json").read_text())
    (tmp_path / "model/pytorch_model.bin").write_bytes(b"PK")
    done = bare.qbridge("inspect", tmp_path / "model", "--allow", "pickle", **BASE)
    assert done.returncode == 3 and "QB603" in done.stderr and "pip install 'qbridge-llm[torch]'" in done.stderr


def test_streams_name_the_extra(src):
    code = f"""
import qbridge
with qbridge.stream({str(src)!r}, target="lmdeploy") as tensors:
    assert tensors.shapes
    try:
        next(iter(tensors))
    except qbridge.QBridgeError as fault:
        (finding,) = fault.findings
        assert finding.code == "QB603" and "qbridge-llm[torch]" in finding.fix, finding
    else:
        raise SystemExit("no error")
"""
    done = bare.python(code, **BASE)
    assert done.returncode == 0, done.stderr


def test_names_of_the_hub_name_the_extra():
    done = bare.qbridge("inspect", "org/name", **BASE)
    assert done.returncode == 3 and "pip install 'qbridge-llm[hub]'" in done.stderr
