"""The fuzzer: `python tests/fuzz/run.py folder|header|gguf|hub SECONDS` (atheris; Linux).

Prints what it saw as one JSON line.

An input that raises anything but an answer is kept once per place it raised from, and fuzzing goes on; so is one
that takes more than LIMIT seconds of CPU time. What is kept lies in --keep; the working corpus is on tmpfs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(
    include=["qbridge", "qbridge_formats"],
    exclude=["qbridge.codecs.bits", "qbridge.codecs.bit_kernels", "qbridge.codecs.word_moves"],
):  # what numba compiles
    import qbridge.architecture.from_config
    import qbridge.cli
    import qbridge.commands.checking
    import qbridge.commands.restoration
    import qbridge.commands.verification
    import qbridge.formats.registry

    for _name in qbridge.list_formats():
        qbridge.formats.load(_name)

from fuzz import inputs, mutations, targets

LIMIT = 10  # seconds of CPU time for one input; the slowest honest ones compile a kernel
MEMORY = 16 << 30  # of addresses: an allocation as large as a header claims fails here
LONGEST = 1 << 16


class Hang(BaseException):
    """An input took too long."""


def hang(*_: object) -> None:
    raise Hang


class Run:
    """One run: how many inputs, which exit codes, what went wrong."""

    def __init__(self, target: str, keep: Path, folder: Path, report: Path) -> None:
        self.one = targets.RUN[target]
        self.target, self.keep, self.folder, self.report = target, keep, folder, report
        self.executions, self.codes, self.found = 0, Counter[int](), dict[str, str]()
        self.start = self.told = time.monotonic()
        self.slowest = 0.0

    def __call__(self, data: bytes) -> None:
        self.executions += 1
        before = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            self.codes[self.one(data, self.folder)] += 1
        except Hang:
            self._keep("hang", data, traceback.format_exc())
        except Exception:
            self._keep("crash", data, traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.slowest = max(self.slowest, time.process_time() - before)
        if time.monotonic() - self.told > 1:
            self.tell()

    def _keep(self, kind: str, data: bytes, text: str) -> None:
        lines = [line for line in text.splitlines() if line.startswith("  File")]
        place = f"{kind} {lines[-1] if kind == 'crash' else lines[min(6, len(lines) - 1)]}"
        if place in self.found:
            return
        name = f"{kind}-{self.target}-{hashlib.sha256(data).hexdigest()[:12]}"
        self.found[place] = name
        self.keep.mkdir(parents=True, exist_ok=True)
        (self.keep / name).write_bytes(data)
        (self.keep / f"{name}.txt").write_text(text)
        sys.stderr.write(f"{name}\n{text}\n")

    def tell(self) -> None:
        self.told = time.monotonic()
        kinds = Counter(place.split()[0] for place in self.found)
        said: dict[str, Any] = {
            "target": self.target,
            "seconds": round(self.told - self.start),
            "executions": self.executions,
            "crashes": kinds["crash"],
            "hangs": kinds["hang"],
            "exit codes": {str(code): count for code, count in sorted(self.codes.items())},
            "slowest": round(self.slowest, 2),
            "kept": sorted(self.found.values()),
        }
        self.report.write_text(json.dumps(said))


def fuzz(wanted: argparse.Namespace, home: Path, run: Run) -> None:
    """Hand over to libFuzzer, which does not come back."""
    corpus = wanted.corpus or home / "corpus"
    for place in (corpus, home / "src"):
        place.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.SEEDS[wanted.target]()):
        (corpus / f"seed-{number}").write_bytes(seed)
    mutator = mutations.Mutator(lambda text, size: atheris.Mutate(text, size))
    signal.signal(signal.SIGPROF, hang)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    flags = [
        f"-max_total_time={wanted.seconds}",
        f"-max_len={LONGEST}",
        f"-timeout={60 * LIMIT}",
        "-rss_limit_mb=4096",
    ]
    flags += [f"-artifact_prefix={home}/", "-len_control=0", "-print_final_stats=0", f"-seed={wanted.seed}"]
    flags += ["-verbosity=0"] if not sys.stderr.isatty() else []
    arguments = [sys.argv[0], *flags, str(corpus), *map(str, inputs.CORPUS.glob(wanted.target))]
    atheris.Setup(arguments, run, custom_mutator=getattr(mutator, wanted.target))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=tuple(targets.SEEDS))
    parser.add_argument("seconds", type=int)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--corpus", type=Path, help="working corpus to go on from")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    tmpfs = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(prefix="qbridge-fuzz-", dir=tmpfs if os.access(tmpfs, os.W_OK) else None))
    report = home / "report"
    child = os.fork()  # libFuzzer ends its process; this one reports and cleans up
    if not child:
        fuzz(wanted, home, Run(wanted.target, wanted.keep, home / "src", report))
    _, status = os.waitpid(child, 0)
    said = json.loads(report.read_text()) if report.exists() else {"executions": 0}
    for file in [*home.glob("crash-*"), *home.glob("timeout-*"), *home.glob("oom-*")]:
        wanted.keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, wanted.keep)  # what libFuzzer itself saw: no answer from C, or too much memory
        said.setdefault("kept", []).append(file.name)
    print(json.dumps({**said, "status": status}))
    shutil.rmtree(home)
    sys.exit(bool(said.get("kept")) or not said["executions"])


if __name__ == "__main__":
    main()
