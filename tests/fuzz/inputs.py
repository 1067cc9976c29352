"""What the fuzzer feeds: a checkpoint folder as one short byte string, made from fixtures and mutated as JSON.

An input is sections between NUL bytes: four selectors, each plus 1 (command, reader, fill of the data, how the header
lies), then config.json, the index, the header of a shard without its length, a side file, qbridge.json. The shard's
data is a hole in a file as long as the header asks for, up to a limit, so that an input stays small.
"""

from __future__ import annotations

import io
import json
import operator
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

import qbridge
from qbridge import render
from qbridge.ir.dtypes import DType, nbytes
from qbridge.source.safetensors import HeaderError
from support import header_of

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).with_name("corpus")
SEPARATOR = b"\0"
FILES = ("config.json", "model.safetensors.index.json", "model.safetensors", "quantize_config.json", "qbridge.json")
SHARD = FILES.index("model.safetensors")
SECTIONS = len(FILES) + 1
Command = Callable[[Path, "str | None"], None]
MOST_DATA = 1 << 24

READERS = (None, None, *qbridge.list_formats())
TARGETS = ("lmdeploy", "vllm", "transformers", *qbridge.list_formats(), "lmdeploy-turbomind", "lmdeploy@0.6.2")
FILLS = (b"\0", b"\x11", b"\x3c", b"\x88", b"\xff", b"\x00\x3c", bytes(range(256)))


def _open(folder: Path, reader: str | None) -> None:
    with qbridge.open(folder, reader) as opened:
        for name in opened.specs:
            with suppress(ValueError):  # stored values that no layer has; a conversion tells them as a finding
                opened.layer(name)


def console() -> Console:
    """A terminal that takes UTF-8 alone."""
    return Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), highlight=False, soft_wrap=True)


def _say(value: Any, show: Callable[[Console, Any], None]) -> None:
    json.dumps(value.as_dict())
    show(console(), value)
    render.findings(console(), value.findings)


def _inspect(folder: Path, reader: str | None) -> None:
    _say(qbridge.inspect(folder, reader), render.inspection)


def _check(target: str, tp: int) -> Command:
    return lambda folder, reader: _say(qbridge.check(folder, target, tp, "sm90", reader), render.check)


def _plan(target: str, **options: Any) -> Command:
    return lambda folder, reader: _say(
        qbridge.convert(folder, folder.parent / "dst", target, reader, dry_run=True, **options), render.report
    )


def _restore(folder: Path, reader: str | None) -> None:
    _say(qbridge.restore(folder, folder.parent / "dst", dry_run=True), render.report)


COMMANDS: tuple[Command, ...] = (
    _inspect,
    _open,
    *(_check(target, tp) for target in TARGETS for tp in (1, 2)),
    *(_plan(target) for target in TARGETS),
    *(_plan(target, pad=True, tp=4) for target in ("lmdeploy", "vllm")),
    _plan("vllm", regroup=16),
    _restore,
)


def run_folder(data: bytes, folder: Path) -> int:
    """The exit code of one command on the folder that an input describes: 0, 1 or 3, or whatever is wrong raises."""
    picked, *sections = [*data.split(SEPARATOR), *[b""] * SECTIONS][:SECTIONS]
    command, reader, fill, shape = (max(byte - 1, 0) for byte in (*picked, 1, 1, 1, 1)[:4])
    _write(folder, sections, FILLS[fill % len(FILLS)], shape)
    return outcome(lambda: COMMANDS[command % len(COMMANDS)](folder, READERS[reader % len(READERS)]))


def _write(folder: Path, sections: list[bytes], fill: bytes, shape: int) -> None:
    for name, section in zip(FILES, sections, strict=True):
        file = folder / name
        if not section:
            file.unlink(missing_ok=True)
        elif name != FILES[SHARD]:
            file.write_bytes(section)
        else:
            length, size = len(section), min(_data_size(section), MOST_DATA)
            with open(file, "wb") as stream:
                stream.write((length + (shape & 1)).to_bytes(8, "little") + section)
                stream.write((fill * (4096 // len(fill)))[: min(size, 4096)])
                stream.truncate(8 + length + size + (shape >> 1 & 1))


def _data_size(section: bytes) -> int:
    try:
        return max(0, *(int(entry["data_offsets"][1]) for entry in json.loads(section).values() if "dtype" in entry))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        return 0


def run_header(data: bytes, folder: Path) -> int:
    """3 if a file of these bytes is no safetensors file, 0 if it is one for the library too."""
    from safetensors import safe_open

    file = folder / "header.safetensors"
    file.write_bytes(data)
    try:
        found = header_of(file)
    except HeaderError:
        return 3
    with safe_open(file, "numpy") as theirs:  # it must not refuse what is taken here
        if set(theirs.keys()) != found.keys():
            raise AssertionError(f"{sorted(theirs.keys())} != {sorted(found)}")
    return 0


def outcome(command: Callable[[], None]) -> int:
    """0, or the exit code of a QBridgeError; only the answer no and unreadable input come from content."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            command()
        except qbridge.QBridgeError as fault:
            if fault.exit_code not in (1, 3):
                raise
            json.dumps([finding.as_dict() for finding in fault.findings])
            render.findings(console(), fault.findings)
            return fault.exit_code
    return 0


# inputs from fixtures


def join(sections: list[bytes]) -> bytes:
    return SEPARATOR.join(sections)


def seeds() -> Iterator[bytes]:
    """Every fixture as an input, its first decoder layer alone, for a few commands."""
    for number, model in enumerate(sorted(ROOT.glob("fixtures/*/*/model"))):
        header = _short_header(model)
        texts = [(model / name).read_bytes() if (model / name).is_file() else b"" for name in FILES]
        names = {name: FILES[SHARD] for name in header}
        texts[1] = _dump({"weight_map": names}) if texts[1] else b""
        texts[SHARD] = _dump(relaid(header))
        texts[0] = _dump(json.loads(texts[0]))
        for step in (0, 1, 2 + number % (len(COMMANDS) - 2)):
            yield join([bytes((1 + step, 1, 1 + number % len(FILLS), 1)), *texts])
    yield from _converted()


def _converted() -> Iterator[bytes]:
    """What qbridge writes, with its manifest: the way back and restore follow that."""
    for case, target in (
        ("gptq/llama_v2_asym", "compressed-tensors"),
        ("compressed_tensors/llama_w4a16_channel", "awq"),
        ("compressed_tensors/llama_tensor", "smooth-quant"),
    ):
        with tempfile.TemporaryDirectory() as place:
            made = Path(place) / "made"
            qbridge.convert(ROOT / "fixtures" / case / "model", made, target)
            header = _dump(relaid(_short_header(made, "")))
            texts = [_dump(json.loads((made / name).read_bytes())) for name in ("config.json", "qbridge.json")]
        for command in (
            COMMANDS.index(_restore),
            2 + 2 * len(TARGETS) + TARGETS.index(case.split("/")[0].replace("_", "-")),
        ):
            yield join([bytes((1 + command, 1, 3, 1)), texts[0], b"", header, b"", texts[1]])


def _short_header(model: Path, layers: str = ".layers.0.") -> dict[str, Any]:
    tensors = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors |= header_of(file)
    return {
        name: {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [0, 0]}
        for name, tensor in tensors.items()
        if ".layers." not in name or layers in name
    }


def relaid(header: dict[str, Any]) -> dict[str, Any]:
    """The header with offsets that fit dtypes and shapes, where there are such; the order of entries is kept."""
    place = 0
    for entry in header.values():
        try:
            size = nbytes(DType(entry["dtype"]), tuple(map(operator.index, entry["shape"])))
            entry["data_offsets"] = [place, place + size]
            place += size
        except (ValueError, TypeError, KeyError):
            continue
    return header


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def header_seeds() -> Iterator[bytes]:
    """Small whole safetensors files."""
    for shape in ([], [0], [2, 3], [1] * 9):
        entry = {"dtype": "F16", "shape": shape}
        for header in (relaid({"a": dict(entry), "b": dict(entry)}), {}):
            text = _dump({"__metadata__": {"format": "pt"}, **header})
            size = sum(nbytes(DType.F16, tuple(shape)) for _ in header)
            yield len(text).to_bytes(8, "little") + text + bytes(size)


# mutation

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
        sections = [*data.split(SEPARATOR), *[b""] * SECTIONS][:SECTIONS]
        number = rng.choice((0, 1, 1, 1, 1, 2, 3, 3, 3, 4, 5, 5))
        if number == 0:
            picked = (*sections[0], 1, 1, 1, 1)[:4]
            sections[0] = bytes(rng.randrange(1, 65) if rng.random() < 0.4 else byte for byte in picked)
        else:
            text = self._text(sections[number], number - 1 == SHARD, max_size, rng)
            sections[number] = text.replace(SEPARATOR, b"0")
        made = join(sections)
        return made if len(made) <= max_size else data[:max_size]

    def header(self, data: bytes, max_size: int, seed: int) -> bytes:
        """An input of `run_header` with its JSON changed and its length set right, mostly."""
        rng = random.Random(seed)
        length = int.from_bytes(data[:8], "little")
        text, rest = data[8 : 8 + length], data[8 + length :]
        if rng.random() < 0.2 or len(data) < 10:
            return self.mutate(data, max_size)
        text = self._text(text, True, max_size, rng)
        size = min(_data_size(text), 4096) if rng.random() < 0.8 else len(rest)
        length = len(text) if rng.random() < 0.9 else rng.choice((0, 2**63, 2**64 - 1, len(text) + 1, 10**8))
        return (length.to_bytes(8, "little") + text + bytes(size))[:max_size]

    def _text(self, text: bytes, is_header: bool, max_size: int, rng: random.Random) -> bytes:
        if rng.random() < 0.1:
            return self.mutate(text or b"{}", max_size)
        try:
            value = json.loads(text or b"{}")
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                value = mutate_json(value, self.words, rng)
            if is_header and isinstance(value, dict) and rng.random() < 0.8:
                value = relaid(value)
            made = _dump(value)
        except (ValueError, RecursionError, OverflowError):
            return self.mutate(text, max_size)
        if rng.random() < 0.05 and b":" in made:  # a key that is there twice
            pair = made[1 : made.find(b",") if b"," in made else -1]
            made = made[:-1] + b"," + pair + b"}"
        return made
