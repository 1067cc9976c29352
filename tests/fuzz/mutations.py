"""How the fuzzer changes an input: JSON at random, tensors, index and quantization block by what they mean."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from fuzz.inputs import (
    COMMANDS,
    CONFIG,
    FILES,
    INDEX,
    SEPARATOR,
    SHARDS,
    data_size,
    dump,
    join,
    read_sections,
    relaid,
    seeds,
)
from qbridge.ir.dtypes import DType

VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 64, 128, 255, 4096),
    *(2**31, 2**32, 2**63 - 1, 2**63, 10**18, 10**30, 10**400, -(2**63), -(10**30)),
    *(0.0, 0.5, 1.5, 1e308, -1e308, float("nan"), float("inf"), 4.0),
    *("", "4", "8", "int", "group", "\ud800", "a" * 3000, "..", "/etc/passwd", "a\nb", "1" * 5000, "re:.*", "re:("),
    *("F16", "BF16", "F32", "I8", "I32", "U8", "F8_E4M3", "BOOL", "I64", "F64"),
    *(
        "gptq",
        "awq",
        "compressed-tensors",
        "auto-round",
        "marlin",
        "smooth_quant",
        "gemv",
        "gptq_v2",
        "pack-quantized",
    ),
    *(None, True, False, [], {}, [None], [1], [-1], [0, 0], {"": None}, [[]], [2**62, 2**62], [1] * 65),
)


def _nodes(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        _nodes(item, found)
    return found


def mutate_json(value: Any, words: list[str], rng: random.Random) -> Any:
    """The value with one place replaced, removed, renamed, copied or nested."""
    places = _nodes(value, [])
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    action = rng.randrange(8)
    if action <= 3:
        holder[key] = json.loads(json.dumps(rng.choice(VALUES)))
    elif action == 4:
        del holder[key]
    elif action == 5:
        other, place = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[place])) if place in _keys(other) else None
    elif action == 6 and isinstance(holder, dict):
        new = rng.choice([*words, str(key) + rng.choice((".", "_scale", ".weight", "x", "\u0663"))])
        holder[new] = holder[key] if rng.random() < 0.5 else holder.pop(key)
    else:
        holder[key] = rng.choice(([holder[key]], {str(key): holder[key]}, str(holder[key])))
    return value


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


BLOCKS = ("quantization_config", "compression_config", "quantization", "kv_cache_scheme")
DEPTHS = (40, 200, 400, 800, 950, 990, 1000, 3000, 12000)
DEEP = "\u29c9"  # stands for a deep value until the text is made: `json` writes none


def mutate_block(config: Any, words: list[str], rng: random.Random) -> Any:
    """The config with keys of its quantization block gone or of another type."""
    holders = [holder[key] for holder, key in _nodes(config, []) if key in BLOCKS and isinstance(holder[key], dict)]
    if not holders:
        return mutate_json(config, words, rng)
    nodes = _nodes(rng.choice(holders), [])
    for holder, key in rng.sample(nodes, min(len(nodes), rng.choice((1, 1, 2, 3)))):
        if key in _keys(holder):
            holder[key] = rng.choice(VALUES)
    return config


def mutate_tensors(header: Any, words: list[str], rng: random.Random) -> Any:
    """The header with a tensor or every tensor of a kind renamed, gone, or of another dtype or shape."""
    tensors = [name for name, entry in header.items() if isinstance(entry, dict) and "dtype" in entry]
    if not tensors:
        return mutate_json(header, words, rng)
    name = rng.choice(tensors)
    parts = name.split(".")
    leaf, module = parts[-1], ".".join(parts[:-1])
    group = rng.choice(([name], [n for n in tensors if n.endswith(f".{leaf}")], [n for n in tensors if module in n]))
    action = rng.randrange(6)
    old, new = rng.choice(parts), rng.choice((*words, *parts, "", "0", "1", "7", "experts", "base_layer", "9" * 40))
    dtype, change = str(rng.choice(list(DType))), rng.choice(SHAPES)
    for one in group:
        entry = header[one]
        if action == 0:
            del header[one]
        elif action == 1:
            header[one.replace(old, new)] = header.pop(one)
        elif action == 2:
            header[one.replace(old, new)] = dict(entry)
        elif action == 3:
            entry["dtype"] = dtype
        elif isinstance(entry.get("shape"), list):
            entry["shape"] = change(entry["shape"])
    return header


SHAPES: tuple[Callable[[list[Any]], list[Any]], ...] = (
    lambda shape: shape[::-1],
    lambda shape: shape[1:],
    lambda shape: [*shape, 1],
    lambda shape: [1, *shape],
    lambda shape: [0 for _ in shape],
    lambda shape: [1 for _ in shape],
    lambda shape: [*shape[:-1], 2 * shape[-1]] if shape and type(shape[-1]) is int else [1],
    lambda shape: [*shape[:-1], shape[-1] // 2] if shape and type(shape[-1]) is int else [1],
    lambda shape: [shape[0] + 1, *shape[1:]] if shape and type(shape[0]) is int else [2],
)


def mutate_index(index: Any, words: list[str], rng: random.Random) -> Any:
    """The index with an entry gone, added, or of another file."""
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not weights or rng.random() < 0.2:
        return mutate_json(index, words, rng)
    name = rng.choice(list(weights))
    file = rng.choice((*SHARDS, "model-00001-of-00002.safetensors", "../model.safetensors", "", "absent.safetensors"))
    action = rng.randrange(4)
    if action == 0:
        del weights[name]
    elif action == 1:
        weights[name] = file
    elif action == 2:
        weights[f"{name}{rng.choice(words)}"] = file
    else:
        index["weight_map"] = dict.fromkeys(weights, file)
    return index


def _mutation_of(name: str, rng: random.Random) -> Callable[[Any, list[str], random.Random], Any]:
    """A mutation for a file: any, or one that knows what the file means."""
    known = {CONFIG: mutate_block, INDEX: mutate_index, **dict.fromkeys(SHARDS, mutate_tensors)}
    return known[name] if name in known and rng.random() < 0.6 else mutate_json


def _deepened(value: Any, rng: random.Random) -> bytes:
    """The value as text, one place of it nested deeply."""
    places = _nodes(value, [])
    if not places:
        return dump(value)
    holder, key = rng.choice(places)
    holder[key] = DEEP
    depth = rng.choice(DEPTHS)
    start, end = rng.choice((("[", "]"), ('{"a":', "}"), ('{"":[', "]}")))
    deep = f"{start * depth}1{end * depth}".encode()
    return dump(value).replace(dump(DEEP), deep)


# Files by how often they are changed; the shards and the config hold most of what is read.
PICKED = (*(CONFIG,) * 5, *(INDEX,) * 2, *(SHARDS[0],) * 5, *(SHARDS[1],) * 2, *FILES[3:])


HUB_PARTS = ("config", "header", "pages", "revision", "link", "html", "status", "headers", "headers", "command")
STATUSES: tuple[Any, ...] = (200, 204, 206, 301, 302, 304, 307, 401, 403, 404, 410, 416, 429, 500, 503, 999, -1, "x")
LIES: tuple[Any, ...] = (
    *({"Content-Length": value} for value in (0, 1, 10**6, 10**30, -1, "x", "")),
    *({"Content-Range": value} for value in ("bytes 0-0/1", "bytes */9", "bytes 5-4/3", "x", f"bytes 0-7/{10**18}")),
    *({"Location": value} for value in ("", "/", "http://a/", "https://10.0.0.1/x", "https://[", "https://h:99999/")),
    *({"Location": value} for value in ("https://u@h/x", "?x", "//h", "file:///etc/passwd", "https://h/\r\nX: y")),
    *({"ETag": value} for value in ("", "x", 'W/"abc"', "a" * 70000)),
    *({"X-Linked-Size": value} for value in (0, "x", -1, 10**30)),
    *({"X-Repo-Commit": "x"}, {"X-Linked-ETag": ""}, {"Content-Encoding": "gzip"}, {"Retry-After": "99999"}),
    *({"Retry-After": value} for value in ("\u0663", "x", "-1", "Fri, 99 Nov", "1e400")),
    *({"Transfer-Encoding": "chunked"}, {"Link": '<x>; rel="next"'}, {"Connection": "close"}, {"a\nb": "c"}),
)


class Mutator:
    """Mutates inputs: mostly as JSON, else as bytes by the engine's own `mutate`."""

    def __init__(self, mutate: Callable[[bytes, int], bytes]) -> None:
        """Collect the keys of every seed, to rename others to."""
        self.mutate, words = mutate, set[str]()
        for seed in seeds():
            for section in seed.split(SEPARATOR)[1:]:
                if section:
                    words |= {str(key) for holder, key in _nodes(json.loads(section), []) if isinstance(holder, dict)}
        self.words = sorted(words)

    def folder(self, data: bytes, max_size: int, seed: int) -> bytes:
        """An input of `run_folder` with one section changed."""
        rng = random.Random(seed)
        picked, files = read_sections(data)
        name = rng.choice(("", *PICKED))
        if not name:
            picked = bytes(rng.randrange(1, 2 + len(COMMANDS)) if rng.random() < 0.4 else byte for byte in picked)
        else:
            files[name] = self._text(files[name], name, max_size, rng).replace(SEPARATOR, b"0")
        made = join(picked, files)
        return made if len(made) <= max_size else data[:max_size]

    def header(self, data: bytes, max_size: int, seed: int) -> bytes:
        """An input of `run_header` with its JSON changed and its length set right, mostly."""
        rng = random.Random(seed)
        length = int.from_bytes(data[:8], "little")
        text, rest = data[8 : 8 + length], data[8 + length :]
        if rng.random() < 0.2 or len(data) < 10:
            return self.mutate(data, max_size)
        text = self._text(text, SHARDS[0], max_size, rng)
        size = min(data_size(text), 4096) if rng.random() < 0.8 else len(rest)
        length = len(text) if rng.random() < 0.9 else rng.choice((0, 2**63, 2**64 - 1, len(text) + 1, 10**8))
        return (length.to_bytes(8, "little") + text + bytes(size))[:max_size]

    def gguf(self, data: bytes, max_size: int, seed: int) -> bytes:
        """A command and a GGUF file with some numbers of its header changed to those that lie, mostly."""
        rng = random.Random(seed)
        if rng.random() < 0.4 or len(data) < 32:
            return self.mutate(data, max_size)
        changed = bytearray(data)
        if rng.random() < 0.3:
            changed[0] = rng.randrange(256)
        for _ in range(rng.choice((1, 1, 2, 4))):
            width = rng.choice((1, 2, 4, 8))
            place = rng.randrange(1, len(data) - width + 1)
            number = rng.choice((0, 1, 2, 8, 9, 31, 32, 33, 2**16, 2**31, 2**63, 2**64 - 1, rng.randrange(64)))
            changed[place : place + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
        return bytes(changed)[:max_size]

    def hub(self, data: bytes, max_size: int, seed: int) -> bytes:
        """An input of `run_hub` with one part of what the server says changed."""
        rng = random.Random(seed)
        try:
            said = json.loads(data)
            part = rng.choice(("", "", *HUB_PARTS))
            if not part:
                return dump(mutate_json(said, self.words, rng))[:max_size]
            mutate = {"config": mutate_block, "header": mutate_tensors}.get(part, mutate_json)
            if part in ("status", "headers"):
                kind = rng.choice(("revision", "tree", "resolve", "bytes", "html"))
                lie = rng.choice(LIES) if part == "headers" else rng.choice(STATUSES)
                said[part] = {**said.get(part, {}), kind: lie}
            else:
                said[part] = mutate(said.get(part), self.words, rng)
            return dump(said)[:max_size]
        except (ValueError, RecursionError, OverflowError, AttributeError, TypeError):
            return self.mutate(data, max_size)

    def _text(self, text: bytes, name: str, max_size: int, rng: random.Random) -> bytes:
        """The text of a file, changed; an absent file mostly stays absent."""
        if not text and rng.random() < 0.8:
            return text
        if rng.random() < 0.1:
            return self.mutate(text or b"{}", max_size)
        try:
            value, mutate = json.loads(text or b"{}"), _mutation_of(name, rng)
            if rng.random() < 0.04:
                return _deepened(value, rng)
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                value = mutate(value, self.words, rng)
            if name in SHARDS and isinstance(value, dict) and rng.random() < 0.8:
                value = relaid(value)
            made = dump(value)
        except (ValueError, RecursionError, OverflowError, AttributeError, TypeError):
            return self.mutate(text, max_size)
        if rng.random() < 0.05 and b":" in made:  # a key that is there twice
            pair = made[1 : made.find(b",") if b"," in made else -1]
            made = made[:-1] + b"," + pair + b"}"
        return made
