"""prove: what a prover reports becomes findings, a verdict and an exit code; never a yes that nothing proved."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.commands import proving
from qbridge.targets import proving as contract
from qbridge.targets.registry import find_target, targets
from support import ROOT, copy_fixture

LAYER = "model.layers.0.mlp.down_proj"
# A prover that gives what EDIT makes of the report of a sound checkpoint.
TOY = """
import argparse, importlib.util, json, sys
spec = importlib.util.spec_from_file_location("proving", {contract!r})
proving = importlib.util.module_from_spec(spec)
spec.loader.exec_module(proving)

def prove(path, report):
    report |= {{"model": "Toy", "config": {{"class": "ToyConfig"}}, "quantized": {{{layer!r}: True}}}}
    {edit}

args = proving.arguments("").parse_args()
begin = lambda args: proving.Proofs({version!r}, [prove] * args.tp, {stubs})
sys.exit(proving.main("toy", "json", ("1.0",), args, begin))
"""


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """An engine whose prover reports what is wanted."""

    def make(edit="pass", version="1.0.3", stubs=()):
        script = tmp_path / "prover.py"
        script.write_text(
            TOY.format(contract=contract.__file__, layer=LAYER, edit=edit, version=version, stubs=stubs)
        )
        target = replace(find_target("vllm"), name="toy@1.0", prover=script)
        monkeypatch.setattr(proving, "find_target", lambda name: target)

    return make


@pytest.fixture
def dst(tmp_path):
    return copy_fixture(tmp_path, "compressed_tensors/llama_w4a16")


def codes(answer):
    return [finding.code for finding in answer.findings]


def test_a_clean_report_is_a_yes(toy, dst):
    toy()
    answer = qbridge.prove(dst, "toy")
    assert (answer.verdict, answer.ok, answer.exit_code, codes(answer)) == ("loads", True, 0, [])
    assert (answer.version, answer.quantized, answer.compared_with) == ("1.0.3", 1, "tensors")


FAULTS = {
    "QB705": 'raise ValueError("the shape is wrong")',
    "QB706": 'report["missing"] = ["a.weight_scale"]',
    "QB707": 'report["unexpected"] = ["a.weight"]',
    "QB708": 'report["misshapen"] = [dict(tensor="a.b", parameter="a.b", given=[2, 4], wanted=[4, 2])]',
    "QB709": 'report["quantized"] = {"model.layers.0.mlp.down_proj": False}',
}


@pytest.mark.parametrize("code", FAULTS)
@pytest.mark.parametrize("tp", [1, 2])
def test_each_fault_is_a_no_that_names_it(toy, dst, code, tp):
    toy(FAULTS[code])
    answer = qbridge.prove(dst, "toy", tp=tp)
    assert (answer.verdict, answer.exit_code) == ("does not load", 1) and codes(answer) == [code]
    (finding,) = answer.findings
    assert finding.facts and finding.where
    assert json.loads(json.dumps(answer.as_dict()))["verdict"] == "does not load"


def test_a_part_that_is_empty_is_named(toy, dst):
    toy('report["unfilled"] = [dict(parameter="experts.w13_weight", empty="[3, 0:64]")]')
    (finding,) = qbridge.prove(dst, "toy").findings
    assert finding.code == "QB706" and finding.facts == ("experts.w13_weight: nothing in [3, 0:64]",)


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        ('raise proving.Unproved("it wants a GPU")', "QB704"),
        ("import os; os._exit(9)", "QB705"),
    ],
)
def test_what_was_not_proved_is_no_yes(toy, dst, edit, code):
    toy(edit)
    answer = qbridge.prove(dst, "toy")
    assert not answer.ok and codes(answer) == [code]


def test_a_prover_that_dies_says_nothing(monkeypatch, dst, tmp_path):
    script = tmp_path / "prover.py"
    script.write_text("raise SystemError('a prover with a bug')")
    monkeypatch.setattr(proving, "find_target", lambda name: replace(find_target("vllm"), prover=script))
    answer = qbridge.prove(dst, "vllm")
    assert answer.verdict == "cannot be proved here" and codes(answer) == ["QB704"]
    assert "a prover with a bug" in answer.findings[0].facts[0]


def test_versions_that_a_prover_does_not_know_are_refused_unless_allowed(toy, dst):
    toy(version="1.10")
    answer = qbridge.prove(dst, "toy")
    assert codes(answer) == ["QB702"] and answer.verdict == "cannot be proved here"
    assert "this prover knows 1.0" in answer.findings[0].facts[0]
    assert qbridge.prove(dst, "toy", allow=["assumed-version"]).ok


def test_a_version_that_is_asked_for_is_the_one_installed(toy, dst):
    toy()
    assert qbridge.prove(dst, "toy@1.0").ok
    answer = qbridge.prove(dst, "toy@1.1")
    assert not answer.ok and codes(answer) == ["QB704"]


def test_stubs_are_told(toy, dst):
    toy(stubs=("a device",))
    answer = qbridge.prove(dst, "toy", emulate="sm90")
    assert answer.ok and codes(answer) == ["QB710"] and answer.emulated == "sm90" and answer.stubs == ["a device"]


def test_modules_are_compared_with_the_source_or_the_manifest(toy, dst, tmp_path):
    out = tmp_path / "out"
    qbridge.convert(dst, out, "vllm-gptq")
    tensors = load_file(out / "model.safetensors")  # a module left unquantized, as config.json may list
    for name in [name for name in tensors if name.startswith(f"{LAYER}.")]:
        del tensors[name]
    save_file({**tensors, f"{LAYER}.weight": torch.zeros(128, 256)}, out / "model.safetensors")
    toy(FAULTS["QB709"])
    for source, compared in ((None, "manifest"), (dst, "source")):
        answer = qbridge.prove(out, "toy", original=source)
        assert answer.compared_with == compared and codes(answer) == ["QB709"]
        assert answer.otherwise == [{"module": LAYER, "engine": False, "expected": True}]


def test_an_engine_without_a_prover_and_one_that_is_not_there(dst, tmp_path):
    with pytest.raises(qbridge.UsageError) as excinfo:
        qbridge.prove(dst, "awq")
    assert excinfo.value.findings[0].code == "QB703"
    for python in ("", str(tmp_path / "no/such/python")):
        answer = qbridge.prove(dst, "vllm", python=python)
        assert codes(answer) == ["QB701"] and answer.verdict == "cannot be proved here" and answer.exit_code == 1
    with pytest.raises(qbridge.UnreadableError):
        qbridge.prove(tmp_path / "nothing", "vllm")


@pytest.mark.parametrize("engine", sorted({each.engine for each in targets() if each.prover} - {"transformers"}))
def test_every_prover_says_that_its_engine_is_not_installed(engine, dst):
    answer = qbridge.prove(dst, engine)
    assert codes(answer) == ["QB701"] and answer.verdict == "cannot be proved here", str(answer)


def test_modules_of_a_gguf_file_are_compared_by_the_names_of_checkpoints(toy, tmp_path):
    src, dst = ROOT / "fixtures/compressed_tensors/qwen3_moe_w4a16/model", tmp_path / "dst"
    qbridge.convert(src, dst, "gguf", allow=["no-tokenizer"])
    names = "blk.0.attn_q", "blk.0.ffn_gate_exps", "token_embd"
    plain = dict.fromkeys(names, False)
    toy(f'report |= dict(model="qwen3moe", quantized={plain}, stored={plain})')
    wanted = ["model.layers.0.mlp.experts.gate_proj", "model.layers.0.self_attn.q_proj"]
    for source, compared in ((None, "manifest"), (src, "source")):
        answer = qbridge.prove(dst, "toy", original=source)
        assert answer.compared_with == compared and [each["module"] for each in answer.otherwise] == wanted


def test_transformers_of_this_python_loads_a_fixture_and_no_damaged_one(dst):
    answer = qbridge.prove(dst, "transformers")
    assert answer.ok and answer.quantized == 7, str(answer)
    file = dst / "model.safetensors"
    tensors = load_file(file)
    del tensors[f"{LAYER}.weight_scale"]
    save_file(tensors, file, {"format": "pt"})
    answer = qbridge.prove(dst, "transformers", python=sys.executable)
    assert answer.verdict == "does not load" and f"{LAYER}.weight_scale" in answer.missing


def test_the_page_names_every_code_and_every_engine():
    page = (ROOT / "docs/prove.md").read_text()
    assert all(f"QB{number}" in page for number in range(701, 711))


@pytest.mark.parametrize("stubs, twice", [((), True), (("--emulate", "sm90"), False)])
def test_a_prover_reads_folders_from_standard_input_and_imports_a_module_once_where_stubs_stand_in(
    stubs, twice, dst, tmp_path
):
    script = tmp_path / "prover.py"
    edit = "report['left_out'] = [str('colorsys' in sys.modules)]; import colorsys"
    script.write_text(TOY.format(contract=contract.__file__, layer=LAYER, edit=edit, version="1.0.3", stubs=()))
    words = [sys.executable, str(script), "-", *stubs]
    done = subprocess.run(words, input=f"{dst}\n{tmp_path}\n", capture_output=True, text=True, check=True)
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["checkpoint"], second["checkpoint"]) == (str(dst), str(tmp_path))
    assert (first["left_out"], second["left_out"]) == (["False"], [str(not twice)])
    assert "imported" not in first
