"""A server that answers as the Hugging Face Hub does, on the loopback, with faults that can be switched on.

Repositories are folders ROOT/org/name; `main` is the folder as it is, other revisions are ROOT/org/name@revision.
Large files and safetensors are Git LFS's: resolve tells size and sha256, and redirects to a signed address that
expires. What huggingface_hub 2.4.0 asks for is answered: the commit of a revision, the tree of a commit (in pages),
resolve. Plain folders are below /files/. As a program: hub_server.py ROOT [--delay SECONDS]; it prints its address.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_uploads import Uploads

LARGE = 1 << 16
PAGE = 500  # entries of a page of a tree
# What may go wrong with a request for bytes; `fired` counts what did.
FAULTS = ("429", "503", "cut", "expired", "size", "etag", "stall", "upload", "put")


@dataclass
class Faults:
    """Which faults strike, each with a probability, by a seed; those of one request strike once."""

    rates: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    most: int = 1000
    fired: Counter[str] = field(default_factory=Counter)

    def __post_init__(self):
        self._random, self._lock = random.Random(self.seed), threading.Lock()

    def strikes(self, kind):
        with self._lock:
            if sum(self.fired.values()) >= self.most or self._random.random() >= self.rates.get(kind, 0):
                return False
            self.fired[kind] += 1
            return True


class Hub(ThreadingHTTPServer):
    """The server; `requests` are (path, range, authorization) of each request, `sent` the bytes of files."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root, delay=0.0, faults=None, token=None, gated=(), index=False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.delay, self.faults = Path(root), delay, faults or Faults()
        self.token, self.gated, self.index = token, frozenset(gated), index
        self.requests, self.sent, self.lock = [], 0, threading.Lock()
        self.generation = 0  # of signed addresses: those of an older one are expired
        self.person = {"name": "fx", "auth": {"accessToken": {"role": "write"}}, "orgs": []}
        self.guarded = set()  # gated repositories that the token may read
        self.private, self.objects, self.pieces, self.committed = set(), {}, {}, []  # what was uploaded
        self.uploaded = self.requested = 0  # bytes; pull requests
        self.commits = {}  # of folders that have another commit than their own: what `main` was before
        self.tree_names = None  # what a listing says in place of the names that are there

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.shutdown()
        self.server_close()

    def commit_of(self, folder):
        """The commit of a folder: of its path, and of what it holds."""
        known = self.commits.get(folder)
        return known or hashlib.sha1(f"{folder} {files_of(folder)}".encode()).hexdigest()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def files_of(folder):
    """`_files` of a folder as it is now."""
    return _files(folder, folder.stat().st_mtime_ns)


@cache
def _files(folder, time_of_change):
    """(name, size, is of Git LFS, digest) of each file; digests of sparse giants are of their names and sizes."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name, size = path.relative_to(folder).as_posix(), path.stat().st_size
            large = size >= LARGE or name.endswith(".safetensors")
            known = f"{name} {size}".encode() if size > 1 << 28 else path.read_bytes()
            digest = hashlib.sha256(known).hexdigest() if large else hashlib.sha1(known).hexdigest()
            found.append((name, size, large, digest))
    return found


class Handler(Uploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, *args):
        pass

    def do_GET(self):
        hub = self.server
        with hub.lock:
            hub.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if hub.delay:
            time.sleep(hub.delay)
        assert self.headers.get("Accept-Encoding") in ("identity", None) or self.path.startswith("/api")
        parts = urlsplit(self.path)
        for pattern, answer in (
            (r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", self.revision),
            (r"/api/whoami-v2", self.whoami),
            (r"/api/models/([^/]+/[^/]+)", self.info),
            (r"/api/models/([^/]+/[^/]+)/tree/([0-9a-f]{40}|main)", self.tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
            (r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", self.signed),
            (r"/files/(.*)", self.plain),
        ):
            if match := re.fullmatch(pattern, parts.path):
                return answer(*map(unquote, match.groups()))
        return self.reply(404)

    def reply(self, status, data=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def folder(self, name, revision):
        """The folder of a repository at a revision or commit, None where there is none."""
        for path in (self.server.root / name, *self.server.root.glob(f"{name}@*")):
            branch = path.name.partition("@")[2] or "main"
            if path.is_dir() and revision in (branch, self.server.commit_of(path)):
                return path
        return None

    def is_locked(self, name):
        """Whether the caller has no right; then that is the answer."""
        hub = self.server
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.reply(401, b'{"error":"Invalid username or password."}', X_Error_Message="Repository Not Found")
            return True
        if name in hub.gated:
            self.reply(403, b"{}", X_Error_Code="GatedRepo")
            return True
        return False

    def revision(self, name, revision):
        if self.is_locked(name):
            return
        folder = self.folder(name, revision)
        if folder is None:
            return self.reply(404, b"{}", X_Error_Code="RepoNotFound")
        names = [{"rfilename": each[0]} for each in files_of(folder)]
        found = {"id": name, "sha": self.server.commit_of(folder), "siblings": names}
        found |= {"private": name in self.server.private, "gated": "auto" if name in self.server.guarded else False}
        self.reply(200, json.dumps(found).encode(), Content_Type="application/json")

    def tree(self, name, commit):
        if self.is_locked(name):
            return
        folder, hub = self.folder(name, commit), self.server
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        every = files_of(folder)
        entries = []
        for file, size, large, digest in every[start : start + PAGE]:
            if "size" in hub.faults.rates and hub.faults.strikes("size"):
                size += 1
            entry = {"type": "file", "path": file, "size": size, "oid": digest}
            if large:
                entry |= {"oid": "0" * 40, "lfs": {"oid": digest, "size": size, "pointerSize": 130}}
            entries.append(entry)
        if hub.tree_names is not None:
            entries = [{"type": "file", "path": file, "size": 1, "oid": "0"} for file in hub.tree_names]
        more = {}
        if start + PAGE < len(every):
            there = f"{hub.url}/api/models/{name}/tree/{commit}?recursive=true&cursor={start + PAGE}"
            more = {"Link": f'<{there}>; rel="next"'}
        self.reply(200, json.dumps(entries).encode(), Content_Type="application/json", **more)

    def resolve(self, name, revision, file):
        if self.is_locked(name):
            return
        folder, hub = self.folder(name, revision), self.server
        known = {each[0]: each for each in files_of(folder)} if folder else {}
        if file not in known:
            return self.reply(404, X_Error_Code="EntryNotFound")
        _, size, large, digest = known[file]
        if hub.faults.strikes("etag"):
            digest = digest[::-1]
        if not large:
            return self.bytes_of(folder / file, digest, X_Repo_Commit=hub.commit_of(folder))
        there = f"/cdn/{name}/{hub.commit_of(folder)}/{quote(file)}?Signature={hub.generation}"
        self.reply(
            302,
            Location=there,
            X_Repo_Commit=hub.commit_of(folder),
            X_Linked_Size=size,
            X_Linked_ETag=f'"{digest}"',
            ETag=f'"{digest}"',
        )

    def signed(self, name, commit, file):
        hub, query = self.server, parse_qs(urlsplit(self.path).query)
        if hub.faults.strikes("expired"):
            hub.generation += 1
        if query.get("Signature") != [str(hub.generation)]:
            return self.reply(403, b"<Error><Code>AccessDenied</Code></Error>")
        self.bytes_of(self.folder(name, commit) / file, hashlib.md5(file.encode()).hexdigest())

    def plain(self, name):
        path = self.server.root / name
        if path.is_dir() and self.server.index:
            links = "".join(f'<a href="{quote(each.name)}">{each.name}</a>' for each in sorted(path.iterdir()))
            return self.reply(200, f"<html>{links}</html>".encode(), Content_Type="text/html")
        if not path.is_file():
            return self.reply(404)
        self.bytes_of(path, f"{path.stat().st_mtime_ns}-{path.stat().st_size}")

    def bytes_of(self, path, etag, **headers):
        """A range of a file, or what a fault makes of it."""
        hub, size = self.server, path.stat().st_size
        if hub.faults.strikes("429"):
            return self.reply(429, Retry_After=0)
        if hub.faults.strikes("503"):
            return self.reply(503, b"later")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        begin, end = (int(match[1]), min(int(match[2]) + 1, size)) if match else (0, size)
        if begin >= size and size:
            return self.reply(416, Content_Range=f"bytes */{size}")
        self.send_response(206 if match else 200)
        for name, value in {**headers, "ETag": f'"{etag}"', "Content-Length": end - begin}.items():
            self.send_header(name.replace("_", "-"), str(value))
        if match:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.end_headers()
        cut = end - begin > 1 and hub.faults.strikes("cut")
        end = begin + (end - begin) // 2 if cut else end
        with open(path, "rb") as stream:
            self.wfile.flush()
            sent = begin
            while sent < end:
                sent += os.sendfile(self.connection.fileno(), stream.fileno(), sent, end - sent)
        with hub.lock:
            hub.sent += end - begin
        if cut:
            self.close_connection = True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    with Hub(arguments.root, arguments.delay) as hub:
        print(hub.url, flush=True)
        sys.stdin.read()  # until the one who started it goes
        print(len(hub.requests), hub.sent, flush=True)


if __name__ == "__main__":
    main()
