"""The contract of a format: protocol, registry, detection; formats themselves are modules of `qbridge_formats`."""

from __future__ import annotations

from qbridge.codecs.parts import decode, encode, encode_part, needed
from qbridge.formats.assembly import assemble
from qbridge.formats.detection import detect
from qbridge.formats.protocol import Format, Match
from qbridge.formats.registry import BUILTIN, aliases, find, load, side_files, usable

__all__ = [
    "BUILTIN",
    "Format",
    "Match",
    "aliases",
    "assemble",
    "decode",
    "detect",
    "encode",
    "encode_part",
    "find",
    "load",
    "needed",
    "side_files",
    "usable",
]
