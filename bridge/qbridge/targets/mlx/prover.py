"""Prove that mlx_lm loads a checkpoint, on a CPU.

    PYTHON prover.py CKPT... [--json F] [--trace]                      with a Python that has mlx-lm

Real: config.json, the model class, `sanitize`, the quantized modules that load_model builds, and its strict loading.
proving.py beside this folder describes the report of this prover.
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
VERSIONS = ("0.32",)  # of mlx-lm, with mlx 0.32.4 for the CPU


def _helper(name: str) -> Any:
    """A module beside this folder, by its path: this folder has namesakes of installed packages."""
    spec = importlib.util.spec_from_file_location(f"qbridge_{name}", HERE.parent / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Mlx:
    """mlx_lm, imported once, and its proof of one checkpoint."""

    def __init__(self, proving: Any) -> None:
        """Import the engine."""
        from mlx import nn
        from mlx_lm import utils

        self.proving, self.utils, self.nn = proving, utils, nn
        self.version = importlib.metadata.version("mlx-lm")

    def prove(self, path: str, report: dict[str, Any]) -> None:
        """Load one checkpoint as mlx_lm does, and sort what does not fit."""
        from mlx.utils import tree_flatten

        given: dict[str, Any] = {}
        with self._watched(given):
            try:
                model, config = self.utils.load_model(Path(path), lazy=True)
            finally:
                if built := given.pop("model", None):
                    self._compare(dict(tree_flatten(built.parameters())), given, report)
        block = config.get("quantization") or {}
        report["config"] = {"class": type(model).__module__, "method": block.get("mode", "affine")}
        report["model"] = type(model).__module__
        for name, module in model.named_modules():
            if hasattr(module, "weight"):
                mode = getattr(module, "mode", None)
                method = None if mode is None else f"{mode}, {module.bits} bits, groups of {module.group_size}"
                report["modules"][name] = {"class": type(module).__name__, "method": method}
        report["quantized"] = {
            name: entry["method"] is not None
            for name, entry in report["modules"].items()
            if f"{name}.weight" in given
        }

    @contextlib.contextmanager
    def _watched(self, given: dict[str, Any]) -> Iterator[None]:
        """Note what the model is given to load, and itself; a module that cannot be built is named in the error."""
        load_weights, quantize = self.nn.Module.load_weights, self.nn.quantize
        asked = [""]

        def loading(model: Any, weights: Any, strict: bool = True) -> Any:
            given.update(dict(weights))
            given["model"] = model
            return load_weights(model, weights, strict)

        def quantizing(model: Any, *args: Any, class_predicate: Any, **options: Any) -> Any:
            def noting(path: str, module: Any) -> Any:
                asked[0] = path
                return class_predicate(path, module)

            try:
                return quantize(model, *args, class_predicate=noting, **options)
            except Exception as error:
                error.tensor_given_last = f"{asked[0]}.weight"  # type: ignore[attr-defined]
                raise

        self.nn.Module.load_weights, self.nn.quantize = loading, quantizing
        try:
            yield
        finally:
            self.nn.Module.load_weights, self.nn.quantize = load_weights, quantize

    def _compare(self, wanted: dict[str, Any], given: dict[str, Any], report: dict[str, Any]) -> None:
        """What is missing, unexpected or misshapen, as strict loading sees it."""
        report["missing"] = sorted(wanted.keys() - given.keys())
        report["unexpected"] = sorted(given.keys() - wanted.keys())
        for name in sorted(wanted.keys() & given.keys()):
            shapes = list(given[name].shape), list(wanted[name].shape)
            if shapes[0] != shapes[1]:
                entry = {"tensor": name, "parameter": name, "given": shapes[0], "wanted": shapes[1]}
                report["misshapen"].append(entry)


def main() -> int:
    """Prove the checkpoints of the command line; the exit status."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    proving = _helper("proving")
    args = proving.arguments(__doc__).parse_args()
    proving.settle(args.emulate)
    begin = proving.on_one_rank("mlx_lm", lambda: Mlx(proving))
    return int(proving.main("mlx", "mlx_lm", VERSIONS, args, begin))


if __name__ == "__main__":
    sys.exit(main())
