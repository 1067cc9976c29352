"""restore: undo what the manifest beside a checkpoint records, to the tensor and to the key of config.json."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qbridge.architecture.expected import judge
from qbridge.commands.checkpoint import Checkpoint, PathLike, open_checkpoint, with_original
from qbridge.commands.folder_output import stands_there, write
from qbridge.commands.model_card import CARD, is_written
from qbridge.commands.output_contents import files_of
from qbridge.commands.report import Report
from qbridge.findings.arguments import checked
from qbridge.findings.finding import error, io_as_finding
from qbridge.formats.registry import find, named, registry
from qbridge.ir.model import Model
from qbridge.plan import experts, graft, manifest
from qbridge.plan.options import MEMORY, Options
from qbridge.plan.output_tensors import outputs_of, rearranged_layers
from qbridge.plan.plan import LayerPlan, OutputTensor, Plan
from qbridge.plan.renaming import Renaming, renamed_spec
from qbridge.plan.resizing import resized
from qbridge.source.opening import MANIFEST
from qbridge.source.reader import Source
from qbridge.source.weight_files import INDEX
from qbridge.targets.registry import of_format
from qbridge.write.budget import Effort
from qbridge.write.destination import check_destination
from qbridge.write.staging import recover
from qbridge.write.writer import Document, Progress


@checked
def restore(
    src: PathLike,
    dst: PathLike,
    *,
    allow: Iterable[str] = (),
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    link: bool = False,
    jobs: int = 0,
    memory: int = MEMORY,
    proof: bool = True,
    config: PathLike = "",
) -> Report:
    """Write the checkpoint that `src` was converted from into the folder `dst`: identical tensors and config.

    The manifest alone says how; `config` is the folder of the original of a GGUF file, whose tokenizer is taken.
    Other options are those of `convert`. Raises QBridgeError: QB036 where there is no
    manifest, QB037 where it cannot be followed.
    """
    start = time.monotonic()
    effort = Effort.of(Options(jobs=jobs, memory=memory, proof=proof))
    out = Path(dst)
    with io_as_finding(str(src)), open_checkpoint(with_original(src, config), None, allow) as opened:
        there = opened.source.storage.path()
        if not dry_run:
            recover(out, there)
        stands = not overwrite and (out / "config.json").is_file()
        if not stands:
            check_destination(out, there, overwrite)
        recorded = manifest.load(opened.source)
        if recorded is None:
            raise error("QB036", opened.source.url)
        model = manifest.with_unquantized(opened.model, recorded)
        if CARD in manifest.added(recorded) and is_written(opened.source):
            model = replace(model, consumed=model.consumed | {CARD})
        opened = replace(opened, model=model)
        plan = _plan(opened, recorded)
        judge(opened.model, opened.source.tensors, opened.findings)
        opened.findings.stop_on_errors()
        shards = files_of(plan, opened, link)
        links: dict[str, int] = {}
        texts: dict[str, Document] = {str(name): str(text) for name, text in recorded["source"]["files"].items()}
        documents: dict[str, Document] = {**texts, "config.json": plan.config}
        stands = stands and stands_there(opened, plan, shards, documents, out, effort)
        if not stands:
            check_destination(out, there, overwrite)
            if not dry_run:
                links = write(opened, plan, shards, documents, out, overwrite, effort, progress)
    report = Report.of_plan(opened.source.url, out, opened, plan, shards, dry_run, start)
    return replace(report, command="restore", links=links, already_done=stands)


def _plan(opened: Checkpoint, recorded: Mapping[str, Any]) -> Plan:
    """The plan of the way back; QBridgeError (QB037) where a layer or tensor cannot be what it was."""
    try:
        origin = recorded["source"]
        if origin["format"] not in registry():
            raise ValueError(f"the recorded format is {origin['format']!r}")
        destination = find(origin["format"])
        back = manifest.way_back(opened.source, opened.model, destination.NAME)
        lost = [name for name in opened.specs if name not in back]
        if lost:
            fact = "rounded, or edited since the conversion"
            raise error("QB037", lost, (f"{len(lost)} of {len(opened.specs)} layers: {fact}",))
        names = {str(name) for entry in recorded["steps"] for name in entry["layers"]}
        if gone := sorted(names - opened.specs.keys() - back.keys()):
            raise error("QB037", gone, ("not there any more",))
        if not isinstance(origin["config"], dict):
            raise TypeError("the recorded config is no object")
        for name in origin["files"]:
            if Path(name).name != name or name in (MANIFEST, INDEX) or name.endswith((".safetensors", ".bin")):
                raise ValueError(f"{name!r} is no side file")
        if origin["dropped"]:
            raise error("QB037", origin["dropped"], ("left out of the conversion",))
        _, grafted = graft.recorded(recorded)
        renaming = Renaming.from_dict(origin.get("prefixes"))
        model = _experts_back(opened.source, graft.without(opened.model, grafted), origin, renaming)
        layers = {}
        plain = {name: back.pop(name).spec.dims for name in [*back] if name not in opened.specs}
        model = resized(opened.source, model, plain, renaming.back)
        for name, (spec, passes) in back.items():
            written = destination.layout(renamed_spec(spec, renaming.back) if renaming.pairs else spec)
            layers[name] = LayerPlan(opened.specs[name], spec, passes, opened.model.slots[name], written)
        names = origin["renamed"]
        outputs = [_renamed(output, names, renaming) for output in outputs_of(opened.source, model, layers)]
        target, others = of_format(destination.NAME), rearranged_layers(model)
        return Plan(model, target, named(destination.NAME), layers, outputs, origin["config"], others=others)
    except manifest.MALFORMED as fault:
        raise error("QB037", MANIFEST, (f"{type(fault).__name__}: {fault}",)) from fault


def _experts_back(source: Source, model: Model, origin: Mapping[str, Any], renaming: Renaming) -> Model:
    """The model with its unquantized experts as they lay; QBridgeError (QB037) where they are not there any more."""
    found, lost = experts.restored(source, model, origin.get("experts", {}), renaming.back)
    if lost:
        raise error("QB037", lost, ("its unquantized experts are not there any more",))
    return found


def _renamed(output: OutputTensor, names: Mapping[str, str], renaming: Renaming) -> OutputTensor:
    """An unquantized tensor under the name that it had."""
    if output.layer or output.slices:
        return output
    return replace(output, name=renaming.back(str(names.get(output.name, output.name))))
