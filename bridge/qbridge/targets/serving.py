"""One kind of linear as a rank sees it, and the kernel that serves it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Served:
    """One kind of linear as a rank sees it, and what serves it (None: nothing); `note` and `reasons` say why.

    `names` are its linears; `instead` is an option of the engine with which some kernel would serve it, and `dtype`
    the one that it computes in then.
    """

    kind: str
    out_features: int
    in_features: int
    scheme: str
    layers: int
    kernel: str | None
    legal: bool
    note: str
    reasons: tuple[str, ...]
    names: tuple[str, ...] = ()
    instead: str = ""
    dtype: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As JSON, without the names, and the dtype that `instead` tells."""
        return {name: value for name, value in asdict(self).items() if name not in ("names", "dtype")}
