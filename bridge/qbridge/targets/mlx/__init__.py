"""What mlx_lm takes of MLX: the model types that it has, keys that it asks for, tensors that it knows.

Its kernels serve every mode that is written; it splits a model over machines by itself. Source: mlx-lm 0.32.2,
utils.py (load_model) and models/*.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.config import Reader, compute_dtype, spell
from qbridge.formats.registry import named
from qbridge.formats.rules import ModelRule, Problem
from qbridge.ir.dtypes import DType
from qbridge.ir.model import Model
from qbridge.targets.choice import Choice
from qbridge.targets.mlx.codes import CODES
from qbridge.targets.mlx.keys import HEAD_DIMS, INTERVALS, KEEPS_DRAFTS, LIFTED, REQUIRED, UNTIED
from qbridge.targets.mlx.messages import MESSAGES
from qbridge.targets.target import Target

_LOADER = "mlx-lm 0.32.2, utils.py (load_model)"
_MODELS = "mlx-lm 0.32.2, models/*.py (ModelArgs)"
READER = Reader((4, 5), indexed=False, untied=UNTIED, lifted=LIFTED, implied=INTERVALS | HEAD_DIMS)


def _keys(model: Model) -> Iterator[Problem]:
    """Keys of config.json without a default, as they will be written."""
    written = spell(model.config, READER)
    lacking = [key for key in REQUIRED.get(str(written.get("model_type")), ()) if key not in written]
    if lacking:
        yield Problem((f"it asks for {', '.join(lacking)}",), where=("config.json",))


def _unknown(model: Model) -> Iterator[Problem]:
    """Layers for multi-token prediction that it does not leave out, and heads of classes."""
    if heads := tuple(name for name in model.tensors if name.startswith("score.")):
        yield Problem(("a head that scores, of a model that is no language model",), where=heads)
    if str(model.config.get("model_type")) not in KEEPS_DRAFTS:
        return
    architecture = Architecture.of_model(model)
    where = [name for name in (*model.specs, *model.tensors) if architecture.is_draft(name)]
    if where := [name for name in where if not name.startswith("model.layers.61.")]:
        yield Problem((f"{len(where)} tensors of layers for multi-token prediction",), where=tuple(where))


def _promotes(model: Model) -> Iterator[Problem]:
    """Scales of another dtype than the model's, with which its inputs become float32."""
    wanted = compute_dtype(model.config, DType.BF16)
    integers = {name: spec for name, spec in model.specs.items() if spec.weight.type in ("int", "affine")}
    where = tuple(name for name, spec in integers.items() if spec.scale_dtype is not wanted)
    if where:
        dtypes = ", ".join(sorted({str(model.specs[name].scale_dtype) for name in where}))
        yield Problem((f"scales are {dtypes}, the model is {wanted}",), where=where)


def _serve(model: Model, path: str, tp: int) -> str:
    """Its server (a quoted path)."""
    return f"mlx_lm.server --model {path}"


TARGETS = (
    Target(
        "mlx@0.32.2",
        "mlx-lm on Apple silicon, and what is built on it (LM Studio): MLX",
        (
            Choice(
                named("mlx"),
                (
                    ModelRule("QB256", _keys, _MODELS),
                    ModelRule("QB257", _unknown, _MODELS),
                    ModelRule("QB258", _promotes, _LOADER),
                ),
                serve=_serve,
            ),
        ),
        READER,
        codes=CODES,
        messages=MESSAGES,
        prover=Path(__file__).with_name("prover.py"),
    ),
)
