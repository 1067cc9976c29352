"""Time `qbridge convert` against `cp -r` and `sync` on the same checkpoint, in turn; print ratios and peak memory.

    python benchmarks/against_cp.py SRC --to lmdeploy [--rounds 5] [--beside "COMMAND {src} {out}"]

All are whole processes with a warm page cache; each writes to a fresh folder that is removed afterwards. `--beside`
is another tool's command, timed once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path


def timed(command: list[str], out: Path) -> tuple[float, int]:
    """(seconds until the bytes are on the disk, peak resident memory in bytes) of one command."""
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(["sync"], check=True)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed with status {status}")
    subprocess.run(["sync"], check=True)
    seconds = time.monotonic() - start
    shutil.rmtree(out)
    return seconds, usage.ru_maxrss * 1024


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path)
    parser.add_argument("--to", default="lmdeploy")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", metavar="COMMAND", help="another tool, with {src} and {out}")
    args = parser.parse_args()
    out = args.src.parent / f"{args.src.name}-out"
    commands = {
        "cp -r": ["cp", "-r", "--reflink=never", str(args.src), str(out)],
        "qbridge": [sys.executable, "-m", "qbridge", "convert", str(args.src), str(out), "--to", args.to],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    peaks = dict.fromkeys(commands, 0)
    subprocess.run(["cat", *map(str, args.src.glob("*.safetensors"))], stdout=subprocess.DEVNULL, check=True)
    for _ in range(args.rounds):
        for name, command in commands.items():
            seconds, peak = timed(command, out)
            times[name].append(seconds)
            peaks[name] = max(peaks[name], peak)
    if args.beside:
        seconds, peak = timed(shlex.split(args.beside.format(src=args.src, out=out)), out)
        times["beside"], peaks["beside"] = [seconds], peak
    medians = {name: statistics.median(found) for name, found in times.items()}
    print("| command | median s | of cp + sync | peak MB |\n|---|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {median / medians['cp -r']:.2f} | {peaks[name] / 1e6:.0f} |")


if __name__ == "__main__":
    main()
