"""Copies of fixtures to break, and what every refusal must look like."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qbridge
from qbridge.source.folder import Folder
from qbridge.source.safetensors import read_header
from qbridge.source.storage import File

ROOT = Path(__file__).resolve().parent.parent
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDED = "compressed_tensors/llama_w8a8_sharded"


def copy_fixture(tmp_path, case="compressed_tensors/llama_w8a8_rope"):
    """A fixture's checkpoint at tmp_path/src; the one left out is single-file, float16 and small."""
    return Path(shutil.copytree(ROOT / "fixtures" / case / "model", tmp_path / "src"))


def part(dst):
    """Where an output grows beside DST."""
    return dst.parent / f".{dst.name}.qbridge-part"


def journal(dst):
    return dst.parent / f".{dst.name}.qbridge-journal"


def edit_json(path, fn):
    """Rewrite a JSON file with what `fn` makes of its value: in place, or the value that it returns."""
    value = json.loads(path.read_text())
    changed = fn(value)
    path.write_text(json.dumps(value if changed is None else changed))


def edit_quantization(src, fn):
    edit_json(src / "config.json", lambda config: fn(config["quantization_config"]))


def header_of(path):
    """Every tensor of a safetensors file, as the program reads its header."""
    return read_header(File(Folder(path.parent), path.name))


def edit_header(path, fn):
    """Rewrite a safetensors header like `edit_json`, its data untouched."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    changed = fn(header)
    write_raw(path, json.dumps(header if changed is None else changed).encode(), data[8 + length :])


def name_floats(src, layouts):
    """Call tensors of a single-file checkpoint what the slots of some layouts say: numpy has no float8."""
    dtypes = {slot.tensor: str(slot.dtype) for slots in layouts for slot in slots.values()}
    edit_header(src / SINGLE, lambda header: [header[name].update(dtype=dtypes[name]) for name in dtypes] and None)


def write_raw(path, header, data=b""):
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def rewrite_tensors(src, fn):
    """Rewrite the tensors of a single-file float16 checkpoint with the safetensors library."""
    tensors = load_file(src / SINGLE)
    fn(tensors)
    save_file(tensors, src / SINGLE, metadata={"format": "pt"})


def split(src, files):
    """Spread a single-file checkpoint over `files` {file name: tensor names}, with an index."""
    tensors = load_file(src / SINGLE)
    (src / SINGLE).unlink()
    for file, names in files.items():
        (src / file).parent.mkdir(exist_ok=True)
        save_file({name: tensors[name] for name in names}, src / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in files.items() for name in names}
    (src / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def small_checkpoint(folder, layers=1, shards=3):
    """A complete W8A8 checkpoint of a few kilobytes in several shards, with a side file."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "fixtures/compressed_tensors/llama_w8a8/model/config.json", folder)
    edit_json(
        folder / "config.json", lambda config: config.update(num_hidden_layers=layers, tie_word_embeddings=True)
    )
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("carried over")
    tensors = {"model.norm.weight": np.ones(8, np.float16), "model.embed_tokens.weight": np.ones((4, 8), np.float16)}
    below = [f"self_attn.{leaf}_proj" for leaf in "qkvo"] + [f"mlp.{leaf}_proj" for leaf in ("gate", "up", "down")]
    for layer, norm in itertools.product(range(layers), ("input_layernorm", "post_attention_layernorm")):
        tensors[f"model.layers.{layer}.{norm}.weight"] = np.ones(8, np.float16)
    for module in (f"model.layers.{layer}.{name}" for layer in range(layers) for name in below):
        tensors[f"{module}.weight"] = np.full((8, 8), len(tensors) % 50, np.int8)
        tensors[f"{module}.weight_scale"] = np.full((8, 1), 0.5, np.float16)
    names = sorted(tensors)
    save_file(tensors, folder / SINGLE)
    split(folder, {f"model-{n + 1:05}-of-{shards:05}.safetensors": names[n::shards] for n in range(shards)})
    return folder


def contents(folder):
    """Every file below a folder by relative name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def only_neighbours(tmp_path, *names):
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(names)


def codes(excinfo):
    return {finding.code for finding in excinfo.value.findings if finding.severity is qbridge.Severity.ERROR}


def refusal(src, exit_code, wanted, target="lmdeploy", source=None, **options):
    """Convert to src/../dst, see it refused with these codes and nothing written; {code: findings}."""
    before = sorted(src.parent.iterdir())
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, src.parent / "dst", target, source, **options)
    assert codes(excinfo) == set(wanted.split()), str(excinfo.value)
    assert excinfo.value.exit_code == exit_code
    assert sorted(src.parent.iterdir()) == before
    found = {}
    for finding in excinfo.value.findings:
        found.setdefault(finding.code, []).append(finding)
    return found


def places(findings):
    return {place for finding in findings for place in finding.where}


def facts(findings):
    return " ".join(fact for finding in findings for fact in finding.facts)


def helps(findings):
    return " ".join(line for finding in findings for line in finding.help)


def remedies(findings):
    """Every line of help as a person reads it."""
    return [line for finding in findings for line in finding.remedies]


def cli(*arguments, **options):
    """Run the program; its CompletedProcess with text."""
    command = [sys.executable, "-m", "qbridge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)
