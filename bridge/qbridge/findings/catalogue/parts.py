"""QB065 to QB070: conversions in parts, to where servers are, and on a cluster."""

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
    Code(
        "QB069",
        "the cluster cannot be used",
        "Nobody answers there, a node has another version or too little, or it does not see the destination.",
        "A file that another node makes would lie elsewhere, or be made by other rules; no weight was converted.",
        "--executor ray://head:10001, and DST in a folder of this machine alone",
        "Install the same Python, ray and qbridge on every node, and name a SRC and DST that all of them see.",
        "ray 2.60.0, _private/worker.py (init, nodes)",
        IO,
    ),
    Code(
        "QB070",
        "a node of the cluster did not make its file",
        "Its process or its node ended, more often than a task is tried again, or it has not what the task needs.",
        "What the other nodes have made lies at the destination, and is not made again.",
        "a node whose memory another program takes",
        "Run the same command again; --memory says what a task may use, and qbridge clean DST removes what is there.",
        "ray 2.60.0, exceptions.py",
        IO,
    ),
)
