"""Runs code in a Python that lacks packages, modules and calls of the system, as other machines do."""

from __future__ import annotations

import subprocess
import sys

OPTIONAL = ("torch", "transformers", "compressed_tensors", "huggingface_hub", "safetensors", "hypothesis", "pytest")
UNIX_MODULES = ("fcntl", "resource", "termios", "pwd", "grp")
UNIX_CALLS = ("preadv", "pwrite", "copy_file_range", "posix_fadvise", "sched_getaffinity", "fdatasync", "O_NOFOLLOW")

_HIDE = """
import os, sys
for module in {modules!r}:
    sys.modules[module] = None
for call in {calls!r}:
    if hasattr(os, call):
        delattr(os, call)
real_open = os.open
def without_folders(path, *rest, **named):
    if {no_folders!r} and isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return real_open(path, *rest, **named)
os.open = without_folders
"""

_PROGRAM = """
sys.argv = ["qbridge", *{words!r}]
from qbridge.cli import main
main()
"""


def python(code: str, modules=(), calls=(), no_folders=False) -> subprocess.CompletedProcess[str]:
    """Run code where `modules` cannot be imported, os lacks `calls`, and no folder can be opened."""
    hide = _HIDE.format(modules=modules, calls=calls, no_folders=no_folders)
    return subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True)


def qbridge(*words, **hidden) -> subprocess.CompletedProcess[str]:
    """Run the program in such a Python."""
    return python(_PROGRAM.format(words=[str(word) for word in words]), **hidden)
