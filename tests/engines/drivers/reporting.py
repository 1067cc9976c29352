"""What every driver shares: its command line, its JSON report and how an engine's refusal gets into it.

A driver answers "what does this engine do with this checkpoint"; a refusal is an answer, so it is data:

    "error": null | {"type": "KeyError", "message": "'model.layers.0.mlp.down_proj.weight_scale'"}

and the exit status stays 0. Any other status means that the driver itself is broken.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Report = dict[str, Any]


def use_offline_cpu() -> None:
    """Keep engines off the network and off accelerators; call it before importing any of them."""
    os.environ.update(
        CUDA_VISIBLE_DEVICES="",
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        TRANSFORMERS_VERBOSITY="error",
        TORCHDYNAMO_DISABLE="1",  # compiling takes longer than running models this small
    )


def module_of_target(path: str) -> Any:
    """A module of bridge/qbridge/targets, by its path: what a prover and a driver share."""
    file = Path(__file__).resolve().parents[3] / "bridge/qbridge/targets" / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parser(doc: str) -> argparse.ArgumentParser:
    """Command line of a driver: CKPT and --json; the driver's docstring is its help."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("checkpoint", metavar="CKPT", help="folder of a Hugging Face checkpoint")
    made.add_argument("--json", type=Path, metavar="F", help="file for the report; default: standard output")
    return made


@contextmanager
def refusal_recorded(report: Report) -> Iterator[None]:
    """Run an engine; what it raises becomes report["error"], which is None if it raises nothing."""
    report["error"] = None
    try:
        yield
    except (Exception, SystemExit) as error:  # vLLM exits when one of its workers fails
        report["error"] = describe(error)


def describe(error: BaseException) -> dict[str, str]:
    """An exception as JSON."""
    return {"type": type(error).__name__, "message": str(error)}


def write(report: Report, target: Path | None) -> None:
    """Write the report to `target`, or to standard output."""
    text = json.dumps(report, indent=1) + "\n"
    if target is None:
        sys.stdout.write(text)
    else:
        target.write_text(text)


def save_float32(tensors: Mapping[str, Any], target: Path) -> None:
    """Save tensors as float32 safetensors, each in a memory of its own."""
    from safetensors.torch import save_file

    save_file({name: tensor.float().clone().contiguous() for name, tensor in tensors.items()}, target)
