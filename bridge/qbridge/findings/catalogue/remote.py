"""QB06x and QB404: checkpoints that lie on a server."""

from __future__ import annotations

from qbridge.findings.catalogue.code import IO, UNREADABLE, USAGE, Code

ENTRIES = (
    Code(
        "QB061",
        "the address is of a kind that is not taken",
        "What was named is neither a folder nor an address that qbridge reads from, or writes to.",
        "To guess what is meant would read, or write, something else.",
        "ssh://host/model",
        "Name a folder, hf://org/name[@revision], org/name, or https://host/folder/.",
        "docs/remote.md",
        USAGE,
    ),
    Code(
        "QB062",
        "the checkpoint cannot be read from its server",
        "The server knows no such repository or revision, wants a token that has the right to read it, or cannot be "
        "asked in offline mode.",
        "Nothing of the model was read.",
        "a gated repository, and no token",
        "Correct the name, or name a token that may read it: hf auth login, or HF_TOKEN.",
        "huggingface_hub 2.4.0, errors.py (RepositoryNotFoundError, GatedRepoError)",
        UNREADABLE,
    ),
    Code(
        "QB063",
        "the server's answer is not what was asked for",
        "Another size, etag, commit or range than the listing says, a name that is no plain relative one, or a "
        "redirect to where no redirect may lead.",
        "Bytes of two versions, or of somebody else's file, would become one model.",
        "a range of a file that was replaced meanwhile",
        "Run the same command again; if it is said again, download the checkpoint and name the folder.",
        "docs/remote.md",
        UNREADABLE,
    ),
    Code(
        "QB064",
        "the answer needs values, which were not to be read",
        "With --no-values nothing but headers is read, and this format, or a rule of the target, depends on values.",
        "A yes from headers alone would be a guess.",
        "zero-points of a GPTQ checkpoint, which its reader looks at",
        "Ask again without --no-values.",
        "docs/remote.md",
    ),
    Code(
        "QB404",
        "the server does not answer",
        "A request was made again and again, with growing waits, and no bytes came.",
        "The model is not read to its end; nothing was written.",
        "HTTP 503 six times",
        "Look at the network, wait, then run the same command again.",
        "qbridge.source.patience",
        IO,
    ),
)
