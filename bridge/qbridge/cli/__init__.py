"""The command line: parsing and exit codes; every command is one library call.

stdout is data, stderr is progress and findings. Exit codes: 0 ok, 1 the answer is no, 2 usage, 3 unreadable input,
4 I/O, 70 a bug in qbridge, 130 interrupted.
"""

from qbridge.cli.program import app, main

__all__ = ["app", "main"]
