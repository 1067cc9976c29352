"""A conversion on a Ray cluster: a task for each output file, made by whichever node has time.

Nothing but the source and the destination is shared: a task makes its file as a part does, so that it may be run
again, on another node, when one is lost. Source of the calls: ray 2.60.0, _private/worker.py (init, nodes, wait,
cancel), remote_function.py (options of a task), exceptions.py.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from qbridge.commands.checkpoint import PathLike
from qbridge.commands.parts import Finished, PartReport, finish, make_file, plan_parts, store_of_parts
from qbridge.commands.shared_planning import Wanted
from qbridge.findings.arguments import checked
from qbridge.findings.extras import imported
from qbridge.findings.finding import QBridgeError, StorageError, error
from qbridge.plan.distribution import qbridge_version
from qbridge.source.addresses import HUB, is_bare_name
from qbridge.write.stores import HIDDEN
from qbridge.write.writer import Advance, Progress

RAY = "ray"
_CLIENT = "ray://"
_RETRIES = 3  # of a task whose node is lost, or that could not read or write


def check_executor(executor: str) -> None:
    """ValueError for what is neither `ray` nor `ray://host:port`."""
    if executor != RAY and not (executor.startswith(_CLIENT) and executor != _CLIENT):
        raise ValueError("an executor is ray, or ray://host:port")


@checked
def convert_on_cluster(
    src: PathLike,
    dst: PathLike,
    target: str,
    source: str | None = None,
    *,
    executor: str = RAY,
    allow: Iterable[str] = (),
    max_shard_size: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Finished:
    """Convert on a Ray cluster, a task for each output file; the output is what `convert` writes, byte for byte.

    `executor` is `ray` (the cluster of RAY_ADDRESS, one that runs on this machine, or one that is started here and
    ended afterwards) or `ray://host:port`. Every node sees SRC and DST by the same names. Options are those of
    `convert`; `jobs` and `memory` are those of a task, of one thread where `jobs` is 0. A task is tried again where
    its node is lost or a file cannot be read or written.

    QBridgeError: as `convert_part`; QB069 for a cluster that cannot be used, QB070 for a file that no node made.
    """
    start = time.monotonic()
    check_executor(executor)
    src, dst, options["graft"] = map(_for_every_node, (src, dst, options.get("graft") or ""))
    options["jobs"] = options.get("jobs") or 1
    ray = imported(RAY, RAY, "the conversion was to run on its cluster")
    wanted = Wanted.of(src, target, source, allow, max_shard_size, **options)
    with _connected(ray, executor):
        planned = plan_parts(src, dst, target, source, allow=allow, max_shard_size=max_shard_size, **options)
        if planned.missing:
            _check_nodes(ray, wanted, dst)
            _make_files(ray, wanted, dst, planned, progress)
    return replace(finish(dst), command="convert", seconds=round(time.monotonic() - start, 3))


def _for_every_node(path: PathLike) -> str:
    """A path as a process with another working directory knows it; an address as it is."""
    text = os.fspath(path)
    if not text or "://" in text or "::" in text:
        return text
    return HUB + text if isinstance(path, str) and is_bare_name(text) else os.path.abspath(text)


@contextmanager
def _connected(ray: Any, executor: str) -> Iterator[None]:
    """Be connected to a cluster; one that the caller is connected to stays so."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
    try:
        ray.init(None if executor == RAY else executor, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as fault:  # ray has no class of its own for other versions, or for nobody there
        raise error("QB069", executor, (str(fault).strip().splitlines()[0],)) from fault
    try:
        yield
    finally:
        ray.shutdown()


def _check_nodes(ray: Any, wanted: Wanted, dst: str) -> None:
    """QBridgeError (QB069) with each node that has other versions, or that does not see what this machine sees."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

    nodes = [node for node in ray.nodes() if node["Alive"]]
    _check_resources(nodes, wanted)
    store, secret = store_of_parts(wanted.src, dst), secrets.token_hex(16)
    name = f"{HIDDEN}seen-{secret}"
    store.put(name, secret.encode())
    try:
        asked = ray.remote(num_cpus=0, max_retries=0)(_probe())
        answers = [
            asked.options(scheduling_strategy=OnNode(node["NodeID"], soft=False)).remote(wanted.src, dst, name)
            for node in nodes
        ]
        for node, answer in zip(nodes, answers, strict=True):
            with _task_faults(ray, f"node {node['NodeManagerHostname']}"):
                _check_node(node, ray.get(answer), {**_versions(ray), "secret": secret})
    finally:
        store.remove([name])


def _check_resources(nodes: Sequence[Mapping[str, Any]], wanted: Wanted) -> None:
    """QBridgeError (QB069) where a task would wait for ever, because no node is large enough."""
    threads, memory = wanted.options.jobs, wanted.options.memory
    if not any(
        node["Resources"].get("CPU", 0) >= threads and node["Resources"].get("memory", 0) >= memory for node in nodes
    ):
        raise error("QB069", RAY, (f"no node of {len(nodes)} has {threads} CPUs and {memory} bytes for a task",))


def _versions(ray: Any) -> dict[str, str]:
    """What must be the same on every node."""
    return {"python": platform.python_version(), "ray": ray.__version__, "qbridge": qbridge_version()}


def _probe() -> Any:
    """What a node is asked; it travels whole, so that a node without qbridge can answer, too."""

    def probe(src: str, dst: str, name: str) -> dict[str, str]:
        import platform

        import ray

        found = {"python": platform.python_version(), "ray": ray.__version__, "qbridge": "none", "secret": ""}
        try:
            from qbridge.commands.parts import store_of_parts
            from qbridge.plan.distribution import qbridge_version
        except ImportError:
            return found
        secret = store_of_parts(src, dst).read(name)
        return {**found, "qbridge": qbridge_version(), "secret": (secret or b"").decode()}

    return probe


def _check_node(node: Mapping[str, Any], there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """QBridgeError (QB069) with what a node has that this machine has not."""
    facts = [
        f"{name} {there[name]} there, {here[name]} here"
        for name in ("python", "ray", "qbridge")
        if there[name] != here[name]
    ]
    if not facts and there["secret"] != here["secret"]:
        facts = ["it does not see what this machine writes at DST"]
    if facts:
        raise error("QB069", f"node {node['NodeManagerHostname']}", facts)


def _make_files(ray: Any, wanted: Wanted, dst: str, planned: PartReport, progress: Progress | None) -> None:
    """Have every file made that is not there; QBridgeError of the first that cannot be."""
    sizes = {name: size for name, size in planned.files.items() if name not in planned.there}
    task = ray.remote(
        num_cpus=wanted.options.jobs,
        memory=wanted.options.memory,
        max_retries=_RETRIES,
        retry_exceptions=[OSError, StorageError],
    )(make_file)
    working = {task.remote(wanted, dst, name): name for name in sizes}
    done = 0
    try:
        while working:
            (ready,), _ = ray.wait(list(working))
            name = working.pop(ready)
            with _task_faults(ray, name):
                ray.get(ready)
            done += sizes[name]
            if progress:
                progress(Advance(done, sum(sizes.values()), name, len(sizes) - len(working), len(sizes)))
    finally:
        for reference in working:
            with suppress(Exception):  # the cluster may be gone
                ray.cancel(reference, force=True)


@contextmanager
def _task_faults(ray: Any, where: str) -> Iterator[None]:
    """A fault of a task as it was raised there; QBridgeError (QB070) for one of the cluster."""
    try:
        yield
    except ray.exceptions.RayTaskError as fault:
        cause = getattr(fault, "cause", None)
        if isinstance(cause, QBridgeError):
            raise cause from fault
        raise error("QB070", where, (_first_line(cause or fault),)) from fault
    except ray.exceptions.RayError as fault:
        raise error("QB070", where, (_first_line(fault),)) from fault


def _first_line(fault: BaseException) -> str:
    lines = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {lines[0]}" if lines else type(fault).__name__
