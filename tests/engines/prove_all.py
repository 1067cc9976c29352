"""Prove every conversion of a folder of checkpoints in the engines themselves; print a table of cases by targets.

    python tests/engines/prove_all.py CASES OUT_JSON [--targets vllm,lmdeploy,transformers,dense] [--only NAME]...
                                      [--python ENGINE=PATH]... [--jobs N] [--work DIR]
                                      [--sources DIR] [--quick]

CASES/*/model are checkpoints. Each is inspected; judged by the engine of every target, and `check --for` compared
with that; converted to every target; the output judged, verified and restored. Where CASES/*/ref.safetensors is
there (the float32 value of every quantized weight by module), the dense output must hold the same, rounded once.
--sources keeps the reports of sources in a file from one run to the next. Cells:

    ok                  loads with nothing missing, unfilled, unexpected or misshapen, the same modules quantized
    ok (WORD)           the same, with --allow WORD
    refused CODE        convert refuses; "though it loads as it is" if the engine loads the source
    WRONG: reason       anything else
    ALIKE: reason       the engine refuses the source with the same words, or misses the same parameters of it
    ?                   the engine cannot be asked here; the reason is in OUT_JSON

An output for LMDeploy is judged by the engine that its serve line names, a source by either. A line below a row says
where `check` and the engine disagree about the source, and what else is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import judges

LOADED = ("clean", "faulty")
JUDGES = {
    "vllm": "vllm",
    "lmdeploy": "lmdeploy",
    "sglang": "sglang",
    "transformers": "transformers",
    "dense": "transformers",
}


def import_everything() -> None:
    """What commands import when they need it, once for all forks: most of the time of a command on a small case."""
    for name in ("numba", "typer._adapters", "qbridge", "qbridge_formats"):
        package: Any = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}.") if name.startswith("qbridge") else ():
            if module.name.rpartition(".")[2] not in ("prover", "weight_trace", "absent", "__main__"):
                importlib.import_module(module.name)


def qbridge(*words: object) -> dict[str, Any]:
    """What the program answers, {"exit", "answer", "stderr"}, from a fork of this process, which imports it once."""
    import qbridge.cli as cli

    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            for stream, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
            sys.argv = ["qbridge", *map(str, words), "--json"]
            status = 70
            try:
                cli.main()
                status = 0
            except SystemExit as left:
                status = left.code if isinstance(left.code, int) else 1 if left.code else 0
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        text = out.read_text()
        answer = json.loads(text) if text.startswith("{") else {}
        return {"exit": os.waitstatus_to_exitcode(ended), "answer": answer, "stderr": err.read_text()[-1500:]}


def errors(done: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in done["answer"].get("findings", ()) if finding["severity"] == "error"]


def codes(done: dict[str, Any]) -> str:
    return " ".join(sorted({finding["code"] for finding in errors(done)})) or f"exit {done.get('exit')}"


def convert(source: Path, target: str, output: Path) -> dict[str, Any]:
    """As `qbridge`, and with `allowed`: words that the refusals name, if they all name one."""
    done, allowed = qbridge("convert", source, output, "--to", target), []
    while done["exit"] == 1 and errors(done) and all(finding["allow"] for finding in errors(done)):
        more = sorted({finding["allow"] for finding in errors(done)} - set(allowed))
        if not more:
            break
        allowed += more
        flags = [word for name in allowed for word in ("--allow", name)]
        done = qbridge("convert", source, output, "--to", target, *flags)
    return {**done, "allowed": allowed}


def bytes_of(tensor: Any) -> Any:
    """The bytes of a tensor, flat: PyTorch refuses to view a scalar as bytes."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def unlike_tensors(one: Path, other: Path) -> list[str]:
    """Names of tensors that two folders do not hold alike."""
    import torch
    from safetensors.torch import load_file

    def load(folder: Path) -> dict[str, Any]:
        return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}

    a, b = load(one), load(other)
    unlike = sorted(a.keys() ^ b.keys())
    return unlike + [
        name
        for name in sorted(a.keys() & b.keys())
        if a[name].dtype != b[name].dtype
        or a[name].shape != b[name].shape
        or not torch.equal(bytes_of(a[name]), bytes_of(b[name]))
    ]


def unlike_reference(output: Path, reference: Path) -> tuple[list[str], int]:
    """(modules whose dense weight is not the reference rounded once, how many were compared)."""
    import torch
    from safetensors.torch import load_file

    dense = {name: t for file in sorted(output.glob("*.safetensors")) for name, t in load_file(file).items()}
    wrong, compared = [], 0
    for module, value in load_file(reference).items():
        weight = dense.get(f"{module}.weight", dense.get(module))
        if weight is None:
            continue
        compared += 1
        rounded = value.to(weight.dtype)
        if weight.shape != rounded.shape or not torch.equal(bytes_of(weight), bytes_of(rounded)):
            wrong.append(module)
    return wrong, compared


def convert_case(case: Path, targets: Sequence[str], work: Path, quick: bool) -> dict[str, Any]:
    """Everything about one case that qbridge alone says."""
    source = case / "model"
    result: dict[str, Any] = {"inspect": qbridge("inspect", source), "targets": {}, "sources": {}}
    for target in targets:
        output = work / case.name / target
        shutil.rmtree(output, ignore_errors=True)
        entry: dict[str, Any] = {}
        if target != "dense":
            entry["check"] = qbridge("check", source, "--for", target, "--gpu", "sm90")
        entry["convert"] = convert(source, target, output)
        if output.exists():
            entry["path"] = str(output)
            reference = case / "ref.safetensors"
            if target == "dense" and reference.exists():
                entry["unlike"], entry["compared"] = unlike_reference(output, reference)
            elif target != "dense" and not quick:
                go_back(source, output, entry)
        result["targets"][target] = entry
    print(case.name, " ".join(f"{t}:{e['convert']['exit']}" for t, e in result["targets"].items()), flush=True)
    return result


def go_back(source: Path, output: Path, entry: dict[str, Any]) -> None:
    """Verify an output, and restore the source from it."""
    allow = [word for name in entry["convert"]["allowed"] for word in ("--allow", name)]
    entry["verify"] = qbridge("verify", source, output, *allow)
    restored = output.with_name(f"{output.name}-restored")
    shutil.rmtree(restored, ignore_errors=True)
    entry["restore"] = qbridge("restore", output, restored)
    if restored.exists():
        entry["not_restored"] = unlike_tensors(source, restored)
        shutil.rmtree(restored)


def faults(case: Path, target: str, entry: dict[str, Any], source: dict[str, Any] | None) -> list[str]:
    """What is wrong with one output."""
    wrong = []
    output = entry.get("judged")
    if output and output["verdict"] in ("refused", "faulty"):
        wrong.append(judges.short(output))
    if output and output["verdict"] in LOADED and target != "dense":
        wrong += changes(case, output, source)
    rounded = "rounded" in entry["convert"]["allowed"] and codes(entry.get("verify", {"answer": {}})) == "QB501"
    steps = ("restore",) if rounded else ("verify", "restore")  # what was rounded, as a person allowed, is another
    if "drop-kv-scales" in entry["convert"]["allowed"]:  # and so is what lacks them
        lost = codes(entry.get("verify", {"answer": {}})), codes(entry.get("restore", {"answer": {}}))
        steps = () if lost == ("QB502", "QB037") else steps
    wrong += [f"{step} {codes(entry[step])}" for step in steps if entry.get(step, {}).get("exit")]
    if entry.get("not_restored"):
        wrong.append(f"restore is not identical ({entry['not_restored'][0]})")
    if entry.get("unlike"):
        wrong.append(f"{len(entry['unlike'])} dense weights are not the reference ({entry['unlike'][0]})")
    return wrong


def changes(case: Path, output: dict[str, Any], source: dict[str, Any] | None) -> list[str]:
    """What an engine makes otherwise of an output that it loads: than of the source, or than its tensors say."""
    if not source or source["verdict"] != "clean":
        unlike = judges.otherwise(judges.packed_modules(case / "model"), output["quantized"])
        return [f"{len(unlike)} modules unlike the tensors ({next(iter(unlike.items()))})"] if unlike else []
    wrong = []
    if unlike := judges.otherwise(source["quantized"], output["quantized"]):
        wrong.append(f"{len(unlike)} modules quantized otherwise ({next(iter(unlike.items()))})")
    if unlike := judges.config_otherwise(source, output):
        wrong.append(f"parsed otherwise: {unlike}")
    return wrong


def disagreement(entry: dict[str, Any], source: dict[str, Any] | None) -> str | None:
    """Where `check` and the engine differ about the source."""
    if "check" not in entry or not source or source["verdict"] == "unproved":
        return None
    yes, loads = entry["check"]["exit"] == 0, source["verdict"] == "clean"
    other_angles = codes(entry["check"]) == "QB265"  # it loads, and rotates by its default: no loader sees that
    if yes == loads or (loads and other_angles):
        return None
    return (
        f"check says yes, the engine {judges.short(source)}"
        if yes
        else f"check says no ({codes(entry['check'])}), the engine loads it"
    )


def cell(case: Path, target: str, entry: dict[str, Any], source: dict[str, Any] | None) -> str:
    done = entry["convert"]
    if "path" not in entry:
        loads = source and source["verdict"] == "clean" and target != "dense"
        return f"refused {codes(done)}" + (" though it loads as it is" if loads else "")
    judged = entry.get("judged")
    if judged and source and judges.alike(judged, source):
        return f"ALIKE: source and output {judges.short(judged)}"
    if wrong := faults(case, target, entry, source):
        return "WRONG: " + " | ".join(wrong)
    words = f" ({' '.join(done['allowed'])})" if done["allowed"] else ""
    return ("?" if judged and judged["verdict"] == "unproved" else "ok") + words


def table(cases: Sequence[Path], results: dict[str, dict[str, Any]], targets: Sequence[str]) -> str:
    lines, counts = [], {target: {"ok": 0, "refused": 0, "WRONG": 0, "ALIKE": 0, "?": 0} for target in targets}
    for case in cases:
        result = results[case.name]
        lines.append(case.name + ("" if result["inspect"]["exit"] == 0 else f"   inspect {codes(result['inspect'])}"))
        for target in targets:
            entry, source = result["targets"][target], result["sources"].get(JUDGES[target])
            text = entry["cell"] = cell(case, target, entry, source)
            counts[target][text.split()[0].strip(":")] += 1
            lines.append(f"    {target:13}{text}")
            if entry.setdefault("disagreement", disagreement(entry, source)):
                lines.append(f"    {'':13}check: {entry['disagreement']}")
    lines.append("")
    lines += [f"{target:13}" + "  ".join(f"{k} {v}" for k, v in counts[target].items()) for target in targets]
    return "\n".join(lines) + "\n"


def backend(entry: dict[str, Any]) -> tuple[str, ...]:
    """The words of the serve line of an output that choose the engine; none where it has no such line."""
    words = str(entry.get("convert", {}).get("answer", {}).get("serve") or "").split()
    at = words.index("--backend") if "--backend" in words else len(words)
    return tuple(words[at : at + 2])


def judge_all(
    engine: str, cases: Sequence[Path], targets: Sequence[str], results: dict[str, Any], args: argparse.Namespace
) -> None:
    """Put one engine's reports of sources and outputs into the results."""
    pythons = dict(pair.split("=", 1) for pair in args.python)
    stored = args.sources / f"{engine}.json" if args.sources else None
    known: dict[str, Any] = {}
    if stored and stored.exists():
        known = {report["checkpoint"]: report for report in map(json.loads, stored.read_text().splitlines())}
    wanted: list[tuple[Path, dict[str, Any], str]] = []
    for case in cases:
        wanted.append((case / "model", results[case.name]["sources"], engine))
        entries = results[case.name]["targets"].items()
        outputs = [entry for target, entry in entries if JUDGES[target] == engine and "path" in entry]
        wanted += [(Path(entry["path"]), entry, "judged") for entry in outputs]
    asked: dict[tuple[str, ...], list[Path]] = {}
    for path, entry, _ in wanted:
        if str(path.absolute()) not in known:
            asked.setdefault(backend(entry), []).append(path)
    reports = {
        path: report
        for options, paths in asked.items()
        for path, report in judges.judge(engine, paths, pythons, options).items()
    }
    for path, place, key in wanted:
        place[key] = known.get(str(path.absolute())) or reports[str(path)]
    if stored:
        args.sources.mkdir(exist_ok=True)
        paths = {str(path.absolute()) for path, _, _ in wanted}
        lines = [json.dumps(results[case.name]["sources"][engine]) for case in cases]
        lines += [json.dumps(report) for path, report in known.items() if path not in paths]
        stored.write_text("".join(f"{line}\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--targets", default="vllm,lmdeploy,transformers,dense")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--sources", type=Path, metavar="DIR", help="folder that keeps reports of sources")
    parser.add_argument("--quick", action="store_true", help="neither verify nor restore")
    parser.add_argument("--jobs", type=int, default=1, help="how many cases, and engines, at a time")
    parser.add_argument("--work", type=Path, help="where outputs are written and left; default: a temporary folder")
    args = parser.parse_args()
    targets = args.targets.split(",")
    cases = sorted(p.parent for p in args.cases.glob("*/model") if not args.only or p.parent.name in args.only)
    started = time.monotonic()
    import_everything()
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        job = partial(convert_case, targets=targets, work=work, quick=args.quick)
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("fork")) as processes:
            results = dict(zip([case.name for case in cases], processes.map(job, cases), strict=True))
        print(f"{time.monotonic() - started:.0f} s", flush=True)
        engines = sorted({JUDGES[target] for target in targets})
        with ThreadPoolExecutor(args.jobs) as threads:
            list(threads.map(lambda engine: judge_all(engine, cases, targets, results, args), engines))
        print(f"{time.monotonic() - started:.0f} s", flush=True)
        text = table(cases, results, targets)
        args.out.write_text(json.dumps(results, indent=1, default=str))
    args.out.with_suffix(".txt").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
