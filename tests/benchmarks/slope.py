"""Time conversions against `cp -r` and `sync` at two sizes, so that start-up falls out; print a markdown table.

    python tests/benchmarks/slope.py [--cases awq "pad of"] [--gigabytes 2 6] [--rounds 5] [--work DIR]
    python tests/benchmarks/slope.py --cases "awq to" --gigabytes 1.8 --beside "COMMAND {src} {out}"
    python tests/benchmarks/slope.py --src MODEL --options "--to lmdeploy"

All are whole processes, with a warm page cache, followed by `sync`; in each round all of them run in turn, each into
a fresh folder whose removal is not timed. `--beside` is another tool's command, timed once on the first size. What a
conversion to dense is held against is a copy of what it writes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from pathlib import Path
from statistics import median

from harness import QBRIDGE, Case, checkpoint, claimed, clear, has_option, make_room, note, picked, run, timed, warm

TINY = Path(__file__).resolve().parents[2] / "fixtures/awq/llama_gemm/model"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[], metavar="WORDS", help="parts of their names; default: all")
    parser.add_argument("--src", nargs="+", type=Path, help="your checkpoints instead, the smallest first")
    parser.add_argument("--options", default="--to lmdeploy", help="of `qbridge convert`, for --src")
    parser.add_argument("--gigabytes", nargs="+", type=float, default=[2.0, 6.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", metavar="COMMAND", help="another tool, with {src} and {out}")
    parser.add_argument("--work", type=Path, default=Path("/tmp/qbridge-benchmarks"), help="checkpoints stay there")
    parser.add_argument("--disk-gigabytes", type=float, default=25.0, help="at most in --work at any time")
    return parser.parse_args()


def sources(args: argparse.Namespace, case: Case) -> list[Path]:
    """The checkpoints of a case, made if need be, after others have made room for them and for an output."""
    if args.src:
        return list(args.src)
    wanted = {f"{size:g}": args.work / f"{case.format}-gigabytes-{size:g}" for size in args.gigabytes}
    missing = sum(float(size) for size, path in wanted.items() if not path.is_dir())
    new = missing + 1.1 * max(args.gigabytes) + 0.5
    make_room(args.work, set(wanted.values()), new * 1e9, args.disk_gigabytes * 1e9)
    return [checkpoint(args.work, case.format, "--gigabytes", size) for size in wanted]


def plan(src: Path, out: Path, options: tuple[str, ...]) -> dict[str, int]:
    """The passes of a conversion, by `--dry-run`; SystemExit where it is refused, or --pad pads not every MLP."""
    command = [*QBRIDGE, "convert", str(src), str(out), *options, "--dry-run", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    passes = json.loads(done.stdout)["passes"]
    layers = json.loads((src / "config.json").read_text())["num_hidden_layers"]
    if "--pad" in options and passes.get("pad") != 3 * layers:
        raise SystemExit(f"{' '.join(command)}: passes are {passes}, not a pad of {3 * layers} linears")
    return passes


def measure(name: str, case: Case, args: argparse.Namespace, no_proof: bool) -> None:
    """Print the rows of one case."""
    found = sources(args, case)
    out = (args.work if not args.src else found[0].parent) / "slope-out"
    for src in found:
        note(f"{name}: {src}, passes {plan(src, out, case.options)}")
    commands: dict[str, list[str]] = {"cp": ["cp", "-r", "--reflink=never", "{src}", "{out}"]}
    convert = [*QBRIDGE, "convert", "{src}", "{out}", *case.options]
    if no_proof:
        commands["qbridge --no-proof"] = [*convert, "--no-proof"]
    commands["qbridge"] = convert

    def once(command: list[str], src: Path) -> tuple[float, int]:
        warm(src)
        return timed([part.format(src=src, out=out) for part in command], out)

    once(convert, found[0])  # kernels are compiled
    copied = [converted(convert, src) for src in found] if case.grows else found
    times: dict[str, list[list[float]]] = {label: [[] for _ in found] for label in commands}
    peaks = dict.fromkeys(commands, 0)
    for turn in range(args.rounds):
        for label, command in commands.items():
            for size, src in enumerate(found):
                seconds, peak = once(command, copied[size] if label == "cp" else src)
                times[label][size].append(seconds)
                peaks[label] = max(peaks[label], peak)
                note(f"round {turn + 1}, {label}, {src.name}: {seconds:.2f} s, {peak / 1e6:.0f} MB")
    if args.beside:
        seconds, peaks["beside"] = once(shlex.split(args.beside), found[0])
        times["beside"] = [[seconds], *([] for _ in found[1:])]
    sizes = " and ".join(f"{claimed(src) / 1e9:.2f}" for src in found)
    reference = rise([median(seconds) for seconds in times["cp"]])
    for label, each in times.items():
        medians = [median(seconds) for seconds in each if seconds]
        own = rise(medians) if len(medians) == len(found) else None
        cells = [f"{value:.2f}" for value in medians] + [""] * (len(found) - len(medians))
        cells += ["", ""] if own is None else [f"{own:.2f}", f"{own / reference:.2f}"]
        print(f"| {name}, {sizes} GB | {label} | {' | '.join(cells)} | {peaks[label] / 1e6:.0f} |", flush=True)
    if args.beside:
        print(f"\n{name}: beside / qbridge = {seconds / median(times['qbridge'][0]):.1f}\n", flush=True)


def converted(command: list[str], src: Path) -> Path:
    """What a conversion writes, kept beside its source until others need the room."""
    kept = src.with_name(f"{src.name}-{command[-1]}")
    if not kept.is_dir():
        run([part.format(src=src, out=kept) for part in command])
    return kept


def rise(medians: list[float]) -> float:
    """What the last size takes more than the first; of one size, all that it takes."""
    return medians[-1] - medians[0] if len(medians) > 1 else medians[0]


def start(work: Path, rounds: int) -> None:
    """Print how long the program takes with next to nothing to do."""
    out = work / "tiny-out"
    tiny = [*QBRIDGE, "convert", str(TINY), str(out), "--to", "compressed-tensors"]
    run(tiny)
    seconds: dict[str, list[float]] = {"--version": [], "a tiny conversion": []}
    for _ in range(max(rounds, 3)):
        clear(out)
        seconds["--version"].append(run([*QBRIDGE, "--version"])[0])
        seconds["a tiny conversion"].append(run(tiny)[0])
    clear(out)
    print("start: " + ", ".join(f"`{key}` {median(each):.2f} s" for key, each in seconds.items()) + "\n", flush=True)


def main() -> None:
    """Measure and print."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    cases = {args.src[0].name: Case("", tuple(shlex.split(args.options)))} if args.src else picked(args.cases)
    no_proof = has_option("--no-proof")
    start(args.work, args.rounds)
    labels = [src.name for src in args.src] if args.src else [f"{size:g} GB" for size in args.gigabytes]
    head = ["conversion", "command", *(f"{label}, s" for label in labels), "difference, s", "of cp's", "peak MB"]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    for name, case in cases.items():
        measure(name, case, args, no_proof)


if __name__ == "__main__":
    main()
