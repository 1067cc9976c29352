"""The wheel in empty environments: what it and each extra take, and whether they do there what they are for.

python tests/house/wheel_on.py dist/*.whl --extras base hub torch --pythons python3.10 python3.13

`both` is the base with PyPI's other qbridge beside it, installed after and before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guide_plugin import write_plugin

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
DEMO = FIXTURES / "compressed_tensors/llama_w8a8/model"
PACKED = FIXTURES / "compressed_tensors/llama_w4a16/model"
GPTQ = FIXTURES / "gptq/llama_g128/model"
HUB = ROOT / "tests/source/hub_server.py"
NO, UNREADABLE, IO = 1, 3, 4  # exit codes


@dataclass(frozen=True)
class Installed:
    """An environment in a folder, and what can be run there."""

    home: Path

    @property
    def python(self) -> Path:
        return self.home / "venv/bin/python"

    def run(self, *words: object, code: int = 0, **env: str) -> str:
        """What a command prints; its program is taken from the environment where that has it."""
        program, *rest = map(str, words)
        inside = self.home / "venv/bin" / program
        line = [str(inside) if inside.exists() else program, *rest]
        done = subprocess.run(line, cwd=self.home, capture_output=True, text=True, env={**os.environ, **env})
        if done.returncode != code:
            raise SystemExit(f"{' '.join(line)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def qbridge(self, *words: object, code: int = 0, **env: str) -> str:
        return self.run("qbridge", *words, code=code, **env)

    def script(self, text: str) -> str:
        return self.run(self.python, "-W", "ignore", "-c", text)

    def pip(self, *words: object) -> None:
        self.run(self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words)

    def sizes(self) -> tuple[int, int]:
        """(what is installed, what pip compiled of it), in bytes."""
        files = [file for file in (self.home / "venv/lib").rglob("*") if file.is_file() and not file.is_symlink()]
        bytecode = sum(file.stat().st_size for file in files if file.suffix == ".pyc")
        return sum(file.stat().st_size for file in files) - bytecode, bytecode


def expect(words: str, text: str) -> None:
    if words not in text:
        raise SystemExit(f"{words!r} is not in:\n{text}")


def base(there: Installed) -> str:
    """The demo, plain weights, a plugin, a web server, and what is said where an extra is missing."""
    there.qbridge("inspect", DEMO)
    there.qbridge("convert", DEMO, there.home / "demo", "--from", "llm-compressor", "--to", "lmdeploy")
    expect("the same model", there.qbridge("verify", DEMO, there.home / "demo"))
    there.qbridge("convert", PACKED, there.home / "dense", "--to", "dense")
    _plugin(there)
    with served() as address:
        expect("gptq", there.qbridge("inspect", f"{address}/files/fx/model"))
    expect("qbridge-llm[hub]", there.qbridge("check", "fx/model", "--for", "vllm", code=UNREADABLE))
    expect("qbridge-llm[s3]", there.qbridge("inspect", "s3://bucket/model", code=UNREADABLE))
    found = there.script("import sys, qbridge.cli; print(sorted({'torch', 'transformers'} & sys.modules.keys()))")
    expect("[]", found)
    return "demo, dense, plugin, web server"


def _plugin(there: Installed) -> None:
    write_plugin(there.home / "qbridge-acme")
    there.pip("./qbridge-acme")
    expect("acme@1.0", there.qbridge("targets"))
    expect("acme serve", there.qbridge("convert", GPTQ, there.home / "acme", "--to", "acme"))


class served:
    """A Hub on the loopback that has the repository fx/model."""

    def __enter__(self) -> str:
        self.root = tempfile.TemporaryDirectory()
        shutil.copytree(GPTQ, Path(self.root.name) / "fx/model")
        self.server = subprocess.Popen(
            [sys.executable, HUB, self.root.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self.server.stdout.readline().split()[-1]

    def __exit__(self, *exc: object) -> None:
        self.server.kill()
        self.server.wait()
        self.root.cleanup()


def hub(there: Installed) -> str:
    """A checkpoint by its name on the Hub."""
    with served() as address:
        env = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(there.home / "hf")}
        there.qbridge("check", "fx/model", "--for", "vllm", **env)
        there.qbridge("convert", "fx/model", there.home / "far", "--to", "vllm", **env)
    expect("the same model", there.qbridge("verify", GPTQ, there.home / "far"))
    return "check and convert by name"


def s3(there: Installed) -> str:
    """A bucket is asked for; nobody answers here."""
    env = {f"AWS_{key}": "x" for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")}
    env |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": "us-east-1"}
    expect("QB404", there.qbridge("inspect", "s3://bucket/model", code=IO, **env))
    return "asks the bucket's server"


def torch(there: Installed) -> str:
    """Tensors of a conversion that is not written."""
    stream = f"with qbridge.stream({str(DEMO)!r}, target='lmdeploy') as made: found = dict(made)\n"
    expect("torch.int8", there.script(f"import qbridge\n{stream}print({{each.dtype for each in found.values()}})"))
    return "stream"


def transformers(there: Installed) -> str:
    """A model of transformers, from a conversion that is not written."""
    load = f"import qbridge; print(type(qbridge.load({str(PACKED)!r})).__name__)"
    expect("LlamaForCausalLM", there.script(load))
    return "load"


def vllm(there: Installed) -> str:
    """vLLM finds the plugin and knows its load format."""
    find = (
        "from vllm.plugins import load_general_plugins; load_general_plugins()\n"
        "from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER as known; print(*known)"
    )
    expect("qbridge", there.script(find))
    return "vLLM has the load format"


def gguf(there: Installed) -> str:
    """A file for llama.cpp."""
    there.qbridge("convert", PACKED, there.home / "gguf", "--to", "llama.cpp", "--allow", "no-tokenizer")
    there.qbridge("inspect", there.home / "gguf/model.gguf")
    return "writes and reads GGUF"


def image(there: Installed) -> str:
    """The map of the layers as a PNG."""
    there.qbridge("inspect", PACKED, "--report", "layers.png")
    return "draws the map of layers"


def laws(there: Installed) -> str:
    """The laws for plugins hold the template of the guide."""
    test = write_plugin(there.home / "qbridge-acme")
    there.pip("./qbridge-acme")
    there.script(test)
    return "the template's laws"


def everything(there: Installed) -> str:
    return ", ".join(each(there) for each in (hub, s3, torch, transformers, gguf, image))


def docs(there: Installed) -> str:
    """The site is built, strictly."""
    there.run("mkdocs", "build", "--quiet", "--config-file", ROOT / "mkdocs.yml", "--site-dir", there.home / "site")
    return "builds the site"


def release(there: Installed) -> str:
    """The tools of a release start."""
    for tool in ("pyproject-build", "twine", "check-jsonschema", "cyclonedx-py"):
        there.run(tool, "--version")
    return "its tools start"


def auto_gptq(there: Installed) -> str:
    there.script("import auto_gptq")
    return "auto_gptq is imported"


def both(there: Installed) -> str:
    """The other project of this name is seen: after this one (which then cannot run), and before it."""
    there.pip("qbridge==0.5.1")
    expect("QB602", there.qbridge("targets", code=IO))
    remedy = "pip uninstall --yes qbridge qbridge-llm"
    expect(remedy, there.qbridge("targets", code=IO))
    there.run(there.python, "-m", "pip", *remedy.split()[1:])
    there.pip("qbridge==0.5.1")
    there.pip("--no-index", "--no-deps", there.home / "wheel" / next((there.home / "wheel").iterdir()).name)
    expect("QB601", there.qbridge("targets"))
    return "warned of, before and after"


TRIALS: dict[str, Callable[[Installed], str]] = {
    "base": base,
    "hub": hub,
    "s3": s3,
    "torch": torch,
    "transformers": transformers,
    "gguf": gguf,
    "image": image,
    "all": everything,
    "laws": laws,
    "docs": docs,
    "release": release,
    "vllm": vllm,
    "auto-gptq": auto_gptq,
    "both": both,
}
NO_EXTRAS = ("base", "both")
BY_DEFAULT = ("base", "hub", "gguf", "laws")


def tried(wheel: Path, extra: str, python: str, home: Path) -> str:
    """Install the wheel with an extra and try what that is for; a line of what it took."""
    there = Installed(home)
    there.run(python, "-m", "venv", home / "venv")
    (home / "wheel").mkdir()
    shutil.copy(wheel, home / "wheel")
    before, start = there.sizes(), time.monotonic()
    there.pip(str(wheel) if extra in NO_EXTRAS else f"{wheel}[{extra}]")
    seconds = time.monotonic() - start
    files, bytecode = (after - was for after, was in zip(there.sizes(), before, strict=True))
    did = TRIALS[extra](there)
    version = there.script("import platform; print(platform.python_version())").strip()
    size = f"{files / 1e6:6.0f} MB and {bytecode / 1e6:4.0f} MB of bytecode"
    return f"Python {version:8} {extra:13}{size}  {seconds:5.0f} s  {did}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--extras", nargs="+", choices=TRIALS, default=BY_DEFAULT)
    parser.add_argument("--pythons", nargs="+", default=[sys.executable])
    asked = parser.parse_args()
    for python in asked.pythons:
        for extra in asked.extras:
            with tempfile.TemporaryDirectory() as home:
                print(tried(asked.wheel.resolve(), extra, python, Path(home)), flush=True)


if __name__ == "__main__":
    main()
