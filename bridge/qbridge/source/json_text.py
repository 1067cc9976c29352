"""JSON that names every key once, of bounded size."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

_HALVES = re.compile("[\ud800-\udfff]")
MAX_HEADER = 100_000_000  # the library's own limit


class DuplicateKeyError(ValueError):
    """A JSON object names a key twice, so two readers may see two different files."""


def json_text(value: Any, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """A value as JSON that UTF-8 can hold: halves of characters, which JSON can name, stay names."""
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False)
    return _HALVES.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def parse_json(text: bytes, parse_int: Callable[[str], int] | None = None) -> Any:
    """JSON that names every key once; ValueError (RecursionError included) otherwise."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_pairs, parse_int=parse_int)
    except RecursionError as fault:
        raise ValueError("nested too deeply") from fault


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) != len(items):
        twice, _ = Counter(name for name, _ in items).most_common(1)[0]
        raise DuplicateKeyError(f"key {twice!r} appears twice")
    return found
