"""Peak resident memory of `qbridge convert`, and what it is above the idle program's; print a markdown table.

    python tests/benchmarks/memory.py [--cases awq "pad of"] [--gigabytes 2 18] [--tensor-gigabytes 2] [--work DIR]

The sources are sparse and stay in --work; outputs are really written, and removed. `idle` is a process that imports
what a conversion imports, numba included, and does nothing; a conversion that needs no kernel stays below it. The
peak is that of the kernel's books (ru_maxrss), so nothing is missed between samples; pages of mapped files count, the
page cache does not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness import QBRIDGE, Case, checkpoint, claimed, has_option, make_room, note, picked, run, timed

IDLE = """
import concurrent.futures, numba, numpy, qbridge, qbridge.cli
from qbridge.formats import load
for name in qbridge.list_formats():
    load(name)
qbridge.list_targets()
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[], metavar="WORDS", help="parts of their names; default: all")
    parser.add_argument("--gigabytes", nargs="*", type=float, default=[2.0, 18.0])
    parser.add_argument("--tensor-gigabytes", nargs="*", type=float, default=[2.0])
    parser.add_argument("--memory", nargs="*", default=["512MB"], help="values of that option to try beside none")
    parser.add_argument("--work", type=Path, default=Path("/tmp/qbridge-benchmarks"), help="checkpoints stay there")
    parser.add_argument("--disk-gigabytes", type=float, default=25.0, help="at most in --work at any time")
    return parser.parse_args()


def measure(name: str, case: Case, args: argparse.Namespace, ways: list[list[str]], idle: int) -> None:
    """Print the rows of one case."""
    out = args.work / "memory-out"
    kinds = [("--gigabytes", size, "in all") for size in args.gigabytes]
    kinds += [("--tensor-gigabytes", size, "the largest tensor") for size in args.tensor_gigabytes]
    for option, size, what in kinds:
        src = checkpoint(args.work, case.format, option, f"{size:g}", "--sparse")
        make_room(args.work, {src}, 1.1 * claimed(src) + 5e8, args.disk_gigabytes * 1e9)
        cells = []
        for way in ways:
            command = [*QBRIDGE, "convert", str(src), str(out), *case.options, *way]
            seconds, peak = timed(command, out)
            note(f"{' '.join(command)}: {seconds:.1f} s, {peak / 1e6:.0f} MB")
            cells.append(f"{peak / 1e6:.0f} ({(peak - idle) / 1e6:+.0f})")
        print(f"| {name} | {size:g} GB {what} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure and print."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    ways: list[list[str]] = [[]]
    if has_option("--memory"):
        ways += [["--memory", value] for value in args.memory]
    idle = run([sys.executable, "-c", IDLE])[1]
    print(f"idle: {idle / 1e6:.0f} MB; the table is the peak in MB, and what it is above that\n")
    head = ["conversion", "checkpoint", *(" ".join(way) or "default" for way in ways)]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    for name, case in picked(args.cases).items():
        measure(name, case, args, ways, idle)


if __name__ == "__main__":
    main()
