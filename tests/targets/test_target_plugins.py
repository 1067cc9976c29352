"""Engines of other packages: they work like ours, and a broken one is one warning and nobody else's crash."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import qbridge
from qbridge.commands.checkpoint import open_checkpoint
from qbridge.commands.planning import prepare
from qbridge.findings.finding import Finding, QBridgeError
from qbridge.formats.registry import named
from qbridge.formats.rules import LayerRule, ModelRule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.plan.output_files import plan_shards
from qbridge.targets.blocks import BlockLimits
from qbridge.targets.fusion import Fusion
from qbridge.targets.messages import Cure, Message
from qbridge.targets.parallel import Parallel
from qbridge.targets.registry import builtin, find_target, targets
from qbridge.testing import check_target
from qbridge.write.jobs import jobs_of

TOY = """
from qbridge.findings.catalogue.code import Code
from qbridge.formats.registry import named
from qbridge.formats.rules import LayerRule, ModelRule, Problem
from qbridge.ir.model import Model
from qbridge.passes.regroup import Regroup
from qbridge.targets import Target
from qbridge.targets.choice import Choice
from qbridge.targets.serving import Served

def narrow(spec, model):
    if spec.weight.group_size in (None, 16):
        return None
    return Problem((f"groups of {spec.weight.group_size}, it has groups of 16",))

def many(model):
    if model.specs:
        yield Problem((f"{len(model.specs)} linears",), where=("config.json",))

def serve(model, path, tp):
    return f"toy-serve {path} --ranks {tp}"

def kernels(model, version, tp, capability):
    return [Served("all", 1, 1, "any", len(model.specs), f"toy{version} on {capability}", True, "", ())]

CODES = (
    Code("TOY-001", "toy has groups of 16", "It reads no others.", "It stops.", "group_size 128", "Convert it.",
         "toy 1.5, loader.py"),
    Code("TOY-002", "toy counts linears", "It counts them.", "It takes time.", "7 linears", "Nothing to do.",
         "toy 1.5, loader.py", severity="note"),
)
RULES = (
    LayerRule("TOY-001", narrow, "toy 1.5, loader.py", lambda spec, model: Regroup(16)),
    ModelRule("TOY-002", many, "toy 1.5, loader.py"),
)
TARGETS = (
    Target("toy@1.5", "a toy engine", (Choice(named("gptq"), RULES, serve=serve),), kernels=kernels, codes=CODES),
    Target("toy@1.4", "an older toy engine", (Choice(named("gptq"), serve=serve),)),
)
"""
BROKEN = {
    "no module": (None, "ModuleNotFoundError"),
    "syntax": ("def broken(:\n", "SyntaxError"),
    "import error": ("import no_such_module\n", "no_such_module"),
    "exit": ("import sys; sys.exit(3)\n", "SystemExit: 3"),
    "no TARGETS": ("NAME = 'toy'\n", "TARGETS"),
    "TARGETS of something else": ("TARGETS = ('toy@1.5',)\n", "TARGETS is not a tuple of qbridge.targets.Target"),
    "no version": (TOY.replace('"toy@1.5"', '"toy"'), "'toy' is not engine@version"),
    "a name of ours": (TOY.replace('"toy@1.4"', '"vllm@99.0"'), "vllm is the name of another target or format"),
    "a name of a format": (TOY.replace('"toy@1.4"', '"gptq@1.4"'), "gptq is the name of another target or format"),
    "a code of ours": (TOY.replace("TOY-002", "QB250"), "QB250 is not a code of its own, such as TOY-001"),
    "a code of others": (TOY.replace("TOY-002", "OTHER-002"), "OTHER-002 is not a code of its own, such as TOY-001"),
    "a code that nobody explains": (TOY.replace('ModelRule("TOY-002"', 'ModelRule("TOY-009"'), "explains TOY-009"),
    "a message that is none": (
        TOY.replace("codes=CODES", "codes=CODES, messages=(('x', 'y'),)"),
        "is no qbridge.targets",
    ),
    "a word of --allow": (TOY.replace('severity="note"', 'allow="everything"'), "no word of --allow is everything"),
}


@pytest.fixture
def program(tmp_path):
    """The program beside an installed package that has an engine called toy, of the given text."""

    def run(text, *arguments):
        home = tmp_path / "plugin"
        shutil.rmtree(home, ignore_errors=True)
        info = home / "toy_engine-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-engine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[qbridge.targets]\ntoy = toy_engine\n")
        if text is not None:
            (home / "toy_engine.py").write_text(text)
        code = f"import sys; sys.path.insert(0, {str(home)!r}); from qbridge.cli import main; main()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return run


@pytest.fixture
def model(fixtures):
    return fixtures / "gptq/llama_v1_sym/model"


def test_an_engine_of_another_package_is_listed(program):
    done = program(TOY, "targets")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert any(line.split() == ["toy@1.5", "a", "toy", "engine"] for line in lines)
    assert any(line.startswith("toy@1.4") for line in lines) and any(line.startswith("vllm@") for line in lines)


def test_it_is_converted_for_with_its_own_findings_and_command(program, model, tmp_path):
    done = program(TOY, "convert", model, tmp_path / "out", "--to", "toy", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["target"], told["format"]) == ("toy@1.5", "gptq")
    assert told["passes"] == {"regroup": 7} and "TOY-002" in {finding["code"] for finding in told["findings"]}
    assert told["serve"] == f"toy-serve {tmp_path / 'out'} --ranks 1"
    assert qbridge.verify(model, tmp_path / "out").same


def test_it_is_checked_for_with_its_own_findings_and_kernels(program, model):
    done = program(TOY, "check", model, "--for", "toy@1.5", "--json")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    found = {finding["code"]: finding for finding in told["findings"]}
    assert found["TOY-001"]["count"] == 7 and found["TOY-001"]["message"] == "toy has groups of 16"
    assert found["TOY-002"]["severity"] == "note"
    assert [kernel["kernel"] for kernel in told["kernels"]] == ["toy1.5 on 80"]
    old = program(TOY, "check", model, "--for", "toy@1.4")
    assert old.returncode == 0 and f"toy-serve {model} --ranks 1" in old.stdout


def test_its_formats_are_read_by_its_name(program, model):
    assert program(TOY, "inspect", model, "--from", "toy").returncode == 0


def test_its_codes_are_explained(program):
    done = program(TOY, "explain", "toy-001")
    assert done.returncode == 0 and done.stdout.startswith("TOY-001: toy has groups of 16\n"), done.stderr
    missing = program(TOY, "explain", "TOY-003")
    assert missing.returncode == 2 and "TOY-001" in missing.stderr


MESSAGES = """
MESSAGES = (
    Message("toy wants groups of 16, not of {group:number}", engine="toy", versions="1.4 to 1.5",
            source="toy 1.5, loader.py", cause="Groups of {group}.",
            cure=(Cure("toy", "--regroup {half}"), Cure("toy")),
            derive=lambda values: {"half": str(int(values["group"]) // 2)}),
)
"""
TALKING = TOY.replace("TARGETS =", f"{MESSAGES}TARGETS =").replace("codes=CODES", "codes=CODES, messages=MESSAGES")
TALKING = TALKING.replace(
    "from qbridge.targets import", "from qbridge.targets.messages import Cure, Message\nfrom qbridge.targets import"
)


def test_its_messages_are_explained(program):
    done = program(TALKING, "explain", "toy wants groups of 16, not of 64")
    assert done.returncode == 0 and "qbridge convert SRC DST --to toy --regroup 32" in done.stdout, done.stderr
    assert "toy 1.4 to 1.5" in program(TALKING, "explain").stdout
    raising = program(TALKING.replace("// 2", "// 0"), "explain", "toy wants groups of 16, not of 64")
    assert raising.returncode != 70 and "QB032" in raising.stderr and "ZeroDivisionError" in raising.stderr


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_engine_is_one_warning(program, kind):
    text, why = BROKEN[kind]
    done = program(text, "targets")
    assert done.returncode == 0 and "vllm@0.33.0" in done.stdout and "toy@" not in done.stdout
    assert done.stderr.count("warning[QB035]") == 1 and why in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["exit", "no TARGETS", "a code of ours"])
def test_a_broken_engine_that_is_asked_for_is_an_error_by_its_name(program, model, tmp_path, kind):
    text, why = BROKEN[kind]
    for command in (("convert", model, tmp_path / "out", "--to", "toy"), ("check", model, "--for", "toy@1.5")):
        done = program(text, *command)
        assert done.returncode == 2 and "error[QB032]" in done.stderr and why in done.stderr, done.stderr
        assert "toy_engine" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["convert", "check"])
def test_ours_work_beside_a_broken_engine(program, model, tmp_path, command):
    arguments = {"convert": (tmp_path / "out", "--to", "vllm"), "check": ("--for", "vllm")}[command]
    done = program(BROKEN["exit"][0], command, model, *arguments)
    assert done.returncode == 0 and "error" not in done.stderr


@pytest.mark.parametrize(
    ("before", "after", "command"),
    [
        (
            "    if spec.weight.group_size in",
            "    raise ZeroDivisionError('oops')\n    if spec.weight.group_size in",
            "both",
        ),
        ("    if model.specs:", "    raise ZeroDivisionError('oops')\n    if model.specs:", "both"),
        ('    return f"toy-serve', '    1 / 0\n    return f"toy-serve', "convert"),
        ("    return [Served(", "    raise SystemExit(3)\n    return [Served(", "check"),
    ],
    ids=["layer rule", "model rule", "serve", "kernels"],
)
def test_what_an_engine_raises_is_an_error_by_its_name(program, model, tmp_path, before, after, command):
    assert TOY.count(before) == 1
    text = TOY.replace(before, after)
    commands = {
        "convert": ("convert", model, tmp_path / "out", "--to", "toy", "--dry-run"),
        "check": ("check", model, "--for", "toy"),
    }
    for name, words in commands.items():
        if command in (name, "both"):
            done = program(text, *words)
            assert done.returncode == 2 and "error[QB032]" in done.stderr and "toy" in done.stderr, done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize("target", [target.name for target in builtin()])
def test_laws_of_ours(target):
    check_target(find_target(target))


def toy():
    space = {}
    exec(compile(TOY, "toy", "exec"), space)
    return space["TARGETS"][0]


def test_laws_of_the_toy():
    check_target(toy())


def _choice(**changes):
    target = toy()
    return replace(target, choices=(replace(target.choices[0], **changes),))


GROUPS = Message(
    "toy wants groups of 16, not of {group:number}",
    engine="toy",
    versions="1.5",
    source="toy 1.5, loader.py",
    cause="Groups of {group}.",
    cure=(Cure("toy"),),
)
BAD = {
    "no version": (lambda: replace(toy(), name="toy"), "engine@version"),
    "no format": (lambda: _choice(format=named("no-such-format")), "no-such-format|there is no such name"),
    "no code": (lambda: replace(toy(), codes=()), "explains TOY-001"),
    "no source": (lambda: _choice(rules=(LayerRule("TOY-001", lambda s, m: None, "somewhere"),)), "cites no version"),
    "raises": (lambda: _choice(rules=(LayerRule("TOY-001", lambda s, m: 1 / 0, "toy 1.5"),)), "raises on"),
    "no problem": (lambda: _choice(rules=(LayerRule("TOY-001", lambda s, m: "bad", "toy 1.5"),)), "gives no Problem"),
    "serves elsewhere": (lambda: _choice(serve=lambda model, path, tp: "toy-serve"), "does not hold the folder"),
    "no kernels": (lambda: replace(toy(), kernels=lambda *arguments: ["Marlin"]), "is no Served"),
    "another's code": (
        lambda: replace(toy(), codes=(*toy().codes, replace(find_target("vllm").codes[0], title="mine"))),
        "is not a code of its own",
    ),
    "no words": (lambda: replace(toy(), messages=(replace(GROUPS, text="{group:word}"),)), "has no words of its own"),
    "two readings": (
        lambda: replace(toy(), messages=(replace(GROUPS, text="groups {a}{group}"),)),
        "is not recognised",
    ),
    "no release": (lambda: replace(toy(), messages=(replace(GROUPS, source="toy"),)), "cites no version"),
    "no way out": (lambda: replace(toy(), messages=(replace(GROUPS, cure=()),)), "has no way out"),
    "no value": (lambda: replace(toy(), messages=(replace(GROUPS, cause="{size}"),)), "has no value for"),
    "no prover": (lambda: replace(toy(), prover=Path("no/such.py")), "there is no no/such.py"),
    "no choice": (lambda: replace(toy(), choices=(), codes=()), "loads no format"),
}


@pytest.mark.parametrize("kind", BAD)
def test_laws_are_broken_by_a_broken_engine(kind):
    make, why = BAD[kind]
    with pytest.raises((AssertionError, QBridgeError), match=why):
        check_target(make())


def test_messages_and_provers_are_part_of_a_target():
    check_target(replace(toy(), messages=(GROUPS,), prover=Path(__file__)))
    assert all(target.prover is None or target.prover.is_file() for target in builtin())


def test_every_target_pickles_by_its_name():
    for target in targets():
        assert pickle.loads(pickle.dumps(target)) == target
    with pytest.raises((pickle.PicklingError, AttributeError)):  # a closure of nobody's table
        pickle.dumps(_choice(rules=(LayerRule("TOY-001", lambda spec, model: None, "toy 1.5"),)))


@pytest.mark.parametrize(
    ("case", "target"),
    [
        *(("gptq/llama_v1_sym", target) for target in ("lmdeploy", "vllm", "gptqmodel", "gptq-v2")),
        *(("compressed_tensors/llama_w8a8", target) for target in ("lmdeploy", "vllm")),
    ],
)
def test_a_plan_and_its_jobs_pickle(fixtures, case, target):
    with open_checkpoint(fixtures / case / "model") as opened:
        plan = prepare(opened, find_target(target))
        again = pickle.loads(pickle.dumps(plan))
        assert (again.target, again.format, again.outputs) == (plan.target, plan.format, plan.outputs)
        assert again.format.NAME == plan.format.NAME and again.format.config(again.result)
        for shard in plan_shards(plan.outputs):
            for job in jobs_of(opened.source, plan, shard, 1 << 20):
                assert pickle.loads(pickle.dumps(job)) == job


def test_a_format_is_held_by_its_id_until_it_is_used():
    held = named("gptq")
    assert held == named("gptq") and held.NAME == "gptq" and hash(held) == hash(named("gptq"))
    assert pickle.loads(pickle.dumps(held)) == held and held.RULES and not hasattr(held, "__wrapped__")
    with pytest.raises(AttributeError):
        held.no_such_member  # noqa: B018


def test_an_error_of_another_package_unpickles_where_its_package_is_not():
    error = QBridgeError((Finding("NOWHERE-001", ("config.json",)),))
    again = pickle.loads(pickle.dumps(error))
    assert "NOWHERE-001" in str(again) and again.findings == error.findings
    with pytest.raises(KeyError):
        Finding("QB999").message  # noqa: B018


def _small(*leaves, block=None):
    """A Llama whose linears have 32 outputs each, in groups of 32 or in blocks."""
    weight = WeightScheme(4, Granularity.GROUP, True, "int", group_size=32)
    if block:
        weight = WeightScheme(8, Granularity.BLOCK, True, "e4m3fn", block=block)
    names = [f"model.layers.0.self_attn.{leaf}" for leaf in leaves]
    heads = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **heads}
    return Model("gptq", config, {name: Spec(name, 32, 64, weight, DType.F16) for name in names}, {}, {})


def fired(limits, model, sizes=(1,)):
    """The codes of an engine's limits on a model."""
    return {
        rule.code
        for rule in limits.rules(model.format, sizes)
        if isinstance(rule, ModelRule) and [*rule.check(model)]
    }


def test_an_engine_says_which_linears_it_builds_as_one():
    tiles = Parallel((32,), outputs=64, source="toy 1.5")
    assert fired(tiles, _small("q_proj", "k_proj")) == set()  # 64 outputs together
    assert fired(replace(tiles, fused=Fusion({})), _small("q_proj", "k_proj")) == {"QB253"}
    assert fired(tiles, _small("q_proj", "o_proj")) == {"QB253"}
    assert fired(replace(tiles, fused=Fusion({"both": ("q_proj", "o_proj")})), _small("q_proj", "o_proj")) == set()
    assert find_target("vllm").fused("LlamaForCausalLM")["qkv_proj"] == ("q_proj", "k_proj", "v_proj")
    assert replace(toy(), parallel=replace(tiles, fused=Fusion({}))).fused("LlamaForCausalLM") == {}


def test_limits_on_blocks_are_data_of_the_engine():
    model = _small("q_proj", "k_proj", block=(48, 32))  # 32 outputs are two thirds of a block
    strict = Parallel((32,), blocks=BlockLimits("toy 1.5"), source="toy 1.5")
    assert fired(Parallel((32,), source="toy 1.5"), model) == set() and fired(strict, model) == {"QB273"}
    (rule,) = BlockLimits("toy 1.5", last_cut=True).rules((1,))
    assert [problem.where for problem in rule.check(model)] == [("model.layers.0.self_attn.q_proj",)]
    assert rule.source == "toy 1.5"
    assert list(BlockLimits("toy 1.5").rules((1,), Fusion({}))[0].check(model)) == []  # nothing is built as one


def test_halved_groups_cite_the_engine():
    (rule,) = (rule for rule in find_target("vllm").rules if rule.code == "QB228")  # of gptq alone
    assert rule.source.endswith("moe_wna16.py (create_weights)")
