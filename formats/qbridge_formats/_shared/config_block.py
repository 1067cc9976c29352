"""The quantization block of config.json together with the side files in which GPTQ's and AWQ's tools repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.architecture.quantization_block import NO_BLOCK, Block, find_block
from qbridge.source.reader import Source
from qbridge.source.storage import load_json


def merged_config(source: Source, names: tuple[str, ...], aliases: Mapping[str, str]) -> Block:
    """Its keys, also under their current names; config.json comes first, then the last of `names` that there is."""
    block = find_block(source.config) or NO_BLOCK
    raw: dict[str, Any] = {}
    for name in names:
        if not source.storage.has(name):
            continue
        try:
            value = load_json(source.file(name))
        except ValueError:
            continue  # config.json's own block decides alone
        raw.update(value if isinstance(value, dict) else {})
    raw.update(block.raw)
    return Block(block.key, {**{aliases[key]: value for key, value in raw.items() if key in aliases}, **raw})
