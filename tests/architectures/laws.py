"""What every checkpoint of the generator must pass, whatever its class and format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

import qbridge

# Every format by its own name, and the newest of every engine.
TARGETS = ("vllm", "lmdeploy", "transformers", "compressed-tensors", "gptq", "awq", "auto-round", "fp8", "modelopt")
TARGETS += ("smooth-quant", "mxfp4")
ALLOWED = ("assumed-activations",)  # is about no weight


def read(path):
    """(dtype, bytes) of every tensor of a safetensors file, by name."""
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    spans = {name: (entry["dtype"], entry["data_offsets"]) for name, entry in header.items()}
    return {name: (dtype, data[8 + size + low : 8 + size + high]) for name, (dtype, (low, high)) in spans.items()}


def folder(path):
    """The tensors of every file of a checkpoint."""
    return {name: tensor for file in sorted(Path(path).glob("*.safetensors")) for name, tensor in read(file).items()}


def inspected(case):
    """Reading says nothing that is an error."""
    report = qbridge.inspect(case / "model")
    return [finding.code for finding in report.findings if finding.severity == "error"]


def dense_is_exact(case, out):
    """Modules whose dense weight is another than the packer's own value, bit for bit."""
    qbridge.convert(case / "model", out, "dense")
    got, wrong = folder(out), []
    for module, (dtype, raw) in read(case / "ref.safetensors").items():
        there = got.get(f"{module}.weight", got.get(module))
        if there is None or there[0] != dtype or not same_values(there[1], raw):
            wrong.append(module)
    return wrong


def same_values(one, other):
    """The same bits, but for the sign of zero, which integer codes have not."""
    left, right = np.frombuffer(one, np.uint16), np.frombuffer(other, np.uint16)
    return left.shape == right.shape and bool(np.all((left == right) | (((left | right) & 0x7FFF) == 0)))


def converted(case, target, out):
    """What is wrong with a conversion to a target; None if the target takes no such checkpoint."""
    try:
        qbridge.convert(case / "model", out / "there", target, allow=ALLOWED)
    except qbridge.QBridgeError:
        return None
    wrong = []
    if not qbridge.verify(case / "model", out / "there", allow=ALLOWED).same:
        wrong.append(f"{target}: verify says that it is another model")
    qbridge.restore(out / "there", out / "back")
    if folder(out / "back") != folder(case / "model"):
        wrong.append(f"{target}: restore gives other tensors")
    shutil.rmtree(out / "there")
    shutil.rmtree(out / "back")
    return wrong
