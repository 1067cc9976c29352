"""What every prover shares: its command line, one process per checkpoint, its report and its verdict.

A prover is a script that an engine's own Python runs: `PYTHON .../targets/ENGINE/prover.py CKPT... [--json F]`. It
builds the model with the engine's code, loads the checkpoint with the engine's loaders, and prints one line of JSON
per checkpoint. It computes nothing. As it is, the engine loads on the device that it finds; with `--emulate sm90`
stubs stand in for a GPU. This module is loaded by path and uses the standard library alone; it knows no engine.

Report of one checkpoint:

    engine, version     name and version of the engine; the version is null where it cannot be imported
    checkpoint          the folder
    verdict, exit       "clean" 0, "refused" 1, "faulty" 2, "unproved" 3; the exit status is the worst of all
    error               null, or {type, message, at, tensor}: what the engine raised, and the tensor of the checkpoint
                        that it was given last, null where it was given none
    reason, lacks       why this machine cannot prove it, and what it lacks: "engine" (it is not installed), "version"
                        (nobody has tried this prover with it) or "device"; only where the verdict is "unproved"
    config              {class, method, ...}: config.json and its quantization block as the engine parsed them
    model               class of the model
    modules             {module: {class, method}}: of every module that could be quantized, its class and that of its
                        quantization method; null where it is not quantized
    quantized           {module of the checkpoint: bool}: whether its tensors went into a quantized module
    stored              {module of the checkpoint: bool}: whether its tensors are codes, by their dtypes
    missing             [parameter]: nothing was written to it
    unfilled            [{parameter, empty}]: written in part; `empty` says which slices nothing was written to
    unexpected          [tensor]: of the checkpoint, in no parameter
    misshapen           [{tensor, parameter, given, wanted}]
    left_out            [tensor]: not read, and the engine says so of its kind
    emulated            the compute capability that stubs answer with, such as "sm90"; null where nothing is stubbed
    stubs               [what stands in for a device]

Of an engine that is asked about several ranks there is one report: its faults are those of all ranks, each with its
number, and a tensor is unexpected if no rank takes it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Report = dict[str, Any]
Proof = Callable[[str, Report], None]
VERDICTS = ("clean", "refused", "faulty", "unproved")
FAULTS = ("missing", "unfilled", "unexpected", "misshapen")
SEVERITY = (0, 3, 2, 1)  # of the verdicts, for the exit status of several checkpoints
PACKED = ("I32", "U32", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0")  # dtypes of codes
PATIENCE = 20.0  # seconds that a rank may still take after another one has failed
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}


class Unproved(Exception):
    """The engine cannot say anything of this checkpoint on this machine; `lacks` is what is not there."""

    def __init__(self, why: str, lacks: str = "device") -> None:
        """Keep both."""
        super().__init__(why)
        self.lacks = lacks


class Proofs(NamedTuple):
    """An engine that was imported: its version, a proof for each rank, and what stands in for a device."""

    version: str
    of_ranks: Sequence[Proof]
    stubs: Sequence[str] = ()


def arguments(doc: str) -> argparse.ArgumentParser:
    """Command line of a prover; its docstring is its help."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    checkpoint = "folder of a checkpoint; - for folders that standard input names, one a line"
    made.add_argument("checkpoints", nargs="+", metavar="CKPT", help=checkpoint)
    made.add_argument("--json", type=Path, metavar="F", help="file for the lines; default: standard output")
    made.add_argument("--trace", action="store_true", help="what the engine prints goes to standard error")
    made.add_argument("--emulate", metavar="smNN", default="", help="let stubs stand in for such a GPU: sm80, sm90")
    made.add_argument("--tp", type=int, default=1, help="tensor-parallel size, of which each rank is proved")
    made.add_argument("--any-version", action="store_true", help="try a version that this prover does not know")
    return made


def settle(emulate: str, **more: str) -> None:
    """Set the environment that engines read when they are imported: no network, one thread; no device but stubs."""
    os.environ.update(SETTINGS | ({"CUDA_VISIBLE_DEVICES": ""} if emulate else {}) | more)


def capability(emulate: str) -> int:
    """The compute capability times ten that a word such as sm90 names; Unproved for another word."""
    match = re.fullmatch(r"sm(\d{2,3})", emulate)
    if not match:
        raise Unproved(f"--emulate {emulate}: a compute capability such as sm90")
    return int(match[1])


def one_rank(args: argparse.Namespace, engine: str) -> None:
    """Unproved where several ranks are asked of a prover that knows one."""
    if args.tp != 1:
        raise Unproved(f"--tp {args.tp}: this prover loads {engine} on one device")


def stubs_alone(args: argparse.Namespace, engine: str) -> None:
    """Unproved where an engine that needs a GPU is asked without stubs."""
    if not args.emulate:
        raise Unproved(f"{engine} loads on a GPU, and this prover knows it with stubs for one alone (--emulate sm90)")


def no_stubs(args: argparse.Namespace, engine: str) -> None:
    """Unproved where stubs are asked of a prover that has none."""
    if args.emulate:
        raise Unproved(f"--emulate {args.emulate}: {engine} is loaded on the CPU, and nothing is stubbed")


def on_one_rank(engine: str, make: Callable[[], Any]) -> Callable[[argparse.Namespace], Proofs]:
    """What a prover without stubs begins with: `make` imports an engine that has a `version`, and a `prove`."""

    def begin(args: argparse.Namespace) -> Proofs:
        no_stubs(args, engine)
        one_rank(args, engine)
        made = make()
        return Proofs(made.version, [made.prove])

    return begin


def known(version: str, versions: Iterable[str]) -> bool:
    """Whether a version is one of those, which may leave its last numbers out."""
    return any(f"{version}.".startswith(f"{each}.") for each in versions)


def main(
    engine: str,
    package: str,
    versions: Sequence[str],
    args: argparse.Namespace,
    begin: Callable[[argparse.Namespace], Proofs],
) -> int:
    """Import an engine and prove every checkpoint of the command line; the exit status.

    `begin` imports it, Unproved is what cannot be asked for; without `package` the engine is not installed. An engine
    whose version is none of `versions` is asked with --any-version alone.
    """
    version = ""
    stubs: Sequence[str] = ()
    proofs: Sequence[Proof]
    try:
        if package and importlib.util.find_spec(package) is None:
            raise Unproved(f"this Python has no package {package}", "engine")
        version, proofs, stubs = begin(args)
        if not known(version, versions) and not args.any_version:
            raise Unproved(f"{package} {version}: this prover knows {', '.join(versions)}", "version")
    except Unproved as fault:
        proofs = [_impossible(fault)]
    return run(proofs, lambda path: empty_report(engine, version, path, stubs, args.emulate), args)


def _impossible(fault: Unproved) -> Proof:
    """The proof of an engine that cannot be asked."""

    def prove(path: str, report: Report) -> None:
        raise fault

    return prove


def empty_report(engine: str, version: str, checkpoint: str, stubs: Iterable[str], emulate: str = "") -> Report:
    """A report before anything was asked."""
    lists: Report = {kind: [] for kind in (*FAULTS, "left_out")}
    start = {"engine": engine, "version": version or None, "checkpoint": checkpoint, "verdict": None, "exit": None}
    middle: Report = {"error": None, "config": None, "model": None, "modules": {}, "quantized": {}, "stored": {}}
    return start | middle | lists | {"emulated": emulate or None, "stubs": list(stubs)}


def run(proofs: Sequence[Proof], start: Callable[[str], Report], args: argparse.Namespace) -> int:
    """Prove every checkpoint, each rank in a process of its own, with a proof for each rank; the exit status.

    The ranks run at the same time: they are a group, unless stubs make each believe so.
    """
    worst = 0
    sink = args.json.open("w") if args.json else sys.stdout
    for checkpoint in _asked(args.checkpoints):
        path = os.path.abspath(checkpoint)
        ranks = [_forked(prove, start(path), path, args.trace) for prove in proofs]
        report = merged(_answers(ranks, start(path)))
        imported = report.pop("imported", ())
        sink.write(json.dumps(report, default=str) + "\n")
        sink.flush()
        worst = max(worst, report["exit"], key=SEVERITY.__getitem__)
        if args.emulate:  # without stubs a module may start a device, which no process shares with its children
            _import(imported)
    return worst


def _asked(checkpoints: Iterable[str]) -> Iterator[str]:
    """The folders of a command line, with those of standard input in the place of -."""
    for checkpoint in checkpoints:
        if checkpoint == "-":
            yield from (line.rstrip("\n") for line in sys.stdin)
        else:
            yield checkpoint


def _import(names: Iterable[str]) -> None:
    """Import what a child process has imported, so that the next one finds it: most of the time of a small model."""
    with contextlib.redirect_stdout(sys.stderr):
        for name in names:
            if name.partition(".")[0] != "transformers_modules":  # code of a checkpoint
                with contextlib.suppress(Exception):  # the child had put something in its place
                    importlib.import_module(name)
    gc.freeze()


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


class _Rank(NamedTuple):
    """A process that proves one checkpoint for one rank, and the file that it writes its report to."""

    process: int
    answer: Any


def _forked(prove: Proof, report: Report, path: str, trace: bool) -> _Rank:
    """Start the proof of one checkpoint in a child process: engines keep global state, and may die."""
    answer = tempfile.TemporaryFile("w+")  # noqa: SIM115  both processes have it open
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        quiet = 2 if trace else os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        before = set(sys.modules)
        report = attempted(prove, path, report)
        report["imported"] = [name for name in sys.modules if name not in before]
        json.dump(report, answer, default=str)
        answer.flush()
        os._exit(0)
    return _Rank(child, answer)


def _answers(ranks: Sequence[_Rank], empty: Report) -> list[Report]:
    """The reports of all ranks; where one has failed, a rank that still waits for it is stopped."""
    reports: dict[int, Report] = {}
    failed_at = float("inf")
    while len(reports) < len(ranks):
        for number, rank in enumerate(ranks):
            if number in reports:
                continue
            ended, status = os.waitpid(rank.process, 0 if len(ranks) == 1 else os.WNOHANG)
            if ended:
                reports[number] = _read(rank, status, empty)
                if reports[number]["exit"] in (1, 3):
                    failed_at = min(failed_at, time.monotonic())
            elif time.monotonic() > failed_at + PATIENCE:
                os.kill(rank.process, signal.SIGKILL)
        time.sleep(0 if len(ranks) == 1 else 0.02)
    return [reports[number] for number in range(len(ranks))]


def _read(rank: _Rank, status: int, empty: Report) -> Report:
    rank.answer.seek(0)
    text = rank.answer.read()
    rank.answer.close()
    if text:
        answer: Report = json.loads(text)
        return answer
    message = f"the engine's process died with wait status {status}"
    error: Report = {"type": "Died", "message": message, "at": [], "tensor": None}
    return empty | {"verdict": "refused", "exit": 1, "error": error}


def attempted(prove: Proof, path: str, report: Report) -> Report:
    """The report of a checkpoint with what a proof wrote into it, how it ended, and the verdict."""
    try:
        report["stored"] = packed_modules(path)
        prove(path, report)
    except Unproved as why:
        report["reason"], report["lacks"] = str(why), why.lacks
    except BaseException as error:  # engines leave by SystemExit as well
        traceback.print_exc()
        report["error"] = described(error)
    exit_status = 3 if "reason" in report else 1 if report["error"] else 2 if any(map(report.get, FAULTS)) else 0
    return report | {"exit": exit_status, "verdict": VERDICTS[exit_status]}


def described(error: BaseException) -> dict[str, Any]:
    """An exception with the three lines of the engine that it came through last, and the tensor that it was given."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    at = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames]
    tensor = getattr(error, "tensor_given_last", None)
    return {"type": type(error).__name__, "message": str(error)[:2000], "at": at, "tensor": tensor}


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


def packed_modules(path: str) -> dict[str, bool]:
    """{module: whether its tensors are codes, by their dtypes} of every module with a matrix in safetensors files."""
    packed: dict[str, bool] = {}
    for name, (dtype, shape) in stored_shapes(path).items():
        if len(shape) > 1:
            module = name.rpartition(".")[0]
            packed[module] = packed.get(module, False) or dtype in PACKED
    return packed


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
