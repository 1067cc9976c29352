"""What the transformers of this environment reads from many config.json at once, its defaults filled in.

    parsed_configs.py FOLDER [--json F]

FOLDER holds files NAME.json, and beside one NAME/TARGET.json for each config that was made of it. The report has

    transformers    version
    configs         by "NAME" and "NAME/TARGET": {"error": what AutoConfig raises, or null, "model": {...}}

A model is a flat object, `text_config.hidden_size` and the like, with every key that AutoConfig's own to_dict has or
that NAME.json has, under the name that is asked for there. In place of the words for rope there is `rope`, by kind of
layer ("" for all), in one spelling for transformers 4 and 5, where the class has one; `dtype` stands for torch_dtype
as well.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import reporting

LEFT_OUT = {"_name_or_path", "auto_map", "quantization_config", "transformers_version", "torch_dtype"}
ROPE = {"rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "rope_local_base_freq"}
ROPE |= {"global_rope_theta", "local_rope_theta", "rotary_emb_base", "rotary_pct", "swa_rope_theta"}
FULL, SLIDING = "full_attention", "sliding_attention"
# In transformers 4: the thetas of both kinds of layers, by model_type; scaling is for full attention alone.
TWO = {
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
    "olmo3": ("rope_theta", "rope_theta"),
    "modernbert": ("global_rope_theta", "local_rope_theta"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
}


def rope(config: Any, major: int) -> dict[str, Any]:
    """By kind of layer, what the model rotates by."""
    if major >= 5:
        given = getattr(config, "rope_parameters", None) or {}
        layered = any(isinstance(part, dict) for part in given.values())
        kinds = {kind: part or {} for kind, part in given.items()} if layered else {"": given}
    else:
        scaling = dict(getattr(config, "rope_scaling", None) or {})
        two = TWO.get(config.model_type)
        names = {FULL: two[0], SLIDING: two[1]} if two else {"": "rope_theta"}
        kinds = {kind: {"rope_theta": getattr(config, name, None)} for kind, name in names.items()}
        kinds["" if "" in kinds else FULL] |= scaling
        if (part := getattr(config, "partial_rotary_factor", None)) is not None:
            kinds = {kind: {**entry, "partial_rotary_factor": part} for kind, entry in kinds.items()}
    return {kind: normal(entry, config) for kind, entry in kinds.items()}


def normal(entry: dict[str, Any], config: Any) -> dict[str, Any]:
    """One spelling: the type under rope_type, no word that says nothing, the length before stretching filled in."""
    kind = entry.get("rope_type") or entry.get("type") or "default"
    kind = "default" if kind in ("mrope", "axial") else kind
    plain = {key: value for key, value in entry.items() if key not in ("type", "rope_type") and value is not None}
    if plain.get("partial_rotary_factor") == 1:
        del plain["partial_rotary_factor"]
    if kind in ("llama3", "yarn", "longrope"):
        outside = getattr(config, "original_max_position_embeddings", None)
        default = getattr(config, "max_position_embeddings", None)
        key = "original_max_position_embeddings"
        plain[key] = outside if kind == "longrope" and outside else plain.get(key, outside or default)
    return {"rope_type": kind, **plain}


def flat(config: Any, raw: dict[str, Any], major: int, prefix: str = "") -> dict[str, Any]:
    """A parsed config and those in it, by name."""
    own = config.to_dict()
    unknown = set() if major >= 5 else {"rope_parameters"}  # transformers 4 keeps it and never looks at it
    seen: dict[str, Any] = {f"{prefix}rope": rope(config, major)} if (ROPE - unknown) & own.keys() else {}
    seen[f"{prefix}dtype"] = str(own.get("dtype") or own.get("torch_dtype")).removeprefix("torch.")
    for key in sorted((own.keys() | raw.keys()) - LEFT_OUT - ROPE - {"dtype"}):
        value = getattr(config, key, None) if key not in own or isinstance(own[key], dict) else own[key]
        if hasattr(value, "to_dict"):
            seen |= flat(value, raw[key] if isinstance(raw.get(key), dict) else {}, major, f"{prefix}{key}.")
        else:
            seen[f"{prefix}{key}"] = value
    return seen


def parse(file: Path, raw: dict[str, Any], major: int) -> dict[str, Any]:
    """What AutoConfig says of one file; nothing else takes part."""
    from transformers import AutoConfig

    entry: dict[str, Any] = {"error": None, "model": None}
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads(file.read_text())
        config.pop("auto_map", None)  # code in a checkpoint is not run: the class of transformers, where it has one
        config.pop("quantization_config", None)
        (Path(folder) / "config.json").write_text(json.dumps(config))
        try:
            entry["model"] = flat(AutoConfig.from_pretrained(folder), raw, major)
        except Exception as error:
            entry["error"] = f"{type(error).__name__}: {error}"[:500]
    return entry


def main() -> None:
    args = reporting.parser(__doc__).parse_args()
    reporting.use_offline_cpu()
    import transformers

    major = int(transformers.__version__.split(".")[0])
    configs = {}
    for source in sorted(Path(args.checkpoint).glob("*.json")):
        raw = json.loads(source.read_text())
        configs[source.stem] = parse(source, raw, major)
        for made in sorted((source.parent / source.stem).glob("*.json")):
            configs[f"{source.stem}/{made.stem}"] = parse(made, raw, major)
    report = {"transformers": transformers.__version__, "configs": configs}
    reporting.write(json.loads(json.dumps(report, default=lambda value: type(value).__name__)), args.json)


if __name__ == "__main__":
    main()
