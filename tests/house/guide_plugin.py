"""The template package of docs/plugins.md as a folder that pip installs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def write_plugin(folder: Path) -> str:
    """Write the package's files; what its own test would be is returned as a script."""
    page = (ROOT / "docs/plugins.md").read_text()
    module, laws = re.findall(r"```python\n(.*?)```", page, re.S)
    folder.mkdir()
    (folder / "pyproject.toml").write_text(re.search(r"```toml\n(.*?)```", page, re.S)[1])
    (folder / "qbridge_acme.py").write_text(module)
    return f"{laws}\ntest_laws()\n"
