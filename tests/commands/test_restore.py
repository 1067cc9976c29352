"""restore: the checkpoint that a conversion was made from, to the byte of every tensor and the key of config.json."""

from __future__ import annotations

import contextlib
import json
from math import lcm

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qbridge
from goldens import ALLOW
from qbridge.targets.parallel import Parallel
from support import ROOT, cli, codes, contents, copy_fixture, edit_json, only_neighbours
from test_conversion import assert_same_tensors, config
from test_passes import with_scales

ALL = sorted(path.parent for path in ROOT.glob("fixtures/*/*/model"))
WEIGHTS = (".safetensors", ".bin", ".index.json")
DOWN = "model.layers.0.mlp.down_proj"


def fixture(case):
    return ROOT / "fixtures" / case / "model"


def case_id(case):
    return f"{case.parent.name}/{case.name}"


def others(folder):
    """Every file that holds no tensors, by name."""
    return {name: data for name, data in contents(folder).items() if not name.endswith(WEIGHTS)}


def assert_restored(source, back, allow=()):
    """Identical tensors under identical names, config.json key by key, all other files to the byte."""
    if list(source.glob("*.safetensors")):
        assert_same_tensors(source, back)
    else:  # pickled: safetensors are written
        checked = qbridge.verify(source, back, allow=allow)
        assert checked.same and not checked.equal
    before, after = config(source), config(back)
    assert before == after and list(before) == list(after)
    was, now = others(source), others(back)
    del was["config.json"], now["config.json"]
    assert was == now
    assert not (back / "qbridge.json").exists()


def there_and_back(source, folder, target, allow=(), **wanted):
    """Convert and restore; the report of the conversion, or None if it is refused."""
    try:
        report = qbridge.convert(source, folder / "there", target, allow=allow, **wanted)
    except qbridge.QBridgeError:
        return None
    done = qbridge.restore(folder / "there", folder / "back", allow=allow)
    assert (done.format, done.layers) == (report.source_format, report.layers)
    assert_restored(source, folder / "back", allow)
    return report


def refusal(source, wanted, **options):
    """Restore to source/../back, see it refused with these codes and nothing written; the findings."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.restore(source, source.parent / "back", **options)
    assert codes(refused) == {wanted}, str(refused.value)
    assert sorted(source.parent.iterdir()) == before
    return refused.value.findings


def to_480(monkeypatch):
    """Every engine wants intermediate sizes that no fixture has."""
    monkeypatch.setattr(Parallel, "multiple", lambda self, spec, tp: lcm(spec.weight.group_size or 1, 480))


# Fixtures that their own format cannot hold once padded or widened, or that are not read at all.
NOT_PADDED = {
    "auto_round/llama_regex",
    "awq/llama_gptqmodel_8bit",
    "compressed_tensors/llama_fp8_block",
    "compressed_tensors/llama_fp8_block_edges",
    "compressed_tensors/llama_mxfp6a16",
    "compressed_tensors/llama_w4a16_g_idx",
    "fp8/llama_blocks",
    "fp8/llama_blocks_ue8m0",
    "fp8/llama_lmdeploy_block",
    "marlin/llama_autoawq",
    "marlin/llama_autogptq",
    "marlin/llama_autogptq_channel",
    "marlin/llama_checkpoint_format",
    "modelopt/llama_fp8_block",
    "mxfp4/gpt_oss",
}


# Fixtures with MLPs of which only parts are quantized.
PARTLY_DENSE = {
    "auto_round/llama_regex",
    "compressed_tensors/llama_partial",
    "compressed_tensors/qwen3_partial",
    "mlx/llama_affine",
    "mlx/llama_zero_points",
}


@pytest.mark.parametrize("case", ALL, ids=case_id)
def test_every_fixture_padded_in_its_own_format_is_restored(case, tmp_path, monkeypatch):
    to_480(monkeypatch)
    own = case.parent.name.replace("_", "-")
    report = there_and_back(case / "model", tmp_path, own, ALLOW.get(case.name, ()), pad=True)
    if report is None:
        assert case_id(case) in NOT_PADDED
    else:
        assert ("pad" in report.passes) != (case_id(case) in PARTLY_DENSE)


@pytest.mark.parametrize("case", ALL, ids=case_id)
def test_every_fixture_padded_regrouped_and_widened_into_another_format_is_restored(case, tmp_path, monkeypatch):
    to_480(monkeypatch)
    target = "gptq" if case.parent.name == "compressed_tensors" else "compressed-tensors"
    wanted = {"pad": True, "regroup": 16, "bits": 8}
    report = there_and_back(case / "model", tmp_path, target, ALLOW.get(case.name, ()), **wanted)
    if report is None:  # another scheme than that format has, so at least the layout
        there_and_back(case / "model", tmp_path, "smooth-quant", ALLOW.get(case.name, ()), pad=True)


@pytest.mark.parametrize("target", [t.name for t in qbridge.list_targets() if t.name != "dense"])
@pytest.mark.parametrize(
    "case",
    [
        "gptq/llama_640",
        "gptq/qwen3_moe_v1_sym",
        "gptq/llama_autogptq_sym",
        "awq/llama_llm_awq",
        "auto_round/llama_regex",
        "marlin/llama_autogptq",
        "compressed_tensors/llama_w8a8_sharded",
        "compressed_tensors/mixtral_w8a8_w123",
        "smooth_quant/llama_lite",
    ],
)
def test_what_was_written_for_any_target_is_restored(case, target, tmp_path):
    there_and_back(fixture(case), tmp_path, target)


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        ({}, {"regroup": 1}),
        ({"pad": True}, {"pad": 3}),
        ({"pad": True, "regroup": 64}, {"pad": 0, "regroup": 7}),
        ({"pad": True, "bits": 8}, {"pad": 3, "widen": 7}),
        ({"pad": True, "bits": 8, "regroup": 32, "tp": 4}, {"pad": 0, "widen": 7, "regroup": 7}),
    ],
    ids=str,
)
def test_each_pass_for_two_ranks_is_undone(wanted, passes, tmp_path):
    report = there_and_back(fixture("gptq/llama_640"), tmp_path, "gptq", **{"tp": 2, **wanted})
    assert report.passes == {name: count for name, count in passes.items() if count}
    manifest = json.loads((tmp_path / "there/qbridge.json").read_text())
    assert manifest["source"]["files"].keys() == {"quantize_config.json"}
    assert not (tmp_path / "there/quantize_config.json").exists() or "gptq" in manifest["target"]["format"]


def test_a_restored_checkpoint_has_the_shards_that_it_was_written_in(tmp_path):
    source = fixture("compressed_tensors/llama_w8a8_sharded")
    qbridge.convert(source, tmp_path / "there", "lmdeploy")
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    first, second = (
        json.loads((x / "model.safetensors.index.json").read_text()) for x in (source, tmp_path / "back")
    )
    assert first["weight_map"] == second["weight_map"]


def test_a_conversion_of_a_conversion_restores_one_step(tmp_path):
    source = fixture("gptq/llama_640")
    qbridge.convert(source, tmp_path / "one", "awq", tp=2, pad=True)
    qbridge.convert(tmp_path / "one", tmp_path / "two", "compressed-tensors", regroup=32)
    qbridge.restore(tmp_path / "two", tmp_path / "back")
    assert_same_tensors(tmp_path / "one", tmp_path / "back")
    assert config(tmp_path / "one") == config(tmp_path / "back")
    assert config(tmp_path / "back")["intermediate_size"] == 768
    with pytest.raises(qbridge.QBridgeError, match="QB036"):
        qbridge.restore(tmp_path / "back", tmp_path / "further")
    qbridge.restore(tmp_path / "one", tmp_path / "first")
    assert_restored(source, tmp_path / "first")


def test_a_dry_run_writes_nothing_and_an_old_folder_is_only_replaced_when_told(tmp_path):
    source = fixture("gptq/llama_640")
    qbridge.convert(source, tmp_path / "there", "awq")
    report = qbridge.restore(tmp_path / "there", tmp_path / "back", dry_run=True)
    assert report.dry_run and report.format == "gptq"
    only_neighbours(tmp_path, "there")
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert qbridge.restore(tmp_path / "there", tmp_path / "back").already_done
    (tmp_path / "back/extra").write_text("x")
    with pytest.raises(qbridge.QBridgeError, match="QB031"):
        qbridge.restore(tmp_path / "there", tmp_path / "back")
    qbridge.restore(tmp_path / "there", tmp_path / "back", overwrite=True)
    assert_restored(source, tmp_path / "back")


# what is not restored


@pytest.mark.parametrize("manifest", [None, "", "{", "[]", "{}", '{"schema": 2}', '{"schema": "1"}'], ids=str)
def test_without_a_manifest_there_is_nothing_to_restore_from(manifest, tmp_path):
    source = copy_fixture(tmp_path, "gptq/llama_640")
    if manifest is not None:
        (source / "qbridge.json").write_text(manifest)
    refusal(source, "QB036")


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found.update(source=None),
        lambda found: found.pop("source"),
        lambda found: found["source"].pop("config"),
        lambda found: found["source"].update(files=None),
        lambda found: found["source"].update(files=[1]),
        lambda found: found["source"].update(config=[]),
        lambda found: found["source"].update(format="no-such"),
        lambda found: found.update(steps=None),
        lambda found: found["steps"].clear(),
        lambda found: found["steps"][0]["passes"].append({"pass": "melt"}),
        lambda found: found["steps"][-1].update(dims=[[1, 2], [3, 4]]),
        lambda found: found["steps"][-1]["before"].pop("weight"),
        lambda found: found["steps"][-1]["before"]["weight"].update(bits=99),
    ],
    ids=range(13),
)
def test_a_manifest_that_contradicts_itself_is_refused_without_a_trace(damage, tmp_path):
    qbridge.convert(fixture("gptq/llama_640"), tmp_path / "there", "awq", tp=2, pad=True)
    edit_json(tmp_path / "there/qbridge.json", lambda found: damage(found) and None)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert codes(refused) <= {"QB030", "QB036", "QB037"}
    only_neighbours(tmp_path, "there")


@pytest.mark.parametrize("name", ["../evil", "ABSOLUTE/evil", "a/../../evil", "model.safetensors", "config.json/x"])
def test_a_manifest_writes_no_file_outside_the_folder_or_over_its_tensors(name, tmp_path):
    qbridge.convert(fixture("gptq/llama_640"), tmp_path / "there", "awq")
    name = name.replace("ABSOLUTE", str(tmp_path))
    edit_json(tmp_path / "there/qbridge.json", lambda found: found["source"]["files"].update({name: "x"}))
    with contextlib.suppress(qbridge.QBridgeError):
        qbridge.restore(tmp_path / "there", tmp_path / "back")
    only_neighbours(tmp_path, "there")


def test_what_was_rounded_is_not_restored(tmp_path):
    model = with_scales(tmp_path / "model", q_proj=[1 / 3])
    qbridge.convert(model, tmp_path / "there", "awq", allow=["rounded"])
    findings = refusal(tmp_path / "there", "QB037")
    assert findings[0].where == ("model.layers.0.self_attn.q_proj",)
    assert "1 of 7 layers" in findings[0].facts[0]


def edited(folder, name, place, value):
    stored = load_file(folder / "model.safetensors")
    stored[name][place] = value
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_was_edited_in_the_padding_is_not_restored(tmp_path):
    qbridge.convert(fixture("gptq/llama_640"), tmp_path / "there", "awq", tp=2, pad=True)
    edited(tmp_path / "there", f"{DOWN}.qweight", (-1, 0), -1)
    assert DOWN in refusal(tmp_path / "there", "QB037")[0].where


def test_groups_that_were_one_and_differ_now_are_not_restored(tmp_path):
    qbridge.convert(fixture("gptq/llama_640"), tmp_path / "there", "vllm", tp=2)
    edited(tmp_path / "there", f"{DOWN}.scales", (0, 0), 1.0)
    assert refusal(tmp_path / "there", "QB037")[0].where == (DOWN,)


def test_codes_beyond_the_old_width_are_not_restored(tmp_path):
    qbridge.convert(fixture("gptq/llama_3bit"), tmp_path / "there", "awq")
    edited(tmp_path / "there", f"{DOWN}.qweight", (0, 0), -1)
    assert refusal(tmp_path / "there", "QB304")[0].where == (DOWN,)  # codes are first read when they are written


def test_a_scale_that_does_not_survive_the_cast_back_is_not_restored(tmp_path):
    qbridge.convert(fixture("compressed_tensors/llama_w8a8"), tmp_path / "there", "lmdeploy")
    edited(tmp_path / "there", f"{DOWN}.scale", (0, 0), np.float32(1 / 3))
    assert refusal(tmp_path / "there", "QB037")[0].where == (DOWN,)


def test_what_was_left_out_is_not_restored(tmp_path):
    source = fixture("compressed_tensors/llama_kv_int8")
    qbridge.convert(source, tmp_path / "there", "lmdeploy", allow=["drop-kv-scales"])
    findings = refusal(tmp_path / "there", "QB037")
    assert len(findings[0].where) == 4 and all("_scale" in name for name in findings[0].where)
    assert "left out" in findings[0].facts[0]


def test_a_lost_layer_is_not_restored_in_silence(tmp_path):
    qbridge.convert(fixture("gptq/llama_640"), tmp_path / "there", "awq")
    stored = load_file(tmp_path / "there/model.safetensors")
    for leaf in ("qweight", "qzeros", "scales"):
        del stored[f"{DOWN}.{leaf}"]
    save_file(stored, tmp_path / "there/model.safetensors", metadata={"format": "pt"})
    refusal(tmp_path / "there", "QB037")


# the command line


def test_the_command_line_restores(tmp_path):
    source = fixture("gptq/llama_640")
    words = ("convert", source, tmp_path / "there", "--to", "awq", "--tp", "2", "--pad")
    assert cli(*words).returncode == 0
    done = cli("restore", tmp_path / "there", tmp_path / "back", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["format"], report["layers"], report["passes"]) == ("gptq", 7, {"undo pad": 3})
    assert_restored(source, tmp_path / "back")
    done = cli("restore", source, tmp_path / "other")
    assert done.returncode == 1 and "QB036" in done.stderr and "Traceback" not in done.stderr
    only_neighbours(tmp_path, "there", "back")


def test_the_json_of_a_restoration_says_restore(tmp_path):
    qbridge.convert(fixture("gptq/llama_640"), tmp_path / "there", "awq")
    done = cli("restore", tmp_path / "there", tmp_path / "back", "--json", "--dry-run")
    assert done.returncode == 0 and json.loads(done.stdout)["command"] == "restore"
    only_neighbours(tmp_path, "there")
