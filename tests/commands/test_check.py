"""check: verdicts of real models' shapes by version and tensor-parallel size, and what the command says.

models.csv has the dims of 68 models and, by release of vLLM and tensor-parallel size, what is wrong with int4 in
groups of 32, 64, 128 and per channel (between |): heads (no such split), PLACE:g (a group straddles ranks, or the
inputs are no whole groups), PLACE:k and PLACE:n (in_features and out_features do not fit Marlin's tiles). For experts
moe:g is the same and moe:t that Marlin does not serve them and a slower kernel does, which is no fault. 0.23 was
worked out without qbridge, 0.33 is what qbridge said first.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import shlex

import pytest

import qbridge
from qbridge.formats.rules import LayerRule, ModelRule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.targets.registry import codes as every_code
from qbridge.targets.registry import find_target
from support import ROOT, cli, copy_fixture, edit_json, rewrite_tensors

CATALOGUE = every_code()

GROUPS = ("32", "64", "128", "ch")
SIZES = (1, 2, 4, 8, 16)
with (ROOT / "tests/architecture/models.csv").open() as stream:
    MODELS = {row["name"]: row for row in csv.DictReader(stream)}
SPARSE = [name for name, row in MODELS.items() if row["moe_intermediate"]]
EVERY = pytest.mark.parametrize("name", MODELS)
WORDS = "words"  # models.csv has no column for it: test_ranks_share_no_word works it out
LEAVES = {"o_proj": "o", "down_proj": "down", "gate_proj": "gate_up", "up_proj": "gate_up"}


def model_of(row, group, format="compressed-tensors"):
    """One decoder layer that has all the MLPs of a model: dense, one routed expert, the shared one."""
    hidden, heads, kv, head = (int(row[key]) for key in ("hidden", "heads", "kv_heads", "head_dim"))
    sizes = {key: int(row[key] or 0) for key in ("intermediate", "moe_intermediate", "shared_intermediate")}
    blocks = zip(("mlp", "mlp.experts.0", "mlp.shared_expert"), sizes.values(), strict=True)
    shapes = {
        f"self_attn.{leaf}_proj": (width * head, hidden) for leaf, width in (("q", heads), ("k", kv), ("v", kv))
    }
    shapes["self_attn.o_proj"] = (hidden, heads * head)
    for block, size in blocks:
        if size:
            shapes |= {f"{block}.gate_proj": (size, hidden), f"{block}.up_proj": (size, hidden)}
            shapes[f"{block}.down_proj"] = (hidden, size)
    config = {"num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": kv, "hidden_size": hidden}
    config |= {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
    if sizes["moe_intermediate"]:
        config |= {"architectures": ["Qwen2MoeForCausalLM"], "num_experts": 64, "mlp_only_layers": [0]}
    names = {"intermediate": "intermediate_size", "moe_intermediate": "moe_intermediate_size"}
    names["shared_intermediate"] = "shared_expert_intermediate_size"
    config |= {names[key]: size for key, size in sizes.items() if size}
    grouped = Granularity.CHANNEL if group == "ch" else Granularity.GROUP
    weight = WeightScheme(4, grouped, group_size=None if group == "ch" else int(group))
    specs = {f"model.layers.0.{name}": shape for name, shape in shapes.items()}
    return Model(format, config, {n: Spec(n, *shape, weight, DType.F16) for n, shape in specs.items()}, {}, {})


def problems(model, target, tp):
    """(code, place, problem) of every rule that looks at no value."""
    wanted = find_target(target)
    choice = wanted.choice_of(model.format)
    for rule in wanted.limits(choice, (tp,)):
        if isinstance(rule, LayerRule):
            found = ((name, rule.check(spec, model)) for name, spec in model.specs.items())
            yield from ((rule.code, name, problem) for name, problem in found if problem)
        elif isinstance(rule, ModelRule):
            yield from ((rule.code, name, problem) for problem in rule.check(model) for name in problem.where)


def kind(code, name, problem):
    if code == "QB250":
        return "heads"
    if CATALOGUE[code].severity == "note":
        return "ok"
    leaf = name.rpartition(".")[2]
    place = "moe" if ".experts." in name else f"{'shared.' * ('shared' in name)}{LEAVES.get(leaf, 'qkv')}"
    if code == "QB253":
        return f"{place}:{'t' if place == 'moe' else 'k' if problem.facts[0].startswith('input') else 'n'}"
    if code == "QB227":
        return WORDS
    assert code in ("QB220", "QB224", "QB251"), (code, name)
    return f"{place}:g"


def kinds(row, group, target, tp, format="compressed-tensors"):
    """A cell of models.csv."""
    found = {kind(*problem) for problem in problems(model_of(row, group, format), target, tp)} - {"ok"}
    return "+".join(sorted(found)) or "ok"


def cells(row, release):
    """((tensor-parallel size, group), what is wrong) as models.csv has it."""
    for tp in SIZES:
        for group, cell in zip(GROUPS, row[f"{release} tp {tp}"].split("|"), strict=True):
            yield (tp, group), cell


def without(cell, *left_out):
    return "+".join(part for part in cell.split("+") if not part.startswith(left_out)) or "ok"


def disagreements(row, release, left_out, format="compressed-tensors"):
    for (tp, group), cell in cells(row, release):
        said = kinds(row, group, f"vllm@{release}", tp, format)
        if without(said, WORDS, *left_out) != without(cell, *left_out):
            yield tp, group, said, cell


# Verdicts


@EVERY
def test_attention_and_mlps_for_023_are_as_worked_out_by_hand(name):
    assert not list(disagreements(MODELS[name], "0.23", ["moe:"]))


@EVERY
def test_gptq_has_the_same_verdicts_for_023_as_compressed_tensors(name):
    assert not list(disagreements(MODELS[name], "0.23", ["moe:"], "gptq"))


def test_groups_of_experts_for_023_are_as_worked_out_by_hand():
    assert not [entry for name in SPARSE for entry in disagreements(MODELS[name], "0.23", ["moe:t"])]


@EVERY
def test_ranks_share_no_word(name):
    """Codes of 4 bits along the inputs of row-parallel linears: eight to a word, wherever ranks share them."""
    row = MODELS[name]
    keys = ("intermediate", "moe_intermediate", "shared_intermediate")
    inputs = [int(row[key]) for key in keys if row[key] and int(row[key])]
    inputs += [int(row["heads"]) * int(row["head_dim"])]
    for tp in SIZES[1:]:
        shared = any(size % tp == 0 and size // tp % 8 for size in inputs)
        assert (WORDS in kinds(row, "ch", "vllm", tp)) is shared


def test_experts_for_023_need_no_tiles():
    said = [kinds(MODELS[n], group, "vllm@0.23", tp) for n in SPARSE for tp in SIZES for group in GROUPS]
    assert not [cell for cell in said if "moe:t" in cell]


@EVERY
def test_verdicts_for_033_stay(name):
    assert not list(disagreements(MODELS[name], "0.33", []))


def test_033_has_no_tiles_and_objects_to_no_more_than_023():
    for row in MODELS.values():
        for ((_, group), new), (_, old) in zip(cells(row, "0.33"), cells(row, "0.23"), strict=True):
            faults = set(new.split("+")) - {"ok"}
            assert faults <= set(old.split("+"))
            assert all(fault == "heads" or (fault.endswith(":g") and group != "ch") for fault in faults)


def test_experts_as_gptq_straddle_nothing_where_halves_of_groups_fit():
    row = MODELS["Qwen3-235B-A22B"]
    assert kinds(row, "128", "vllm", 8, "gptq") == "ok" and kinds(row, "128", "vllm", 8) == "moe:g"


# Ways out


def ways(code, target, tp, name="Qwen2/2.5-72B", group="128", format="gptq"):
    """The options that the problems of one code name, without their notes."""
    found = problems(model_of(MODELS[name], group, format), target, tp)
    return {tuple(" ".join(way.words) for way in problem.help) for own, _, problem in found if own == code}


@pytest.mark.parametrize(
    ("tp", "wanted"),
    [(2, ("--regroup 64", "--pad", "--tp 1")), (4, ("--regroup 32", "--pad", "--tp 1")), (8, ("--pad", "--tp 1"))],
)
def test_qwen2_72b_has_its_ways_out_for_033_cheapest_first(tp, wanted):
    assert ways("QB251", "vllm@0.33", tp) == {wanted}


@pytest.mark.parametrize("target", ["vllm@0.23", "vllm@0.5.4"])
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_qwen2_72b_pads_or_takes_fewer_gpus_before_the_tiles_were_padded(target, tp):
    assert ("--pad", "--tp 1") in ways("QB253", target, tp)


@pytest.mark.parametrize("target", ["vllm@0.23", "vllm@0.5.4"])
@pytest.mark.parametrize("tp", [2, 4])
def test_no_regrouping_is_offered_where_tiles_do_not_fit(target, tp):
    assert ways("QB251", target, tp) == {("--pad", "--tp 1")}


def test_fewer_gpus_are_enough_for_the_whole_model():
    assert {options[-1] for options in ways("QB253", "vllm@0.23", 8)} == {"--tp 1"}


def test_experts_of_qwen3_235b_are_regrouped_as_compressed_tensors():
    (options,) = ways("QB251", "vllm", 8, "Qwen3-235B-A22B", "128", "compressed-tensors")
    assert options[0] == "--regroup 64"
    assert kinds(MODELS["Qwen3-235B-A22B"], "64", "vllm", 8) == "ok"


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_padded_qwen2_72b_is_served_everywhere(tp):
    row = {**MODELS["Qwen2/2.5-72B"], "intermediate": "29696"}
    for target in ("vllm@0.33", "vllm@0.23", "vllm@0.5.4"):
        assert kinds(row, "128", target, tp, "gptq") == "ok"


@pytest.mark.parametrize(("tp", "notes"), [(1, []), (2, ["29568 -> 29696 (tp 2)"]), (8, ["29568 -> 29696 (tp 8)"])])
def test_turbomind_pads_by_itself(tp, notes):
    found = problems(model_of(MODELS["Qwen2/2.5-72B"], "128", "gptq"), "lmdeploy-turbomind", tp)
    assert [(code, *problem.facts) for code, _, problem in found] == [("QB255", note) for note in notes]
    assert CATALOGUE["QB255"].severity == "note"


@pytest.mark.parametrize("format", ["compressed-tensors", "mxfp4"])
@pytest.mark.parametrize("name", ["Qwen2/2.5-72B", "Qwen3-235B-A22B"])
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_formats_that_turbomind_alone_loads_are_judged_by_its_limits(format, name, tp):
    """The PyTorch engine's limits on shares said that LMDeploy stops where TurboMind pads."""
    model = model_of(MODELS[name], "32", format)
    whole, alone = (
        [p for p in problems(model, f"lmdeploy{kind}", tp) if p[0] != "QB216"] for kind in ("", "-turbomind")
    )
    assert whole == alone and (tp == 1 or "QB251" not in {code for code, *_ in whole})


@pytest.mark.parametrize(
    ("target", "format", "words"),
    [
        ("vllm@0.33", "gptq", "Machete, Exllama and Humming take it"),
        ("vllm@0.33", "compressed-tensors", "is not divisible by group_size"),
        ("vllm@0.33", "awq", "not aligned with the quantized weight shape"),
        ("vllm@0.23", "gptq", "min_thread_k = 128"),
        ("vllm@0.5.4", "gptq", "vLLM 0.5.4 refuses it: not divisible by min_thread_k = 128"),
        ("lmdeploy", "awq", "LMDeploy"),
    ],
)
def test_straddling_group_says_what_this_version_would_do(target, format, words):
    found = problems(model_of(MODELS["Qwen2/2.5-72B"], "128", format), target, 2)
    told = {problem.facts[1] for code, _, problem in found if code == "QB251"}
    assert len(told) == 1 and words in told.pop()
    assert "0.33" not in CATALOGUE["QB251"].why


def test_advice_that_does_not_help_is_answered():
    for words in ("--quantization gptq", "0.22", "--enforce-eager"):
        assert words in CATALOGUE["QB251"].fix


# Command


STRADDLING = "gptq/llama_640"  # 640 intermediate features, groups of 128
KEYS = {"schema", "command", "source", "target", "tp", "gpu", "format", "architecture", "layers", "assumed", "ok"}
KEYS |= {"needs_values", "needs_tensors", "seconds", "serve", "kernels", "findings", "known", "releases", "backends"}


def answer(*arguments, rc):
    done = cli("check", *arguments, "--json")
    assert done.returncode == rc, done.stderr
    return json.loads(done.stdout)


def remedies(finding):
    return [line for line in finding["help"] if line.startswith(("qbridge ", "serve "))]


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path, STRADDLING)


def test_served_checkpoint_exits_0(src):
    found = answer(src, "--for", "vllm", rc=0)
    assert found.keys() == KEYS and found["ok"] and not found["assumed"] and not found["findings"]
    assert (found["schema"], found["command"], found["target"]) == (1, "check", "vllm@0.33.0")
    assert (found["layers"], found["tp"], found["gpu"], found["format"]) == (7, 1, "sm80", "gptq")


def test_straddling_group_exits_1_with_commands_cheapest_first(src):
    found = answer(src, "--for", "vllm", "--tp", 2, rc=1)
    (finding,) = found["findings"]
    assert not found["ok"] and finding["code"] == "QB251"
    assert finding["count"] == 1 and finding["where"] == ["model.layers.0.mlp.down_proj"]
    assert finding["facts"][0] == "in_features 640, per rank 320 = 2.5 groups of 128 (tp 2)"
    assert len(finding["facts"]) == 2 and finding["facts"][1].startswith("vLLM 0.33: Marlin refuses it; Machete")
    first, second, last = (line.partition("  #")[0] for line in remedies(finding))
    assert first == f"qbridge convert {src} src-vllm-regroup --to vllm@0.33.0 --tp 2 --regroup 64"
    assert second == f"qbridge convert {src} src-vllm-pad --to vllm@0.33.0 --tp 2 --pad"
    assert last == "serve it with tp = 1"


@pytest.mark.parametrize("way", [0, 1])
def test_remedies_are_commands_that_lead_to_a_served_checkpoint(src, way):
    (finding,) = answer(src, "--for", "vllm", "--tp", 2, rc=1)["findings"]
    words = shlex.split(remedies(finding)[way].partition("  #")[0])
    dst = src.parent / "dst"
    assert words[0] == "qbridge"
    words[3] = str(dst)
    done = cli(*words[1:])
    assert done.returncode == 0, done.stderr
    assert answer(dst, "--for", "vllm", "--tp", 2, rc=0)["ok"]


def test_remedies_quote_names_with_blanks(src):
    place = src.rename(src.parent / "my model")
    (finding,) = answer(place, "--for", "vllm", "--tp", 2, rc=1)["findings"]
    assert str(place) in shlex.split(remedies(finding)[0].partition("  #")[0])


def test_text_has_the_findings_on_stderr_and_the_verdict_on_stdout(src):
    done = cli("check", src, "--for", "vllm", "--tp", "2")
    assert done.returncode == 1
    assert done.stderr.startswith("error[QB251]") and done.stderr.endswith("1 error, 0 warnings\n")
    assert "verdict       1 problem\n" in done.stdout and "kernel        Marlin: o_proj 256 x 128" in done.stdout
    assert "Exllama, wrongly: down_proj 256 x 320" in done.stdout


@pytest.mark.parametrize("gpu", ["mi300x", "sm95", "sm", "", "sm8", "9,0", "-80"])
def test_gpu_that_is_no_compute_capability_exits_2(src, gpu):
    found = answer(src, "--for", "vllm", f"--gpu={gpu}", rc=2)
    assert [finding["code"] for finding in found["findings"]] == ["QB030"]


@pytest.mark.parametrize("words", [["--for", "vlm"], ["--for", "vllm", "--tp", "0"], ["--for", "vllm@1.0"], []])
def test_usage_exits_2(src, words):
    assert cli("check", src, *words).returncode == 2


def test_no_folder_exits_3(tmp_path):
    assert answer(tmp_path / "none", "--for", "vllm", rc=3)["findings"][0]["code"] == "QB001"


@pytest.mark.parametrize("gpu", ["sm90", "90", "9.0", "SM_90"])
def test_kernels_are_those_of_the_gpu(gpu):
    src = ROOT / "fixtures/gptq/llama_g128/model"
    ampere, hopper = (qbridge.check(src, "vllm", gpu=name).kernels for name in ("sm80", gpu))
    assert {kernel.kernel for kernel in ampere} == {"Marlin"} and {kernel.kernel for kernel in hopper} == {"Machete"}
    assert [kernel.kind for kernel in ampere] == ["q_proj+k_proj+v_proj", "o_proj", "gate_proj+up_proj", "down_proj"]
    assert sum(kernel.layers for kernel in ampere) == 7


def test_only_kernels_of_vllm_are_known(src):
    assert not qbridge.check(src, "lmdeploy-turbomind").kernels


def test_rules_about_values_are_named_and_not_decided():
    src = ROOT / "fixtures/compressed_tensors/llama_static/model"
    done = qbridge.check(src, "vllm")
    assert {"QB222", "QB302"} <= set(done.needs_values) and done.ok
    assert not {finding.code for finding in done.findings} & set(done.needs_values)


def test_values_are_not_read(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8_rope")
    before = qbridge.check(src, "vllm")
    rewrite_tensors(src, lambda tensors: [array.fill(0) for array in tensors.values()])
    after = qbridge.check(src, "vllm")
    assert (before.ok, before.findings, before.kernels) == (after.ok, after.findings, after.kernels)


def test_format_that_the_target_does_not_load_is_an_error(src):
    done = qbridge.check(src, "smooth-quant")
    (finding,) = (found for found in done.findings if found.code == "QB260")
    assert not done.ok and "qbridge convert" in finding.help[0]


def test_checkpoint_that_cannot_be_converted_is_checked():
    done = qbridge.check(ROOT / "fixtures/gptq/llama_desc_act/model", "vllm")
    assert not done.ok and [finding.code for finding in done.findings] == ["QB224"]
    assert len(done.findings[0].where) == 7


def test_damaged_checkpoint_is_checked_as_far_as_it_goes(src):
    down = "model.layers.0.mlp.down_proj"

    def cut(tensors):
        tensors[f"{down}.scales"] = tensors[f"{down}.scales"][:, :128].copy()

    rewrite_tensors(src, cut)
    done = qbridge.check(src, "vllm", 2)
    assert not done.ok and "QB016" in {finding.code for finding in done.findings}
    assert done.layers >= 6


def unserved(case, target, *options):
    """The finding that nothing serves the layers of a fixture."""
    done = qbridge.check(ROOT / "fixtures" / case / "model", target, *options)
    return [finding for finding in done.findings if finding.code == "QB227"]


@pytest.mark.parametrize("case", ["awq/llama_gptqmodel_8bit", "awq/llama_gptqmodel_3bit"])
def test_layers_that_no_kernel_serves_are_an_error(case):
    (finding,) = unserved(case, "vllm")
    assert finding.severity == "error" and len(finding.where) == 7
    assert finding.facts[0].endswith("on sm80") and finding.facts[1].startswith("AWQ-Marlin: ")
    assert finding.help[0].startswith("qbridge convert ")


def test_what_a_rule_has_said_is_not_said_of_the_kernel_again():
    assert unserved("gptq/llama_v1_asym", "vllm") == []
    assert unserved("gptq/llama_640", "vllm", 2, "sm90") == []


def test_bfloat16_on_a_kernel_that_has_float16_only(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_3bit")
    edit_json(src / "config.json", lambda config: {**config, "rope_theta": 1e4, "torch_dtype": "float16"})
    assert qbridge.check(src, "vllm@0.5.4").ok  # by its kernels for GPTQ, which have float16 only
    edit_json(src / "config.json", lambda config: config.update(dtype="bfloat16", torch_dtype="bfloat16"))
    (finding,) = (found for found in qbridge.check(src, "vllm@0.5.4").findings if found.code == "QB227")
    assert finding.help == ("serve it with --dtype float16",)
    assert any("only supports float16 activations" in fact for fact in finding.facts)


def test_gpu_without_bfloat16_gets_float16(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config.update(dtype="bfloat16", torch_dtype="bfloat16"))
    assert {kernel.kernel for kernel in qbridge.check(src, "vllm", gpu="sm70").kernels} == {"Exllama"}
    assert not qbridge.check(src, "vllm@0.5.4", gpu="sm70").ok


def test_zero_points_of_outputs_that_no_rank_shares_are_whole_words():
    src = ROOT / "fixtures/compressed_tensors/llama_w3a16_asym/model"
    assert all(kernel.legal for kernel in qbridge.check(src, "vllm").kernels)


def test_groups_of_gptq_experts_are_halved_by_vllm_itself():
    row = MODELS["Qwen3-235B-A22B"]
    found = [p for code, _, p in problems(model_of(row, "128", "gptq"), "vllm", 8) if code == "QB228"]
    assert found and {problem.facts for problem in found} == {("groups of 128 become 64 (tp 8)",)}
    assert all(".experts." in name and name.endswith("down_proj") for problem in found for name in problem.where)
    for group, tp, format in (("64", 8, "gptq"), ("128", 4, "gptq"), ("128", 8, "compressed-tensors")):
        assert "QB228" not in {code for code, _, _ in problems(model_of(row, group, format), "vllm", tp)}
    assert CATALOGUE["QB228"].severity == "note"


# config.json alone


def bare(tmp_path, case=STRADDLING):
    src = copy_fixture(tmp_path, case)
    for file in src.iterdir():
        if file.name != "config.json":
            file.unlink()
    return src


def kernel_shapes(done):
    return sorted((kernel.kind, kernel.out_features, kernel.in_features, kernel.layers) for kernel in done.kernels)


@pytest.mark.parametrize("case", [STRADDLING, "compressed_tensors/llama_w4a16_g128", "awq/llama_gemm_g128"])
def test_config_alone_gives_the_verdict_of_the_checkpoint(tmp_path, case):
    whole = qbridge.check(ROOT / "fixtures" / case / "model", "vllm", 2)
    alone = qbridge.check(bare(tmp_path, case), "vllm", 2)
    assert alone.assumed and not whole.assumed
    (note, *others) = sorted(alone.findings, key=lambda finding: finding.code != "QB261")
    assert note.code == "QB261" and note.severity == "warning"
    assert [finding.code for finding in others] == [finding.code for finding in whole.findings]
    assert alone.ok == whole.ok and alone.layers == whole.layers
    assert kernel_shapes(alone) == kernel_shapes(whole)


def drop(*keys):
    return lambda config: [config.pop(key) for key in keys] and None


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda config: config.update(architectures=["UnheardOf"]), "its architecture is not in qbridge's table"),
        (drop("architectures"), "its architecture is not in qbridge's table"),
        (drop("quantization_config"), "it does not say bits and group size"),
        (lambda config: config["quantization_config"].pop("bits") and None, "it does not say bits and group size"),
        (drop("intermediate_size"), "it does not say 'intermediate_size'"),
    ],
)
def test_config_that_says_too_little_is_refused(tmp_path, edit, fact):
    src = bare(tmp_path)
    edit_json(src / "config.json", edit)
    (finding,) = answer(src, "--for", "vllm", rc=1)["findings"]
    assert finding["code"] == "QB262" and finding["facts"] == [fact]


SIZED = [
    "hidden_size",
    "vocab_size",
    "head_dim",
    "kv_lora_rank",
    "num_attention_heads",
    "num_hidden_layers",
    "num_experts",
]


@pytest.mark.parametrize("value", [-1, 2**40, "64"])
@pytest.mark.parametrize("key", SIZED)
def test_a_size_that_no_model_has_is_refused_by_its_key(tmp_path, key, value):
    src = bare(tmp_path)
    edit_json(src / "config.json", lambda config: config.update({key: value}))
    (finding,) = answer(src, "--for", "vllm", rc=1)["findings"]
    assert finding["code"] == "QB262" and finding["facts"] == [f"{key} is {value}"]


@pytest.mark.parametrize("sizes", [{"head_dim": 2**31 - 1}, {"head_dim": 2**30}])
def test_sizes_that_make_no_linear_are_refused(tmp_path, sizes):
    src = bare(tmp_path)
    edit_json(src / "config.json", lambda config: config.update(sizes))
    (finding,) = answer(src, "--for", "vllm", rc=1)["findings"]
    assert finding["code"] == "QB262" and "features are 1 to" in finding["facts"][0]


@pytest.mark.parametrize(
    ("architecture", "key"), [("DeepseekV2ForCausalLM", "kv_lora_rank"), ("MixtralForCausalLM", "num_local_experts")]
)
def test_config_that_lacks_what_its_architecture_needs_is_refused(tmp_path, architecture, key):
    src = bare(tmp_path)
    edit_json(src / "config.json", lambda config: config.update(architectures=[architecture]))
    (finding,) = answer(src, "--for", "vllm", rc=1)["findings"]
    assert finding["code"] == "QB262" and finding["facts"] == [f"it does not say '{key}'"]


def test_config_of_an_architecture_with_fused_linears_is_enough(tmp_path):
    src = bare(tmp_path)
    edit_json(src / "config.json", lambda config: config.update(architectures=["Phi3ForCausalLM"]))
    done = qbridge.check(src, "vllm")
    assert done.assumed and done.layers == 4 and done.ok


# Stand-ins of big checkpoints


@pytest.fixture(scope="module")
def standin():
    place = importlib.util.spec_from_file_location("standin", ROOT / "tests/benchmarks/standin.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def write(standin, dst, name, format, layers):
    config = {**standin.MODELS[name], "num_hidden_layers": layers, "vocab_size": 64}
    standin.write(dst, config, format, 128, scales=False, shard_bytes=1e8)
    return dst


@pytest.mark.parametrize("format", ["gptq", "awq", "compressed-tensors"])
def test_standin_of_qwen2_72b_straddles(standin, tmp_path, format):
    src = write(standin, tmp_path / "src", "qwen2-72b-gptq", format, 2)
    files = list(src.glob("*.safetensors"))
    assert len(files) > 1 and sum(file.stat().st_size for file in files) > 8e8
    assert sum(os.stat(file).st_blocks * 512 for file in files) < 2e7
    for tp, ok in ((1, True), (2, False)):
        done = qbridge.check(src, "vllm", tp)
        assert done.ok == ok and done.layers == 14, done.findings
    (finding,) = done.findings
    assert finding.code == "QB251" and "29568" in finding.facts[0]
    # AWQ has one group size for the whole model, and so many layers to regroup
    assert len(finding.where) == (14 if format == "awq" else 2)


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "gpt-oss-120b"])
def test_standin_that_is_no_whole_groups_at_all(standin, tmp_path, name):
    src = write(standin, tmp_path / "src", name, "gptq", 1)
    for target in ("vllm@0.33", "vllm@0.23"):
        assert not qbridge.check(src, target).ok


@pytest.mark.parametrize(
    "name", ["qwen2-72b-gptq", "qwen2.5-0.5b", "qwen3-235b-a22b", "deepseek-v2-lite", "gpt-oss-120b"]
)
def test_standins_lack_nothing(standin, tmp_path, name):
    src = write(standin, tmp_path / "src", name, "gptq", 2)
    assert not {"QB263", "QB264"} & {finding.code for finding in qbridge.check(src, "vllm").findings}


@pytest.mark.parametrize("nested", [False, True])
def test_a_rope_that_only_transformers_5_reads_is_named(nested, tmp_path):
    src = tmp_path / "src"
    qbridge.convert(ROOT / "fixtures/compressed_tensors/llama_w8a8/model", src, "lmdeploy")
    assert qbridge.check(src, "lmdeploy").ok

    def newer(config):
        del config["rope_theta"]
        config["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
        if nested:
            inner = {
                key: config.pop(key) for key in list(config) if key not in ("architectures", "quantization_config")
            }
            config["text_config"] = inner

    edit_json(src / "config.json", newer)
    found = [finding for finding in qbridge.check(src, "lmdeploy").findings if finding.code == "QB265"]
    assert len(found) == 1 and "rope_parameters" in str(found[0])
    assert not qbridge.check(src, "lmdeploy").ok and "qbridge convert" in str(found[0].help)
    assert "QB265" not in {finding.code for finding in qbridge.check(src, "smooth-quant").findings}
    qbridge.convert(src, tmp_path / "again", "lmdeploy", overwrite=True)
    assert qbridge.check(tmp_path / "again", "lmdeploy").ok


# what check says of the README's own model, and how reports end


EIGHT_BITS = ["llama_w8a8", "llama_compression_config", "llama_fp8_dynamic", "qwen3_moe_w8a8", "llama_static"]


@pytest.mark.parametrize("case", EIGHT_BITS)
def test_eight_bits_in_compressed_tensors_are_the_pytorch_engines_and_turbomind_is_not_blamed(fixtures, case):
    model = fixtures / f"compressed_tensors/{case}/model"
    done = qbridge.check(model, "lmdeploy")
    layout = [finding for finding in done.findings if finding.code == "QB219"]
    assert layout and not done.ok and done.serve == ""
    first = min(name for finding in layout for name in finding.where)
    for finding in layout:
        assert f"KeyError: '{first}.weight_scale'" in " ".join(finding.facts)
        ways = [way for way in finding.help if way.startswith("qbridge convert")]
        # no engine of LMDeploy has static scales of integers: no command would help
        assert ways == (
            []
            if case == "llama_static"
            else [f"qbridge convert {model} model-lmdeploy --to lmdeploy@0.18.0  # exact"]
        )
    assert not {"QB240", "QB216", "QB243"} & {finding.code for finding in done.findings}


@pytest.mark.parametrize("target", ["lmdeploy", "lmdeploy-turbomind"])
def test_options_of_lmdeploy_are_never_printed_as_ours(fixtures, target):
    for model in sorted(fixtures.glob("*/*/model")):
        with contextlib.suppress(qbridge.QBridgeError):
            ways = [way for finding in qbridge.check(model, target).findings for way in finding.help]
            assert not [way for way in ways if way.startswith("qbridge") and "--backend" in way], model


SERVED = [
    ("compressed_tensors/llama_w8a8", "lmdeploy", {}, "lmdeploy serve api_server {} --backend pytorch"),
    ("awq/llama_gemm", "lmdeploy", {}, "lmdeploy serve api_server {} --backend pytorch"),
    ("gptq/llama_g128", "lmdeploy", {}, "lmdeploy serve api_server {} --backend turbomind"),
    ("gptq/llama_g128", "lmdeploy-turbomind", {"tp": 2}, "lmdeploy serve api_server {} --backend turbomind --tp 2"),
    ("gptq/llama_v1_sym", "vllm", {}, "vllm serve {}"),
    ("gptq/llama_v1_sym", "vllm", {"tp": (1, 2)}, "vllm serve {} --tensor-parallel-size 2"),
    ("gptq/llama_v1_sym", "gptq", {}, ""),
]


@pytest.mark.parametrize(("case", "target", "options", "command"), SERVED)
def test_a_report_ends_in_the_command_that_serves_it(fixtures, tmp_path, case, target, options, command):
    out = tmp_path / "it's out"
    report = qbridge.convert(fixtures / case / "model", out, target, dry_run=True, **options)
    assert report.serve == command.format(shlex.quote(str(out)))
    assert report.as_dict()["serve"] == report.serve


def test_the_command_is_the_last_line_of_convert_and_of_check(fixtures, tmp_path):
    model = fixtures / "compressed_tensors/llama_w8a8/model"
    out = tmp_path / "out"
    wanted = f"serve         lmdeploy serve api_server {out} --backend pytorch"
    told = cli("convert", model, out, "--to", "lmdeploy").stdout.splitlines()[-1]
    assert told.split() == wanted.split()
    done = cli("check", out, "--for", "lmdeploy")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].split() == wanted.split()
    assert "serve " not in cli("check", model, "--for", "lmdeploy").stdout
