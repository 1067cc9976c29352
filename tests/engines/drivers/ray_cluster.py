"""A conversion on a cluster of two Ray nodes of one CPU each, with a fault.

    ray_cluster.py SRC DST --fault none|node|worker|workers|blind|version|source [--client] [--json F]

Runs in the environment ray, with qbridge on PYTHONPATH. Faults: a `node` is removed after the second file; every
`worker` process is killed after it, or, of all `workers`, each that begins a file; no node sees what the caller
writes (`blind`); the caller has another `version`; a file of the `source` is not there any more.
Report: `files` that were made, in this order; `struck`, whether the fault was there; `findings` of the error or none;
`seconds` without the start of the cluster.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import reporting

CPU = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


def workers() -> list[int]:
    """The processes of this machine in which Ray makes files."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.joinpath("cmdline").read_bytes().startswith(b"ray::make_file"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def kill_workers(fault: Fault) -> None:
    """Kill every process that begins to make a file."""
    while True:
        for process in workers():
            os.kill(process, signal.SIGKILL)
            fault.struck = True


class Fault:
    """Strikes once, when two files are made."""

    def __init__(self, kind: str, cluster: Any, node: Any) -> None:
        self.kind, self.cluster, self.node = kind, cluster, node
        self.files: list[str] = []
        self.struck = False

    def __call__(self, advance: Any) -> None:
        self.files.append(advance.shard)
        if len(self.files) == 2 and self.kind == "node":
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.struck = True
        if self.kind == "worker" and len(self.files) >= 2 and not self.struck:
            for process in workers():
                os.kill(process, signal.SIGKILL)
                self.struck = True


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("dst")
    parser.add_argument("--fault", default="none")
    parser.add_argument("--client", action="store_true")
    parser.add_argument("--max-shard-size", type=int)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

    import ray
    from ray.cluster_utils import Cluster

    import qbridge
    from qbridge.commands import clustered
    from qbridge.write.stores import FolderStore

    port = {"ray_client_server_port": 20001} if args.client else {}
    cluster = Cluster(initialize_head=True, head_node_args={**CPU, **port})
    fault = Fault(args.fault, cluster, cluster.add_node(**CPU))
    if not args.client:
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    if args.fault == "blind":
        elsewhere = FolderStore(Path(f"{args.dst}-elsewhere"))
        clustered.store_of_parts = lambda src, dst: elsewhere
        fault.struck = True
    if args.fault == "version":
        clustered.qbridge_version = lambda: "0.0.1"
        fault.struck = True
    if args.fault == "source":
        make_files = clustered._make_files

        def without_a_shard(*arguments: Any) -> None:
            next(Path(args.checkpoint).glob("*.safetensors")).unlink()
            fault.struck = True
            make_files(*arguments)

        clustered._make_files = without_a_shard
    if args.fault == "workers":
        threading.Thread(target=kill_workers, args=(fault,), daemon=True).start()
    report: reporting.Report = {"findings": None, "done": None}
    start = time.monotonic()
    try:
        done = qbridge.convert_on_cluster(
            args.checkpoint,
            args.dst,
            "vllm",
            executor="ray://127.0.0.1:20001" if args.client else "ray",
            max_shard_size=args.max_shard_size,
            progress=fault,
            memory=128 * 10**6,
            jobs=args.jobs,
        )
        report["done"] = done.as_dict()
    except qbridge.QBridgeError as error:
        report["findings"] = [finding.as_dict() for finding in error.findings]
    report |= {"seconds": time.monotonic() - start, "files": fault.files, "struck": fault.struck}
    reporting.write(report, args.json)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
