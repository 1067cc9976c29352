"""Convert checkpoints for SGLang, load sources and outputs with its own loaders, and compare every weight exactly.

    python tests/engines/sweep_sglang.py OUT_JSON CKPT... [--tp 1] [--make FILE --chunk 40] [--work DIR]

CKPT are folders of checkpoints. --make FILE names cases of tests/architectures/make.py, one a line, that are made a
chunk at a time and deleted again. The engine is imported once a chunk and forks for every checkpoint; conversions run
in a fork of this process. OUT_JSON has a line for every case; `summary` counts them, and prints what is amiss:

    false yes       `check` says yes, and the loader refuses the source or leaves something unfilled
    needless no     `check` says no, and the loader takes the source whole
    output          an output that is refused, or leaves something unfilled or unread
    weights         a linear of the output, as the engine holds it, that is not the source's exactly
    not converted   convert refuses what the engine loads as it is
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import engine
import judges
import numpy as np

import qbridge
from qbridge.findings.finding import QBridgeError
from qbridge.ir.values import dequantize

MAKER = engine.ROOT / "tests/architectures/make.py"
READ_WITH = ("assumed-activations", "pickle", "v1-zeros-wrap")
CONVERT_WITH = (*READ_WITH, "dynamic-activations", "drop-activation-details")
Row = dict[str, Any]


def error_codes(error: QBridgeError) -> str:
    """The codes of a refusal."""
    return " ".join(sorted({finding.code for finding in error.findings if finding.severity == "error"}))


def digests(checkpoint: Path) -> dict[str, str]:
    """What sglang_weights.py says of a checkpoint's linears, from qbridge's own reading."""
    with qbridge.open(checkpoint, allow=list(READ_WITH)) as opened:
        return {name: _digest(np.ascontiguousarray(dequantize(opened.layer(name)))) for name in opened.specs}


def _digest(value: Any) -> str:
    return f"{value.shape[0]}x{value.shape[1]} {hashlib.sha256(value.tobytes()).hexdigest()}"


def checked(source: Path, tp: int) -> str:
    """The codes for which `check` refuses a source; empty where it does not."""
    try:
        result = qbridge.check(source, "sglang", tp=tp, allow=list(READ_WITH))
    except QBridgeError as error:
        return error_codes(error)
    return " ".join(sorted({finding.code for finding in result.findings if finding.severity == "error"}))


def prepared(source: Path, output: Path, tp: int) -> Row:
    """What qbridge says of a source, its output if it makes one, and the exact weights of the source."""
    row: Row = {"source": str(source), "check": "", "refused": "", "to": None, "weights": {}}
    try:
        row["check"] = checked(source, tp)
        told = qbridge.convert(source, output, "sglang", tp=tp, allow=list(CONVERT_WITH))
        row |= {"to": told.format, "passes": list(told.passes), "changed": told.activations_changed}
        row["weights"] = digests(source)
    except QBridgeError as error:
        row["refused"] = error_codes(error)
    except Exception as error:
        row["refused"] = f"{type(error).__name__}: {error}"[:300]
    return row


def unequal(wanted: dict[str, str], report: Row) -> list[str]:
    """Linears of a source that the engine does not hold exactly."""
    held, reached = report["weights"], report["reached"]
    return [
        name
        for name, digest in wanted.items()
        if held.get(name) != digest and digest not in {held[part] for part in reached.get(name, ())}
    ]


def swept(sources: Sequence[Path], work: Path, tp: int, every: bool = True) -> Iterator[Row]:
    """The rows of some checkpoints, each with the engine's reports of `source_report` and `output_report`.

    Without `every` it is asked about those sources alone that qbridge refuses: to check, or to convert.
    """
    outputs = {source: work / str(number) for number, source in enumerate(sources)}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        rows = [processes.submit(prepared, source, output, tp) for source, output in outputs.items()]
        made = {source: row.result() for source, row in zip(sources, rows, strict=True)}
    asked = [source for source, row in made.items() if every or row["check"] or row["refused"]]
    asked = [*asked, *(outputs[source] for source in sources if made[source]["to"])]
    options = ("--tp", tp, "--emulate", "sm90")
    reports = engine.loaded_weights("sglang", "sglang_weights.py", asked, *options)
    for source, row in made.items():
        report = reports.get(str(source.absolute()))
        row["source_report"] = brief(report) if report else {"verdict": "not asked"}
        if row["to"]:
            report = reports[str(outputs[source].absolute())]
            row["output_report"] = brief(report)
            row["unequal"] = unequal(row["weights"], report)
            row["undecoded"] = report["undecoded"]
        row["weights"] = len(row["weights"])
        yield row


def brief(report: Row) -> Row:
    """A report without its maps of modules."""
    return {"short": judges.short(report), "at": (report["error"] or {}).get("at"), **_lists(report)}


def _lists(report: Row) -> Row:
    return {key: report[key] for key in ("verdict", "model", *judges.FAULTS)}


def amiss(row: Row) -> list[str]:
    """What is wrong with a row, a line each."""
    lines, loaded = [], row["source_report"]["verdict"]
    if loaded in ("refused", "faulty") and not row["check"]:
        lines.append(f"false yes: {row['source_report']['short']} {row['source_report']['at'] or ''}")
    if loaded == "clean" and row["check"]:
        lines.append(f"needless no: {row['check']}")
    if loaded == "clean" and row["refused"]:
        lines.append(f"not converted: {row['refused']}")
    output = row.get("output_report")
    if output and output["verdict"] in ("refused", "faulty"):
        lines.append(f"output: {row['to']} {output['short']} {output['at'] or ''}")
    elif output and output["verdict"] == "clean" and row["unequal"]:
        undecoded = f"; undecoded {row['undecoded'][:2]}" if row["undecoded"] else ""
        lines.append(f"weights: {len(row['unequal'])} of {row['weights']}: {row['unequal'][:3]}{undecoded}")
    return lines


def summary(rows: Sequence[Row]) -> str:
    """What is amiss, a line each, and the counts."""
    counts: Counter[str] = Counter()
    lines = []
    for row in rows:
        path = Path(row["source"])
        name = "/".join(path.parts[-3:-1]) if path.name == "model" else path.name
        output = row.get("output_report", {"verdict": f"not converted: {row['refused'].split(':')[0]}"})
        exact = " exact" if output["verdict"] == "clean" and not row["unequal"] else ""
        counts[f"source {row['source_report']['verdict']}, check {'no' if row['check'] else 'yes'}"] += 1
        counts[f"output {output['verdict']}{exact}"] += 1
        lines += [f"{name}: {line}" for line in amiss(row)]
    return "\n".join([*lines, *(f"{count:6} {what}" for what, count in sorted(counts.items()))])


def made(names: Sequence[str], folder: Path) -> list[Path]:
    """Checkpoints of model classes, made in a folder."""
    subprocess.run([sys.executable, MAKER, folder, *names], check=True, capture_output=True)
    return [folder / name / "model" for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--make", type=Path, metavar="FILE", help="names of cases to be made")
    parser.add_argument("--chunk", type=int, default=40, help="how many cases at a time")
    parser.add_argument("--refused", action="store_true", help="of sources, ask about those that qbridge refuses")
    parser.add_argument("--work", type=Path, help="folder in which outputs are written and deleted")
    args = parser.parse_args()
    names = args.make.read_text().split() if args.make else []
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    seen = {row["source"] for row in known} | {Path(row["source"]).parent.name for row in known if names}
    wanted: list[Any] = [item for item in names or args.checkpoints if str(item) not in seen]
    for start in range(0, len(wanted), args.chunk):
        part = wanted[start : start + args.chunk]
        with tempfile.TemporaryDirectory(dir=args.work) as folder, args.out.open("a") as sink:
            sources = made(part, Path(folder) / "sources") if names else part
            for row in swept(sources, Path(folder) / "outputs", args.tp, not args.refused):
                known.append(row)
                sink.write(json.dumps(row) + "\n")
        args.out.with_suffix(".txt").write_text(summary(known) + "\n")


if __name__ == "__main__":
    main()
