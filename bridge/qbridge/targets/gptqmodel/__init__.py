"""What GPTQModel takes of GPTQ and AWQ: what one of its kernels takes on some device.

Source: gptqmodel 7.7.0, nn_modules/qlinear/torch.py (GPTQ) and torch_awq.py (AWQ), whose SUPPORTS_* are the widest
and hold on every device; other kernels serve a part of it faster. It has no tensor parallelism.
"""

from __future__ import annotations

from math import gcd
from pathlib import Path

from qbridge.architecture.config import Reader
from qbridge.findings.catalogue.code import Code
from qbridge.formats.registry import named
from qbridge.formats.rules import LayerRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.passes import Pass
from qbridge.passes.regroup import Regroup
from qbridge.targets.choice import Choice, python_path
from qbridge.targets.common import unquantized_tensors, weight_scales
from qbridge.targets.gptqmodel import messages
from qbridge.targets.remote_code import needs_remote_code
from qbridge.targets.target import Target

_TORCH = "gptqmodel 7.7.0, nn_modules/qlinear/torch.py (TorchLinear.SUPPORTS_BITS, SUPPORTS_GROUP_SIZE)"
_TORCH_AWQ = (
    "gptqmodel 7.7.0, nn_modules/qlinear/torch_awq.py (AwqTorchLinear.SUPPORTS_*) and __init__.py (_validate)"
)
_LOADER = "gptqmodel 7.7.0, models/loader.py (from_quantized)"
_DTYPE = "gptqmodel 7.7.0, utils/model.py (auto_dtype: what config.json says, on CUDA)"
_BITS = range(2, 9)
_GROUPS = (1024, 512, 256, 128, 64, 32, 16)
_AWQ_GROUPS = (128, 64, 32, 16)


def _width(spec: Spec, model: Model) -> Problem | None:
    if spec.activation is None and spec.weight.type == "int" and spec.weight.bits in _BITS:
        return None
    return Problem((f"{spec.scheme}: its kernels have 2 to 8 bits of weights alone",))


def _group(spec: Spec, model: Model) -> Problem | None:
    """One group, or a size that is listed; the last group may be short, for the kernel pads."""
    size = spec.weight.group_size
    if size is None or size in _GROUPS or size == spec.in_features:
        return None
    return Problem((f"weights {spec.weight}: its kernels have groups of {', '.join(map(str, reversed(_GROUPS)))}",))


def _regrouped(spec: Spec, model: Model) -> Pass | None:
    return _split(spec, _GROUPS)


def _awq_group(spec: Spec, model: Model) -> Problem | None:
    size = spec.weight.group_size
    if size is not None and spec.in_features % size:
        return Problem((f"weights {spec.weight}: {spec.in_features} inputs are not whole groups",))
    if size is None or size in _AWQ_GROUPS or size == spec.in_features:
        return None
    listed = ", ".join(map(str, reversed(_AWQ_GROUPS)))
    return Problem((f"weights {spec.weight}: its kernels for AWQ have groups of {listed}",))


def _awq_regrouped(spec: Spec, model: Model) -> Pass | None:
    return _split(spec, _AWQ_GROUPS)


def _split(spec: Spec, sizes: tuple[int, ...]) -> Pass | None:
    """Into the largest groups that it has kernels for."""
    common = gcd(spec.weight.group_size or 0, spec.in_features)
    return next((Regroup(size) for size in sizes if common % size == 0), None)


def _awq_outputs(spec: Spec, model: Model) -> Problem | None:
    if spec.out_features % 8 == 0:
        return None
    return Problem((f"{spec.out_features} outputs: its kernels for AWQ want multiples of 8",))


def _asymmetric_version_1(spec: Spec, model: Model) -> Problem | None:
    """It does not trust another tool's zero-points of version 1; its own are read as `v1-words`."""
    if spec.weight.symmetric or ("zeros", "v1") not in spec.dialect:
        return None
    return Problem((f"weights {spec.weight}: zero-points of version 1, not by GPTQModel",))


def _serve(model: Model, path: str, tp: int) -> str:
    """Two lines of Python, which load the model; it has no server."""
    folder, code = python_path(path), ", trust_remote_code=True" * needs_remote_code(model.config)
    return f"from gptqmodel import GPTQModel\nmodel = GPTQModel.load({folder}{code})"


_COMMON: tuple[Rule, ...] = (weight_scales(DType.BF16, _DTYPE), unquantized_tensors(DType.BF16, _DTYPE))
CHOICES = (
    Choice(
        named("gptq"),
        (
            LayerRule("QB232", _width, _TORCH),
            LayerRule("QB232", _group, _TORCH, _regrouped),
            LayerRule("QB232", _asymmetric_version_1, _LOADER),
            *_COMMON,
        ),
        serve=_serve,
    ),
    Choice(
        named("awq"),
        (
            LayerRule("QB232", _width, _TORCH_AWQ),
            LayerRule("QB232", _awq_group, _TORCH_AWQ, _awq_regrouped),
            LayerRule("QB232", _awq_outputs, _TORCH_AWQ),
            *_COMMON,
        ),
        serve=_serve,
    ),
)
CODES = (
    Code(
        "QB232",
        "GPTQModel has no kernel for these layers",
        "It has 2 to 8 bits of weights alone, in groups of 16 to 1024 as GPTQ and 16 to 128 as AWQ, and asymmetric "
        "GPTQ of version 1 only by itself.",
        "It raises NotImplementedError (only supports group_size ...) or ValueError (Loading of a sym=False model).",
        "groups of 8, quantized activations, asymmetric GPTQ by AutoGPTQ",
        "Convert it (--to gptqmodel), which splits groups and writes version 2; activations must not be quantized.",
        "gptqmodel 7.7.0, nn_modules/qlinear/torch.py, torch_awq.py, __init__.py (_validate) and models/loader.py",
    ),
)
TARGETS = (
    Target(
        "gptqmodel@7.7.0",
        "GPTQModel, which has no tensor parallelism; GPTQ, or AWQ where the source is AWQ",
        CHOICES,
        Reader((5,)),  # it requires 5.20.2 or newer
        keeps=True,
        codes=CODES,
        messages=messages.MESSAGES,
        prover=Path(__file__).with_name("prover.py"),
    ),
)
