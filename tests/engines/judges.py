"""Ask the provers of engines about many checkpoints; compare what an engine makes of a source and of its outputs."""

from __future__ import annotations

import contextlib
import json
import os
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


class Judge:
    """An engine's prover: a process that imports the engine once, and forks for every checkpoint that it is asked."""

    def __init__(self, engine: str, pythons: Mapping[str, str] | None = None, options: Sequence[str] = ()) -> None:
        """Start the process; `options` are words of the prover's command line."""
        stubs = ("--emulate", "sm90") if engine in EMULATED else ()
        answers, answers_of_child = os.pipe()
        script = TARGETS / engine / "prover.py"
        words = [interpreter(engine, pythons or {}), script, "-", *options, *stubs]
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process
        self._process = subprocess.Popen(
            [str(word) for word in (*words, "--json", f"/dev/fd/{answers_of_child}")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            pass_fds=(answers_of_child,),
            text=True,
        )
        os.close(answers_of_child)
        self._answers = os.fdopen(answers)

    def ask(self, checkpoint: Path) -> dict[str, Any]:
        """The prover's report of one checkpoint."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{checkpoint}\n")
        self._process.stdin.flush()
        line = self._answers.readline()
        assert line, self._last_words()
        report: dict[str, Any] = json.loads(line)
        return report

    def _last_words(self) -> str:
        """The end of what the process wrote to standard error before it left."""
        self._process.wait()
        self._stderr.seek(0)
        return self._stderr.read()[-3000:]

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._answers.close()
        self._process.wait()
        self._stderr.close()


def judge(
    engine: str, checkpoints: Sequence[Path], pythons: Mapping[str, str] | None = None, options: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """{path: report} of one engine's prover, which imports the engine once."""
    if not checkpoints:
        return {}
    with contextlib.closing(Judge(engine, pythons, options)) as prover:
        return {str(path): prover.ask(path) for path in checkpoints}


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
