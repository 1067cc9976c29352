"""Checkpoints that are not all there: convert, stream, restore, verify and check say no, whatever is gone.

LAWS=all takes something away 2,000 times.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import qbridge
from goldens import ALLOW, NOT_READ
from support import (
    INDEX,
    ROOT,
    SINGLE,
    cli,
    codes,
    copy_fixture,
    edit_header,
    edit_json,
    facts,
    header_of,
    places,
    refusal,
    rewrite_tensors,
    split,
)

DOWN = "model.layers.1.mlp.down_proj"
UNHEARD = "UnheardOfForCausalLM"
CASES = sorted(path.parent for path in ROOT.glob("fixtures/*/*/model"))
READ = [case for case in CASES if case.name not in NOT_READ and list((case / "model").glob("*.safetensors"))]
# Symmetric GPTQ needs no zero-points, no g_idx that is in order, and Llama no biases, which old tools write as zeros.
IDLE = (".g_idx", ".qzeros", ".weight_shape")


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path)


def without(src, part):
    """Take every tensor of a module out of a single-file checkpoint of whatever dtypes."""
    take(src / SINGLE, lambda name: name == part or name.startswith(f"{part}."))


def take(file, gone):
    """Write a safetensors file anew without some tensors, byte by byte: numpy has not every dtype."""
    stored = header_of(file)
    data, kept, at = file.read_bytes(), {}, 0
    body = b""
    for name, tensor in sorted(stored.items(), key=lambda item: item[1].begin):
        if gone(name):
            continue
        size = tensor.end - tensor.begin
        kept[name] = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        body += data[tensor.begin : tensor.end]
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **kept}).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def alone(src, name):
    """Rename the only shard of a single-file checkpoint."""
    (src / SINGLE).rename(src / name)


def unheard_of(src):
    edit_json(src / "config.json", lambda config: config.update(architectures=[UNHEARD]))


def rejects(src, whole, allow=()):
    """The verbs that take an incomplete checkpoint for a model: none should."""
    fooled = []
    for target in ("vllm", "lmdeploy", "dense"):
        try:
            qbridge.convert(src, src.parent / "out", target, allow=allow, dry_run=True)
        except qbridge.QBridgeError:
            continue
        fooled.append(f"convert --to {target}")
    for a, b in ((src, whole), (src, src)):
        try:
            fooled += ["verify"] if qbridge.verify(a, b, allow=allow).same else []
        except qbridge.QBridgeError:
            continue
    with contextlib.suppress(qbridge.QBridgeError):
        fooled += ["check"] if qbridge.check(src, "vllm", allow=allow).ok else []
    return fooled


# A module, on every verb


@pytest.mark.parametrize("target", ["vllm", "lmdeploy", "compressed-tensors", "dense"])
def test_convert_refuses_a_model_without_a_module(src, target):
    without(src, DOWN)
    found = refusal(src, 3, "QB263", target)
    assert places(found["QB263"]) == {DOWN} and "model.layers.*.mlp.down_proj: 1" in facts(found["QB263"])


def test_convert_dry_run_refuses_it_too(src, dst):
    without(src, DOWN)
    done = cli("convert", src, dst, "--to", "vllm", "--dry-run")
    assert done.returncode == 3 and "error[QB263]" in done.stderr and "--allow incomplete" in done.stderr


def test_stream_refuses_a_model_without_a_module(src):
    without(src, DOWN)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.stream(src, "vllm")
    assert codes(excinfo) == {"QB263"}


def test_restore_refuses_a_conversion_that_lost_a_module(src, tmp_path):
    qbridge.convert(src, tmp_path / "dst", "lmdeploy")
    without(tmp_path / "dst", "model.norm")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert codes(excinfo) == {"QB263"} and not (tmp_path / "back").exists()


def test_verify_says_no_where_both_lack_the_same_module(src, tmp_path):
    without(src, DOWN)
    other = shutil.copytree(src, tmp_path / "other")
    done = qbridge.verify(src, other)
    assert not done.same and [finding.code for finding in done.findings] == ["QB263", "QB263"]
    assert [finding.facts[0] for finding in done.findings] == ["the first", "the second"]
    said = cli("verify", src, other)
    assert said.returncode == 1 and "different" in said.stdout and "error[QB263]" in said.stderr


def test_allowed_it_is_a_warning_on_every_verb(src, tmp_path, dst):
    without(src, DOWN)
    allow = ["incomplete"]
    done = qbridge.convert(src, dst, "lmdeploy", allow=allow)
    (finding,) = (finding for finding in done.findings if finding.code == "QB263")
    assert finding.severity == "warning" and done.layers == 13
    assert qbridge.check(src, "vllm", allow=allow).ok and qbridge.verify(src, dst, allow=allow).same
    qbridge.restore(dst, tmp_path / "back", allow=allow)
    assert qbridge.verify(src, tmp_path / "back", allow=allow).same
    with qbridge.stream(src, "vllm", allow=allow) as tensors:
        assert not any(name.startswith(DOWN) for name in tensors.shapes)


def test_inspect_still_says_what_is_there(src):
    without(src, DOWN)
    assert cli("inspect", src).returncode == 0


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("self_attn.sinks", "model.layers.0.self_attn.sinks"),
        ("mlp.router.bias", "model.layers.0.mlp.router.bias"),
        ("self_attn.o_proj.bias", "model.layers.0.self_attn.o_proj.bias"),
    ],
)
def test_parameters_without_a_module_of_their_own_are_required(tmp_path, part, where):
    src = copy_fixture(tmp_path, "mxfp4/gpt_oss")
    without(src, f"model.layers.0.{part}")
    assert where in places(refusal(src, 3, "QB263", "vllm")["QB263"])


@pytest.mark.parametrize("gone", ["k_scale", "v_scale"])
def test_half_of_the_scales_of_a_kv_cache_is_not_enough(tmp_path, gone):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_fp8_kv")
    without(src, f"model.layers.0.self_attn.{gone}")
    assert places(refusal(src, 3, "QB263", "vllm")["QB263"]) == {f"model.layers.0.self_attn.{gone}"}
    unheard_of(src)
    assert places(refusal(src, 3, "QB263", "vllm")["QB263"]) == {f"model.layers.0.self_attn.{gone}"}


# Shards by their names


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model-1-of-61.safetensors",
        "model-00001-of-000163.safetensors",
        "model-00000-of-00002.safetensors",
        "gptq_model-4bit-128g-00001-of-00003.safetensors",
        "model.safetensors-00001-of-00002.safetensors",
        "model_00001-of-00002.safetensors",
    ],
)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", UNHEARD])
def test_a_shard_whose_name_speaks_of_others_is_no_model(src, name, architecture):
    alone(src, name)
    edit_json(src / "config.json", lambda config: config.update(architectures=[architecture]))
    found = refusal(src, 3, "QB003")
    (count,) = (int(name.partition("-of-")[2].partition(".")[0]),)
    assert f"{count - 1} of {count} shards" in facts(found["QB003"])
    for target in ("vllm", "lmdeploy"):
        with pytest.raises(qbridge.QBridgeError) as excinfo:
            qbridge.check(src, target)
        assert codes(excinfo) == {"QB003"}
    with pytest.raises(qbridge.QBridgeError):
        qbridge.verify(src, src)


@pytest.mark.parametrize(
    "name",
    ["model-00001-of-00001.safetensors", "model-00000-of-00001.safetensors", "weights-of-2.safetensors"],
)
def test_a_shard_that_is_the_only_one_is_the_model(src, dst, name):
    alone(src, name)
    assert qbridge.convert(src, dst, "lmdeploy").layers == 14


@pytest.mark.parametrize("first", [0, 1])
def test_shards_may_be_counted_from_0(src, dst, first):
    names = sorted(load_file(src / SINGLE))
    split(src, {f"model-{first + n:05}-of-00003.safetensors": names[n::3] for n in range(3)})
    assert qbridge.convert(src, dst, "lmdeploy").layers == 14


def test_more_shards_than_the_names_say_are_a_model(src, dst):
    names = sorted(load_file(src / SINGLE))  # gpt-oss has 00000-of-00002 to 00002-of-00002
    split(src, {f"model-{n:05}-of-00002.safetensors": names[n::3] for n in range(3)})
    assert qbridge.convert(src, dst, "lmdeploy").layers == 14


def test_an_index_that_names_fewer_shards_than_there_are_is_no_model(src):
    unheard_of(src)
    names = sorted(load_file(src / SINGLE))
    split(src, {f"model-{n + 1:05}-of-00003.safetensors": names[n::3] for n in range(3)})
    (src / "model-00002-of-00003.safetensors").unlink()
    gone = "model-00002-of-00003.safetensors"

    def forget(index):
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != gone}

    edit_json(src / INDEX, forget)
    assert places(refusal(src, 3, "QB003")["QB003"]) == {gone}
    with pytest.raises(qbridge.QBridgeError):
        qbridge.check(src, "vllm")


def test_names_of_different_counts_belong_to_different_models(src):
    names = sorted(load_file(src / SINGLE))
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00003.safetensors": names[1::2]}
    split(src, files)
    found = refusal(src, 3, "QB003")
    assert places(found["QB003"]) == set(files) and "of 2 and of 3" in facts(found["QB003"])
    (src / INDEX).unlink()
    assert places(refusal(src, 3, "QB003 QB005")["QB003"]) == set(files)


def test_two_series_of_names_are_counted_apart(src, dst):
    names = sorted(load_file(src / SINGLE))
    split(src, {"model-00001-of-00001.safetensors": names[::2], "mtp-00001-of-00001.safetensors": names[1::2]})
    assert qbridge.convert(src, dst, "lmdeploy").layers == 14


def test_a_count_that_no_checkpoint_has_is_answered_at_once(src):
    alone(src, "model-00001-of-999999999.safetensors")
    found = refusal(src, 3, "QB003")
    assert len(places(found["QB003"])) == 100 and "999999998 of 999999999" in facts(found["QB003"])


@pytest.mark.parametrize("files", [["config.json"], ["generation-00001-of-00002.json"]])
def test_names_of_other_files_are_not_counted(src, dst, files):
    for file in files:
        (src / file).touch()
    assert qbridge.convert(src, dst, "lmdeploy").layers == 14


def test_an_absent_shard_may_be_allowed(src, dst):
    names = sorted(load_file(src / SINGLE))
    split(src, {f"model-{n + 1:05}-of-00003.safetensors": names[n::3] for n in range(3)})
    (src / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, dst, "lmdeploy")
    tensors = {n for file in src.glob("*.safetensors") for n in load_file(file)}
    layers = {n.removesuffix(".weight_scale") for n in tensors if n.endswith("weight_scale")}
    halves = {name for name in layers if f"{name}.weight" not in tensors}
    if not halves:
        done = qbridge.convert(src, dst, "lmdeploy", allow=["incomplete"])
        assert {"QB003", "QB263"} <= {finding.code for finding in done.findings}


def test_the_shard_of_whole_layers_may_be_converted_alone(src, dst):
    names = sorted(load_file(src / SINGLE))
    first = [name for name in names if ".layers.1." not in name]
    split(
        src, {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": [*{*names} - {*first}]}
    )
    (src / "model-00002-of-00002.safetensors").unlink()
    assert codes_of(src) == {"QB003"}
    done = qbridge.convert(src, dst, "lmdeploy", allow=["incomplete"])
    assert done.layers == 7 and {"QB003", "QB263"} <= {finding.code for finding in done.findings}
    (src / INDEX).unlink()
    assert codes_of(src) == {"QB003"}


def codes_of(src, **options):
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, src.parent / "out", "lmdeploy", **options)
    return codes(excinfo)


# Pickled shards


@pytest.fixture
def pickled(tmp_path):
    """A checkpoint whose weights lie in two pickled shards, with an index."""
    torch = pytest.importorskip("torch")
    src = copy_fixture(tmp_path)
    tensors = {name: torch.from_numpy(array) for name, array in load_file(src / SINGLE).items()}
    (src / SINGLE).unlink()
    names = sorted(tensors)
    files = {f"pytorch_model-{n + 1:05}-of-00002.bin": names[n::2] for n in range(2)}
    for file, part in files.items():
        torch.save({name: tensors[name] for name in part}, src / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (src / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return src


def test_pickled_shards_that_are_all_there_are_read(pickled, dst):
    assert qbridge.convert(pickled, dst, "lmdeploy", allow=["pickle"]).layers == 14


@pytest.mark.parametrize("indexed", [True, False])
def test_a_pickled_shard_that_is_absent_is_missed(pickled, indexed):
    (pickled / "pytorch_model-00002-of-00002.bin").unlink()
    if not indexed:
        (pickled / "pytorch_model.bin.index.json").unlink()
    unheard_of(pickled)
    assert codes_of(pickled, allow=["pickle"]) == {"QB003"}
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.check(pickled, "lmdeploy", allow=["pickle"])
    assert codes(excinfo) == {"QB003"}


# config.json alone, and an index of other files


def bare(src):
    for file in src.glob("*.safetensors"):
        file.unlink()


def test_config_alone_answers_only_where_there_is_no_weight_file(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_v1_sym")
    names, down = sorted(load_file(src / SINGLE)), "model.layers.0.mlp.down_proj"
    split(src, {f"model-{n + 1:05}-of-00004.safetensors": names[n::4] for n in range(4)})
    for number in (4, 3, 2):
        (src / f"model-{number:05}-of-00004.safetensors").unlink()
        done = cli("check", src, "--for", "vllm")
        assert done.returncode == 3 and "error[QB003]" in done.stderr and "served" not in done.stdout
    bare(src)
    done = qbridge.check(src, "vllm")  # config.json and index, as before a download
    assert done.assumed and done.ok and "QB261" in {finding.code for finding in done.findings}

    def forget(index):
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if down not in name}

    edit_json(src / INDEX, forget)
    done = qbridge.check(src, "vllm")
    assert not done.ok and [finding.where for finding in done.findings if finding.code == "QB263"] == [(down,)]


@pytest.mark.parametrize("name", ["model.gguf", "sub/model.safetensors", "model.onnx"])
def test_weights_of_another_kind_are_weights(tmp_path, name):
    src = copy_fixture(tmp_path, "gptq/llama_v1_sym")
    bare(src)
    (src / name).parent.mkdir(exist_ok=True)
    (src / name).write_bytes(b"weights")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.check(src, "vllm")
    told = "QB049" if name.endswith(".gguf") else "QB008"  # a file of GGUF is opened as one
    assert codes(excinfo) == {told} and name in str(excinfo.value)


def stale(src, names=None):
    """Put the index of the unquantized original beside a single file."""
    with safe_open(src / SINGLE, "np") as stored:
        modules = {name.rpartition(".")[0] for name in stored.keys()}  # noqa: SIM118 - it is no dict
    named = names or sorted(f"{module}.weight" for module in modules)
    weight_map = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(named)}
    (src / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_single_file_beside_the_index_of_others_is_read(tmp_path, dst):
    src = copy_fixture(tmp_path, "gptq/llama_v1_sym")
    whole = shutil.copytree(src, tmp_path / "whole")
    stale(src)
    done = qbridge.convert(src, dst, "vllm")
    (finding,) = (finding for finding in done.findings if finding.code == "QB040")
    assert finding.severity == "warning" and finding.where == (INDEX,)
    assert "model.safetensors is read; it is complete by itself" in finding.facts[1]
    assert qbridge.verify(whole, dst).same and qbridge.check(dst, "vllm").ok and not (dst / INDEX).exists()
    assert qbridge.verify(src, whole).same


@pytest.mark.parametrize(("target", "ok"), [("vllm", False), ("lmdeploy-turbomind", False), ("gptq", True)])
def test_engines_that_follow_the_index_would_stop(tmp_path, target, ok):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    before = qbridge.check(src, target)
    stale(src)
    done = qbridge.check(src, target)
    assert "QB040" in {finding.code for finding in done.findings}
    assert ("QB003" in {finding.code for finding in done.findings if finding.severity == "error"}) != ok
    assert done.ok == (before.ok and ok)


def test_a_single_file_that_lacks_a_module_is_no_model_beside_an_index_either(src):
    stale(src)
    without(src, DOWN)
    found = refusal(src, 3, "QB263")
    assert "it lacks 1 modules that the index names" in facts(found["QB040"])


def test_an_index_of_which_some_files_are_there_is_not_of_other_files(src):
    stale(src)
    (src / "model-00001-of-00002.safetensors").write_bytes((src / SINGLE).read_bytes())
    assert "model-00002-of-00002.safetensors" in places(refusal(src, 3, "QB003")["QB003"])


# Names that no engine has


def test_an_adapter_that_is_not_merged_is_refused(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_v1_sym")
    query = "model.layers.0.self_attn.q_proj"

    def wrap(header):
        return {name.replace(f"{query}.", f"{query}.base_layer."): entry for name, entry in header.items()}

    edit_header(src / SINGLE, wrap)
    rewrite_tensors(
        src, lambda tensors: tensors.update({f"{query}.lora_A.default.weight": np.ones((8, 4), np.float16)})
    )
    found = refusal(src, 3, "QB041 QB263", "vllm")
    assert places(found["QB041"]) == {query} and "merge" in found["QB041"][0].entry.fix.lower()
    unheard_of(src)
    assert set(refusal(src, 3, "QB041", "vllm")) >= {"QB041"}
    edit_json(src / "config.json", lambda config: config.update(architectures=["Phi4MMForCausalLM"]))
    qbridge.convert(src, tmp_path / "dst", "vllm")


def test_convert_warns_of_what_no_engine_expects(tmp_path, dst):
    src, name = copy_fixture(tmp_path, "gptq/llama_v1_sym"), "model.layers.0.mlp.side_proj"
    rewrite_tensors(src, lambda tensors: tensors.update({f"{name}.weight": np.ones((4, 4), np.float16)}))
    done = qbridge.convert(src, dst, "compressed-tensors")
    assert places(finding for finding in done.findings if finding.code == "QB264") == {name}
    assert places(refusal(src, 1, "QB291", "vllm")["QB291"]) == {name}


def test_a_layer_under_two_prefixes_is_named_each_time(src, dst):
    def twice(header):
        for name in [name for name in header if ".layers.0." in name]:
            header[name.replace("model.layers", "model.language_model.layers")] = header[name]
        return header

    tensors = load_file(src / SINGLE)
    twice(tensors)
    save_file(tensors, src / SINGLE, metadata={"format": "pt"})
    for done in (qbridge.convert(src, dst, "vllm"), qbridge.check(src, "vllm")):
        found = [finding for finding in done.findings if finding.code == "QB264"]
        assert len(places(found)) == 7 and all("language_model" in name for name in places(found))


# Architectures in no table, and what may be missing


def test_an_unknown_architecture_is_not_checked_and_says_so(src, dst):
    unheard_of(src)
    for done in (qbridge.convert(src, dst, "vllm"), qbridge.check(src, "vllm"), qbridge.verify(src, dst)):
        notes = [finding for finding in done.findings if finding.code == "QB266"]
        assert notes and all(finding.severity == "note" and finding.where == (UNHEARD,) for finding in notes)
        assert "QB267" not in {finding.code for finding in done.findings}


def test_an_unknown_architecture_that_lacks_what_is_usual_is_warned_of(tmp_path, dst):
    src = copy_fixture(tmp_path, "mxfp4/gpt_oss")
    unheard_of(src)
    edit_json(src / "config.json", lambda config: config.update(num_hidden_layers=3))
    done = qbridge.check(src, "vllm")
    (finding,) = (finding for finding in done.findings if finding.code == "QB267")
    assert finding.severity == "warning" and finding.where == ("model.layers.2",)


def test_layers_for_multi_token_prediction_may_be_absent(src, dst):
    edit_json(src / "config.json", lambda config: config.update(num_nextn_predict_layers=1))
    done = qbridge.convert(src, dst, "vllm")
    (finding,) = (finding for finding in done.findings if finding.code == "QB267")
    assert finding.severity == "warning" and finding.where == ("model.layers.2",)


def test_weights_left_behind_are_named_with_what_they_hold(src, dst):
    save_file(
        {"draft.fc.weight": np.ones((2, 2), np.float16), "draft.norm.weight": np.ones(2, "f2")},
        src / "draft.safetensors",
    )
    done = qbridge.convert(src, dst, "vllm")
    (finding,) = (finding for finding in done.findings if finding.code == "QB009")
    assert finding.where == ("draft.safetensors",) and finding.facts == (
        "draft.safetensors: 2 tensors, such as draft.fc.weight",
    )


# The law


def draw(rng, case, folder):
    """A fixture from which something is taken away at random: (what, where it lies)."""
    src = shutil.copytree(case / "model", folder)
    file = rng.choice(sorted(src.glob("*.safetensors")))
    names = sorted(header_of(file))
    kind = rng.choice(["tensor", "module", "shard"])
    if kind == "shard":
        modules = sorted({name.rpartition(".")[0] for name in names})
        cut = rng.randrange(1, len(modules))
        gone = {name for name in names if name.rpartition(".")[0] in modules[cut:]}
        take(file, gone.__contains__)
        if file.name == SINGLE:
            file.rename(src / "model-00001-of-00002.safetensors")
        return f"all from {modules[cut]}", src
    idle = (*IDLE, ".bias") if case.name.startswith("llama") else IDLE
    if case.name in (
        "llama_lost_zero_points",
        "llama_zero_points",
    ):  # tools that leave out those that are zero, or not
        idle += (".weight_zero_point",)
    name = rng.choice([name for name in names if not name.endswith(idle)])
    if kind == "module":
        name = name.rpartition(".")[0]
    take(file, lambda other: other == name or other.startswith(f"{name}."))
    return name, src


def fooled_by(seed, folder, cases=READ):
    rng = random.Random(seed)
    case = rng.choice(cases)
    gone, src = draw(rng, case, folder / str(seed))
    wrong = rejects(src, case / "model", ALLOW.get(case.name, ()))
    shutil.rmtree(src)
    return (f"{case.parent.name}/{case.name}", gone, wrong) if wrong else None


@pytest.mark.parametrize("seed", range(2000 if os.environ.get("LAWS") == "all" else 30))
def test_what_is_taken_away_at_random_is_missed(seed, tmp_path):
    assert fooled_by(seed, tmp_path) is None


def test_one_layer_of_act_order_without_its_order_is_missed(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w4a16_g_idx")
    whole = shutil.copytree(src, tmp_path / "whole")
    without(src, "model.layers.0.self_attn.q_proj.weight_g_idx")
    assert rejects(src, whole) == []
