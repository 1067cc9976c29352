"""Fixtures against the values that their own tools compute."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

import qbridge
from qbridge.codecs.arrays import ScaledZeros
from qbridge.ir.layer import Layer
from qbridge.ir.values import dequantize, group_index

ROOT = Path(__file__).resolve().parent.parent


def cases(format_id: str) -> list[str]:
    found = {case.parent.name for case in (ROOT / "fixtures" / format_id).glob("*/model")}
    return sorted(found - NOT_READ)


ALLOW = {
    "llama_no_block": ["assumed-activations"],
    "llama_lite062": ["pickle"],
    "llama_autogptq_zero0": ["v1-zeros-wrap"],
}
NOT_READ = {"llama_mxfp6a16"}


def check(format_id: str, case: str) -> None:
    """Every weight, as float32, has the digest that the tool's own dequantization has."""
    folder = ROOT / "fixtures" / format_id / case
    expected = json.loads((folder / "expected.json").read_text())["weights"]
    with qbridge.open(folder / "model", allow=ALLOW.get(case, ())) as checkpoint:
        assert checkpoint.format.replace("-", "_") == format_id
        slots = checkpoint.model.slots
        stored = {name: slots[name]["code"].tensor.rpartition(".")[0] + ".weight" for name in checkpoint.specs}
        assert set(stored.values()) == expected.keys()
        for name, tensor in stored.items():
            as_products = isinstance(slots[name]["zero"].codec, ScaledZeros) if "zero" in slots[name] else False
            layer = checkpoint.layer(name)
            zero = np.float32(0 if format_id == "mlx" else -0.0)  # what MLX adds up is no -0
            values = with_rounded_products(layer) if as_products else dequantize(layer).astype("<f4") + zero
            wanted = expected[tensor]
            assert list(values.shape) == wanted["shape"], name
            assert values[0, : len(wanted["head"])].tolist() == [np.float32(x) for x in wanted["head"]], name
            assert hashlib.sha256(values.tobytes()).hexdigest() == wanted["sha256"], name


def with_rounded_products(layer: Layer) -> np.ndarray:
    """What AWQ's fast kernels compute: code * scale + float16(-zero * scale), in float32."""
    columns = group_index(layer.spec)
    scale = layer.arrays["scale"].view(np.float16)
    zeros = -((layer.arrays["zero"] + 8).astype(np.float16) * scale)
    codes = layer.arrays["code"].astype(np.float32) + 8
    return codes * scale.astype(np.float32)[:, columns] + zeros.astype(np.float32)[:, columns]
