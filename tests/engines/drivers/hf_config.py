"""What the transformers of this environment reads from a checkpoint's config.json, and its tokenizer.

    hf_config.py CKPT [--json F]

Reports made under transformers 4 and 5 compare equal, but for `transformers`, when both understand the
checkpoint alike:

    transformers          version
    error                 null, or what AutoConfig raises
    config:
        architectures     ["LlamaForCausalLM"]
        dtype             "float16" or null
        rope              {"theta": 10000.0, "scaling": {"rope_type": "llama3", "factor": 8.0, ...} or null}
        head_dim          the config's own, else hidden_size / num_attention_heads
        rms_norm_eps, vocab_size, tie_word_embeddings
        experts           number of experts per layer, null for a dense model
    tokenizer             {"class": "PreTrainedTokenizerFast" or null, "error": null or {type, message}}
"""

from __future__ import annotations

from typing import Any

import reporting

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def rope(config: Any, transformers_major: int) -> dict[str, Any]:
    """RoPE in one spelling: transformers 5 uses `rope_parameters`, 4 uses `rope_theta` and `rope_scaling`.

    The version decides, not which of them is there: 4 keeps a `rope_parameters` that it never looks at.
    """
    if transformers_major >= 5:
        scaling = dict(getattr(config, "rope_parameters", None) or {})
        theta = scaling.pop("rope_theta", None)
    else:
        scaling = dict(getattr(config, "rope_scaling", None) or {})
        theta = getattr(config, "rope_theta", None)
    scaling.pop("type", None)  # transformers 4 keeps the old name of rope_type beside it
    if scaling.get("rope_type", "default") == "default":
        scaling = {}
    return {"theta": None if theta is None else float(theta), "scaling": scaling or None}


def read_config(path: str) -> dict[str, Any]:
    """The part of AutoConfig that decides what the model computes."""
    from transformers import AutoConfig, __version__

    config = AutoConfig.from_pretrained(path).get_text_config()
    dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    return {
        "architectures": config.architectures,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "rope": rope(config, int(__version__.split(".")[0])),
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rms_norm_eps": getattr(config, "rms_norm_eps", None),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "experts": next((getattr(config, key) for key in EXPERT_COUNTS if hasattr(config, key)), None),
    }


def read_tokenizer(path: str) -> dict[str, Any]:
    """Class of the tokenizer that AutoTokenizer makes of the checkpoint's files, after using it once."""
    from transformers import AutoTokenizer

    outcome: reporting.Report = {"class": None}
    with reporting.refusal_recorded(outcome):
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer("w4 w5")
        outcome["class"] = type(tokenizer).__name__
    return outcome


def main() -> None:
    args = reporting.parser(__doc__).parse_args()
    reporting.use_offline_cpu()
    import transformers

    report: reporting.Report = {"transformers": transformers.__version__}
    with reporting.refusal_recorded(report):
        report["config"] = read_config(args.checkpoint)
    report["tokenizer"] = read_tokenizer(args.checkpoint)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
