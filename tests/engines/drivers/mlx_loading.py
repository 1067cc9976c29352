"""What mlx_lm loads of checkpoints, strictly, and what it computes in float32 on a CPU.

    PYTHON mlx_loading.py CKPT [--json REPORT] [--out WEIGHTS.npz] [--logprobs LOGPROBS.npy]

Scales, biases and unquantized parameters are cast to float32 after loading, so that nothing is rounded to the model's
dtype. Keys of the report:

    error     null, or what mlx_lm raised: type, message
    model     the module of its class
    modes     {module: [bits, group size, mode]} of every quantized module
    logprobs  how many token ids were fed, each predicted from those before it

WEIGHTS.npz has the float32 weights of every quantized module as `mx.dequantize` computes them, LOGPROBS.npy the
log-probabilities [ids, vocabulary] after each of the ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import reporting
from mlx_lm.utils import load_model

IDS = 32


def token_ids(vocabulary: int) -> list[int]:
    """Ids that repeat no pattern."""
    return [(7 * i * i + 3 * i + 11) % (vocabulary - 4) + 4 for i in range(IDS)]


def vocabulary_of(config: dict[str, Any]) -> int:
    """How many tokens a model knows."""
    return int(config.get("vocab_size") or config["text_config"]["vocab_size"])


def quantized(model: Any) -> dict[str, Any]:
    """The quantized modules by name."""
    return {name: module for name, module in model.named_modules() if "scales" in module}


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """The weights of quantized modules in float32."""
    found = {}
    for name, module in quantized(model).items():
        parts = module["weight"], module["scales"], module.get("biases")
        found[name] = np.array(mx.dequantize(*parts, module.group_size, module.bits, module.mode, dtype=mx.float32))
    return found


def logprobs_of(model: Any, config: dict[str, Any]) -> np.ndarray:
    """Log-probabilities after each of the ids."""
    logits = model(mx.array([token_ids(vocabulary_of(config))])).astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[0]


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--out", type=Path, metavar="WEIGHTS.npz")
    parser.add_argument("--logprobs", type=Path, metavar="LOGPROBS.npy")
    args = parser.parse_args()
    report: reporting.Report = {"model": None, "modes": {}, "logprobs": 0}
    with reporting.refusal_recorded(report):
        model, config = load_model(Path(args.checkpoint))
        model.set_dtype(mx.float32)
        report["model"] = type(model).__module__
        report["modes"] = {name: [m.bits, m.group_size, m.mode] for name, m in quantized(model).items()}
        if args.out:
            np.savez(args.out, **weights_of(model))
        if args.logprobs:
            np.save(args.logprobs, logprobs_of(model, config))
            report["logprobs"] = IDS
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
