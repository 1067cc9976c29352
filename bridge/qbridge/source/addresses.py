"""What a person typed in place of a folder: an address, a name of the Hub, or a path after all."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from qbridge.findings.finding import error
from qbridge.source.storage import Storage

HUB = "hf://"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@\S+)?")
_PATHS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".json", ".onnx", ".npz")  # what files are called
_READ = (
    "Addresses that are read: a folder, hf://org/name[@revision], org/name, https://host/folder/, "
    "s3://bucket/folder, gs://bucket/folder, az://container/folder."
)


def far_storage(text: str) -> Storage | None:
    """The storage that an address or a name of the Hub means, None for a path.

    A name without hf:// is one of the Hub where nothing lies here under its first part, and where it does not end as
    files do. Raises QBridgeError: QB061 for an address of a kind that is not read.
    """
    if match := _SCHEME.match(text):
        return _by_scheme(match[1].lower(), text)
    if "::" in text and "/" in text and not os.path.lexists(text):
        raise error("QB061", text, ("chains of addresses are not read",), fix=_READ)
    return _repository(text) if is_bare_name(text) else None


def is_bare_name(text: str) -> bool:
    """Whether a text without a scheme means a repository of the Hub: org/name[@revision]."""
    if not _NAME.fullmatch(text) or text.endswith(_PATHS) or os.path.lexists(text):
        return False
    return not os.path.lexists(Path(text).parent)


def may_be_repository(text: str) -> bool:
    """Whether a path that is not there would be a name of the Hub with hf:// before it."""
    return _NAME.fullmatch(text) is not None


def at_commit(text: str, pinned: str) -> str:
    """An address of the Hub at the commit that `pinned` names, where both are of one repository; else as it is."""
    same = text.removeprefix(HUB).partition("@")[0] == pinned.removeprefix(HUB).partition("@")[0]
    return pinned if same and pinned and (text.startswith(HUB) or is_bare_name(text)) else text


def served_name(text: str) -> str:
    """What an engine is given to serve a destination: a repository of the Hub by its bare name."""
    return text.removeprefix(HUB).partition("@")[0] if text.startswith(HUB) else text


def local_name(text: str) -> str:
    """The last name of an address or path, without a revision, as a folder may be called."""
    if not (_SCHEME.match(text) or is_bare_name(text)):
        return text
    path = urlsplit(text).path if text.startswith("http") else text.removeprefix(HUB).partition("@")[0]
    return re.sub(r"[^\w.-]", "-", path.rstrip("/").rpartition("/")[2]) or "model"


def _by_scheme(scheme: str, text: str) -> Storage:
    if "::" in text:
        raise error("QB061", text.partition("?")[0], ("chains of addresses are not read",), fix=_READ)
    if scheme == "hf":
        return _repository(text)
    if scheme in ("https", "http"):
        from qbridge.source.site import open_site

        return open_site(text)
    if scheme in ("s3", "gs", "az"):
        from qbridge.source.bucket import open_bucket

        return open_bucket(text)
    raise error("QB061", f"{scheme}://", (f"{scheme}:// is not read",), fix=_READ)


def _repository(text: str) -> Storage:
    from qbridge.source.hub import Repository, open_repository

    repository = Repository.of(text)
    if repository is None:
        raise error("QB061", text, ("it is no hf://org/name[@revision] of a model",), fix=_READ)
    return open_repository(text.rstrip("/"), repository)
