"""What transformers 4.57.6 and 5 read from a config that we write is what its writer's transformers read before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from engine import HERE, ROOT, ask

import qbridge
from config_kinds import KINDS, NEW_KINDS, as_transformers_5_writes
from qbridge.architecture.config import Reader, spell
from qbridge.architecture.implied import implied
from qbridge.architecture.quantization_block import without_quantization
from qbridge.targets.registry import find_target

pytestmark = pytest.mark.engine

READERS = {"4": Reader((4,)), "5": Reader((5,)), "both": Reader()}
READERS |= {name: find_target(name).reader for name in ("lmdeploy", "lmdeploy@0.6.2", "vllm")}
TARGETS = ("lmdeploy", "lmdeploy@0.6.2", "lmdeploy-turbomind", "vllm", "transformers", "gptqmodel", "dense")
FIXTURES = sorted((ROOT / "fixtures").glob("*/*/model"))
# What a newer transformers itself reads in another way from one and the same file; no word of a config changes it.
ITS_OWN = {
    "no_rope_layer_interval": "what it stands for, no_rope_layers, is there as well",
    "model_type": "towers of Qwen3-VL have names of their own in transformers 5",
    "tie_word_embeddings": "transformers 5 has it outside of text_config alone",
}


def write(folder, name, config, outputs):
    (folder / name).mkdir(parents=True)
    (folder / f"{name}.json").write_text(json.dumps(without_quantization(config)))
    for target, output in outputs.items():
        (folder / name / f"{target}.json").write_text(json.dumps(without_quantization(output)))


def read_by_5(folder, tmp_path):
    """The driver's report under the transformers that is installed beside pytest."""
    report = tmp_path / "report.json"
    command = [sys.executable, HERE / "drivers/parsed_configs.py", folder, "--json", report]
    subprocess.run([str(word) for word in command], check=True, timeout=600)
    answer = json.loads(report.read_text())
    assert answer["transformers"].startswith("5."), "the newest transformers is the other judge"
    return answer["configs"]


def differences(source, output, alike):
    """Keys that two readings give otherwise; unless `alike`, by versions of transformers that have other defaults."""
    keys = source.keys() | output.keys() if alike else source.keys() & output.keys()
    own = () if alike else ITS_OWN
    return {
        key: (source.get(key, "nothing"), output.get(key, "nothing"))
        for key in keys
        if source.get(key, "nothing") != output.get(key, "nothing") and key.rpartition(".")[2] not in own
    }


def without_implied(found, source):
    """Differences, less the keys that the source's class implies and that are there now with just that value."""
    told = implied(json.loads(source.read_text()))
    return {key: pair for key, pair in found.items() if key not in told or pair != ("nothing", told[key])}


def judged(folder, tmp_path, writers, versions):
    """(how many readings were compared, by reader; what was read otherwise) of every output in a folder.

    An output is compared with its source as `writers` read it. Where that version has no class for it, or the file
    is the source's own, the reader's own reading of the source is what it must be.
    """
    reports = {4: ask("lmdeploy-0.18.0", "parsed_configs.py", folder)["configs"], 5: read_by_5(folder, tmp_path)}
    compared, wrong = Counter(), {}
    for name in sorted(reports[5]):
        source, _, target = name.partition("/")
        for version in versions.get(target, ()):
            before, after = reports[version][source], reports[version][name]
            wrote = reports[writers[source]][source]
            unchanged = (folder / f"{name}.json").read_text() == (folder / f"{source}.json").read_text()
            if before["error"] and after["error"]:
                compared[f"{target}, transformers {version}: no class for it"] += 1
                continue
            compared[f"{target}, transformers {version}"] += 1
            alike = writers[source] == version or bool(wrote["error"]) or unchanged
            if after["error"]:
                wrong[f"{name}, transformers {version}"] = after["error"]
                continue
            found = differences((before if alike else wrote)["model"] or after["model"], after["model"], alike)
            if found := without_implied(found, folder / f"{source}.json"):
                wrong[f"{name}, transformers {version}"] = found
    print("\n".join(f"{count:5} {reader}" for reader, count in sorted(compared.items())))
    return compared, wrong


def test_every_kind_of_config_is_read_as_its_writer_read_it(tmp_path):
    folder, writers = tmp_path / "configs", {}
    for name, config in {**KINDS, **NEW_KINDS}.items():
        for writer, source in ((4, config), (5, as_transformers_5_writes(config))):
            writers[f"{name}-{writer}"] = writer
            write(folder, f"{name}-{writer}", source, {r: spell(source, reader) for r, reader in READERS.items()})
    versions = {name: (4, 5) if name == "lmdeploy" else reader.versions for name, reader in READERS.items()}
    compared, wrong = judged(folder, tmp_path, writers, versions)
    assert not wrong
    assert compared["both, transformers 4"] >= 2 * len(KINDS) and compared["5, transformers 5"] >= 2 * len(KINDS)


def test_every_fixture_converted_is_read_as_its_source(tmp_path):
    folder, writers = tmp_path / "configs", {}
    for source in FIXTURES:
        config = json.loads((source / "config.json").read_text())
        name = "-".join(source.parts[-3:-1])
        writers[name] = 5 if "rope_parameters" in config else 4
        write(folder, name, config, dict(outputs(source)))
    versions = {target: (4, 5) if target == "dense" else find_target(target).reader.versions for target in TARGETS}
    versions["lmdeploy"] = versions["lmdeploy-turbomind"] = (4, 5)  # what LMDeploy requires allows both
    compared, wrong = judged(folder, tmp_path, writers, versions)
    assert {name: what for name, what in wrong.items() if not only_float16(name, what)} == {}
    assert compared["vllm, transformers 5"] > 100 and compared["lmdeploy, transformers 4"] > 40


def only_float16(name, what):
    """LMDeploy computes AWQ, and all that TurboMind has, in float16, which is asked for."""
    if "/lmdeploy" not in name or not isinstance(what, dict):
        return False
    return {key: after for key, (_, after) in what.items()} == {"dtype": "float16"}


ALLOWED = ("rounded", "drop-kv-scales", "assumed-activations", "unknown-tensors", "dequantized-activations")


def outputs(source: Path):
    """(target, config.json that is written) for every target that the fixture can be converted for."""
    from qbridge.findings.catalogue.code import ALLOW

    for target in TARGETS:
        try:
            with qbridge.stream(source, target, allow=[word for word in ALLOWED if word in ALLOW]) as streamed:
                yield target, dict(streamed.config)
        except qbridge.QBridgeError:
            continue


def test_the_tokenizer_that_is_written_is_one_that_the_engine_has(tmp_path):
    source = Path(shutil.copytree(ROOT / "fixtures/compressed_tensors/llama_w8a8/model", tmp_path / "source"))
    file = source / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "extra_special_tokens": ["w5", "w6"]}))
    qbridge.convert(source, tmp_path / "out", "lmdeploy")
    assert "TokenizersBackend" in ask("lmdeploy-0.18.0", "hf_config.py", source)["tokenizer"]["error"]["message"]
    assert ask("lmdeploy-0.18.0", "hf_config.py", tmp_path / "out")["tokenizer"]["class"] == "PreTrainedTokenizerFast"
