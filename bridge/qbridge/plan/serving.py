"""Whether an engine has kernels for what is planned, on any GPU: a conversion that nothing serves is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from qbridge.architecture.config import as_dtype
from qbridge.findings.finding import Findings
from qbridge.ir.model import Model
from qbridge.targets.gpus import CAPABILITIES
from qbridge.targets.serving import Served
from qbridge.targets.target import Target

_USUAL = 80  # the GPU that is asked first, since most models are served there
_BY_GPU = sorted(CAPABILITIES, key=lambda number: number != _USUAL)


def for_kernels(target: Target, model: Model, written: Model, sizes: Iterable[int]) -> Model:
    """The model, whose config names the dtype of the kernels for what is `written` where its own dtype has none."""
    wanted = {_dtype_at(target, written, tp) for tp in sizes} - {""}
    return replace(model, config=as_dtype(model.config, wanted.pop())) if len(wanted) == 1 else model


def _dtype_at(target: Target, model: Model, tp: int) -> str:
    """That dtype at one size, on the first GPU that serves all layers in one; empty where the model's own will do."""
    for capability in _BY_GPU:
        unserved = [kind for kind in target.serving(model, tp, capability) if not kind.legal]
        dtypes = {kind.dtype for kind in unserved}
        if not unserved or (len(dtypes) == 1 and "" not in dtypes):
            return dtypes.pop() if dtypes else ""
    return ""


def check_served(target: Target, model: Model, sizes: Iterable[int], findings: Findings) -> None:
    """Find linears that no kernel serves rightly on any GPU at a tensor-parallel size (QB227).

    A kernel that an option of the engine brings is one.
    """
    for tp in sizes:
        unserved: Sequence[Served] = ()
        for capability in _BY_GPU:
            kinds = target.serving(model, tp, capability)
            bad = [kind for kind in kinds if not kind.legal and not kind.instead]
            if not bad:
                break
            unserved = unserved or bad
        else:
            for kind in unserved:
                why = (kind.note,) if kind.note else kind.reasons
                findings.add("QB227", kind.names, (f"{kind.scheme} on any GPU", *why))
            return
