"""Load a checkpoint of gpt-oss in transformers, its MXFP4 blocks dequantized if it has some, and run it.

    transformers_gpt_oss.py CKPT [--json F] [--out dense.safetensors]

Runs in the environment llm-compressor. Report:

    transformers    version
    error           null, or what from_pretrained or the forward pass raises
    loading         {missing, unexpected, mismatched: [name]}: from_pretrained's output_loading_info
    logits          the last token's, of 16 token ids, float32

--out: every parameter of the model, float32, under transformers' names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import reporting

reporting.use_offline_cpu()

import torch  # noqa: E402


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import transformers

    path = Path(args.checkpoint)
    quantized = "quantization_config" in json.loads((path / "config.json").read_text())
    options: dict[str, Any] = {"dtype": torch.bfloat16, "output_loading_info": True}
    if quantized:
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    report: reporting.Report = {"transformers": transformers.__version__}
    with reporting.refusal_recorded(report):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
        report["loading"] = {
            kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")
        }
        with torch.no_grad():
            report["logits"] = model(torch.arange(16)[None]).logits[0, -1].float().tolist()
        if args.out:
            reporting.save_float32(dict(model.named_parameters()), args.out)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
