"""Quantize the experts of a dense gpt-oss to MXFP4 with llm-compressor, which makes a linear of each projection.

    llm_compressor_gpt_oss.py CKPT [--json F] --out FOLDER

Runs in the environment llm-compressor. Report:

    llmcompressor   version
    error           null, or what the tool raises

--out: the checkpoint that it saves, compressed-tensors with weights alone quantized (preset MXFP4A16).
"""

from __future__ import annotations

from pathlib import Path

import reporting

reporting.use_offline_cpu()


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    import llmcompressor
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    report: reporting.Report = {"llmcompressor": llmcompressor.__version__}
    with reporting.refusal_recorded(report):
        model = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype="auto")
        ignore = ["lm_head", "re:.*self_attn.*", "re:.*router.*"]
        llmcompressor.oneshot(
            model=model, recipe=QuantizationModifier(targets="Linear", scheme="MXFP4A16", ignore=ignore)
        )
        model.save_pretrained(args.out, save_compressed=True)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
