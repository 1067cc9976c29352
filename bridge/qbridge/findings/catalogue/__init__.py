"""Every QB code: what it means, why it matters, an example, the way out, and where the rule comes from.

The hundreds say who speaks: 0 the source on disk, 1 a format that cannot be read or written here, 2 a target's
engine, 3 exactness, 4 the operating system, 5 `verify`, 9 qbridge itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from qbridge.findings.catalogue import checks, completeness, engine, float8, outcome, scheme, source, tensors
from qbridge.findings.catalogue.code import ALLOW, BUG, CHOICES, INTERRUPTED, IO, REFUSED, UNREADABLE, USAGE, Code

__all__ = ["ALLOW", "BUG", "CATALOGUE", "CHOICES", "INTERRUPTED", "IO", "REFUSED", "UNREADABLE", "USAGE", "Code"]

CATALOGUE: Mapping[str, Code] = {
    entry.code: entry
    for group in (source, tensors, scheme, engine, float8, checks, outcome, completeness)
    for entry in group.ENTRIES
}
