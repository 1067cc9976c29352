"""GPUs by name or compute capability: what rules of kernels depend on, and how much memory they have.

Capabilities: NVIDIA's list of CUDA GPUs; memory: NVIDIA's data sheets, None where a name is sold in several sizes.
GPUs of other makers are none of these: the tables of kernels were read for CUDA alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from qbridge.findings.finding import error
from qbridge.findings.hints import NEAREST

_EXAMPLES = ("T4", "A10", "A100", "L4", "L40S", "H100", "B200", "RTX 4090")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: its name as it is printed, its compute capability (90 for 9.0), and its memory in bytes if known."""

    name: str
    capability: int
    memory: int | None = None

    def __str__(self) -> str:
        sm = f"sm{self.capability}"
        if self.name == sm:
            return sm
        return f"{self.name} ({sm}{f', {self.memory // 10**9} GB' if self.memory else ''})"


CAPABILITIES = (60, 61, 70, 72, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
# By compute capability, names with gigabytes (10^9 bytes).
_NAMES: Mapping[int, Mapping[str, int | None]] = {
    60: {"P100": None},
    61: {"P40": 24},
    70: {"V100": None, "V100-16GB": 16, "V100-32GB": 32},
    75: {"T4": 16, "RTX 2080 Ti": 11, "Titan RTX": 24, "Quadro RTX 8000": 48},
    80: {"A100": None, "A100-40GB": 40, "A100-80GB": 80, "A30": 24, "A800": None},
    86: {
        **{"A10": 24, "A10G": 24, "A16": 16, "A2": 16, "A40": 48},
        **{"RTX A4000": 16, "RTX A5000": 24, "RTX A6000": 48},
        **{"RTX 3080": None, "RTX 3090": 24, "RTX 3090 Ti": 24},
    },
    89: {"L4": 24, "L40": 48, "L40S": 48, "RTX 4080": 16, "RTX 4090": 24, "RTX 6000 Ada": 48},
    90: {"H100": 80, "H100 NVL": 94, "H200": 141, "H800": 80, "H20": None, "GH200": None},
    100: {"B200": 180, "GB200": 186},
    103: {"B300": None, "GB300": None},
    120: {"RTX 5080": 16, "RTX 5090": 32, "RTX PRO 6000": 96},
    121: {"GB10": None},
}
_MAKER_OR_BOARD = re.compile(r"^(?:nvidia|tesla|geforce)+|sxm\d?|pcie|hbm\d?e?")


def _folded(name: str) -> str:
    """A name as names are compared: letters of any case, without punctuation, blanks, the maker and the board."""
    return _MAKER_OR_BOARD.sub("", re.sub(r"[\W_]", "", name.lower()))


_LISTED = tuple(
    Gpu(name, capability, gigabytes and gigabytes * 10**9)
    for capability, names in _NAMES.items()
    for name, gigabytes in names.items()
)
# Drivers add the memory to the names of some, as to H100 80GB HBM3.
_GPUS: Mapping[str, Gpu] = {
    **{f"{_folded(gpu.name)}{gpu.memory // 10**9}gb": gpu for gpu in _LISTED if gpu.memory},
    **{_folded(gpu.name): gpu for gpu in _LISTED},
}


def known_gpus() -> tuple[Gpu, ...]:
    """Every GPU of the table by name, then the compute capabilities."""
    return (*_LISTED, *(Gpu(f"sm{capability}", capability) for capability in CAPABILITIES))


def gpu_of(text: str) -> Gpu:
    """The GPU of a name (RTX 4090, rtx-4090) or of a compute capability (sm90, 9.0, 90).

    QBridgeError (QB030) with the nearest ones for a name or a number that is not in the table.
    """
    if known := _GPUS.get(_folded(text)):
        return known
    match = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)[af]?", text.strip().lower())
    number = int(match[1] + match[2]) if match else 0
    if number in CAPABILITIES:
        return Gpu(f"sm{number}", number)
    fix = "Name a GPU of the table, or its compute capability, such as sm80 or sm90."
    raise error("QB030", f"--gpu {text}", help=_nearest(text, number), fix=fix)


def _nearest(text: str, number: int) -> tuple[str, ...]:
    """Help lines: the nearest capabilities of a number, or the nearest names, and examples."""
    if number:
        near = sorted(CAPABILITIES, key=lambda each: (abs(each - number), each))[:NEAREST]
        return (f"the nearest compute capabilities: {', '.join(f'sm{each}' for each in sorted(near))}",)
    folded = difflib.get_close_matches(_folded(text), _GPUS, n=NEAREST, cutoff=0.5)
    names = list(dict.fromkeys(_GPUS[each].name for each in folded))
    return (
        *((f"did you mean {' or '.join(names)}?",) if names else ()),
        f"known: {len(_LISTED)} GPUs of NVIDIA, such as {', '.join(_EXAMPLES)}",
    )
