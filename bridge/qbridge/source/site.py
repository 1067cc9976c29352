"""A folder of a web server as a storage: what its page links to, or the files that checkpoints have.

A plain server tells sizes and etags with each answer; the first one is what all others are held against.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np

from qbridge.findings.finding import error
from qbridge.source.foreign import CONFIG
from qbridge.source.json_text import parse_json
from qbridge.source.remote import Entry, Remote, check_names, same_etag
from qbridge.source.web import LOG, Answer, Client, Locked, is_loopback, shown
from qbridge.source.weight_files import INDEX, SINGLE

# What lies beside the weights of a model; asked for by name where the server lists nothing.
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "recipe.yaml",
    "qbridge.json",
    "README.md",
    "LICENSE",
)
FILES = 10_000  # that a page may link to
_ASKED = 16  # files that are asked for at a time
_PAGE = 8 << 20  # bytes of a page


def open_site(url: str) -> SiteStorage:
    """A folder of a web server; QBridgeError: QB061 for an address that is not read, QB062 where it is locked."""
    parts = urlsplit(url)
    if parts.username is not None or parts.query or parts.fragment:
        raise error("QB061", shown(url), ("an address with a user, a query or a fragment is not taken",))
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise error("QB061", shown(url), ("http:// is not encrypted",), fix="Name it with https://.")
    LOG.info("asking %s", shown(url))
    base, client = url.rstrip("/") + "/", Client(url)
    try:
        names = _listed(client, base)
        if names is None:
            names = [CONFIG, *_weights(client, base), *BESIDE]
        check_names(names, base)
        with ThreadPoolExecutor(_ASKED, "qbridge-fetch") as asking:
            entries = dict(zip(names, asking.map(lambda name: _entry(client, base, name), names), strict=True))
    except Locked as fault:
        raise _locked(url, fault) from None
    finally:
        client.close()
    return SiteStorage(url.rstrip("/"), {name: entry for name, entry in entries.items() if entry is not None})


class SiteStorage(Remote):
    """The files of a folder of a web server."""

    def __init__(self, url: str, files: Mapping[str, Entry]) -> None:
        """`files` by name, as they were when they were listed."""
        super().__init__(url, url, Client(url), files)

    def __reduce__(self) -> tuple[Any, ...]:
        """The same files elsewhere."""
        return SiteStorage, (self._url, dict(self._files))

    def _address(self, name: str) -> str:
        return f"{self._url}/{quote(name)}"

    def _check(self, name: str, answer: Answer) -> None:
        if not same_etag(answer.etag, self._files[name].etag):
            fact = f"its etag was {self._files[name].etag[:80]}, and is {answer.etag[:80]} now"
            raise error("QB063", name, (fact,))

    def _locked(self, fault: Locked) -> Exception:
        return _locked(self._url, fault)


class _Links(HTMLParser):
    """The names that a page links to, decoded once, as far as they are below it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what an <a> links to: a plain name of a file in the same folder."""
        there = dict(attrs).get("href") if tag == "a" else None
        if there and not there.startswith(("/", "?", "#", ".")) and ":" not in there and not there.endswith("/"):
            self.names.append(unquote(urlsplit(there).path))


def _listed(client: Client, base: str) -> list[str] | None:
    """The names on the page of a folder; None where there is no page, or it names no config.json."""
    try:
        data, answer = client.document(base, _PAGE)
    except (FileNotFoundError, Locked):
        return None
    if "html" not in answer.headers.get("content-type", ""):
        return None
    links = _Links()
    links.feed(data.decode("utf-8", "replace"))
    names = list(dict.fromkeys(links.names))
    if len(names) > FILES:
        raise error("QB063", shown(base), (f"it lists more than {FILES} files",))
    return names if CONFIG in names else None


def _weights(client: Client, base: str) -> Iterator[str]:
    """The index and its shards, and the single file."""
    yield SINGLE
    try:
        index = parse_json(client.document(base + INDEX)[0])
    except (FileNotFoundError, ValueError):
        return
    yield INDEX
    shards: Iterable[object] = index.get("weight_map", {}).values() if isinstance(index, dict) else ()
    yield from sorted({name for name in shards if isinstance(name, str)} - {SINGLE})


def _entry(client: Client, base: str, name: str) -> Entry | None:
    """Size and etag of a file by its first byte; None where it is not there."""
    try:
        answer, size = client.fill(base + quote(name), 0, np.empty(1, np.uint8), None)
    except FileNotFoundError:
        return None
    return Entry(size, answer.etag)


def _locked(url: str, fault: Locked) -> Exception:
    fix = "Download it with a tool that has the right to, then name the folder."
    return error("QB062", shown(url), (f"the server answers HTTP {fault.status}",), fix=fix)
