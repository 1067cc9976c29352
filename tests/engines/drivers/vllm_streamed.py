"""Log-probabilities of a prompt in vLLM, of a checkpoint as it is or through the plugin.

    vllm_streamed.py CKPT [--tp N] [--streamed] [--json F]

Runs in the environment vllm, for --streamed with qbridge and its entry point on PYTHONPATH. Report: `logprobs`, those
of 23 token ids after the first one, and `started`, the seconds until the engine was up.
"""

from __future__ import annotations

import time

import reporting


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--streamed", action="store_true")
    args = parser.parse_args()
    from vllm import LLM, SamplingParams, TokensPrompt

    start = time.monotonic()
    engine = LLM(
        model=str(args.checkpoint),
        tensor_parallel_size=args.tp,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=1,
        enable_prefix_caching=False,
        load_format="qbridge" if args.streamed else "auto",
    )
    report: reporting.Report = {"started": round(time.monotonic() - start, 1)}
    vocabulary = engine.llm_engine.model_config.get_vocab_size()
    ids = [(5 + 37 * number) % vocabulary for number in range(24)]
    ask = SamplingParams(max_tokens=1, prompt_logprobs=1, detokenize=False, temperature=0)
    (answer,) = engine.generate(TokensPrompt(prompt_token_ids=ids), ask)
    report["logprobs"] = [
        place[number].logprob for place, number in zip(answer.prompt_logprobs[1:], ids[1:], strict=True)
    ]
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
