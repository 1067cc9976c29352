"""Log-probabilities of a prompt in vLLM, of checkpoints as they are or through the plugin.

    vllm_streamed.py CKPT... [--tp N] [--memory BYTES] [--json F]

Runs in the environment vllm; `qbridge:CKPT` goes through the plugin, for which qbridge and its entry point are on
PYTHONPATH. vLLM is imported once, and each checkpoint is served by a process of its own. Report by CKPT as it was
given: `logprobs`, those of 23 token ids after the first one; `started`, the seconds until the engine was up;
`processes`, of each process of the engine its name, the bytes that it has read (/proc/PID/io, rchar), its peak memory
and what of it was there before it began; or `error`.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reporting

STREAMED = "qbridge:"


def main() -> None:
    parser = reporting.argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.tp > 1:  # vLLM wants a NUMA node for each rank, unless it is told which cores are whose
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, range(args.tp))))
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    if args.tp == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM  # noqa: F401  imported once, for all children
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda inspect: inspect()  # a process for each class that is asked about

    report = {each: in_child(each, args.tp, args.memory) for each in args.checkpoints}
    reporting.write(report, args.json)


def in_child(checkpoint: str, tp: int, memory: int) -> dict[str, Any]:
    """The answer of a process that serves one checkpoint."""
    ours, its = os.pipe()  # and no file: the folder for those may be read-only
    child = os.fork()
    if child == 0:
        answer: dict[str, Any] = {}
        try:
            serve(checkpoint, tp, memory, answer)
        except Exception as fault:
            traceback.print_exc()
            answer["error"] = {"type": type(fault).__name__, "message": str(fault)}
        with os.fdopen(its, "w") as stream:
            json.dump(answer, stream)
        os._exit(0)
    os.close(its)
    os.waitpid(child, 0)
    with os.fdopen(ours) as stream:
        loaded: dict[str, Any] = json.load(stream)
    return loaded


def serve(checkpoint: str, tp: int, memory: int, answer: dict[str, Any]) -> None:
    """Start an engine and ask it."""
    from vllm import LLM, SamplingParams, TokensPrompt

    before, start = memory_of(os.getpid())["now"], time.monotonic()
    streamed = checkpoint.startswith(STREAMED)
    more = {"distributed_executor_backend": "uni"} if tp == 1 else {}
    engine = LLM(
        model=checkpoint.removeprefix(STREAMED),
        tensor_parallel_size=tp,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=1,
        enable_prefix_caching=False,
        load_format="qbridge" if streamed else "auto",
        model_loader_extra_config={"memory": memory} if streamed and memory else {},
        **more,
    )
    answer["started"] = round(time.monotonic() - start, 1)
    answer["processes"] = [{**of_process(each), "before": before} for each in descendants(os.getpid())]
    vocabulary = engine.llm_engine.model_config.get_vocab_size()
    ids = [(5 + 37 * number) % vocabulary for number in range(24)]
    ask = SamplingParams(max_tokens=1, prompt_logprobs=1, detokenize=False, temperature=0)
    (output,) = engine.generate(TokensPrompt(prompt_token_ids=ids), ask)
    answer["logprobs"] = [
        place[number].logprob for place, number in zip(output.prompt_logprobs[1:], ids[1:], strict=True)
    ]
    engine.llm_engine.engine_core.shutdown()


def descendants(process: int) -> Iterator[int]:
    """The process and all that it has started."""
    yield process
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from descendants(int(child))


def of_process(process: int) -> dict[str, Any]:
    read = next(line for line in Path(f"/proc/{process}/io").read_text().splitlines() if line.startswith("rchar"))
    name = Path(f"/proc/{process}/comm").read_text().strip()
    return {"name": name, "read": int(read.split()[1]), "peak": memory_of(process)["peak"]}


def memory_of(process: int) -> dict[str, int]:
    """Bytes that a process holds now, and the most that it has held."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {key: int(lines[name].split()[0]) * 1024 for key, name in (("now", "VmRSS"), ("peak", "VmHWM"))}


if __name__ == "__main__":
    main()
