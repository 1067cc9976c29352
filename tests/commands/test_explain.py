"""explain: the messages of engines with their commands, as a library and on the command line, and what is unknown."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
from typer.main import get_command

import qbridge
from qbridge.cli import app
from qbridge.targets.registry import find_target, messages
from support import ROOT, cli

SEED = "KeyError: 'model.layers.30.mlp.down_proj.weight_scale'"
MARLIN = "ValueError: Weight input_size_per_partition = 14784 is not divisible by group_size = 128.Consider reducing"
SAMPLES = {"": "64", "number": "64", "word": "64", "name": "layers.3.mlp", "layer": "layers.3.mlp"}
ESC = "\x1b]0;title\x07\x1b[2J"


def piped(text, *arguments):
    command = [sys.executable, "-m", "qbridge", "explain", *arguments]
    return subprocess.run(command, input=text, capture_output=True, check=False, cwd=ROOT, timeout=60)


def test_the_message_of_a_line_with_its_commands():
    done = cli("explain", SEED)
    assert done.returncode == 0 and done.stderr == ""
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert {label: text.strip() for label, text in rows.items() if label in ("message", "check", "cure")} == {
        "message": SEED,
        "check": "qbridge check SRC --for lmdeploy",
        "cure": "qbridge convert SRC DST --to lmdeploy",
    }
    assert "model.layers.30.mlp.down_proj is stored as compressed-tensors" in done.stdout
    assert cli("explain", *shlex.split(SEED)).stdout.count("qbridge convert") == 1  # the shell took the quotes away


def test_the_library_says_the_same():
    done = qbridge.explain(SEED)
    assert done.ok and str(done).splitlines()[-1].endswith("qbridge convert SRC DST --to lmdeploy")
    (meaning,) = done.messages
    assert meaning.values == {"top": "model", "rest": "layers.30.mlp.down_proj", "tensor": "weight_scale"}
    assert (meaning.engine, meaning.versions) == ("lmdeploy", "0.6.0 to 0.18.0")
    assert json.loads(cli("explain", SEED, "--json").stdout) == json.loads(json.dumps(done.as_dict()))
    assert qbridge.explain("qb202").code.code == "QB202" and "QB202" in str(qbridge.explain("QB202"))


@pytest.mark.parametrize("arguments", [(), ("-",)], ids=["piped", "-"])
def test_a_whole_log_with_its_two_messages_in_order(arguments):
    log = f"INFO starting\n(Worker_TP1 pid=9) ERROR {MARLIN}\n{MARLIN}\nTraceback\n  {SEED}\nbye\n"
    done = piped(log.encode() + b"\xff\n", *arguments)
    assert done.returncode == 0 and done.stderr == b""
    text = done.stdout.decode()
    assert text.index("14784") < text.index("weight_scale") and text.count("printed by") == 2


def test_commands_have_the_checkpoint_and_the_ranks_of_the_log(fixtures, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    src = tmp_path / "it's here"
    src.mkdir()
    for start in (
        f"vllm serve '{fixtures}' --tensor-parallel-size 2",
        f"non-default args: {{'model_tag': '{fixtures}', 'tensor_parallel_size': 2}}",
        f"lmdeploy serve api_server {fixtures} --backend pytorch --tp 2",
    ):
        (meaning,) = qbridge.explain(f"{start}\n{MARLIN}").messages
        assert meaning.check == f"qbridge check {fixtures} --for vllm@0.23.0 --tp 2"
        assert meaning.cure[1] == f"qbridge convert {fixtures} fixtures-vllm --to vllm --regroup 64 --tp 2"
    (meaning,) = qbridge.explain(f"vllm serve /no/such/folder --tp 4\n{MARLIN}", src).messages
    assert meaning.check == f"qbridge check {shlex.quote(str(src))} --for vllm@0.23.0 --tp 4"
    assert shlex.split(meaning.cure[0])[2:4] == [str(src), "it's here-vllm"]
    (meaning,) = qbridge.explain(f"vllm serve /no/such/folder{'x' * 900}\n{MARLIN}").messages
    assert meaning.check == "qbridge check SRC --for vllm@0.23.0 --tp N"
    assert "N the tensor-parallel size" in dict(meaning.rows)["where"]


def test_a_cure_without_its_value_is_left_out():
    (meaning,) = qbridge.explain(MARLIN.replace("14784", "3696")).messages
    assert not any("--regroup" in cure for cure in meaning.cure) and any("--pad" in cure for cure in meaning.cure)


def test_conversions_that_would_be_refused_are_no_cures(fixtures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    src = fixtures / "compressed_tensors/llama_w8a8/model"
    several = {message.cure: message for message in messages() if len(message.cure) > 1 and not message.split}
    assert len(several) > 5
    for message in list(several.values())[::2]:
        values = {name: SAMPLES.get(kind, kind.partition("|")[0]) for name, kind in message.fields.items()}
        for meaning in qbridge.explain(message.line(values), src).messages:
            for words in (shlex.split(line)[2:] for line in meaning.cure if "ORIGINAL" not in line):
                options = {} if "--pad" not in words else {"pad": True}
                if len(words) == 4 + len(options):
                    qbridge.convert(*words[:2], words[3], dry_run=True, **options)
    (meaning,) = qbridge.explain(SEED, fixtures / "gptq/llama_desc_act/model").messages
    assert not meaning.cure and "QB110" in meaning.advice and "No conversion" in dict(meaning.rows)["advice"]


@pytest.mark.parametrize("text", ["hello", "torch.OutOfMemoryError: CUDA out of memory.", "KeyError: 'prompt'", "-"])
def test_what_is_unknown_is_a_plain_no(text):
    done = cli("explain", text, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and done.stderr == "" and "qbridge check SRC --for ENGINE" in done.stdout
    if text != "-":
        assert not qbridge.explain(text).ok and str(qbridge.explain(text)) == done.stdout.rstrip("\n")
        assert json.loads(cli("explain", text, "--json").stdout) == {
            "schema": 1,
            "command": "explain",
            "messages": [],
        }


def test_a_code_that_is_none_is_still_an_error():
    done = cli("explain", "QB999")
    assert done.returncode == 2 and "QB030" in done.stderr


def test_alone_it_lists_codes_and_messages():
    done = cli("explain")
    assert done.returncode == 0 and done.stderr == ""
    assert re.search(r"(?m)^QB202 +LMDeploy cannot load", done.stdout)
    assert re.search(r"(?m)^lmdeploy 0\.18\.0 +Only compressed-tensors `pack-quantized`", done.stdout)
    known = json.loads(cli("explain", "--json").stdout)
    assert len(known["messages"]) == len(messages()) and {"QB001", "QB202"} <= {
        entry["code"] for entry in known["codes"]
    }


def test_hostile_text_is_inert():
    shards = f"{ESC}['q']"
    text = f"Found a different quantization schemes for {shards} in m.0.x. vLLM requires all to use the same scheme."
    shown = (piped(text.encode()).stdout, piped(text.encode(), "--json").stdout, str(qbridge.explain(text)).encode())
    for out in shown:
        assert b"\x1b" not in out and b"\x07" not in out and b"schemes for" in out
    assert "\x1b" not in cli("explain", f"{ESC} nothing known {ESC}").stdout
    coloured = "\x1b[31mKeyError\x1b[0m: 'model.layers.\x1b[1m3\x1b[0m.mlp.down_proj.weight_scale'"
    assert [meaning.values["rest"] for meaning in qbridge.explain(coloured).messages] == ["layers.3.mlp.down_proj"]


def test_every_command_is_one_that_the_program_takes():
    command = get_command(app)
    for message in messages():
        values = {name: SAMPLES.get(kind, kind.partition("|")[0]) for name, kind in message.fields.items()}
        for meaning in qbridge.explain(f"{message.line(values)}\n--tp 2").messages:
            for line in (meaning.check, *meaning.cure):
                name, *arguments = shlex.split(line)[1:]
                command.commands[name].make_context(name, [*arguments])  # a usage error if it does not parse
                find_target(arguments[arguments.index("--to" if name == "convert" else "--for") + 1])
