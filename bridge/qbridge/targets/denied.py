"""Biases that are stored and that config.json denies: engines build none, and leave the stored ones out.

Source: vllm 0.33.0, model_executor/models/llama.py, qwen3.py, glm4.py and their like; transformers 5.17.0,
models/*/modeling_*.py (attention_bias).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from qbridge.architecture.architecture import Architecture
from qbridge.formats.rules import ModelRule, Problem
from qbridge.ir.model import Model

_QKV = tuple(f".{block}.{leaf}_proj" for block in ("self_attn", "attn.attention") for leaf in "qkv")


def biases_rule(engine: str, classes: Collection[str], keys: tuple[str, ...], source: str) -> ModelRule:
    """QB331 for biases of q, k and v of `classes`, which an engine builds where one of `keys` is true."""

    def check(model: Model) -> Iterator[Problem]:
        text = Architecture.of_model(model).text
        if model.architecture not in classes or any(text.get(key) for key in keys):
            return
        where = tuple(f"{module}.bias" for module in _biased(model) if module.endswith(_QKV))
        if where:
            fact = f"{engine} leaves {len(where)} biases out: without {keys[0]} it builds none"
            yield Problem((fact,), (asked_for(keys[0]),), where)

    return ModelRule("QB331", check, source)


def asked_for(key: str) -> str:
    """The remedy: what config.json must say of the text model."""
    return f'write "{key}": true into config.json, beside num_hidden_layers'


def _biased(model: Model) -> Iterator[str]:
    """Modules with a bias that is stored, not of zeros alone as GPTQ's tools add it."""
    yield from (name for name, spec in model.specs.items() if spec.bias)
    yield from (name.removesuffix(".bias") for name in model.tensors if name.endswith(".bias"))
