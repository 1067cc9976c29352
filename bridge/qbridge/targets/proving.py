"""What every prover shares: its command line, one process per checkpoint, its report and its verdict.

A prover is a script that an engine's own Python runs: `PYTHON .../targets/ENGINE/prover.py CKPT... [--json F]`. It
builds the model with the engine's code, loads the checkpoint with the engine's loaders, and prints one line of JSON
per checkpoint. It computes nothing, so it needs no GPU. This module is loaded by path and uses the standard library
alone; it knows no engine.

Report of one checkpoint:

    engine, version     name and version of the engine
    checkpoint          the folder
    verdict, exit       "clean" 0, "refused" 1, "faulty" 2, "unproved" 3; the exit status is the worst of all
    error               null, or {type, message, at}: what the engine raised
    reason              why this machine cannot prove it; only where the verdict is "unproved"
    config              {class, method, ...}: config.json and its quantization block as the engine parsed them
    model               class of the model
    modules             {module: {class, method}}: of every module that could be quantized, its class and that of its
                        quantization method; null where it is not quantized
    quantized           {module of the checkpoint: bool}: whether its tensors went into a quantized module
    missing             [parameter]: nothing was written to it
    unfilled            [{parameter, empty}]: written in part; `empty` says which slices nothing was written to
    unexpected          [tensor]: of the checkpoint, in no parameter
    misshapen           [{tensor, parameter, given, wanted}]
    left_out            [tensor]: not read, and the engine says so of its kind
    stubs               [what stands in for a device]

Of an engine that is asked about several ranks there is one report: its faults are those of all ranks, each with its
number, and a tensor is unexpected if no rank takes it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Report = dict[str, Any]
Proof = Callable[[str, Report], None]
VERDICTS = ("clean", "refused", "faulty", "unproved")
FAULTS = ("missing", "unfilled", "unexpected", "misshapen")
SEVERITY = (0, 3, 2, 1)  # of the verdicts, for the exit status of several checkpoints
SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}


class Unproved(Exception):
    """The engine cannot say anything of this checkpoint on this machine."""


def arguments(doc: str) -> argparse.ArgumentParser:
    """Command line of a prover; its docstring is its help."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("checkpoints", nargs="+", metavar="CKPT", help="folder of a checkpoint")
    made.add_argument("--json", type=Path, metavar="F", help="file for the lines; default: standard output")
    made.add_argument("--trace", action="store_true", help="what the engine prints goes to standard error")
    return made


def settle(**more: str) -> None:
    """Set the environment that engines read when they are imported: no network, no device, one thread."""
    os.environ.update(SETTINGS | more)


def empty_report(engine: str, version: str, checkpoint: str, stubs: Iterable[str]) -> Report:
    """A report before anything was asked."""
    lists: Report = {kind: [] for kind in (*FAULTS, "left_out")}
    start = {"engine": engine, "version": version, "checkpoint": checkpoint, "verdict": None, "exit": None}
    middle: Report = {"error": None, "config": None, "model": None, "modules": {}, "quantized": {}}
    return start | middle | lists | {"stubs": list(stubs)}


def run(proofs: Sequence[Proof], start: Callable[[str], Report], args: argparse.Namespace) -> int:
    """Prove every checkpoint, each rank in a process of its own, with a proof for each rank; the exit status."""
    worst = 0
    sink = args.json.open("w") if args.json else sys.stdout
    for checkpoint in args.checkpoints:
        path = os.path.abspath(checkpoint)
        report = merged([_forked(prove, start(path), path, args.trace) for prove in proofs])
        sink.write(json.dumps(report, default=str) + "\n")
        sink.flush()
        worst = max(worst, report["exit"], key=SEVERITY.__getitem__)
    return worst


def merged(reports: Sequence[Report]) -> Report:
    """The report of a checkpoint from those of all ranks; what is no list is of the rank with the worst verdict."""
    if len(reports) == 1:
        return reports[0]
    rank = max(range(len(reports)), key=lambda number: SEVERITY[reports[number]["exit"]])
    found = dict(reports[rank])
    if found["error"]:
        found["error"] = found["error"] | {"message": f"rank {rank}: {found['error']['message']}"}
    for kind in ("missing", "unfilled", "misshapen"):
        found[kind] = [_of_rank(entry, number) for number, report in enumerate(reports) for entry in report[kind]]
    for kind in ("unexpected", "left_out"):
        found[kind] = [name for name in reports[0][kind] if all(name in report[kind] for report in reports)]
    found["quantized"] = {name: value for report in reports for name, value in report["quantized"].items()}
    if found["exit"] in (0, 2):
        found["exit"] = 2 if any(map(found.get, FAULTS)) else 0
        found["verdict"] = VERDICTS[found["exit"]]
    return found


def _of_rank(entry: Any, rank: int) -> Any:
    """A fault with the number of the rank that has it."""
    return {"rank": rank, **entry} if isinstance(entry, dict) else f"rank {rank}: {entry}"


def _forked(prove: Proof, report: Report, path: str, trace: bool) -> Report:
    """The report of one checkpoint from a child process: engines keep global state, and may die."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        quiet = 2 if trace else os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        _attempt(prove, path, report)
        with os.fdopen(writer, "w") as pipe:
            json.dump(report, pipe, default=str)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        answer: Report = json.loads(text)
        return answer
    return report | {
        "verdict": "refused",
        "exit": 1,
        "error": {"type": "Died", "message": f"the engine's process died with wait status {status}", "at": []},
    }


def _attempt(prove: Proof, path: str, report: Report) -> None:
    try:
        prove(path, report)
    except Unproved as why:
        report["reason"] = str(why)
    except BaseException as error:  # engines leave by SystemExit as well
        traceback.print_exc()
        report["error"] = described(error)
    exit_status = 3 if "reason" in report else 1 if report["error"] else 2 if any(map(report.get, FAULTS)) else 0
    report["exit"], report["verdict"] = exit_status, VERDICTS[exit_status]


def described(error: BaseException) -> dict[str, Any]:
    """An exception with the three lines of the engine that it came through last."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    at = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames]
    return {"type": type(error).__name__, "message": str(error)[:2000], "at": at}


def config_of(path: str) -> dict[str, Any]:
    """config.json of a checkpoint."""
    loaded: dict[str, Any] = json.loads((Path(path) / "config.json").read_text())
    return loaded


def draft_layers(text: Mapping[str, Any]) -> list[int]:
    """Numbers of the layers after the model's own, which a draft model alone reads."""
    count, drafts = text.get("num_hidden_layers"), text.get("num_nextn_predict_layers")
    return list(range(count, count + drafts)) if isinstance(count, int) and isinstance(drafts, int) else []


def stored_shapes(path: str) -> dict[str, tuple[str, list[int]]]:
    """{tensor: (dtype, shape)} from the headers of all safetensors files of a folder."""
    stored: dict[str, tuple[str, list[int]]] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        stored |= {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return stored


def by_module(origins: Mapping[str, Iterable[str]], methods: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """{module of the checkpoint: whether its tensors went into a quantized module of the engine}.

    `origins` gives the tensors that were written to each parameter, `methods` is the report's `modules`.
    """
    quantized: dict[str, bool] = {}
    for parameter, tensors in origins.items():
        owner = owner_of(parameter, methods)
        if owner is None:
            continue
        is_quantized = methods[owner]["method"] is not None
        for tensor in tensors:
            module = tensor.rpartition(".")[0]
            quantized[module] = quantized.get(module, False) or is_quantized
    return dict(sorted(quantized.items()))


def owner_of(parameter: str, methods: Mapping[str, Any]) -> str | None:
    """The module of `methods` that a parameter belongs to: itself or the nearest around it."""
    module = parameter.rpartition(".")[0]
    while module and module not in methods:
        module = module.rpartition(".")[0]
    return module or None
