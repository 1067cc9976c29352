"""What the fuzzer lets a server answer: a Hub and a plain web server within the process; nothing leaves it.

An input is JSON: the files (`config`, and the `header` of one shard, whose data are zeros), what the Hub lists
(`revision`, `pages`, `link`; `html` of a plain server), and by kind of answer (`status`, `headers`) what it says in
place of the truth. A size of null in a listing is the true one.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import huggingface_hub
import huggingface_hub.constants

import qbridge
from fuzz.inputs import CONFIG, SHARD, compact, data_size, dump, outcome, relaid, say, short_header
from qbridge import render
from qbridge.source import patience, web
from support import ROOT

CASES = ("gptq/llama_g128", "compressed_tensors/llama_w8a8", "fp8/llama_blocks", "awq/llama_gemm")
SHA, ETAG = "0123456789abcdef0123456789abcdef01234567", '"abc"'
HUB, SITE = "hf://a/b", "https://files.example.org/m"
MOST_DATA = 1 << 22
NO_WAIT = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
COMMANDS: tuple[Callable[[str], None], ...] = (
    lambda url: say(qbridge.inspect(url), render.inspection),
    lambda url: say(qbridge.check(url, "vllm", 2), render.check),
    lambda url: say(qbridge.check(url, "lmdeploy", values=False), render.check),
    lambda url: say(qbridge.convert(url, "dst", "vllm", dry_run=True), render.report),
)


def run_hub(data: bytes, folder: Path) -> int:
    """The exit code of one command on what a server answers: 0, 1, 3 or 4, or whatever is wrong raises."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return 0
    said = said if isinstance(said, dict) else {}
    server = Server(said)
    command = said.get("command")
    ask = COMMANDS[command % len(COMMANDS) if type(command) is int else 0]
    with (
        mock.patch.object(web, "_connected", lambda place, anywhere: server),
        mock.patch.object(patience, "time", NO_WAIT),
        mock.patch.object(huggingface_hub, "get_token", lambda: None),
        mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", False),
        mock.patch.object(huggingface_hub.constants, "ENDPOINT", "https://huggingface.co"),
    ):
        return outcome(lambda: ask(SITE if said.get("site") is True else HUB), codes=(1, 3, 4))


class Server(HTTPConnection):
    """A connection whose answers are made where they are asked for; one for every place and thread."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        super().__init__("nowhere.example")
        self.said = said
        shard = dump(said.get("header"))
        data = bytes(min(data_size(shard), MOST_DATA))
        self.files = {CONFIG: dump(said.get("config")), SHARD: len(shard).to_bytes(8, "little") + shard + data}
        self.asked: dict[int, bytes] = {}

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **_: Any) -> None:
        """Make the answer."""
        kind, headers, body = self._answer(url, headers.get("Range", ""))
        status = self._of("status").get(kind, headers.pop(":status", 200))
        lines = {**headers, **_dict(self._of("headers").get(kind))}
        text = f"HTTP/1.1 {status} x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
        self._raw = text.encode("utf-8", "replace") + body

    def getresponse(self) -> HTTPResponse:
        """What was asked for last."""
        raw = self._raw
        response = HTTPResponse(SimpleNamespace(makefile=lambda mode: io.BytesIO(raw)))  # type: ignore[arg-type]
        response.begin()
        return response

    def close(self) -> None:
        """Nothing is open."""

    def _of(self, key: str) -> Mapping[str, Any]:
        return _dict(self.said.get(key))

    def _answer(self, url: str, wanted: str) -> tuple[str, dict[str, Any], bytes]:
        path = unquote(urlsplit(url).path)
        if "/revision/" in path:
            return "revision", *_whole(dump(self.said.get("revision")))
        if "/tree/" in path:
            headers, body = _whole(dump(self._page(url)))
            more = {"Link": self.said["link"]} if self.said.get("link") and "cursor" not in url else {}
            return "tree", {**headers, **more}, body
        name = path.rpartition("/")[2]
        if not name:
            headers, body = _whole(str(self.said.get("html")).encode("utf-8", "replace"))
            return "html", {**headers, "Content-Type": "text/html"}, body
        if name not in self.files:
            return "absent", {":status": 404, "Content-Length": 0}, b""
        size = len(self.files[name])
        if "/resolve/" in path and name == SHARD:
            told = {"X-Repo-Commit": SHA, "X-Linked-Size": size, "X-Linked-ETag": ETAG, "Content-Length": 0}
            return "resolve", {":status": 302, "Location": f"https://cdn.example.org/{name}?signed", **told}, b""
        return "bytes", *_stretch(self.files[name], wanted)

    def _page(self, url: str) -> Any:
        pages = self.said.get("pages")
        number = re.search(r"cursor=(\d{1,3})", url)
        page = pages[int(number[1]) if number else 0 :][:1] if isinstance(pages, list) else []
        return [self._true(entry) for entry in page[0]] if page and isinstance(page[0], list) else page

    def _true(self, entry: Any) -> Any:
        """An entry with the true size where it has none."""
        if isinstance(entry, dict) and entry.get("size", 0) is None and str(entry.get("path")) in self.files:
            return {**entry, "size": len(self.files[str(entry["path"])])}
        return entry


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(body: bytes) -> tuple[dict[str, Any], bytes]:
    return {"Content-Length": len(body)}, body


def _stretch(data: bytes, wanted: str) -> tuple[dict[str, Any], bytes]:
    """A range of a file, or all of it."""
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
    begin, end = (int(match[1]), int(match[2]) + 1) if match else (0, len(data))
    body = data[begin:end]
    headers = {"Content-Length": len(body), "ETag": ETAG, ":status": 206 if match else 200}
    return {**headers, **({"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"} if match else {})}, body


def hub_seeds() -> Iterator[bytes]:
    """Sound answers for a few fixtures, the first decoder layer alone, from a Hub and from a plain server."""
    for number, case in enumerate(CASES):
        model = ROOT / "fixtures" / case / "model"
        files = [{"type": "file", "path": name, "size": None, "oid": "abc"} for name in (CONFIG, SHARD)]
        said = {
            "command": number,
            "config": {**json.loads(compact(model / CONFIG)), "num_hidden_layers": 1},
            "header": relaid(short_header(model)),
            "revision": {"id": "a/b", "sha": SHA},
        }
        yield dump({**said, "pages": [files]})
        more = '<https://huggingface.co/api/models/a/b/tree/x?cursor=1>; rel="next"'
        yield dump({**said, "pages": [files[:1], files[1:]], "link": more})
        yield dump({**said, "site": True, "html": "".join(f'<a href="{name}">x</a>' for name in (CONFIG, SHARD))})
        yield dump({**said, "site": True, "status": {"html": 404}, "headers": {"bytes": {"ETag": 'W/"abc"'}}})
