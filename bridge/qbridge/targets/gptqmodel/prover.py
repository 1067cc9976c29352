"""Prove that GPTQModel loads a checkpoint.

    PYTHON prover.py CKPT... [--json F] [--trace]                      with a Python that has gptqmodel

Real: all of GPTQModel.load, on the CPU with its torch kernels, which are the widest and need no compiler. proving.py
beside this folder describes the report. GPTQModel says nothing of a parameter that no tensor fills, and refuses one
of another shape without its name: the names and shapes of what it builds are held against those in the files.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VERSIONS = ("7.7",)
# Buffers that have a value of their own where no tensor gives one, and what follows from the others.
OPTIONAL = (".g_idx", ".wf_unsqueeze_zero", ".wf_unsqueeze_neg_one", ".inv_freq", ".original_inv_freq")
PACKED = (".qweight", ".qzeros", ".scales", ".g_idx")


def _helper(name: str) -> Any:
    """A module beside this folder, by its path: this folder has namesakes of installed packages."""
    spec = importlib.util.spec_from_file_location(f"qbridge_{name}", HERE.parent / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class GptqModel:
    """GPTQModel and its proof of one checkpoint.

    It is imported in the process of the proof: when it is imported it starts threads, which no fork takes along.
    """

    def __init__(self, proving: Any) -> None:
        """Ask for its version."""
        self.proving, self.version = proving, importlib.metadata.version("gptqmodel")

    def prove(self, path: str, report: dict[str, Any]) -> None:
        """Load one checkpoint and complete its report."""
        import torch
        from gptqmodel import BACKEND, GPTQModel
        from gptqmodel.nn_modules.qlinear import BaseQuantLinear

        stored = self.proving.stored_shapes(path)
        with _unfilled_shapes() as unfilled:
            try:
                loaded = GPTQModel.load(path, backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
            except Exception:
                report["misshapen"] = _misshapen(stored, unfilled)
                raise
        model, quantize = loaded.model, loaded.quantize_config
        report["model"] = type(model).__name__
        report["config"] = {
            "class": type(model.config).__name__,
            "method": str(getattr(quantize, "quant_method", "")),
            "quantization": f"{type(quantize).__name__}, {getattr(quantize, 'bits', '')} bits, groups of "
            f"{getattr(quantize, 'group_size', '')}",
            "dtype": "float16",
        }
        report["modules"] = _methods(model, BaseQuantLinear)
        built = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        if getattr(model.config, "tie_word_embeddings", False):
            built.pop("lm_head.weight", None)
        self._sort(stored, built, report)

    def _sort(self, stored: dict[str, Any], built: dict[str, Any], report: dict[str, Any]) -> None:
        """Hold what is built against what is stored."""
        report["missing"] = sorted(name for name in built.keys() - stored.keys() if not name.endswith(OPTIONAL))
        for name in sorted(stored.keys() - built.keys()):
            report["left_out" if name.endswith(OPTIONAL) else "unexpected"].append(name)
        report["misshapen"] = _misshapen(stored, built)
        taken = {name: [name] for name in sorted(stored.keys() & built.keys())}
        report["quantized"] = self.proving.by_module(taken, report["modules"])


@contextlib.contextmanager
def _unfilled_shapes() -> Iterator[dict[str, list[int]]]:
    """{tensor: shape} of the model that GPTQModel hands to accelerate to be filled, once it has done so."""
    import accelerate

    shapes: dict[str, list[int]] = {}
    fill = accelerate.load_checkpoint_in_model

    def watched(model: Any, *args: Any, **options: Any) -> Any:
        shapes.update((name, list(tensor.shape)) for name, tensor in model.state_dict().items())
        return fill(model, *args, **options)

    accelerate.load_checkpoint_in_model = watched
    try:
        yield shapes
    finally:
        accelerate.load_checkpoint_in_model = fill


def _misshapen(stored: dict[str, Any], built: dict[str, list[int]]) -> list[dict[str, Any]]:
    """The tensors of the files that have another shape than what is built."""
    return [
        {"tensor": name, "parameter": name, "given": stored[name][1], "wanted": built[name]}
        for name in sorted(stored.keys() & built.keys())
        if stored[name][1] != built[name]
    ]


def _methods(model: Any, packed: type) -> dict[str, Any]:
    """{module: {class, method}} of every module with parameters or packed weights."""
    methods = {}
    for name, module in model.named_modules():
        quantized = isinstance(module, packed)
        if quantized or any(True for _ in module.parameters(recurse=False)):
            kind = type(module).__name__
            methods[name] = {"class": kind, "method": kind if quantized else None}
    return methods


def main() -> int:
    """Prove the checkpoints of the command line; the exit status."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    proving = _helper("proving")
    args = proving.arguments(__doc__).parse_args()
    proving.settle(args.emulate, GPTQMODEL_CPU_WORKERS="2")  # with fewer cores its own pool is too small for itself
    begin = proving.on_one_rank("GPTQModel", lambda: GptqModel(proving))
    return int(proving.main("gptqmodel", "gptqmodel", VERSIONS, args, begin))


if __name__ == "__main__":
    sys.exit(main())
