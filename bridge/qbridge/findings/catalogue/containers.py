"""QB049: files of GGUF, the container of llama.cpp."""

from __future__ import annotations

from qbridge.findings.catalogue.code import UNREADABLE, Code

ENTRIES = (
    Code(
        "QB049",
        "a GGUF header does not describe its file",
        "Its counts, lengths, names, types or offsets disagree with each other or with the file's size, it is of a "
        "version that is not read, or it is big-endian.",
        "The bytes cannot be trusted; a truncated download looks just like this.",
        "tensors end at byte 4113289792, the file at 3221225472",
        "Download or write the file again.",
        "llama.cpp b10359, ggml/src/gguf.cpp (gguf_init_from_file)",
        UNREADABLE,
    ),
)
