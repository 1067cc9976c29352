"""Ask the provers of engines about many checkpoints; compare what an engine makes of a source and of its outputs."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import environments

ROOT = Path(__file__).resolve().parent.parent.parent
TARGETS = ROOT / "bridge/qbridge/targets"
EMULATED = ("vllm", "lmdeploy", "sglang", "transformers")  # engines that have a GPU stood in for
FAULTS = ("missing", "unfilled", "unexpected", "misshapen")
PACKED = {"I32", "U32", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"}  # dtypes of codes, in headers of safetensors


def interpreter(engine: str, pythons: Mapping[str, str]) -> str:
    """The Python that has an engine: as given, or that of QBRIDGE_PYTHON_VLLM and its like, or its environment's."""
    return pythons.get(engine) or str(environments.chosen(environments.VARIABLES[f"QBRIDGE_PYTHON_{engine.upper()}"]))


def judge(
    engine: str, checkpoints: Sequence[Path], pythons: Mapping[str, str] | None = None, options: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """{path: report} of one engine's prover, which imports the engine once."""
    if not checkpoints:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines.json"
        script = TARGETS / engine / "prover.py"
        stubs = ("--emulate", "sm90") if engine in EMULATED else ()
        words = [interpreter(engine, pythons or {}), script, *checkpoints, *options, *stubs, "--json", lines]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        assert lines.exists() and done.returncode in (0, 1, 2, 3), done.stderr[-3000:]
        reports = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(reports) == len(checkpoints), done.stderr[-3000:]
    return {str(path): report for path, report in zip(checkpoints, reports, strict=True)}


def short(report: Mapping[str, Any]) -> str:
    """The verdict of a report in a line."""
    if report["verdict"] == "refused":
        faults = f" [{_counts(report)}]" if _counts(report) else ""
        return f"refused: {report['error']['type']}: {' '.join(report['error']['message'].split())[:160]}{faults}"
    if report["verdict"] == "unproved":
        return f"unproved: {' '.join(report['reason'].split())[:120]}"
    return _counts(report) or "clean"


def _counts(report: Mapping[str, Any]) -> str:
    return "; ".join(f"{len(report[kind])} {kind} ({_first(report[kind])})" for kind in FAULTS if report[kind])


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether an engine refuses two checkpoints with the same words, or misses the same parameters of both."""
    if one["verdict"] != other["verdict"]:
        return False
    if one["verdict"] == "refused":
        texts = [(r["error"]["type"], r["error"]["message"].replace(r["checkpoint"], "")) for r in (one, other)]
        return texts[0] == texts[1]
    return one["verdict"] == "faulty" and one["missing"] == other["missing"] and one["unfilled"] == other["unfilled"]


def _first(entries: Sequence[Any]) -> str:
    first = entries[0]
    return str(first.get("parameter") or first.get("tensor")) if isinstance(first, dict) else str(first)


def packed_modules(path: Path) -> dict[str, bool]:
    """{module: whether its tensors on disk are codes} of every module with a matrix."""
    stored: dict[str, bool] = {}
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and len(entry["shape"]) > 1:
                module = name.rpartition(".")[0]
                stored[module] = stored.get(module, False) or entry["dtype"] in PACKED
    return stored


def otherwise(before: Mapping[str, bool], after: Mapping[str, bool]) -> dict[str, str]:
    """Modules of both maps that one has quantized and the other not."""
    both = before.keys() & after.keys()
    words = {True: "quantized", False: "not"}
    return {
        name: f"{words[before[name]]} -> {words[after[name]]}" for name in sorted(both) if before[name] != after[name]
    }


def config_otherwise(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine parsed otherwise of a source and its output, but for the quantization."""
    keys = ("config.class", "model")
    values = {key: (_of(before, key), _of(after, key)) for key in keys}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def _of(report: Mapping[str, Any], key: str) -> Any:
    outer, _, inner = key.partition(".")
    return (report[outer] or {}).get(inner) if inner else report[outer]
