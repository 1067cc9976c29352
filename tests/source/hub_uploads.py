"""What the Hub answers to who writes: names of tokens, repositories, Git LFS, commits, pull requests.

As huggingface_hub 2.4.0 asks (hf_api.py, lfs.py, _commit_api.py). A commit is applied to a copy of the folder, which
then takes its place; a pull request is the folder NAME@refs-pr-N.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import time
from urllib.parse import parse_qs, unquote, urlsplit

CHUNK = 400_000  # bytes of a part of an upload; files of fewer are sent in one
LARGE = 1 << 16


class Uploads:
    """Handler methods for POST and PUT, beside those of `Handler`."""

    def do_POST(self):
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with hub.lock:
            hub.requests.append((self.path, None, self.headers.get("Authorization")))
        parts = urlsplit(self.path)
        for pattern, answer in (
            (r"/api/repos/create", self.create),
            (r"/api/validate-yaml", lambda body: self.json({})),
            (r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", self.branch),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self.modes),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            (r"/lfs/complete/([0-9a-f]{64})", self.complete),
            (r"/lfs/verify", self.verify),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self.commit),
        ):
            if match := re.fullmatch(pattern, parts.path):
                signed = parts.path.startswith("/lfs/complete")
                if not signed and self.headers.get("Authorization") != f"Bearer {hub.token}":
                    return self.json({"error": "Invalid username or password."}, 401)
                if hub.faults.strikes("upload"):
                    return self.reply(503)
                return answer(*map(unquote, match.groups()), body)
        return self.reply(404)

    def do_PUT(self):
        hub = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers.get("Authorization") is None  # a signed address is another host's
        if hub.faults.strikes("put"):
            return self.reply(503)
        oid, number = re.fullmatch(r"/lfs/put/([0-9a-f]{64})/(\d+)", urlsplit(self.path).path).groups()
        hub.pieces[oid, int(number)] = body
        if number == "0":
            self.keep(oid, body)
        self.reply(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def json(self, value, status=200):
        self.reply(status, json.dumps(value).encode(), Content_Type="application/json")

    def whoami(self):
        hub = self.server
        if hub.token is None or self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.json({"error": "Invalid username or password."}, 401)
        return self.json(hub.person)

    def info(self, name, revision="main"):
        folder = self.folder(name, revision)
        if folder is None or self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.reply(404, b"{}", X_Error_Code="RepoNotFound")
        siblings = [
            {"rfilename": each.relative_to(folder).as_posix()} for each in folder.rglob("*") if each.is_file()
        ]
        private = name in self.server.private
        self.json({"id": name, "sha": self.server.commit_of(folder), "private": private, "siblings": siblings})

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if self.folder(name, "main"):
            return self.json({"error": "there is one"}, 409)
        (self.server.root / name).mkdir(parents=True)
        (self.server.root / name / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        if asked.get("visibility") == "private":
            self.server.private.add(name)
        self.json({"url": f"{self.server.url}/{name}"})

    def branch(self, name, branch, body):
        if self.folder(name, branch):
            return self.json({"error": "there is one"}, 409)
        shutil.copytree(self.folder(name, "main"), self.server.root / f"{name}@{branch}")
        self.json({})

    def modes(self, name, revision, body):
        files = json.loads(body)["files"]
        large = {each["path"]: each["size"] > LARGE or each["path"].endswith(".safetensors") for each in files}
        modes = [
            {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            for path, lfs in large.items()
        ]
        self.json({"files": modes})

    def batch(self, name, body):
        hub, objects = self.server, []
        for each in json.loads(body)["objects"]:
            oid, size = each["oid"], each["size"]
            if oid in hub.objects:
                objects.append({"oid": oid, "size": size})
                continue
            upload = {"href": f"{hub.url}/lfs/put/{oid}/0", "header": {}}
            if size > CHUNK:
                count = -(-size // CHUNK)
                parts = {f"{i:05}": f"{hub.url}/lfs/put/{oid}/{i}" for i in range(1, count + 1)}
                upload = {"href": f"{hub.url}/lfs/complete/{oid}", "header": {"chunk_size": str(CHUNK), **parts}}
            verify = {"href": f"{hub.url}/lfs/verify"}
            objects.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        self.json({"transfer": "basic", "objects": objects})

    def complete(self, oid, body):
        parts = json.loads(body)["parts"]
        data = b"".join(self.server.pieces[oid, each["partNumber"]] for each in parts)
        self.keep(oid, data)
        self.json({})

    def keep(self, oid, data):
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.objects[oid] = data
        self.server.uploaded += len(data)

    def verify(self, body):
        asked = json.loads(body)
        there = self.server.objects.get(asked["oid"])
        self.json({}, 200 if there is not None and len(there) == asked["size"] else 404)

    def commit(self, name, revision, body):
        hub, folder = self.server, self.folder(name, revision)
        header, *lines = [json.loads(line) for line in body.splitlines()]
        parent = header["value"].get("parentCommit")
        request = "create_pr" in parse_qs(urlsplit(self.path).query)
        if parent not in (None, hub.commit_of(folder)):
            return self.json({"error": "somebody was faster"}, 412)
        if request:
            hub.requested += 1
            there = folder.with_name(f"{folder.name}@refs-pr-{hub.requested}")
        else:
            there = folder
        new = folder.with_name(f"{folder.name}.new")
        shutil.copytree(folder, new)
        for line in lines:
            value = line["value"]
            path = new / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                path.write_bytes(hub.objects[value["oid"]])
            else:
                path.unlink()
        shutil.rmtree(there, ignore_errors=True)
        new.rename(there)
        time.sleep(0.01)
        hub.committed.append((name, there.name, [line["value"]["path"] for line in lines]))
        url = f"{hub.url}/{name}/discussions/{hub.requested}"
        done = {"commitUrl": f"{hub.url}/{name}/commit/x", "commitOid": hub.commit_of(there), "pullRequestUrl": url}
        self.json(done)
