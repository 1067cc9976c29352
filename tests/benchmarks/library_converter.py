"""compressed-tensors' own conversion of an AWQ checkpoint, to time beside ours.

    python tests/benchmarks/slope.py --cases "awq to" --gigabytes 1.8 --beside \\
        "$(python tests/engines/environments.py llm-compressor | tail -1) \\
         tests/benchmarks/library_converter.py {src} {out}"
"""

from __future__ import annotations

import sys

from compressed_tensors.entrypoints.convert import AutoAWQConverter, convert_checkpoint

if __name__ == "__main__":
    src, out = sys.argv[1:]
    convert_checkpoint(src, out, AutoAWQConverter.from_pretrained(src))
