"""The licences of an SBOM as a table: python tests/house/licences.py dist/sbom.cdx.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def licence_of(component: Mapping[str, Any]) -> str:
    """The licences that a component's metadata names; a text without a name is cut to its first line."""
    names = []
    for each in component.get("licenses", ()):
        licence = each.get("license", {})
        name = each.get("expression") or licence.get("id") or licence.get("name") or "unknown"
        names.append(name.strip().splitlines()[0][:60])
    return ", ".join(dict.fromkeys(names)) or "unknown"


def table(sbom: Mapping[str, Any]) -> str:
    """Name, version and licence of every component, as Markdown."""
    rows = sorted((each["name"].lower(), each.get("version", ""), licence_of(each)) for each in sbom["components"])
    lines = ["| package | version | licence |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table(json.loads(Path(sys.argv[1]).read_text())))
