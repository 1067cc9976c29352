"""Checkpoints of a Hub and of web servers, from a server on the loopback: answers and bytes are those of a folder.

A seeded sample of the fixtures; with HUB=all, each of them.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
from hub_server import Faults
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.source import patience, remote, spool, web
from qbridge.source.addresses import is_bare_name, local_name
from qbridge.source.hub import HubStorage, Repository
from qbridge.source.opening import storage_of
from qbridge.source.remote import Entry
from qbridge.source.storage import Range
from qbridge.source.web import Answer, Client, Locked, shown
from qbridge.testing import FILES, check_storage
from support import ROOT, copy_fixture

EVERY = sorted(path.parent for path in ROOT.glob("fixtures/*/*/model"))
SAMPLE = EVERY if os.environ.get("HUB") == "all" else random.Random(20).sample(EVERY, 5)
TOKEN = "hf_" + "Secret" * 5
CASE = ROOT / "fixtures/gptq/llama_g128/model"


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answers(path):
    """What check and inspect say, without what differs by the place."""
    found = [qbridge.check(path, "vllm", tp=2).as_dict(), qbridge.inspect(path).as_dict()]
    for each in found:
        for key in ("source", "path", "seconds", "serve"):
            each.pop(key, None)
        where = [[place.replace(str(path), "SRC") for place in finding["where"]] for finding in each["findings"]]
        each["findings"] = list(zip((finding["code"] for finding in each["findings"]), where, strict=True))
    return found


def refused(path, code, **options):
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.inspect(path, **options)
    assert [finding.code for finding in caught.value.findings] == [code], caught.value
    return caught.value


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: "/".join(case.parts[-2:]))
def test_a_fixture_is_answered_and_converted_as_from_a_folder(hub, case, tmp_path, dst):
    hub(case / "model")
    try:
        expected = answers(case / "model")
        qbridge.convert(case / "model", tmp_path / "local", "dense")
    except qbridge.QBridgeError as fault:
        with pytest.raises(qbridge.QBridgeError) as caught:
            answers("fx/model")
            qbridge.convert("fx/model", dst, "dense")
        assert [f.code for f in caught.value.findings] == [f.code for f in fault.findings]
        return
    assert answers("fx/model") == expected
    qbridge.convert("hf://fx/model@main", dst, "dense")
    assert files_below(dst) == files_below(tmp_path / "local")


@pytest.mark.parametrize("kind", ["429", "503", "cut", "expired"])
def test_faults_that_pass_change_no_byte(hub, kind, tmp_path):
    served = hub(faults=Faults({kind: 0.3}, seed=7, most=12))
    qbridge.convert(CASE, tmp_path / "local", "compressed-tensors")
    qbridge.convert("fx/model", tmp_path / "far", "compressed-tensors")
    assert served.faults.fired[kind]
    assert files_below(tmp_path / "far") == files_below(tmp_path / "local")


def test_bytes_that_are_not_of_their_digest_are_refused(hub, dst, monkeypatch):
    served = hub()

    def changed(self, name, commit, file):
        path = self.folder(name, commit) / file
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        other, begun = served.root / "changed", served.root / f"changed-{threading.get_ident()}"
        begun.write_bytes(data)
        begun.replace(other)  # ranges are answered side by side, each from a whole file
        return self.bytes_of(other, "same")

    qbridge.convert("fx/model", dst, "vllm")
    monkeypatch.setattr(served.RequestHandlerClass, "signed", changed)
    with pytest.raises(qbridge.QBridgeError, match="sha256"):
        qbridge.convert("fx/model", dst.with_name("other"), "vllm")
    assert not dst.with_name("other").exists()


@pytest.mark.parametrize("kind", ["size", "etag"])
def test_an_answer_that_is_not_of_the_listed_file_is_refused(hub, kind, dst):
    served = hub(faults=Faults({kind: 1.0}))
    with pytest.raises(qbridge.QBridgeError, match="QB063"):
        qbridge.convert("fx/model", dst, "compressed-tensors")
    assert served.faults.fired[kind] and not dst.exists()


def test_faults_of_every_kind_give_the_same_bytes_or_nothing(hub, tmp_path):
    qbridge.convert(CASE, tmp_path / "local", "compressed-tensors")
    expected, fired, whole = files_below(tmp_path / "local"), 0, 0
    served = hub()
    for seed in range(int(os.environ.get("HUB_RUNS", "6"))):
        rates = {"429": 0.05, "503": 0.05, "cut": 0.1, "expired": 0.05, "etag": 0.02}
        served.faults, out = Faults(rates, seed), tmp_path / f"out{seed}"
        try:
            qbridge.convert("fx/model", out, "compressed-tensors")
        except qbridge.QBridgeError as fault:
            assert {finding.code for finding in fault.findings} <= {"QB063", "QB404"}
            assert not out.exists()
        else:
            assert files_below(out) == expected
            whole += 1
        fired += sum(served.faults.fired.values())
    assert fired and whole


def test_a_server_that_never_answers_is_given_up(hub):
    hub(faults=Faults({"503": 1.0}, most=10**6))
    assert refused("fx/model", "QB404").exit_code == 4


def test_a_server_that_asks_to_come_back_tomorrow_is_given_up():
    waiting = patience.Patience("model")
    with pytest.raises(qbridge.QBridgeError, match="QB404"):
        waiting.asked_to_wait("86400")
    waiting.asked_to_wait("Wed, 21 Oct 2015 07:28:00 GMT")  # is over: no wait


def test_every_storage_law_holds(hub, tmp_path):
    root = hub(None)
    for name, data in FILES.items():
        (root.root / "fx/model" / name).parent.mkdir(parents=True, exist_ok=True)
        (root.root / "fx/model" / name).write_bytes(data)
    (root.root / "fx/model/config.json").write_text("{}")
    storage = storage_of("fx/model")
    check_storage(storage, {**FILES, "config.json": b"{}"})
    storage.spool(tmp_path, 1 << 20, 2)
    check_storage(storage, {**FILES, "config.json": b"{}"})


def test_a_revision_is_pinned_to_its_commit(hub, dst):
    served = hub()
    old = served.root / "fx" / "model@old"
    shutil.copytree(CASE, old)
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "pad_token_id": 7}))
    qbridge.convert("fx/model@old", dst, "compressed-tensors")
    assert json.loads((dst / "config.json").read_text())["pad_token_id"] == 7
    asked = {path.split("/")[4] for path, *_ in served.requests if "/resolve/" in path}
    assert len(asked) == 1 and len(asked.pop()) == 40
    assert "revision absent" in str(refused("fx/model@absent", "QB062"))


def test_each_shard_is_asked_for_once_to_check_it(hub):
    served = hub(ROOT / "fixtures/compressed_tensors/llama_w8a8/model")
    qbridge.check("fx/model", "vllm")
    asked = [path for path, *_ in served.requests if path.endswith(".safetensors") and "/resolve/" in path]
    assert len(asked) <= 2  # the header's first bytes, and the rest of one that is longer


def test_how_much_is_read_is_said_before(hub, caplog, tmp_path):
    served = hub()
    caplog.set_level(logging.INFO, "qbridge.source.web")
    qbridge.check("fx/model", "vllm")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"asking 127.0.0.1:{served.server_address[1]} for fx/model"
    assert any(line.startswith("reading headers: ") for line in lines)
    assert any(line.startswith("reading qzeros: ") for line in lines)
    caplog.clear()
    qbridge.convert("fx/model", tmp_path / "dst", "compressed-tensors")
    assert caplog.records[-1].getMessage().startswith("reading weights: ")


@pytest.mark.parametrize("far", [False, True])
def test_without_values_headers_are_all_that_is_read(hub, far):
    served = hub()
    with pytest.raises(qbridge.QBridgeError) as caught:  # zero-points tell the format
        qbridge.check("fx/model" if far else CASE, "vllm", values=False)
    assert [finding.code for finding in caught.value.findings] == ["QB064"] and caught.value.exit_code == 1
    ranges = [each for path, each, _ in served.requests if "/cdn/" in path]
    assert all(each.startswith("bytes=0-") for each in ranges) and bool(ranges) is far
    plain = ROOT / "fixtures/compressed_tensors/llama_w8a8/model"
    done = qbridge.check(plain, "lmdeploy", tp=[1, 2], values=False)  # scales must fit float32
    assert not done.ok and done.needs_values
    assert {finding.code for finding in done.findings} >= {"QB064"}


def test_no_conversion_is_planned_of_layers_without_scales(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    path, prefix = src / "model.safetensors", "model.layers.0.mlp.experts.3.up_proj.g_idx."
    tensors = load_file(path)
    for name in [name for name in tensors if not name.endswith("weight_scale_inv")]:
        tensors[prefix + name.removeprefix("model.")] = tensors.pop(name)
    save_file(tensors, path, {"format": "pt"})
    done = qbridge.check(src, "lmdeploy", values=False)
    assert {"QB015", "QB018"} <= {finding.code for finding in done.findings} and not done.ok


def test_no_token_is_in_what_is_written_or_said(hub, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    served = hub(token=TOKEN)
    assert TOKEN not in str(refused("fx/model", "QB062"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    report = qbridge.convert("fx/model", tmp_path / "out", "compressed-tensors")
    assert any(authorization for *_, authorization in served.requests)
    written = b"".join(files_below(tmp_path / "out").values())
    told = written.decode("latin-1") + caplog.text + json.dumps(report.as_dict()) + repr(report)
    told += pickle.dumps(storage_of("fx/model")).decode("latin-1")
    assert TOKEN not in told and "Signature" not in told


def test_gated_repositories_and_absent_ones_are_named(hub):
    hub(gated=["fx/model"])
    assert "no access" in str(refused("fx/model", "QB062"))
    assert "knows no such repository" in str(refused("hf://fx/absent", "QB062"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../b", "a\\b", "a//b", "a\nb"])
def test_a_listing_with_a_name_that_leads_out_is_refused(hub, name):
    hub().tree_names = ["config.json", name]
    refused("fx/model", "QB063")


@pytest.mark.parametrize("address", ["reference://x", "file:///etc", "ssh://h/m", "hf://org", "https://u:p@h/m"])
def test_an_address_of_another_kind_is_refused_without_a_request(address):
    fault = refused(address, "QB061")
    assert fault.exit_code == 2 and "u:p" not in str(fault)


def test_what_a_bucket_needs_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "qbridge-llm[s3]" in refused("s3://bucket/model", "QB062").findings[0].fix
    assert "adlfs" in refused("az://bucket/model", "QB062").findings[0].fix


@pytest.mark.parametrize("address", ["zip://a::hf://b/c", "simplecache::hf://b/c", "http://example.org/model"])
def test_chains_and_open_http_are_refused(address):
    refused(address, "QB061")


def test_a_bare_name_is_a_path_where_its_first_part_lies_here(hub, tmp_path):
    hub()
    assert is_bare_name("fx/model")
    (tmp_path / "fx").mkdir()
    assert not is_bare_name("fx/model")
    assert "hf://fx/model" in refused("fx/model", "QB001").findings[0].fix
    assert "hf://other/model.gguf" in refused("other/model.gguf", "QB001").findings[0].fix
    assert Repository.of("hf://a/b@c/d") == Repository("a/b", "c/d") and Repository.of("a/..") is None
    assert local_name("hf://a/b@c/d") == "b" and local_name("./a/b") == "./a/b"


class Elsewhere(Client):
    """A client that may only be asked whether an address is allowed."""

    def allows(self, url):
        try:
            self._check_allowed(url)
        except qbridge.QBridgeError:
            return False
        return True


def test_redirects_lead_to_public_https_alone_and_take_no_token():
    client = Elsewhere("https://hub.example.org", lambda: TOKEN)
    assert client.allows("https://cdn.example.org/x") and not client.allows("http://cdn.example.org/x")
    for host in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[fe80::1]", "192.168.1.1"):
        assert not client.allows(f"https://{host}/latest/meta-data")
    assert Elsewhere("https://10.0.0.1:8443").allows("https://10.0.0.1:8443/x")  # named by a person
    assert not client.allows("https://user@cdn.example.org/x") and not client.allows("file:///etc/passwd")
    assert client._authorization("https://hub.example.org/a") == {"Authorization": f"Bearer {TOKEN}"}
    assert client._authorization("https://cdn.example.org/a") == {}
    assert client._authorization("https://hub.example.org:444/a") == {}
    assert shown("https://u:p@h/a?Signature=1#x") == "https://h/a"


def test_an_answer_that_leads_to_no_address_is_refused():
    with pytest.raises(qbridge.QBridgeError, match="no address"):
        web.joined("https://hub.example.org/a", "https://[cdn/x?Signature=1")


def test_a_name_that_resolves_to_a_private_address_is_not_connected_to(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kinds: found)
    with pytest.raises(qbridge.QBridgeError, match="private address"):
        web._connect_outside(("cdn.example.org", 443), 1.0)


def test_offline_mode_reads_the_cache_or_says_so(hub, monkeypatch, tmp_path):
    hub()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "offline" in str(refused("fx/model", "QB062"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(CASE))
    assert qbridge.inspect("fx/model").format == "gptq"


@pytest.mark.parametrize("index", [False, True])
def test_a_folder_of_a_web_server(hub, index, tmp_path):
    served = hub(index=index)
    url = f"{served.url}/files/fx/model"
    assert answers(url) == answers(CASE)
    qbridge.convert(CASE, tmp_path / "local", "compressed-tensors")
    qbridge.convert(f"{url}/", tmp_path / "far", "compressed-tensors")
    assert files_below(tmp_path / "far").items() <= files_below(tmp_path / "local").items()
    again = pickle.loads(pickle.dumps(storage_of(url)))
    weights = served.root / "fx/model/model.safetensors"
    os.utime(weights, ns=(1, 1))  # another etag
    with closing(again), pytest.raises(qbridge.QBridgeError, match="QB063"):
        again.read_into("model.safetensors", 0, np.empty(8, np.uint8))


@pytest.mark.parametrize(
    ("address", "code"), [("hf://fx/out", "QB068"), ("s3://bucket/out", "QB068"), ("https://host/out", "QB061")]
)
def test_no_folder_is_called_as_an_address(address, code, hub, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(qbridge.QBridgeError, match=code):
        qbridge.convert(CASE, address, "compressed-tensors")
    with pytest.raises(qbridge.QBridgeError, match="QB031"):
        qbridge.convert(CASE, Path(address), "compressed-tensors")
    assert not list(tmp_path.glob("*:*"))


def test_the_same_command_again_finds_that_all_is_done(hub, dst):
    hub()
    assert not qbridge.convert("fx/model", dst, "compressed-tensors").already_done
    assert qbridge.convert("fx/model", dst, "compressed-tensors").already_done
    assert qbridge.verify("hf://fx/model", dst).same


def test_near_ranges_are_one_request():
    ranges = [Range("a", 0, 10), Range("a", 500, 600), Range("a", 10**9, 10**9 + 1), Range("b", 3, 4)]
    assert list(remote.merged(ranges)) == [Range("a", 0, 600), Range("a", 10**9, 10**9 + 1), Range("b", 3, 4)]


def test_what_was_read_is_given_up_before_what_was_fetched_ahead():
    held = remote.Held(30)
    first, second, third = (Range("a", begin, begin + 10) for begin in (0, 20, 40))
    for each in (first, second, third):
        held.add(each, np.full(10, each.begin, np.uint8))
    assert held.copy("a", 20, np.empty(5, np.uint8))  # half of it: the rest is still to be read
    assert held.copy("a", 40, np.empty(10, np.uint8))
    held.add(Range("b", 0, 10), np.zeros(10, np.uint8))
    assert held.has(first) and held.has(second) and not held.has(third)


def test_held_ranges_are_given_up_when_there_are_too_many():
    held = remote.Held(100)
    for number in range(5):
        held.add(Range("a", number * 50, number * 50 + 50), np.full(50, number, np.uint8))
    buffer = np.empty(10, np.uint8)
    assert not held.copy("a", 0, buffer) and held.copy("a", 210, buffer) and set(buffer) == {4}


def test_the_spool_fetches_once_leaves_no_name_and_forgets_old_files(tmp_path):
    asked = []

    def fetch(name, begin, buffer):
        asked.append((name, begin))
        buffer[:] = np.arange(begin, begin + buffer.nbytes) % 251

    files = {f"f{number}": 3 * spool.BLOCK + 5 for number in range(5)}
    pool, part = spool.Spool(files, fetch, tmp_path, 1, 3), np.empty(100, np.uint8)
    for name in files:
        for offset in (0, spool.BLOCK - 50, 3 * spool.BLOCK - 95):
            pool.read_into(name, offset, part)
            assert np.array_equal(part, np.arange(offset, offset + 100) % 251)
    assert len(asked) == len(set(asked)) and not list(tmp_path.iterdir())
    assert len(pool._files) <= 3
    pool.close()


def test_a_range_that_is_locked_twice_is_an_error(hub):
    served = hub()
    storage = storage_of("fx/model")
    storage.read_into("model.safetensors", 0, np.empty(8, np.uint8))
    served.gated = frozenset({"fx/model"})
    served.generation += 1
    with closing(storage), pytest.raises(qbridge.QBridgeError, match="QB062"):
        storage.read_into("model.safetensors", 0, np.empty(8, np.uint8))
    assert str(Locked(403, "https://h/?Signature=1")) == "HTTP 403"


def test_a_local_run_imports_nothing_that_asks_servers():
    code = f"""
import sys, qbridge
qbridge.check({str(CASE)!r}, "vllm"); qbridge.inspect({str(CASE)!r})
print(*sorted({{"http.client", "ssl", "huggingface_hub", "requests", "httpx"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], done.stdout


def test_readmes_second_example(hub, monkeypatch):
    served = hub(None)
    name = "Qwen/Qwen2-72B-Instruct-GPTQ-Int4"
    shutil.copytree(CASE, served.root / name)
    line = f"qbridge check {name} --for vllm --tp 2,4,8"
    assert line in (ROOT / "README.md").read_text()
    done = subprocess.run(
        [sys.executable, "-m", *line.split()],
        env={**os.environ, "HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
    )
    assert f"for {name}\nreading headers: " in done.stderr
    assert "2   yes" in done.stdout and done.returncode in (0, 1), done.stderr


@pytest.mark.parametrize(
    ("header", "value"), [("x-linked-size", "6"), ("x-repo-commit", "f" * 40), ("x-linked-etag", '"another"')]
)
def test_what_a_hub_tells_of_a_file_is_held_against_its_listing(header, value):
    told = {"x-linked-size": "5", "x-repo-commit": "0" * 40, "x-linked-etag": '"e"'}
    storage = HubStorage("hf://a/b", "https://hub.example", "a/b", "0" * 40, {"x": Entry(5, "e")})
    storage._check("x", Answer("https://cdn.example", "", told))
    with pytest.raises(qbridge.QBridgeError, match="QB063"):
        storage._check("x", Answer("https://cdn.example", "", {**told, header: value}))


def test_a_weak_etag_is_the_same_content():
    told = {"x-linked-etag": 'W/"e"', "x-linked-size": "5"}
    storage = HubStorage("hf://a/b", "https://hub.example", "a/b", "0" * 40, {"x": Entry(5, "e")})
    storage._check("x", Answer("https://cdn.example", "", told))
    with pytest.raises(qbridge.QBridgeError, match="QB063"):
        storage._check("x", Answer("https://cdn.example", "", {**told, "x-linked-etag": 'W/"f"'}))
