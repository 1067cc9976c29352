"""qbridge.json: where a checkpoint came from, what was done to each layer, how to undo it.

It holds no timestamp and no path of the machine, so the same conversion writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from qbridge.findings.finding import error
from qbridge.ir.dtypes import DType
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.plain import as_layers
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.passes import Pass
from qbridge.passes.bits import bits_of
from qbridge.passes.exactly import DequantizeExactly
from qbridge.passes.pad import Pad
from qbridge.passes.recorded import from_dict, is_final
from qbridge.passes.undo import Undo
from qbridge.plan.distribution import qbridge_version
from qbridge.plan.plan import LayerPlan, Plan
from qbridge.plan.repair import Rewritten, why_not
from qbridge.plan.residue import StoredResidue, open_residue
from qbridge.plan.resizing import as_resized
from qbridge.source.gguf import is_gguf
from qbridge.source.gguf_files import MANIFEST_KEY
from qbridge.source.json_text import MAX_HEADER, parse_json
from qbridge.source.opening import MANIFEST
from qbridge.source.reader import Source
from qbridge.source.storage import File, Storage, load_json

SCHEMA = 1
NOTHING: Mapping[str, Any] = {}
_BEGINNING = 1 << 20  # bytes of a GGUF file that hold its names, or the first of them
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # what a lying manifest raises


def build(
    source: Source, plan: Plan, changes: Mapping[str, Any] = NOTHING, options: Mapping[str, Any] = NOTHING
) -> dict[str, Any]:
    """The manifest of a plan; layers that were treated alike share an entry.

    `changes` has what else was done to the source: `grafted` and `prefixes`, where there is such. `options` are those
    that may come from a user's settings and shape the output, where they are not the defaults.
    """
    written = {output.origin for output in plan.outputs} | plan.model.made.keys()
    written |= {slot.tensor for layer in plan.others.values() for slot in layer.read.values()}
    added = sorted(plan.rewritten.keys() - set(source.side_files))
    steps: dict[str, dict[str, Any]] = {}
    for name, layer in (*plan.layers.items(), *_resized(plan)):
        entry: dict[str, Any] = {
            "before": describe(layer.before),
            "after": describe(layer.after),
            "passes": [step.as_dict() for step in layer.passes],
            "exactness": str(layer.exactness),
        }
        dims = layer.before.dims, layer.after.dims
        if dims[0] != dims[1]:
            entry["dims"] = dims
        steps.setdefault(json.dumps(entry), {**entry, "layers": []})["layers"].append(name)
    return {
        "schema": SCHEMA,
        "qbridge": qbridge_version(),
        "source": {
            "format": plan.model.format,
            "config": source.config,
            "files": _texts(source, plan.model.consumed.union(plan.rewritten.keys() - set(added))),
            "renamed": {name: info.stored for name, info in plan.model.tensors.items() if name != info.stored},
            "dropped": sorted(name for name, info in plan.model.tensors.items() if info.stored not in written),
            **({"added": added} if added else {}),
            **({"experts": dict(plan.model.arrangement)} if plan.model.arrangement else {}),
            "shards": {} if source.memory else _digests(source),
            **changes,
        },
        "target": {"name": plan.target.name, "format": plan.format.NAME},
        **({"options": dict(options)} if options else {}),
        "steps": list(steps.values()),
        "kept": _kept(source, plan),
    }


def _resized(plan: Plan) -> Iterator[tuple[str, LayerPlan]]:
    """The unquantized linears that get other dims, by the names that they have in the output."""
    for name, layer in plan.others.items():
        if layer.passes:
            slot = layer.write["code"]
            yield (name if slot.slice else slot.tensor.removesuffix(".weight")), layer


def _kept(source: Source, plan: Plan) -> dict[str, dict[str, str]]:
    """By layer and part, the bits of what undo cannot compute, as each pass was given them."""
    found: dict[str, dict[str, str]] = {}
    for name, layer in plan.layers.items():
        for number, (step, spec) in enumerate(zip(layer.passes, layer.stages, strict=False)):
            if recorded := step.recorded_parts & spec.parts().keys():
                before = replace(layer, after=spec, passes=layer.passes[:number], write={})
                arrays = before.run(source, recorded).arrays
                found.setdefault(name, {}).update(bits_of({part: arrays[part] for part in recorded}))
    return found


def _texts(source: Source, names: Collection[str]) -> dict[str, str]:
    """Side files that are not carried over as they are, for `restore`."""
    for name in names:
        if (size := source.file(name).size) > MAX_HEADER:
            raise error("QB002", name, (f"it has {size} bytes",))
    return {name: source.file(name).read().decode("utf-8", "replace") for name in sorted(names)}


def _digests(source: Source) -> dict[str, str]:
    return {name: header_digest(source.file(name)) for name in source.shards}


def header_digest(file: File) -> str:
    """sha256 of a shard's header: names, dtypes, shapes and offsets, without its data; of GGUF its first bytes."""
    begin = file.read(8)
    length = _BEGINNING if is_gguf(file) else min(int.from_bytes(begin, "little"), MAX_HEADER)
    return hashlib.sha256(file.read(8 + length)[8:]).hexdigest()


def describe(spec: Spec) -> dict[str, Any]:
    """A spec without its name and dims, as JSON."""
    fields = asdict(spec)
    for key in ("name", "out_features", "in_features"):
        del fields[key]
    if not spec.weight.blocks:
        del fields["weight"]["blocks"]
    return fields


def revive(name: str, out_features: int, in_features: int, fields: Mapping[str, Any]) -> Spec:
    """The spec that `describe` described; KeyError, TypeError or ValueError if the fields are not one."""
    weight, activation = fields["weight"], fields["activation"]
    block = weight["block"]
    kinds = {"granularity": Granularity(weight["granularity"]), "block": tuple(block) if block else None}
    acts = {**activation, "granularity": Granularity(activation["granularity"])} if activation else None
    dtypes = {
        key: DType(fields[key]) if fields[key] else None for key in ("scale_dtype", "input_scale_dtype", "bias")
    }
    return Spec(
        name,
        out_features,
        in_features,
        WeightScheme(**{**weight, **kinds}),
        activation=ActivationScheme(**acts) if acts else None,
        g_idx=fields["g_idx"],
        dialect=tuple((str(key), str(value)) for key, value in fields["dialect"]),
        **dtypes,  # type: ignore[arg-type]
    )


def load(source: Source) -> Mapping[str, Any] | None:
    """The manifest beside a checkpoint or in its one file, or None if none is there that this version understands."""
    try:
        inside = source.metadata.get(MANIFEST_KEY)
        value = load_json(source.file(MANIFEST)) if inside is None else parse_json(str(inside).encode())
    except (OSError, ValueError):
        return None  # provenance only: the tensors are read from config and headers
    return value if isinstance(value, dict) and value.get("schema") == SCHEMA else None


def added(recorded: Mapping[str, Any]) -> frozenset[str]:
    """The side files that a conversion added; a malformed manifest names none."""
    try:
        return frozenset(map(str, recorded["source"].get("added", ())))
    except MALFORMED:
        return frozenset()


def beside(storage: Storage) -> Mapping[str, Any] | None:
    """The manifest in a folder, whatever the tensors in it are like; None as `load`."""
    try:
        value = load_json(File(storage, MANIFEST))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("schema") == SCHEMA else None


def quantized(recorded: Mapping[str, Any]) -> frozenset[str]:
    """The modules that a conversion wrote as codes, by their tensors' names; a malformed manifest names none."""
    names: set[str] = set()
    try:
        for entry in recorded["steps"]:
            if entry["exactness"] != Exactness.DEQUANTIZED and not any(map(_is_unquantized, entry["passes"])):
                at = dict(entry["after"]["dialect"]).get("at")
                names.update([str(at)] if at else map(str, entry["layers"]))
    except MALFORMED:
        return frozenset()
    return frozenset(names)


def padded(source: Source) -> dict[str, Pad]:
    """The padding that a manifest declares, by layer: the dims before it. A malformed manifest declares none."""
    recorded, found = load(source) or {}, dict[str, Pad]()
    try:
        for entry in recorded.get("steps", []):
            if any(step.get("pass") == Pad.name and not step.get("undo") for step in entry["passes"]):
                was, _ = entry["dims"]
                found |= dict.fromkeys(entry["layers"], Pad(int(was[0]), int(was[1])))
    except MALFORMED:
        return {}
    return found


def with_unquantized(model: Model, recorded: Mapping[str, Any]) -> Model:
    """The model in which the linears that a conversion dequantized are layers; a malformed manifest names none."""
    try:
        steps = [
            entry for entry in recorded["steps"] if entry["passes"][-1:] and _is_unquantized(entry["passes"][-1])
        ]
        return as_layers(model, [str(name) for entry in steps for name in entry["layers"] if name not in model.specs])
    except MALFORMED:
        return model


def _is_unquantized(step: Mapping[str, Any]) -> bool:
    return step["pass"] == DequantizeExactly.name and not step.get("undo")


def way_back(source: Source, model: Model, format_name: str) -> dict[str, Rewritten]:
    """By layer, the spec that the manifest records and the passes that lead back to it without loss.

    Unquantized linears that were given other dims are among them. Empty unless the checkpoint was once converted from
    `format_name`. A layer whose spec or values are no longer what the conversion wrote is left out.
    """
    manifest = load(source)
    found: dict[str, Rewritten] = {}
    try:
        if manifest is None or manifest["source"]["format"] != format_name:
            return {}
        residue = open_residue(source)
        model = as_resized(source, model, [name for entry in manifest["steps"] for name in entry["layers"]])
        for entry in manifest["steps"]:
            for name in entry["layers"]:
                kept = manifest.get("kept", {}).get(name, {})
                if name in model.specs and (back := _undo(source, model, name, entry, kept, residue)):
                    found[name] = back
        resized = {name for entry in manifest["steps"] if "dims" in entry for name in entry["layers"]}
        if not resized <= found.keys():  # an MLP is cropped as a whole or not at all
            found = {name: back for name, back in found.items() if name not in resized}
    except MALFORMED:
        return {}
    return found


def _undo(
    source: Source, model: Model, name: str, entry: Mapping[str, Any], kept: Mapping[str, str], residue: Source
) -> Rewritten | None:
    if any(is_final(fields) for fields in entry["passes"]):
        return None
    spec = model.specs[name]
    was, now = entry.get("dims", [spec.dims, spec.dims])
    before = revive(name, was[0], was[1], entry["before"])
    after = revive(name, now[0], now[1], entry["after"])
    if replace(spec, dialect=()) != replace(after, dialect=()):
        return None
    walked, back = before, list[Pass]()
    for fields in entry["passes"]:
        step = from_dict(fields, kept).with_residue(StoredResidue(residue, name))
        back.insert(0, Undo(step, walked))
        walked = step.plan(walked)
    if replace(walked, dialect=()) != replace(after, dialect=()):
        return None  # the manifest contradicts itself
    edited = why_not(source, model, name, tuple(back)) if back else None
    return None if edited else Rewritten(before, tuple(back))
