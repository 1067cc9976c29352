"""Buckets as a storage: s3:// by s3fs, gs:// and az:// by gcsfs and adlfs, all three through fsspec.

Keys and endpoints are those of the tools of each service (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and the like, for s3).
Source: fsspec 2026, spec.py (`find`, `cat_file`); s3fs 2026, core.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from qbridge.findings.finding import QBridgeError, error
from qbridge.ir.dtypes import Array
from qbridge.source.remote import Entry, Remote, check_names
from qbridge.source.storage import Storage
from qbridge.source.web import LOG, Answer, Locked

PACKAGES: Mapping[str, str] = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}  # by scheme, what fsspec needs for it
FILES = 100_000  # below one place
_PLACE = re.compile(r"(s3|gs|az)://([A-Za-z0-9][\w.-]{1,221})/?((?:[^/?#*\[\]]+/)*[^/?#*\[\]]*)")


def is_bucket(text: str) -> bool:
    """Whether an address is one of a bucket."""
    return text.partition("://")[0].lower() in PACKAGES and "://" in text


def root_of(text: str) -> str:
    """bucket/folder of an address; QBridgeError (QB061) for anything else."""
    match = _PLACE.fullmatch(text.rstrip("/"))
    if match is None or any(part in (".", "..") for part in match[3].split("/")):
        raise error("QB061", text.partition("?")[0], ("it is no s3://bucket/folder",))
    return f"{match[2]}/{match[3]}".rstrip("/")


def file_system(text: str, code: str = "QB062") -> Any:
    """What fsspec has for the scheme of an address; QBridgeError (`code`) where that is not there."""
    scheme = text.partition("://")[0].lower()
    try:
        import fsspec

        return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
    except ImportError:
        package = PACKAGES[scheme]
        extra = "qbridge-llm[s3]" if scheme == "s3" else package
        raise error(code, package, ("it is not installed",), fix=f"Install it: pip install '{extra}'") from None


@contextmanager
def asked(url: str, code: str) -> Iterator[None]:
    """QBridgeError for what a service refuses (`code`) or does not answer (QB404); never a text of a request."""
    try:
        yield
    except (QBridgeError, FileNotFoundError, FileExistsError):
        raise
    except PermissionError:
        raise error(code, url, ("the service refuses it: its keys have no right to it",)) from None
    except Exception as fault:  # each service has exceptions of its own, whose texts may hold signatures
        if "Credentials" in type(fault).__name__:
            raise error(code, url, ("there are no keys for it",)) from None
        raise error("QB404", url, (type(fault).__name__,)) from None


def open_bucket(url: str) -> Storage:
    """The files below an address as they are now; QBridgeError (QB062) where they cannot be listed."""
    root, files = root_of(url), file_system(url)
    LOG.info("asking %s", url)
    with asked(url, "QB062"):
        try:
            listed = files.find(root, detail=True, maxdepth=None)
        except FileNotFoundError:
            listed = {}
    if not listed:
        raise error("QB062", url, ("nothing is there, or no such bucket",))
    if len(listed) > FILES:
        raise error("QB063", url, (f"it lists more than {FILES} files",))
    entries = {name: entry_of(info) for name, info in below(root, listed)}
    check_names(entries, url)
    return BucketStorage(url, entries)


def below(root: str, listed: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name below the root, what is listed of it) of each file."""
    for path, info in listed.items():
        if path.startswith(f"{root}/") and info.get("type") == "file" and not path.endswith("/"):
            yield path.removeprefix(f"{root}/"), info


def entry_of(info: Mapping[str, Any]) -> Entry:
    """Size and etag of a file, as the services call it."""
    etag = next((str(info[key]) for key in ("ETag", "etag", "md5Hash") if info.get(key)), "")
    return Entry(int(info["size"]), etag)


class BucketStorage(Remote):
    """The files below a folder of a bucket."""

    def __init__(self, url: str, files: Mapping[str, Entry]) -> None:
        """`files` by name, as they were when they were listed."""
        self._root, self._service = root_of(url), file_system(url)
        super().__init__(url, url, _NoClient(), files)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        """The same files elsewhere, where keys are looked up anew."""
        return BucketStorage, (self._url, dict(self._files))

    def stamp(self, name: str) -> str:
        """As it is now: no answer says of which version it is."""
        with asked(self._url, "QB062"):
            size, etag = entry_of(self._service.info(f"{self._root}/{name}"))
        return f"{size} {etag}"

    def _fetch(self, name: str, begin: int, buffer: Array) -> None:
        with asked(self._url, "QB062"):
            try:
                data = self._service.cat_file(f"{self._root}/{name}", start=begin, end=begin + buffer.nbytes)
            except FileNotFoundError:
                raise error("QB063", name, ("it is listed, and not there",)) from None
        if len(data) != buffer.nbytes:
            raise error("QB063", name, (f"{len(data)} bytes came, {buffer.nbytes} were asked for",))
        buffer[:] = np.frombuffer(data, np.uint8)

    def _address(self, name: str) -> str:
        return f"{self._url}/{name}"

    def _check(self, name: str, answer: Answer) -> None:
        """Nothing: `_fetch` does not ask by HTTP itself."""

    def _locked(self, fault: Locked) -> Exception:
        return error("QB062", self._url, (f"HTTP {fault.status}",))


class _NoClient:
    """In the place of a client: fsspec has connections of its own."""

    def close(self) -> None:
        """Nothing to close."""
