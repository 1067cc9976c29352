"""What the benchmarks share: the conversions they measure, the checkpoints for them, and whole processes measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

QBRIDGE = [sys.executable, "-m", "qbridge"]
HERE = Path(__file__).parent
# What pip compiles when it installs a package stays compiled, as it does for its users.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Case:
    """A conversion: of a checkpoint.py format, with these options of `qbridge convert`.

    One that `grows` writes far more than it reads, so it is held against a copy of what it writes.
    """

    format: str
    options: tuple[str, ...]
    grows: bool = False


# At 4 GPUs the 11008 intermediate features of a 7B Llama, 86 groups of 128, are padded to 88 groups.
CASES = {
    "awq to compressed-tensors": Case("awq", ("--to", "compressed-tensors")),
    "gptq to compressed-tensors": Case("gptq", ("--to", "compressed-tensors")),
    "gptq to awq": Case("gptq", ("--to", "awq")),
    "pad of a gptq": Case("gptq", ("--to", "gptq", "--tp", "4", "--pad")),
    "compressed-tensors to gptq": Case("compressed-tensors", ("--to", "gptq")),
    "w8a8 to lmdeploy": Case("w8a8", ("--to", "lmdeploy")),
    "fp8 channels to lmdeploy": Case("fp8-channels", ("--to", "lmdeploy")),
    "fp8 blocks to compressed-tensors": Case("fp8-blocks", ("--to", "compressed-tensors")),
    "fp8 tensors to vllm": Case("fp8-tensors", ("--to", "vllm")),
    "nvfp4 to modelopt": Case("nvfp4", ("--to", "modelopt")),
    "modelopt nvfp4 to compressed-tensors": Case("nvfp4-modelopt", ("--to", "compressed-tensors")),
    "mxfp4 to dense": Case("mxfp4", ("--to", "dense"), grows=True),
    "nvfp4 to dense": Case("nvfp4", ("--to", "dense"), grows=True),
    "fp8 blocks to dense": Case("fp8-blocks", ("--to", "dense"), grows=True),
    "awq to dense": Case("awq", ("--to", "dense"), grows=True),
}


def picked(words: list[str]) -> dict[str, Case]:
    """The cases whose names hold any of the words; all of them for none."""
    found = {name: case for name, case in CASES.items() if not words or any(word in name for word in words)}
    if not found:
        raise SystemExit(f"no case holds {' or '.join(words)}: {', '.join(CASES)}")
    return found


def run(command: list[str]) -> tuple[float, int]:
    """(seconds, peak resident bytes) of one process; this one must stay smaller, as a child begins with its peak."""
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}\n{text}")
    return seconds, usage.ru_maxrss * 1024


def timed(command: list[str], out: Path) -> tuple[float, int]:
    """(seconds until the bytes that it writes to `out` are on the disk, peak resident bytes); `out` is removed."""
    clear(out)
    start = time.monotonic()
    _, peak = run(command)
    subprocess.run(["sync"], check=True)
    seconds = time.monotonic() - start
    clear(out)
    return seconds, peak


def clear(folder: Path) -> None:
    """Remove a folder, down to the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["sync"], check=True)


def warm(src: Path) -> None:
    """Read a checkpoint into the page cache."""
    subprocess.run(["cat", *map(str, src.glob("*.safetensors"))], stdout=subprocess.DEVNULL, check=True)


def has_option(option: str) -> bool:
    """Whether `qbridge convert` knows an option."""
    wide = {**ENVIRONMENT, "COLUMNS": "200"}
    text = subprocess.run([*QBRIDGE, "convert", "--help"], capture_output=True, text=True, check=True, env=wide)
    return option in text.stdout


def checkpoint(work: Path, kind: str, *options: str) -> Path:
    """A checkpoint that checkpoint.py writes, whole or not there at all; the one that is there already, if any."""
    name = "-".join([kind, *(option.lstrip("-") for option in options)])
    if not (work / name).is_dir():
        part = work / f"{name}.part"
        clear(part)
        command = [sys.executable, str(HERE / "checkpoint.py"), str(part), "--format", kind, *options]
        note(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        part.rename(work / name)
    return work / name


def claimed(folder: Path) -> int:
    """The bytes of a checkpoint's files, holes included."""
    return sum(file.stat().st_size for file in folder.iterdir())


def make_room(work: Path, keep: set[Path], new_bytes: float, limit: float) -> None:
    """Remove what was left behind and old checkpoints, until the rest and `new_bytes` take `limit` bytes at most."""
    for path in [*work.glob("*-out*"), *work.glob("*.part")]:
        clear(path)
    kinds = tuple(f"{case.format}-" for case in CASES.values())
    folders = [path for path in work.glob("*gigabytes-*") if path.name.startswith(kinds)]
    used = {path: sum(file.stat().st_blocks * 512 for file in path.iterdir()) for path in folders}
    for path in sorted(used.keys() - keep, key=lambda path: path.stat().st_mtime):
        if sum(used.values()) + new_bytes <= limit:
            break
        note(f"removing {path}")
        clear(path)
        del used[path]
    if sum(used.values()) + new_bytes > limit:
        note(f"{(sum(used.values()) + new_bytes) / 1e9:.1f} GB will be on the disk, more than the limit")
    if shutil.disk_usage(work).free < new_bytes:
        raise SystemExit(f"{work}: {new_bytes / 1e9:.1f} GB are needed and not free")


def note(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
