"""What the fuzzer feeds: a checkpoint folder as one short byte string, made from fixtures; mutations.py changes it.

An input is sections between NUL bytes: four selectors, each plus 1 (command, reader, fill of the data, how the header
lies), then the FILES in turn: those of JSON as they are, a shard as its header without its length. The data of a
shard is a hole in a file as long as the header asks for, up to a limit, so that an input stays small. An empty or
absent section is a file that is not there.
"""

from __future__ import annotations

import io
import json
import operator
import struct
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

import qbridge
from gguf_files import gguf, small, u16, u32
from qbridge import render
from qbridge.ir.dtypes import DType, nbytes
from qbridge.source.folder import Folder
from qbridge.source.gguf import read_gguf
from qbridge.source.safetensors import HeaderError
from qbridge.source.storage import File
from support import header_of

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).with_name("corpus")
SEPARATOR = b"\0"
CONFIG, INDEX, SHARD, SECOND = "config.json", "model.safetensors.index.json", "model.safetensors", "more.safetensors"
SIDE_FILES = ("hf_quant_config.json", "tokenizer_config.json")
FILES = (CONFIG, INDEX, SHARD, "quantize_config.json", "qbridge.json", SECOND, *SIDE_FILES)
SHARDS = (SHARD, SECOND)
Command = Callable[[Path, "str | None"], None]
MOST_DATA = 1 << 24
LONG = 1 << 15

READERS = (None, None, *qbridge.list_formats())
TARGETS = ("lmdeploy", "vllm", "transformers", *qbridge.list_formats(), "lmdeploy-turbomind", "lmdeploy@0.6.2")
OLDER = ("vllm@0.23.0", "vllm@0.5.4", "vllm-gptq", "gptqmodel", "sglang")
FILLS = (b"\0", b"\x11", b"\x3c", b"\x88", b"\xff", b"\x00\x3c", bytes(range(256)))


def _open(folder: Path, reader: str | None) -> None:
    with qbridge.open(folder, reader) as opened:
        for name in opened.specs:
            with suppress(ValueError):  # stored values that no layer has; a conversion tells them as a finding
                opened.layer(name)


def console() -> Console:
    """A terminal that takes UTF-8 alone."""
    return Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), highlight=False, soft_wrap=True)


def say(value: Any, show: Callable[[Console, Any], None]) -> None:
    json.dumps(value.as_dict())
    show(console(), value)
    render.findings(console(), value.findings)


def _inspect(folder: Path, reader: str | None) -> None:
    say(qbridge.inspect(folder, reader), render.inspection)


def _check(target: str, tp: int, gpu: str = "sm90", **options: Any) -> Command:
    return lambda folder, reader: say(qbridge.check(folder, target, tp, gpu, reader, **options), render.check)


def _check_config(target: str) -> Command:
    """config.json alone, with the index where there is one."""

    def command(folder: Path, reader: str | None) -> None:
        for name in SHARDS:
            (folder / name).unlink(missing_ok=True)
        _check(target, 2, "sm80")(folder, reader)

    return command


def _verify(folder: Path, _: str | None) -> None:
    say(qbridge.verify(folder, folder, jobs=1), render.verification)


def _plan(target: str, **options: Any) -> Command:
    return lambda folder, reader: say(
        qbridge.convert(folder, folder.parent / "dst", target, reader, dry_run=True, **options), render.report
    )


def _restore(folder: Path, reader: str | None) -> None:
    say(qbridge.restore(folder, folder.parent / "dst", dry_run=True), render.report)


COMMANDS: tuple[Command, ...] = (
    _inspect,
    _open,
    *(_check(target, tp) for target in TARGETS for tp in (1, 2)),
    *(_plan(target) for target in TARGETS),
    *(_plan(target, pad=True, tp=4) for target in ("lmdeploy", "vllm")),
    _plan("vllm", regroup=16),
    _restore,
    _verify,
    *(_check(target, tp, "sm80") for target in OLDER for tp in (1, 2)),
    *(_check(target, 1, allow=("incomplete", "unknown-tensors")) for target in ("vllm", "lmdeploy", "transformers")),
    *(_check_config(target) for target in ("vllm", "lmdeploy", "lmdeploy-turbomind", "transformers", *OLDER)),
    *(_check(target, 1) for target in ("llama.cpp", "mlx")),
    *(_plan("vllm", cast=cast) for cast in ("fp8", "nvfp4", "mxfp8", "int8")),
)


GGUF_TARGETS = ("llama.cpp", "vllm", "lmdeploy", "transformers", "compressed-tensors", "mxfp4")
GGUF_COMMANDS: tuple[Command, ...] = (
    _inspect,
    _open,
    _verify,
    *(_check(target, 2) for target in GGUF_TARGETS),
    *(_plan(target) for target in (*GGUF_TARGETS, "gguf", "dense")),
)


def run_folder(data: bytes, folder: Path) -> int:
    """The exit code of one command on the folder that an input describes: 0, 1 or 3, or whatever is wrong raises."""
    picked, sections = read_sections(data)
    command, reader, fill, shape = (max(byte - 1, 0) for byte in picked)
    _write(folder, sections, FILLS[fill % len(FILLS)], shape)
    return outcome(lambda: COMMANDS[command % len(COMMANDS)](folder, READERS[reader % len(READERS)]))


def read_sections(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The four selectors of an input, and the section of every file."""
    picked, *sections = data.split(SEPARATOR)
    sections += [b""] * len(FILES)
    return (picked + b"\1" * 4)[:4], dict(zip(FILES, sections, strict=False))


def _write(folder: Path, sections: dict[str, bytes], fill: bytes, shape: int) -> None:
    for name, section in sections.items():
        file = folder / name
        if not section:
            file.unlink(missing_ok=True)
        elif name not in SHARDS:
            file.write_bytes(section)
        else:
            length, size = len(section), min(data_size(section), MOST_DATA)
            with open(file, "wb") as stream:
                stream.write((length + (shape & 1)).to_bytes(8, "little") + section)
                stream.write((fill * (4096 // len(fill)))[: min(size, 4096)])
                stream.truncate(8 + length + size + (shape >> 1 & 1))


def data_size(section: bytes) -> int:
    """How long the data is that a header asks for; 0 where it says no such thing."""
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


def run_gguf(data: bytes, folder: Path) -> int:
    """The exit code of one command on a GGUF file: a byte for the command, the number of zeros after it, the file."""
    file, zeros = folder / "in" / "model.gguf", min(int.from_bytes(data[1:5], "little"), MOST_DATA)
    file.parent.mkdir(exist_ok=True, parents=True)
    with open(file, "wb") as stream:
        stream.write(data[5:])
        stream.truncate(stream.tell() + zeros)
    return outcome(lambda: GGUF_COMMANDS[data[0] % len(GGUF_COMMANDS) if data else 0](file, None))


def outcome(command: Callable[[], None], codes: Collection[int] = (1, 3)) -> int:
    """0, or the exit code of a QBridgeError; only the answer no and unreadable input come from content."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            command()
        except qbridge.QBridgeError as fault:
            if fault.exit_code not in codes:
                raise
            json.dumps([finding.as_dict() for finding in fault.findings])
            render.findings(console(), fault.findings)
            return fault.exit_code
    return 0


# inputs from fixtures


def join(picked: bytes, files: dict[str, bytes]) -> bytes:
    """The input of four selectors and the sections of some files."""
    return SEPARATOR.join((picked, *(files.get(name, b"") for name in FILES)))


def seeds() -> Iterator[bytes]:
    """Every fixture as an input, its first decoder layer alone, for a few commands; one in three in two shards."""
    for number, model in enumerate(sorted(ROOT.glob("fixtures/*/*/model"))):
        files = {name: compact(model / name) for name in FILES if name not in (INDEX, *SHARDS)}
        shards = _shards(short_header(model), 2 if number % 3 == 0 else 1)
        if len(shards) > 1 or (model / INDEX).is_file():
            names = {name: file for file, header in shards.items() for name in header}
            files[INDEX] = dump({"weight_map": names})
        files |= {file: dump(relaid(header)) for file, header in shards.items()}
        for step in (0, 1, 2 + number % (len(COMMANDS) - 2)):
            yield join(bytes((1 + step, 1, 1 + number % len(FILLS), 1)), files)
    yield from _converted()


def compact(file: Path) -> bytes:
    """A JSON file without spaces; nothing where there is none, or one so long that an input would be slow."""
    return dump(json.loads(file.read_bytes())) if file.is_file() and file.stat().st_size < LONG else b""


def _shards(header: dict[str, Any], count: int) -> dict[str, dict[str, Any]]:
    """Tensors dealt out to one shard or both."""
    return {file: dict(list(header.items())[rank::count]) for rank, file in enumerate(SHARDS[:count])}


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
            files = {name: compact(made / name) for name in (CONFIG, "qbridge.json")}
            files[SHARD] = dump(relaid(short_header(made, "")))
        for command in (
            COMMANDS.index(_restore),
            2 + 2 * len(TARGETS) + TARGETS.index(case.split("/")[0].replace("_", "-")),
        ):
            yield join(bytes((1 + command, 1, 3, 1)), files)


def short_header(model: Path, layers: str = ".layers.0.") -> dict[str, Any]:
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


def dump(value: Any) -> bytes:
    """JSON as short as it can be."""
    return json.dumps(value, separators=(",", ":")).encode()


def header_seeds() -> Iterator[bytes]:
    """Small whole safetensors files."""
    for shape in ([], [0], [2, 3], [1] * 9):
        entry = {"dtype": "F16", "shape": shape}
        for header in (relaid({"a": dict(entry), "b": dict(entry)}), {}):
            text = dump({"__metadata__": {"format": "pt"}, **header})
            size = sum(nbytes(DType.F16, tuple(shape)) for _ in header)
            yield len(text).to_bytes(8, "little") + text + bytes(size)


def gguf_seeds() -> Iterator[bytes]:
    """Small whole GGUF files, and the headers of converted models for every command."""
    array = 9, struct.pack("<IQ", 6, 2) + bytes(8)
    yield bytes(5) + small(**{"a.names": ["x", "yz"], "a.scores": array, "a.count": 7, "a.eps": 0.5, "a.yes": True})
    yield bytes(5) + small(**{"split.no": u16(0), "split.count": u16(1), "split.tensors.count": 2})
    yield bytes(5) + gguf({"general.alignment": u32(64)}, [], version=2, alignment=64)
    for case in ("gptq/llama_g128", "compressed_tensors/llama_mxfp4"):
        with tempfile.TemporaryDirectory() as place:
            made = Path(place) / "made"
            qbridge.convert(ROOT / "fixtures" / case / "model", made, "llama.cpp", allow={"no-tokenizer"})
            (file,) = made.glob("*.gguf")
            header = read_gguf(File(Folder(made), file.name))
            begin = min(tensor.begin for tensor in header.tensors.values())
            whole = file.read_bytes()
        zeros = (len(whole) - begin).to_bytes(4, "little")
        yield from (bytes((command,)) + zeros + whole[:begin] for command in range(len(GGUF_COMMANDS)))
