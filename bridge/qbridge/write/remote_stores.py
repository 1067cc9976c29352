"""What a person typed as DST: an address of a server, or a path after all. A bare name is never a repository here."""

from __future__ import annotations

import re

from qbridge.findings.finding import error
from qbridge.source.addresses import HUB
from qbridge.write.stores import Store

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WRITTEN = "Addresses that are written: a folder, hf://org/name[@branch], s3://bucket/folder, gs://, az://."


def remote_store(text: str, public: bool = False, request: bool = False, overwrite: bool = False) -> Store | None:
    """The store that an address means, None for a path; `public` and `request` (--pr) are of the Hub alone.

    QBridgeError (QB061) for an address of a kind that is not written; ValueError for options that mean nothing.
    """
    match = _SCHEME.match(text)
    if match and match[1].lower() == "hf" and "::" not in text:
        return _repository(text, public, request, overwrite)
    if public or request:
        raise ValueError("public and pr go with a destination hf://org/name")
    if match is None:
        return None
    if match[1].lower() in ("s3", "gs", "az") and "::" not in text:
        from qbridge.write.bucket_store import BucketStore

        return BucketStore(text)
    raise error("QB061", f"{match[1]}://", (f"{match[1]}:// is not written",), fix=_WRITTEN)


def _repository(text: str, public: bool, request: bool, overwrite: bool) -> Store:
    from qbridge.source.hub import Repository
    from qbridge.write.hub_store import HubStore

    repository = Repository.of(text)
    if repository is None:
        raise error("QB061", text, (f"it is no {HUB}org/name[@branch] of a model",), fix=_WRITTEN)
    return HubStore(text, repository, public, request, overwrite)
