"""The line that serves a checkpoint: shell-quoted, with the ranks and the flags that the model needs."""

from __future__ import annotations

import ast
import shlex

import pytest

from qbridge.ir.model import Model
from qbridge.targets.registry import find_target

FOLDER = "/models/it's; here"
BROUGHT = {"AutoConfig": "configuration_x.XConfig"}
LINES = {
    "vllm": ["vllm", "serve", FOLDER, "--tensor-parallel-size", "2"],
    "lmdeploy": ["lmdeploy", "serve", "api_server", FOLDER, "--backend", "pytorch", "--tp", "2"],
    "lmdeploy@0.6.2": ["lmdeploy", "serve", "api_server", FOLDER, "--backend", "pytorch", "--tp", "2"],
}


def line(target, model_type="llama", architecture="LlamaForCausalLM", tp=2, **more):
    config = {"architectures": [architecture], "model_type": model_type, **more}
    found = find_target(target)
    return found.command(Model(found.formats[0], config, {}, {}, {}), found.formats[0], FOLDER, tp)


@pytest.mark.parametrize("target", LINES)
def test_a_server_is_started_with_the_folder_and_the_ranks(target):
    assert shlex.split(line(target)) == LINES[target]
    assert shlex.split(line(target, tp=1)) == LINES[target][:-2]


@pytest.mark.parametrize("target", LINES)
def test_code_of_the_repository_runs_only_where_nothing_else_parses_the_config(target):
    flag = "--trust-remote-code"
    assert (flag in line(target, "internlm2", auto_map=BROUGHT)) is (target != "lmdeploy@0.6.2")
    assert flag not in line(target, "internlm2") and flag not in line(target, "deepseek_v3", auto_map=BROUGHT)
    assert (flag in line(target, "chatglm", auto_map=BROUGHT)) is (target == "lmdeploy")  # vLLM parses it itself


@pytest.mark.parametrize("target", ["transformers", "gptqmodel"])
def test_a_library_loads_it_in_two_lines_of_python(target):
    first, second = ast.parse(line(target)).body
    assert isinstance(first, ast.ImportFrom) and first.module == target
    (path,) = second.value.args
    assert ast.literal_eval(path) == FOLDER and "trust_remote_code" not in line(target)
    assert "trust_remote_code=True" in line(target, "internlm2", auto_map=BROUGHT)


def test_a_model_that_sees_is_loaded_as_one():
    assert "AutoModelForImageTextToText" in line("transformers", "qwen3_vl", "Qwen3VLForConditionalGeneration")


def test_every_engine_serves_each_of_its_formats():
    for name in ("vllm", "vllm-gptq", "lmdeploy", "lmdeploy-turbomind", "transformers", "gptqmodel"):
        for choice in (*find_target(name).choices, *find_target(name).as_is):
            assert choice.serve is not None, (name, choice.format.NAME)
