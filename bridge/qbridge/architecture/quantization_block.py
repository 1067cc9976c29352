"""Where the quantization block of a config.json lies: at the top, or in the text model's own config.

Sources: vllm 0.33.0, transformers_utils/model_arch_config_convertor.py (get_quantization_config: the top first, then
text_config) and model_executor/model_loader/weight_utils.py; compressed-tensors 0.3, whose block of sparsity has the
one of quantization within it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# The last is mlx-lm's, which says the same under the first as well (mlx-lm 0.32.2, utils.py, quantize_model).
QUANTIZATION_KEYS = ("quantization_config", "compression_config", "sparseml_quantization_config", "quantization")
NESTED = ("text_config", "llm_config", "language_config")  # keys of a multimodal model's text model


@dataclass(frozen=True, slots=True)
class Block:
    """A quantization block as it stands in config.json.

    `key` is its key path, `text_config.quantization_config`; `raw` its keys, none where it is no JSON object.
    """

    key: str = QUANTIZATION_KEYS[0]
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Its quant_method in lower case; an empty string if it names none."""
        named = self.raw.get("quant_method")
        return "" if named is None else str(named).lower()


NO_BLOCK = Block()  # what a reader that needs no block takes where there is none


def find_block(config: Mapping[str, Any]) -> Block | None:
    """The first quantization block of a config: those at the top come before those of the text model."""
    return next(quantization_blocks(config), None)


def quantization_blocks(config: Mapping[str, Any]) -> Iterator[Block]:
    """Every quantization block of a config; the first is followed."""
    for prefix, holder in text_holders(config):
        for key in QUANTIZATION_KEYS:
            raw = holder.get(key)
            if raw is not None:
                yield _unwrapped(prefix + key, raw if isinstance(raw, dict) else {})


def is_nested_key(key: str) -> bool:
    """Whether the key path of a block leads into the text model's own config."""
    return key.partition(".")[0] in NESTED


def text_holders(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(what its keys are called, config) of a config and of the text model's own in it, one level deep."""
    yield "", config
    yield from ((f"{key}.", config[key]) for key in NESTED if isinstance(config.get(key), dict))


def _unwrapped(key: str, raw: Mapping[str, Any]) -> Block:
    """The block itself, where one holds sparsity and quantization side by side (compressed-tensors before 0.4)."""
    inner = raw.get(QUANTIZATION_KEYS[0])
    if not isinstance(inner, dict):
        return Block(key, raw)
    sparsity = {"sparsity_config": raw["sparsity_config"]} if raw.get("sparsity_config") else {}
    return Block(f"{key}.{QUANTIZATION_KEYS[0]}", {**sparsity, **inner})


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without any quantization block, nested ones included."""
    return {
        key: {k: v for k, v in value.items() if k not in QUANTIZATION_KEYS} if is_nested(key, value) else value
        for key, value in config.items()
        if key not in QUANTIZATION_KEYS
    }


def is_nested(key: str, value: Any) -> bool:
    """Whether a key holds the text model's own config, as multimodal models have it, one level deep."""
    return key in NESTED and isinstance(value, dict)
