"""Whether an engine has kernels for what is planned, on any GPU: a conversion that nothing serves is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qbridge.findings.finding import Findings
from qbridge.ir.model import Model
from qbridge.targets.gpus import CAPABILITIES
from qbridge.targets.serving import Served
from qbridge.targets.target import Target

_USUAL = 80  # the GPU that is asked first, since most models are served there


def check_served(target: Target, model: Model, sizes: Iterable[int], findings: Findings) -> None:
    """Find linears that no kernel serves rightly on any GPU at a tensor-parallel size (QB227).

    A kernel that an option of the engine brings is one.
    """
    for tp in sizes:
        unserved: Sequence[Served] = ()
        for capability in sorted(CAPABILITIES, key=lambda number: number != _USUAL):
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
