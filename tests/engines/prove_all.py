"""Prove every conversion of many checkpoints in the engines themselves; print a table of cases by targets.

    python tests/engines/prove_all.py CASES OUT_JSONL [--targets vllm,lmdeploy,transformers,dense] [--only NAME]...
                                      [--names FILE] [--python ENGINE=PATH]... [--jobs N] [--work DIR] [--quick]

CASES/*/model are checkpoints; the word "generated" stands for those that tests/architectures/make.py makes. Each is
inspected; judged by the engine of every target, and `check --for` compared with that; converted to every target; the
output judged, verified and restored. Where CASES/*/ref.safetensors is there (the float32 value of every quantized
weight by module), the dense output must hold the same, rounded once. Every case adds a line to OUT_JSONL, and cases
that have one are not asked again. Cells:

    ok                  loads with nothing missing, unfilled, unexpected or misshapen, the same modules quantized
    ok (WORD)           the same, with --allow WORD
    refused CODE        convert refuses; "though it loads as it is" if the engine loads the source
    WRONG: reason       anything else
    ALIKE: reason       the engine refuses the source with the same words, or misses the same parameters of it
    ?                   the engine cannot be asked here; the reason is in OUT_JSONL

An output for LMDeploy is judged by the engine that its serve line names, a source by either. A line below a row says
where `check` and the engine disagree about the source, and what else is wrong.

One process per engine imports it once, as one imports qbridge, and forks for each checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import pkgutil
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import judges
from verdicts import JUDGES, complete, errors, lines_of, totals

MAKER = Path(__file__).resolve().parent.parent / "architectures"


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


def backend(entry: dict[str, Any]) -> tuple[str, ...]:
    """The words of the serve line of an output that choose the engine; none where it has no such line."""
    words = str(entry.get("convert", {}).get("answer", {}).get("serve") or "").split()
    at = words.index("--backend") if "--backend" in words else len(words)
    return tuple(words[at : at + 2])


class Provers:
    """The provers of all engines, each started when it is asked first."""

    def __init__(self, pythons: Mapping[str, str] | None = None) -> None:
        """`pythons` are interpreters by engine."""
        self._pythons = pythons
        self._started: dict[tuple[str, tuple[str, ...]], judges.Judge] = {}

    def ask(self, engine: str, checkpoint: Path, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """An engine's report of a checkpoint; no two threads may ask one engine."""
        if (engine, options) not in self._started:
            self._started[engine, options] = judges.Judge(engine, self._pythons, options)
        return self._started[engine, options].ask(checkpoint)

    def close(self) -> None:
        """End all of them."""
        for judge in self._started.values():
            judge.close()


def judge_case(case: Path, result: dict[str, Any], provers: Provers) -> None:
    """Put every engine's reports of a case and its outputs into its result, and the cells of the table."""

    def ask(engine: str) -> None:
        result["sources"][engine] = provers.ask(engine, case / "model")
        for target, entry in result["targets"].items():
            if JUDGES[target] == engine and "path" in entry:
                entry["judged"] = provers.ask(engine, Path(entry["path"]), backend(entry))

    engines = sorted({JUDGES[target] for target in result["targets"]})
    with ThreadPoolExecutor(len(engines)) as threads:
        list(threads.map(ask, engines))
    complete(case, result)


def make(name: str, folder: Path) -> None:
    """Write a case of the generator into a folder."""
    sys.path[:0] = [str(MAKER)] if str(MAKER) not in sys.path else []
    importlib.import_module("make").main([str(folder), name])


def made_and_converted(
    name: str, given: Path | None, work: Path, targets: Sequence[str], quick: bool
) -> tuple[Path, dict[str, Any]]:
    """A case, made first where no folder has it, and what qbridge says of it."""
    if given is None:
        make(name, work / "made")
    case = (given or work / "made") / name
    return case, convert_case(case, targets, work, quick)


def in_turn(
    processes: ProcessPoolExecutor, job: Any, names: Sequence[str], ahead: int
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What a job gives for each name, at most so many names ahead: their outputs lie on the disk."""
    waiting: list[Future[Any]] = []
    rest = iter(names)
    waiting += [processes.submit(job, name) for name in itertools.islice(rest, ahead)]
    while waiting:
        answer = waiting.pop(0).result()
        waiting += [processes.submit(job, name) for name in itertools.islice(rest, 1)]
        yield answer


def wanted(args: argparse.Namespace) -> list[str]:
    """The names of the cases of a command line, in the order in which it gives them."""
    chosen = [*args.only, *(args.names.read_text().split() if args.names else ())]
    if args.cases == "generated":
        sys.path.insert(0, str(MAKER))
        every = [case.name for case in importlib.import_module("make").cases()]
    else:
        every = sorted(path.parent.name for path in Path(args.cases).glob("*/model"))
    return [name for name in chosen if name in every] if chosen else every


def prove_and_write(args: argparse.Namespace, names: Sequence[str], folder: Path) -> None:
    """Prove cases one after another; each adds a line to the file of results."""
    work = args.work or folder
    given = None if args.cases == "generated" else Path(args.cases)
    targets = args.targets.split(",")
    job = partial(made_and_converted, given=given, work=work, targets=targets, quick=args.quick)
    provers = Provers(dict(pair.split("=", 1) for pair in args.python))
    with (
        ProcessPoolExecutor(args.jobs, mp_context=get_context("fork")) as processes,
        contextlib.closing(provers),
        args.out.open("a") as out,
    ):
        for case, result in in_turn(processes, job, names, args.jobs + 1):
            judge_case(case, result, provers)
            out.write(json.dumps({"case": case.name, **result}, default=str) + "\n")
            out.flush()
            print("\n".join(lines_of(case.name, result)), flush=True)
            for made in (work / case.name, work / "made" / case.name) if not args.work else ():
                shutil.rmtree(made, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", help='a folder, or "generated"')
    parser.add_argument("out", type=Path)
    parser.add_argument("--targets", default="vllm,lmdeploy,transformers,dense")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--names", type=Path, metavar="FILE", help="file of names of cases")
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--quick", action="store_true", help="neither verify nor restore")
    parser.add_argument("--jobs", type=int, default=1, help="how many cases are converted at a time")
    parser.add_argument("--work", type=Path, help="where outputs are written and left; default: a temporary folder")
    args = parser.parse_args()
    started = time.monotonic()
    before = results_of(args.out)
    names = [name for name in wanted(args) if name not in before]
    import_everything()
    with tempfile.TemporaryDirectory() as folder:
        prove_and_write(args, names, Path(folder))
    print(totals(results_of(args.out).values()))
    print(f"{len(names)} cases in {time.monotonic() - started:.0f} s")


def results_of(path: Path) -> dict[str, dict[str, Any]]:
    """{case: result} of a file of results."""
    lines = path.read_text().splitlines() if path.exists() else ()
    return {result["case"]: result for result in map(json.loads, lines)}


if __name__ == "__main__":
    main()
