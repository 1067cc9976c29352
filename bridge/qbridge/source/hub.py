"""Repositories of the Hugging Face Hub as a storage, pinned to one commit.

Tokens, the endpoint, the cache and offline mode are those of huggingface_hub; bytes are read by ranges of our own.
Source: huggingface_hub 2.4.0, hf_api.py (`model_info`, `list_repo_tree`), file_download.py (`get_hf_file_metadata`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from qbridge.findings.extras import install
from qbridge.findings.finding import QBridgeError, error
from qbridge.findings.way import Way
from qbridge.source.addresses import HUB
from qbridge.source.folder import Folder
from qbridge.source.json_text import parse_json
from qbridge.source.remote import Entry, Remote, check_names, same_etag
from qbridge.source.storage import Storage
from qbridge.source.web import LOG, Answer, Client, Locked, joined, origin, shown

FILES = 100_000  # that a repository may list
_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?:@([^\s@]{1,200}))?")
_NEXT = re.compile(r'<([^<>]+)>\s*;\s*rel="next"')
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LICENCE = "Ask for access on the page of the repository, then name a token that has it: hf auth login, or HF_TOKEN."
_SPELLING = "Correct the name, or name a token that may see it: hf auth login, or HF_TOKEN."


class Repository(NamedTuple):
    """A model of the Hub by its name, at a revision: a branch, a tag or a commit."""

    name: str
    revision: str = "main"

    @classmethod
    def of(cls, text: str) -> Repository | None:
        """org/name[@revision], with or without hf:// before it; None for anything else."""
        match = _NAME.fullmatch(text.removeprefix(HUB).rstrip("/"))
        return cls(match[1], match[2] or "main") if match and ".." not in match[1] else None


def open_repository(url: str, repository: Repository) -> Storage:
    """A repository as it is at its revision now; QBridgeError (QB062) where it cannot be read."""
    hub = library()
    if hub.constants.HF_HUB_OFFLINE:
        return _cached(url, repository, hub)
    endpoint = str(hub.constants.ENDPOINT).rstrip("/")
    LOG.info("asking %s for %s", _host(endpoint), repository.name)
    client = Client(endpoint, hub.get_token)
    try:
        api = f"{endpoint}/api/models/{repository.name}"
        commit, restricted = _commit(client, f"{api}/revision/{quote(repository.revision, safe='')}", repository)
        files = dict(_tree(client, f"{api}/tree/{commit}?recursive=true&expand=false"))
    except Locked as fault:
        raise _locked(url, fault) from None
    except FileNotFoundError:
        fact = f"{_host(endpoint)} knows no such repository, or no revision {repository.revision} of it"
        raise error("QB062", url, (fact,), fix=_SPELLING) from None
    finally:
        client.close()
    return HubStorage(url, endpoint, repository.name, commit, files, restricted)


class HubStorage(Remote):
    """The files of a repository at one commit."""

    def __init__(
        self, url: str, endpoint: str, name: str, commit: str, files: Mapping[str, Entry], restricted: str = ""
    ) -> None:
        """`files` are those of the commit by name; `restricted` says why not everybody may read them."""
        self._endpoint, self._name, self._commit, self._restricted = endpoint, name, commit, restricted
        identity = f"{endpoint}/{name}@{commit}"
        super().__init__(url, identity, Client(endpoint, lambda: library().get_token()), files)

    def __reduce__(self) -> tuple[Any, ...]:
        """The same commit elsewhere, where the token is looked up anew."""
        return HubStorage, (self._url, self._endpoint, self._name, self._commit, dict(self._files), self._restricted)

    @property
    def restricted(self) -> str:
        """Whether it is gated or private."""
        return self._restricted

    @property
    def pinned(self) -> str:
        """The repository at its commit."""
        return f"{HUB}{self._name}@{self._commit}"

    def _address(self, name: str) -> str:
        return f"{self._endpoint}/{self._name}/resolve/{self._commit}/{quote(name)}"

    def _check(self, name: str, answer: Answer) -> None:
        """The Hub names commit, size and digest of a file before it redirects to its bytes."""
        headers, entry = answer.headers, self._files[name]
        etag = headers.get("x-linked-etag") or headers.get("etag") or ""
        for fact, told, wanted in (
            ("commit", headers.get("x-repo-commit", self._commit), self._commit),
            ("size", headers.get("x-linked-size", str(entry.size)), str(entry.size)),
        ):
            if told != wanted:
                raise error("QB063", name, (f"its {fact} is {told[:80]}, the listing says {wanted}",))
        if not same_etag(etag, entry.etag):
            raise error("QB063", name, (f"its etag is {etag[:80] or 'not told'}, the listing says {entry.etag}",))

    def _locked(self, fault: Locked) -> Exception:
        return _locked(self._url, fault)


def library() -> Any:
    """huggingface_hub; QBridgeError (QB062) with what to install where it is not."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError:
        raise error("QB062", "huggingface_hub", ("it is not installed",), fix=install("hub")) from None
    return huggingface_hub


def _host(endpoint: str) -> str:
    _, host, port = origin(endpoint)
    return host if port in (80, 443) else f"{host}:{port}"


def _commit(client: Client, url: str, repository: Repository) -> tuple[str, str]:
    """The commit that a revision stands for now, and why not everybody may read it."""
    found = _json(client.document(url)[0], url)
    commit = found.get("sha") if isinstance(found, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise error("QB063", shown(url), (f"it gives no commit for {repository.revision}",))
    return commit, "gated" if found.get("gated") else "private" if found.get("private") else ""


def _tree(client: Client, url: str) -> Iterator[tuple[str, Entry]]:
    """(name, entry) of every file of a commit, page by page."""
    count, pages = 0, {url}
    while url:
        data, answer = client.document(url)
        page = _json(data, url)
        if not isinstance(page, list):
            raise error("QB063", shown(url), ("it is no list of files",))
        files = [each for each in page if isinstance(each, dict) and each.get("type") == "file"]
        entries = [_entry(each, url) for each in files]
        check_names((name for name, _ in entries), url)
        yield from entries
        count += len(page)
        more = _NEXT.search(answer.headers.get("link", ""))
        there = joined(url, more[1]) if more else ""
        if there and (origin(there) != origin(url) or there in pages or count > FILES):
            fact = f"it lists more than {FILES} files, or goes on elsewhere"
            raise error("QB063", shown(url), (fact,))
        pages.add(url := there)


def _entry(file: Mapping[str, Any], url: str) -> tuple[str, Entry]:
    """A file of a tree: of Git LFS the sha256, of git the digest of its blob."""
    large = file.get("lfs") or file
    name, size, etag = file.get("path"), large.get("size"), large.get("oid")
    if not isinstance(name, str) or type(size) is not int or size < 0 or not isinstance(etag, str):
        raise error("QB063", shown(url), (f"an entry is no file: {str(file)[:80]}",))
    return name, Entry(size, etag)


def _json(data: bytes, url: str) -> Any:
    try:
        return parse_json(data)
    except ValueError as fault:
        raise error("QB063", shown(url), (f"it is no JSON: {str(fault)[:80]}",)) from None


def _locked(url: str, fault: Locked) -> QBridgeError:
    """A gated repository, or a token that may not see it."""
    said = {401: "the Hub wants a token, or there is no such repository", 403: "the token has no access to it"}
    return error("QB062", url, (said.get(fault.status, f"HTTP {fault.status}"),), fix=_LICENCE)


def _cached(url: str, repository: Repository, hub: Any) -> Storage:
    """What the cache of huggingface_hub holds, in offline mode."""
    try:
        folder = hub.snapshot_download(repository.name, revision=repository.revision, local_files_only=True)
    except (OSError, ValueError):
        fact = "offline mode (HF_HUB_OFFLINE) is on, and the cache does not hold it"
        ways = (Way(command=f"hf download {repository.name}", note="with offline mode off"),)
        raise error("QB062", url, (fact,), ways, "Unset HF_HUB_OFFLINE, or download it first.") from None
    LOG.info("offline: reading %s", folder)
    return Folder(Path(folder))
