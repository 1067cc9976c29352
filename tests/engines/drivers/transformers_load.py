"""Load a compressed-tensors checkpoint in transformers and decompress it with compressed_tensors.

    transformers_load.py CKPT [--json F] [--out dense.safetensors]

Runs in the environment llm-compressor. Report:

    transformers, compressed_tensors    versions
    config_error    null, or what compressed_tensors' QuantizationConfig says to the quantization_config
    error           null, or what AutoModelForCausalLM.from_pretrained or the forward pass raises
    loading         {missing, unexpected, mismatched: [name]}: from_pretrained's output_loading_info
    finite_logits   whether every logit for 16 token ids is finite
    rope            {inv_freq: [head_dim / 2]}: of the model's rotary embedding
    decompressed    number of quantized modules decoded for --out
    decode_error    null, or what the library's decompressor raises

--out: float32 tensors under checkpoint names. A quantized module gives `<module>.weight` [N, K] by the
compressor registered for its scheme's format, its scales widened to float32 first (the library computes
in the dtype of the scales and would round every weight to it); other tensors are as stored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import reporting

reporting.use_offline_cpu()

import torch  # noqa: E402

# Keys beside those of QuantizationConfig that the library writes into the block.
WRITER_KEYS = {"version", "sparsity_config", "transform_config"}


def quantization_config(path: Path) -> Any:
    """compressed_tensors' own validated QuantizationConfig of a checkpoint."""
    from compressed_tensors.quantization import QuantizationConfig

    block = json.loads((path / "config.json").read_text())["quantization_config"]
    return QuantizationConfig.model_validate({k: v for k, v in block.items() if k not in WRITER_KEYS})


def load_and_run(path: Path, report: reporting.Report) -> None:
    """from_pretrained with its loading information, then one forward pass."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
    kinds = ("missing", "unexpected", "mismatched")
    report["loading"] = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in kinds}
    report["rope"] = {"inv_freq": model.model.rotary_emb.inv_freq.tolist()}
    with torch.no_grad():
        logits = model(torch.arange(16)[None]).logits
    report["finite_logits"] = bool(logits.isfinite().all())


def decompressed(path: Path, config: Any) -> tuple[dict[str, torch.Tensor], int]:
    """({name: float32 tensor}, number of quantized modules) of a whole checkpoint."""
    from compressed_tensors.compressors import BaseCompressor
    from safetensors.torch import load_file

    stored: dict[str, dict[str, torch.Tensor]] = {}
    for file in sorted(path.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            module, _, leaf = name.rpartition(".")
            stored.setdefault(module, {})[leaf] = tensor
    dense, count = {}, 0
    for module, tensors in stored.items():
        if "weight_scale" in tensors:
            scheme = _scheme(config, module)
            compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
            bias = tensors.pop("bias", None)
            wide = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
            tensors = {"weight": compressor.decompress(wide, scheme)["weight"]}
            tensors |= {} if bias is None else {"bias": bias}
            count += 1
        dense |= {f"{module}.{leaf}": tensor for leaf, tensor in tensors.items()}
    return dense, count


def _scheme(config: Any, module: str) -> Any:
    """The scheme whose targets match a linear of that name, by the library's own matching."""
    from compressed_tensors.utils.match import is_match, match_targets

    linear = torch.nn.Linear(1, 1, device="meta")
    if is_match(module, linear, config.ignore or []):
        raise ValueError(f"{module} holds quantized tensors and is on the ignore list")
    schemes = {target: scheme for scheme in config.config_groups.values() for target in scheme.targets}
    matched = match_targets(module, linear, schemes)
    if not matched:
        raise ValueError(f"{module} holds quantized tensors and no config group targets it")
    return schemes[matched[0]]


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import compressed_tensors
    import transformers

    path = Path(args.checkpoint)
    report: reporting.Report = {
        "transformers": transformers.__version__,
        "compressed_tensors": compressed_tensors.__version__,
    }
    outcome: reporting.Report = {}
    with reporting.refusal_recorded(outcome):
        config = quantization_config(path)
    report["config_error"] = outcome["error"]
    with reporting.refusal_recorded(report):
        load_and_run(path, report)
    if args.out and report["config_error"] is None:
        with reporting.refusal_recorded(outcome):
            dense, report["decompressed"] = decompressed(path, config)
            reporting.save_float32(dense, args.out)
        report["decode_error"] = outcome["error"]
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
