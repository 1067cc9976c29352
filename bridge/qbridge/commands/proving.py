"""prove: does the engine that is installed on this machine load a checkpoint? Its own loader answers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qbridge.commands.checkpoint import PathLike, open_checkpoint
from qbridge.commands.proof import Proof, Verdict
from qbridge.commands.proved_names import as_stored, in_names_of_checkpoints, module_named
from qbridge.findings.arguments import checked, typed
from qbridge.findings.finding import Findings, error
from qbridge.findings.hints import did_you_mean, word_of_command
from qbridge.findings.way import Way
from qbridge.plan import manifest
from qbridge.plan.options import allowed
from qbridge.source.folder import Folder
from qbridge.source.opening import storage_of
from qbridge.targets.registry import find_target, targets
from qbridge.targets.target import Target

Report = Mapping[str, Any]
_SHOWN = 6  # names of one kind that stand in the facts of a finding
_LACKS = {"engine": "QB701", "version": "QB702", "device": "QB704"}


@checked
def prove(
    dst: PathLike,
    engine: str,
    *,
    python: str = "",
    tp: int = 1,
    emulate: str = "",
    original: PathLike | None = None,
    allow: Iterable[str] = (),
) -> Proof:
    """Load a checkpoint with an engine's own loader, in a process of the Python that has the engine.

    `python` is the path of that interpreter, this one if left out. `emulate`, such as sm90, lets stubs stand in for a
    GPU that is not there. Modules that the engine has quantized are compared with those of `original`, a checkpoint;
    with what the manifest in `dst` says where there is no `original`, and else with what the tensors in `dst` are.
    Whatever is wrong is among the findings of the answer, which is a yes only where the loader was run and filled
    everything.
    Raises QBridgeError where `dst` cannot be read, QB703 for an engine without a prover, QB702 for a version that its
    prover does not know (`allow` assumed-version).
    """
    typed("tp", tp, int)
    start = time.monotonic()
    name, _, version = engine.partition("@")
    target = _with_prover(name, engine)
    findings = Findings(allowed(allow))
    folder = _local(dst)
    interpreter = python or sys.executable
    report = _run(target, folder, interpreter, tp, emulate, "assumed-version" in findings.allow)
    wanted, compared = _expected(folder, original, report, allow)
    otherwise = _otherwise(report["quantized"], wanted) if report["verdict"] in ("clean", "faulty") else []
    command = f"qbridge prove {word_of_command(str(dst))} --in {engine}" + (
        f" --python {word_of_command(python)}" if python else ""
    )
    _judge(report, str(dst), otherwise, version, command, findings)
    return Proof(
        destination=str(dst),
        engine=target.engine,
        version=report["version"],
        python=interpreter,
        tp=tp,
        emulated=report["emulated"],
        verdict=_verdict(report, otherwise, findings),
        model=report["model"],
        backend=report.get("backend"),
        config=report["config"],
        quantized=sum(report["quantized"].values()),
        unquantized=len(report["quantized"]) - sum(report["quantized"].values()),
        compared_with=compared,
        otherwise=otherwise,
        missing=report["missing"],
        unfilled=[{"rank": None, **each} for each in report["unfilled"]],
        unexpected=report["unexpected"],
        misshapen=[{"rank": None, **each} for each in report["misshapen"]],
        left_out=report["left_out"],
        error=report["error"],
        stubs=report["stubs"],
        seconds=round(time.monotonic() - start, 3),
        findings=tuple(findings),
    )


def _with_prover(name: str, typed_name: str) -> Target:
    """The newest target of an engine, if it has a prover; QB703 where not, QB030 where there is no such name."""
    target = find_target(name)
    if target.prover is None:
        names = sorted({each.engine for each in targets() if each.prover is not None})
        raise error("QB703", typed_name, help=did_you_mean(name, names, "`qbridge targets`"))
    return target


def _local(dst: PathLike) -> Path:
    """A checkpoint's folder or file on this machine; what opening it says where there is none."""
    path = Path(dst)
    if not path.exists():
        if storage_of(dst).is_far:
            raise error("QB704", str(dst), ("a prover reads a folder of this machine: download it first",))
        open_checkpoint(dst).source.close()
    return path.absolute()


def _run(target: Target, folder: Path, python: str, tp: int, emulate: str, any_version: bool) -> Report:
    """The report of a prover, a process of the Python that has the engine."""
    options = [*target.prover_options, *(("--emulate", emulate) if emulate else ()), "--tp", str(tp)]
    options += ["--any-version"] if any_version else []
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "lines.json"
        words = [python, str(target.prover), str(folder), *options, "--json", str(lines)]
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        except OSError as fault:
            return _nothing(f"{python}: {fault.strerror}", "engine")
        text = _text_of(lines)
    if not text:
        last = " ".join(done.stderr.strip().splitlines()[-3:])
        return _nothing(f"the prover left with {done.returncode}: {last[-500:]}", "device")
    return in_names_of_checkpoints(json.loads(text.splitlines()[0]))


def _text_of(lines: Path) -> str:
    """What a prover wrote; empty where it wrote nothing."""
    return Folder(lines.parent).read(lines.name).decode() if lines.exists() else ""


def _nothing(reason: str, lacks: str) -> Report:
    """A report of a prover that could not be run."""
    lists: dict[str, Any] = {kind: [] for kind in ("missing", "unfilled", "unexpected", "misshapen", "left_out")}
    maps: dict[str, Any] = {"modules": {}, "quantized": {}, "stored": {}}
    none = dict.fromkeys(("version", "error", "config", "model", "emulated"))
    return {**lists, **maps, **none, "stubs": [], "verdict": "unproved", "reason": reason, "lacks": lacks}


def _expected(
    folder: Path, original: PathLike | None, report: Report, allow: Iterable[str]
) -> tuple[Mapping[str, bool], str]:
    """({module: whether it should be quantized}, what says so: "source", "manifest" or "tensors")."""
    if original is not None:
        with open_checkpoint(original, allow=allow, strict=False) as opened:
            return _named(frozenset(opened.specs), report["stored"]), "source"
    recorded = manifest.beside(Folder(folder)) if folder.is_dir() else None
    if recorded and (names := manifest.quantized(recorded)):
        names = frozenset(module_named(name, report["model"]) for name in names)
        return _named(names, report["stored"]), "manifest"
    return report["stored"], "tensors"


def _named(quantized: frozenset[str], stored: Mapping[str, bool]) -> dict[str, bool]:
    """Those modules as quantized, and as unquantized all others that hold no codes and none of those."""
    quantized = as_stored(quantized, stored)
    around = {name[:end] for name in quantized for end in range(len(name)) if name[end] == "."}
    plain = {name: False for name, packed in stored.items() if not packed and name not in around}
    return plain | dict.fromkeys(quantized, True)


def _otherwise(built: Mapping[str, bool], wanted: Mapping[str, bool]) -> list[dict[str, Any]]:
    """Modules that the engine has quantized and should not have, or the other way round."""
    both = sorted(built.keys() & wanted.keys())
    return [
        {"module": name, "engine": built[name], "expected": wanted[name]}
        for name in both
        if built[name] != wanted[name]
    ]


def _judge(
    report: Report, dst: str, otherwise: list[dict[str, Any]], version: str, command: str, findings: Findings
) -> None:
    """Put everything that a prover reports among the findings; `version` is asked for, `command` what was typed."""
    installed = report["version"] or ""
    if report["verdict"] == "unproved":
        ways = () if report["emulated"] or report["lacks"] != "device" else (Way("--emulate", "sm90").of(command),)
        findings.add(_LACKS[report["lacks"]], dst, (report["reason"],), ways)
        return
    if version and not f"{installed}.".startswith(f"{version}."):
        findings.add("QB704", dst, (f"version {version} is asked for, and {installed} is installed",), final=True)
    if report["error"]:
        fault = report["error"]
        last = (f"the last tensor that it was given: {fault['tensor']}",) if fault.get("tensor") else ()
        at = (f"at {', '.join(fault['at'])}",) if fault["at"] else ()
        findings.add("QB705", dst, (f"{fault['type']}: {' '.join(fault['message'].split())[:600]}", *last, *at))
    unfilled = [f"{_ranked(each, each['parameter'])}: nothing in {each['empty']}" for each in report["unfilled"]]
    _add(findings, "QB706", [*report["missing"], *unfilled])
    _add(findings, "QB707", report["unexpected"])
    _add(findings, "QB708", [_ranked(each, _shapes(each)) for each in report["misshapen"]])
    _add(findings, "QB709", [_difference(each) for each in otherwise])
    if report["emulated"]:
        findings.add("QB710", dst, report["stubs"])


def _add(findings: Findings, code: str, texts: list[str]) -> None:
    """One finding of all that is wrong in one way; its facts are the first few."""
    if texts:
        more = (f"and {len(texts) - _SHOWN} more",) if len(texts) > _SHOWN else ()
        names = [text.partition(": nothing in ")[0].partition(" (")[0] for text in texts]
        findings.add(code, names, (*texts[:_SHOWN], *more))


def _ranked(entry: Report, text: str) -> str:
    return f"rank {entry['rank']}: {text}" if "rank" in entry else text


def _shapes(entry: Report) -> str:
    if entry["given"] is None:
        return str(entry["tensor"])
    wanted = f"{'' if entry['parameter'] == entry['tensor'] else entry['parameter'] + ' '}wants {entry['wanted']}"
    return f"{entry['tensor']} (has {entry['given']}, {wanted})"


def _difference(entry: Mapping[str, Any]) -> str:
    words = {True: "quantized", False: "unquantized"}
    return f"{entry['module']} ({words[entry['engine']]} in the engine, {words[entry['expected']]} in the source)"


def _verdict(report: Report, otherwise: list[dict[str, Any]], findings: Findings) -> Verdict:
    """In the words of `Proof.verdict`."""
    if report["verdict"] == "unproved" or any(finding.code == "QB704" for finding in findings):
        return "cannot be proved here"
    return "does not load" if report["verdict"] != "clean" or otherwise else "loads"
