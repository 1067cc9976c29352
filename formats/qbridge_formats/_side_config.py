"""The quantization block of config.json together with the side files in which GPTQ's and AWQ's tools repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.headers import load_json
from qbridge.source import Source


def merged_config(
    source: Source, names: tuple[str, ...], aliases: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(keys, also under their current names; the side files of `names` that there are); config.json comes first."""
    block = source.config.get("quantization_config")
    files = tuple(name for name in names if (source.path / name).is_file())
    raw: dict[str, Any] = {}
    for name in files:
        try:
            value = load_json(source.path / name)
        except ValueError:
            continue  # config.json's own block decides alone
        raw.update(value if isinstance(value, dict) else {})
    raw.update(block if isinstance(block, dict) else {})
    return {**{aliases[key]: value for key, value in raw.items() if key in aliases}, **raw}, files
