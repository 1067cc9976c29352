"""QB065 to QB068: conversions in parts, and to where servers are."""

from __future__ import annotations

from qbridge.findings.catalogue.code import IO, USAGE, Code

ENTRIES = (
    Code(
        "QB065",
        "the conversion cannot be made in parts",
        "Files are linked, or weights lie in pickled files, which are read as a whole.",
        "A part could not be made without what the others have.",
        "--part 1/8 of pytorch_model.bin",
        "Convert it in one run, without --part.",
        "docs/parts.md",
        USAGE,
    ),
    Code(
        "QB066",
        "the plan at the destination is another one",
        "plan.json was made of other options, of another source, or by another version of qbridge, or it is damaged.",
        "Parts of two plans would become one model.",
        "qbridge convert SRC DST --to vllm --tp 4 --part 2/8 where DST was planned for --tp 2",
        "Give every part the options and the source of the plan, or remove the plan: qbridge clean DST.",
        "docs/parts.md",
        USAGE,
    ),
    Code(
        "QB067",
        "parts of the output are not there",
        "Files that plan.json names are missing, are not whole, or no part of this plan has made them.",
        "What there is is no model yet.",
        "seven of eight parts have ended",
        "Make the parts that are missing, then finish again: qbridge convert ... --part I/N.",
        "docs/parts.md",
    ),
    Code(
        "QB068",
        "the destination cannot be written",
        "There is no token, it has no right to write there, or what everybody would see is not for everybody.",
        "It is asked before the first weight is converted; nothing was written.",
        "hf://org/model with a token that may read only",
        "Name a token that may write there, or another destination.",
        "huggingface_hub 2.4.0, hf_api.py (whoami, create_repo)",
        IO,
    ),
)
