"""Load a checkpoint in vLLM's CPU build and generate from it: everything is vLLM's own.

    vllm_cpu.py CKPT [--tp N] [--dtype bfloat16] [--length 16] [--threads 2] [--text-only] [--json F]

vLLM's strict weight tracking is on: a parameter that no tensor fills is an error instead of random
memory. A fused parameter (qkv, gate_up) counts as filled once any of its parts is. `--text-only` serves the text
model of a multimodal one: its towers are not built, and torchvision, which their processors import, may be absent.
Report:

    vllm, tp, dtype     version; tensor-parallel size; dtype asked for
    error               null, or vLLM's refusal
    prompt              [--length token ids]
    prompt_logprobs     [--length]: log-probability of each given its predecessors; null for the first
    tokens              [8 token ids] generated greedily
    token_logprobs      [8]: their log-probabilities

Compare prompt_logprobs rather than tokens: with random weights the logits are so flat that noise picks
another token. W8A8 in bfloat16 has noise of up to 0.2 between tp 1 and 2.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import reporting

PROMPT_LENGTH, NEW_TOKENS = 16, 8


def set_environment(tp: int, threads: int = 2) -> None:
    """vLLM's settings for a machine with few cores and no device; vLLM reads them when it is imported."""
    reporting.use_offline_cpu()
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_LOGGING_LEVEL="WARNING",
        VLLM_NO_USAGE_STATS="1",
        # A rank is a process of its own; one rank runs in this one, so that its exceptions arrive here.
        VLLM_ENABLE_V1_MULTIPROCESSING="1" if tp > 1 else "0",
        OMP_NUM_THREADS=str(threads),
    )
    if tp > 1 or threads == 1:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"


def prompt(path: str, length: int = PROMPT_LENGTH) -> list[int]:
    """Token ids spread over the vocabulary, the same for every checkpoint of that vocabulary."""
    config = json.loads((Path(path) / "config.json").read_text())
    vocab = config.get("text_config", config)["vocab_size"]
    return [(7 + 41 * i) % vocab for i in range(length)]


def do_without_torchvision() -> None:
    """Let vLLM import classes of multimodal models where torchvision is absent, and inspect them in this process."""
    if importlib.util.find_spec("torchvision") is None:
        absent = reporting.module_of_target("absent_packages.py")
        sys.meta_path.insert(0, absent.AbsentPackages(["torchvision"]))
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()


def generate(path: str, tp: int, dtype: str, ids: list[int], **options: Any) -> dict[str, Any]:
    """The part of the report that vLLM computes; options are those of its LLM."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        path,
        tensor_parallel_size=tp,
        dtype=dtype,
        model_loader_extra_config={"enable_weights_track": True},
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=64,
        max_num_seqs=1,
        seed=0,
        disable_log_stats=True,
        **options,
    )
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=NEW_TOKENS,
        logprobs=1,
        prompt_logprobs=1,
        ignore_eos=True,
        detokenize=False,
    )
    (output,) = engine.generate([{"prompt_token_ids": ids}], sampling, use_tqdm=False)
    (completion,) = output.outputs
    tokens = list(completion.token_ids)
    return {
        "prompt_logprobs": [
            None if at is None else at[token].logprob for at, token in zip(output.prompt_logprobs, ids, strict=True)
        ],
        "tokens": tokens,
        "token_logprobs": [at[token].logprob for at, token in zip(completion.logprobs, tokens, strict=True)],
    }


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--length", type=int, default=PROMPT_LENGTH, help="how many token ids the prompt has")
    parser.add_argument("--threads", type=int, default=2, help="1: experts are summed in one order every time")
    parser.add_argument("--text-only", action="store_true", help="serve the text model of a multimodal one")
    args = parser.parse_args()
    set_environment(args.tp, args.threads)
    options: dict[str, Any] = {}
    if args.text_only:
        do_without_torchvision()
        options["language_model_only"] = True
    import vllm

    ids = prompt(args.checkpoint, args.length)
    report: reporting.Report = {"vllm": vllm.__version__, "tp": args.tp, "dtype": args.dtype, "prompt": ids}
    with reporting.refusal_recorded(report):
        report |= generate(args.checkpoint, args.tp, args.dtype, ids, **options)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
