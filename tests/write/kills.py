"""Kill conversions of a sharded checkpoint at random instants, and see that nothing is ever half written.

    python tests/write/kills.py [--kills 300] [--seed 0] [--work FOLDER] [--layers 6] [--signal KILL|INT|TERM|MIX]

Whole processes, `python -m qbridge convert`, killed at an instant drawn from the whole run, from the time in which it
writes, or from its end (documents, renames, removal of the old). After each kill DST must be absent, empty, the old
checkpoint or the whole new one; the same command is then run again, killed or not, until it ends, and the bytes must
be those of a run that nothing stopped, with nothing left beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/benchmarks"))

CASES = {
    "awq": ["--to", "compressed-tensors"],
    "w8a8": ["--to", "lmdeploy"],
    "gptq": ["--to", "gptq", "--tp", "4", "--pad"],
}
STARTS = ("absent", "empty", "overwrite")
INSTANTS = ("anywhere", "writing", "writing", "end")
ENDS = {signal.SIGKILL: {-9}, signal.SIGINT: {130, -2}, signal.SIGTERM: {130, -15}}


def make(folder, kind, layers, shards=8):
    """A Llama with real layers, small dims, and 21 groups of input features, which four GPUs must pad."""
    import checkpoint
    from standin import nbytes, write_folder

    shapes = checkpoint.Shapes(1024, 2688, 8, 1024) if layers > 1 else checkpoint.Shapes(256, 640, 4, 512)
    maker = checkpoint.Maker(sparse=False)
    tensors = list(checkpoint.tensors(kind, shapes, layers, maker))
    limit = sum(map(nbytes, tensors)) / (shards - 1)
    write_folder(folder, checkpoint.config(kind, shapes, layers), tensors, limit)
    (folder / "sub").mkdir()
    (folder / "sub" / "tokenizer.json").write_text("{}")
    return folder


def bytes_of(folder):
    """Every file by name, without what is qbridge's own."""
    files = [file for file in folder.rglob("*") if file.is_file() and ".qbridge-" not in str(file)]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@dataclass
class Run:
    """One conversion that is killed again and again until it ends; counts go to `seen`."""

    src: Path
    dst: Path
    options: list[str]
    start: str
    whole: dict[str, bytes]
    old: dict[str, bytes]
    seconds: tuple[float, float]  # of a run that nothing stops: until it writes, and until DST is there
    random: random.Random
    signals: list[int]
    seen: Counter = field(default_factory=Counter)

    @property
    def home(self):
        return self.dst if self.start == "empty" else self.dst.parent

    def own(self, suffix):
        return self.home / f".{self.dst.name}.qbridge-{suffix}"

    def prepare(self, old):
        if self.start == "empty":
            self.dst.mkdir()
        elif self.start == "overwrite":
            shutil.copytree(old, self.dst)

    def command(self):
        words = [sys.executable, "-m", "qbridge", "convert", str(self.src), str(self.dst), *self.options]
        return subprocess.Popen(
            [*words, *(["--overwrite"] if self.start == "overwrite" else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def killed(self):
        """Run once and kill it at some instant; whether it was killed."""
        begin, end = self.seconds
        when = self.random.choice(INSTANTS)
        process = self.command()
        if when == "anywhere":
            self.wait(process, lambda: False, self.random.uniform(0, 1.05 * end))
        elif when == "writing":
            self.wait(process, self.own("part").exists, 60)
            time.sleep(self.random.uniform(0, end - begin))
        else:
            self.wait(process, self.is_ending, 60)
            time.sleep(self.random.uniform(0, 0.02))
        number = self.random.choice(self.signals)
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
        starting = number == signal.SIGINT and "Fatal Python error" in said  # the interpreter had not begun
        if process.returncode in ENDS[number] or starting:
            self.seen["kills"] += 1
            self.seen[f"kills {when}"] += 1
            if number != signal.SIGKILL and process.returncode != 130:
                self.seen["died of the signal before the program began"] += 1
            return True
        self.ended(process.returncode, said)
        return False

    def wait(self, process, reached, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until and process.poll() is None and not reached():
            time.sleep(0.0005)

    def is_ending(self):
        """Whether all shards are written and documents or renames are on their way."""
        part = self.own("part")
        return (part / "qbridge.json").exists() or (part / "model.safetensors.index.json").exists()

    def finished(self):
        """Inode and time of each shard that the journal names."""
        try:
            lines = self.own("journal").read_text().splitlines()
        except FileNotFoundError:
            return {}
        found = {}
        for line in lines:
            try:
                name = json.loads(line).get("shard")
            except ValueError:
                break
            for folder in (self.own("part"), self.dst):
                if name and name not in found and (folder / name).exists():  # in part, or moved into DST
                    status = (folder / name).stat()
                    found[name] = status.st_ino, status.st_mtime_ns
        return found

    def look(self):
        """What a loader sees now must be nothing, the old or the new."""
        if not self.dst.exists():
            state = "old aside" if self.own("old").exists() else "absent"
            if self.start == "overwrite" and (state == "absent" or bytes_of(self.own("old")) != self.old):
                state = "half"
        elif not (self.dst / "config.json").exists():
            state = "empty" if self.start == "empty" else "half"
        else:
            now = bytes_of(self.dst)
            state = "complete" if now == self.whole else "old" if now == self.old else "half"
        self.seen[f"found {state}"] += 1
        self.seen["half outputs"] += state == "half"
        return state

    def ended(self, code, said):
        """A run that ended by itself: well, or because DST stood already."""
        stood = code == 1 and "QB031" in said and self.look() == "complete"
        if code and not stood:
            self.seen["failed"] += 1
            print(f"exit {code}: {said[-800:]}", flush=True)

    def until_it_ends(self, kills):
        """Kill up to so many times, then let it end; the kills that were made."""
        made, kept = 0, {}
        while made < kills and self.killed():
            made += 1
            whole = self.look() == "complete"
            now = self.finished()
            self.compare(kept, now)
            kept = {} if whole else now  # with --overwrite a whole one is made anew
        else:
            if made == kills:
                process = self.command()
                said, _ = process.communicate(timeout=120)
                self.ended(process.returncode, said)
        places = [self.dst / name for name in self.whole]
        self.compare(kept, {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in places if f.exists()})
        self.seen["not identical"] += not self.dst.exists() or bytes_of(self.dst) != self.whole
        left = [path for path in (*self.dst.parent.iterdir(), *self.dst.rglob("*")) if ".qbridge-" in path.name]
        self.seen["left something"] += bool(left)
        self.seen["conversions"] += 1
        return made

    def compare(self, kept, now):
        """Shards that the journal named at a kill must still be the same files after the next run."""
        if kept and now:
            self.seen["kills with finished shards"] += 1
            self.seen["resumed"] += kept.items() <= now.items()
            if not kept.items() <= now.items():
                print(f"{self.start} {self.options}: {kept} became {now}", flush=True)
            self.seen["shards not written again"] += len(kept.items() & now.items())


def kill(work, kills, seed=0, layers=6, signals=(signal.SIGKILL,), cases=tuple(CASES)):
    """Kill so many runs; what was seen, counted."""
    draw, seen, said = random.Random(seed), Counter(), {}
    for kind in cases:
        src = make(work / kind, kind, layers if kind != "w8a8" else max(1, layers // 2))
        times, whole = [], work / f"{kind}-whole"
        for _ in range(2):  # the second with compiled kernels
            shutil.rmtree(whole, ignore_errors=True)
            begin = time.monotonic()
            run = Run(src, whole, CASES[kind], "absent", {}, {}, (0, 0), draw, [])
            process = run.command()
            run.wait(process, run.own("part").exists, 60)
            times = [time.monotonic() - begin]
            run.wait(process, (whole / "config.json").exists, 120)
            times.append(time.monotonic() - begin)
            text, _ = process.communicate(timeout=120)
            if process.returncode:
                raise SystemExit(text)
        said[kind] = (src, bytes_of(whole), (times[0], times[1]))
        shutil.rmtree(whole)
    old = shutil.copytree(said[cases[0]][0], work / "old")
    shutil.rmtree(old / "sub")
    number = 0
    while seen["kills"] < kills:
        kind, start = cases[number % len(cases)], STARTS[number // len(cases) % 3]
        place = work / f"place{number}"
        place.mkdir()
        number += 1
        src, whole, seconds = said[kind]
        was = bytes_of(old) if start == "overwrite" else {}
        options = CASES[kind] + draw.choice([[], ["--jobs", "1"], ["--jobs", "4", "--no-proof"]])
        run = Run(src, place / "dst", options, start, whole, was, seconds, draw, list(signals), seen)
        run.prepare(old)
        run.until_it_ends(min(draw.randint(1, 4), kills - seen["kills"]))
        shutil.rmtree(place)
    return seen


def faults(seen):
    """What must never be seen."""
    wrong = {name: seen[name] for name in ("half outputs", "failed", "not identical", "left something")}
    return {**wrong, "not resumed": seen["kills with finished shards"] - seen["resumed"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--signal", default="KILL", choices=["KILL", "INT", "TERM", "MIX"])
    args = parser.parse_args()
    names = ["KILL", "INT", "TERM"] if args.signal == "MIX" else [args.signal]
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        begin = time.monotonic()
        signals = [signal.Signals[f"SIG{name}"] for name in names]
        seen = kill(Path(work), args.kills, args.seed, args.layers, signals)
    for name in sorted(seen):
        print(f"{seen[name]:6}  {name}")
    for name, count in faults(seen).items():
        print(f"{count:6}  {name}")
    print(f"{time.monotonic() - begin:6.0f}  seconds on {os.cpu_count()} cores, seed {args.seed}")
    return int(any(faults(seen).values()))


if __name__ == "__main__":
    sys.exit(main())
