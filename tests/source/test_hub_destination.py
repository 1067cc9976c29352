"""Repositories of the Hub as destinations: asked first, private, one commit, the bytes of a folder, no token told."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
from hub_server import Faults

import qbridge
from qbridge.write import local_spool
from support import ROOT, cli

CASE = ROOT / "fixtures/gptq/llama_g128/model"
# of huggingface_hub's own requests
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
TOKEN = "hf_" + "Secret" * 5


@pytest.fixture
def written(hub, monkeypatch):
    """A Hub to which a token may write; huggingface_hub sends by Git LFS."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: TOKEN)
    return lambda model=CASE, **options: hub(model, token=TOKEN, **options)


def files_below(folder):
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".gitattributes"}


def refused(code, *arguments, **options):
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.convert(*arguments, **options)
    assert [finding.code for finding in caught.value.findings] == [code], caught.value
    assert TOKEN not in str(caught.value)
    return f"{caught.value} {caught.value.findings[0].remedies}"


@pytest.mark.parametrize("size", [None, 300_000])
def test_a_repository_gets_the_bytes_of_a_folder_in_one_commit(written, size, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "qbridge")
    served = written()
    qbridge.convert("fx/model", tmp_path / "one", "vllm", max_shard_size=size)
    report = qbridge.convert("fx/model", "hf://fx/out", "vllm", max_shard_size=size)
    assert files_below(served.root / "fx/out") == files_below(tmp_path / "one")
    ((name, _, paths),) = served.committed
    assert name == "fx/out" and sorted(paths) == sorted(files_below(tmp_path / "one"))
    assert served.private == {"fx/out"}
    assert report.destination == "hf://fx/out" and report.serve == "vllm serve fx/out"
    assert qbridge.verify("fx/model", "fx/out").same
    told = [*caplog.messages, str(report), str(report.as_dict()), *map(str, files_below(served.root).values())]
    assert not [text for text in told if TOKEN in text]


def test_a_public_repository_is_asked_for(written):
    served = written()
    qbridge.convert(CASE, "hf://fx/out", "vllm", public=True)
    assert served.private == set()


def test_a_branch_and_a_pull_request(written, tmp_path):
    served = written()
    qbridge.convert(CASE, tmp_path / "one", "vllm")
    qbridge.convert(CASE, "hf://fx/model@vllm", "vllm", overwrite=True)
    assert files_below(served.root / "fx/model@vllm") == files_below(tmp_path / "one")
    assert files_below(served.root / "fx/model") == files_below(CASE)
    qbridge.convert(CASE, "hf://fx/other", "vllm", pr=True)
    assert files_below(served.root / "fx/other@refs-pr-1") == files_below(tmp_path / "one")
    assert files_below(served.root / "fx/other") == {}


def test_an_old_output_goes_with_the_commit_that_replaces_it(written, tmp_path):
    served = written()
    qbridge.convert(CASE, "hf://fx/out", "vllm", max_shard_size=200_000)
    assert "holds config.json" in refused("QB031", CASE, "hf://fx/out", "vllm")
    qbridge.convert(CASE, "hf://fx/out", "compressed-tensors", overwrite=True)
    qbridge.convert(CASE, tmp_path / "one", "compressed-tensors")
    assert files_below(served.root / "fx/out") == files_below(tmp_path / "one")
    assert len(served.committed) == 2


def scoped(*permissions, entity="fx"):
    scope = {"entity": {"type": "user", "name": entity}, "permissions": list(permissions)}
    return {"name": "fx", "auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"scoped": [scope]}}}}


@pytest.mark.parametrize(
    ("person", "dst", "fact"),
    [
        ({"name": "fx", "auth": {"accessToken": {"role": "read"}}}, "hf://fx/out", "may read only"),
        (scoped("repo.content.read"), "hf://fx/out", "no right to write to fx/out"),
        (scoped("repo.write", entity="fx/else"), "hf://fx/out", "no right to write to fx/out"),
        ({"name": "fx", "orgs": []}, "hf://acme/out", "neither the owner"),
        ({"name": "fx", "orgs": [{"name": "acme", "roleInOrg": "read"}]}, "hf://acme/out", "may not write in acme"),
    ],
)
def test_rights_are_asked_for_before_a_weight_is_read(written, person, dst, fact):
    served = written()
    served.person = person
    assert fact in refused("QB068", "fx/model", dst, "vllm")
    assert not served.uploaded and not served.committed and not (served.root / dst.removeprefix("hf://")).exists()
    assert not [path for path, *_ in served.requests if "/cdn/" in path and "Range" in path]


def test_a_fine_grained_token_that_may_write(written):
    served = written()
    served.person = scoped("repo.write")
    qbridge.convert(CASE, "hf://fx/out", "vllm")
    assert len(served.committed) == 1


def test_without_a_token_nothing_begins(written, monkeypatch):
    written()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "no token" in refused("QB068", CASE, "hf://fx/out", "vllm")


def test_what_is_gated_is_not_made_public(written):
    served = written()
    served.guarded.add("fx/model")
    assert "gated" in refused("QB068", "fx/model", "hf://fx/out", "vllm", public=True)
    (served.root / "fx/shown").mkdir()
    assert "is public" in refused("QB068", "fx/model", "hf://fx/shown", "vllm")
    qbridge.convert("fx/model", "hf://fx/out", "vllm")
    assert "fx/out" in served.private


def test_somebody_who_commits_meanwhile_is_not_overwritten(written, monkeypatch):
    served = written()
    real = huggingface_hub.HfApi.create_commit

    def late(self, *arguments, **options):
        (served.root / "fx/out/config.json").write_text("{}")
        return real(self, *arguments, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", late)
    assert "meanwhile" in refused("QB068", CASE, "hf://fx/out", "vllm")
    assert files_below(served.root / "fx/out") == {"config.json": b"{}"}


def test_a_temporary_folder_without_room_is_said_before_anything_is_read(written, monkeypatch):
    served = written()
    usage = local_spool.shutil.disk_usage("/")
    monkeypatch.setattr(local_spool.shutil, "disk_usage", lambda path: usage._replace(free=250_000))
    assert "--max-shard-size" in refused("QB402", "fx/model", "hf://fx/out", "vllm")
    assert not served.uploaded
    qbridge.convert("fx/model", "hf://fx/out", "vllm", max_shard_size=200_000)


@pytest.mark.parametrize(("kind", "rate", "most"), [("put", 1.0, 2), ("503", 0.5, 6)])
def test_servers_that_fail_now_and_then_change_no_byte(kind, rate, most, written, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    served = written(faults=Faults({kind: rate}, seed=4, most=most))
    qbridge.convert("fx/model", "hf://fx/out", "vllm", max_shard_size=200_000)
    assert served.faults.fired[kind]
    qbridge.convert(CASE, tmp_path / "one", "vllm", max_shard_size=200_000)
    assert files_below(served.root / "fx/out") == files_below(tmp_path / "one")


def test_addresses_that_are_not_written(written, tmp_path):
    served = written()
    for dst in ("https://host/out", "ssh://host/out", "file:///tmp/out", "hf://fx/out::x", "reference://x"):
        refused("QB061", CASE, dst, "vllm")
    refused("QB061", CASE, "hf://just-a-name", "vllm")
    qbridge.convert(CASE, "fx/out", "vllm")  # a bare name is a path
    assert (tmp_path / "fx/out/config.json").is_file() and not served.committed
    with pytest.raises(ValueError, match="go with a destination"):
        qbridge.convert(CASE, tmp_path / "x", "vllm", public=True)


def test_xet_gets_the_files_by_their_paths(written, monkeypatch, tmp_path):
    """What the Xet protocol sends was not proved here: that it is asked for each file, whole, is."""
    served, sent = written(), {}

    def upload(additions, **options):
        for each in additions:
            content = each.path_or_fileobj
            data = content if isinstance(content, bytes) else Path(content).read_bytes()
            sent[each.path_in_repo] = data
            served.objects[each.upload_info.sha256.hex()] = data

    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: True)
    monkeypatch.setattr("huggingface_hub._commit_api._upload_xet_files", upload)
    monkeypatch.setattr("qbridge.write.hub_store._SMALL", 10_000)
    qbridge.convert(CASE, "hf://fx/out", "vllm")
    qbridge.convert(CASE, tmp_path / "one", "vllm")
    assert sent["model.safetensors"] == (tmp_path / "one/model.safetensors").read_bytes()
    assert files_below(served.root / "fx/out") == files_below(tmp_path / "one")


def environment_of(served, home):
    asked = {"HF_ENDPOINT": served.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    return {**os.environ, **asked}


def test_a_run_that_is_killed_has_committed_nothing_or_all(written, tmp_path):
    served = written()
    qbridge.convert(CASE, tmp_path / "one", "vllm", max_shard_size=200_000)
    command = [sys.executable, "-m", "qbridge", "convert", str(CASE), "hf://fx/out", "--to", "vllm"]
    for wait in (1.5, 2.5, 3.5):
        process = subprocess.Popen(
            [*command, "--max-shard-size", "200KB", "--overwrite", "-q"], env=environment_of(served, tmp_path)
        )
        time.sleep(wait)
        process.kill()
        process.wait()
        assert files_below(served.root / "fx/out") in ({}, files_below(tmp_path / "one"))
    qbridge.convert(CASE, "hf://fx/out", "vllm", max_shard_size=200_000, overwrite=True)
    assert files_below(served.root / "fx/out") == files_below(tmp_path / "one")


def test_the_command_line(written, tmp_path):
    served = written()
    done = cli("convert", CASE, "hf://fx/out", "--to", "vllm", env=environment_of(served, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "committed:" in done.stderr and TOKEN not in done.stderr + done.stdout
    assert (served.root / "fx/out/config.json").is_file()
    assert cli("convert", CASE, tmp_path / "x", "--to", "vllm", "--public").returncode == 2
