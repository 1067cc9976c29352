"""Buckets as sources and destinations, against moto's server: the bytes of a folder, kills and all.

Run where moto and s3fs are installed: pip install 's3fs' 'moto[server]'.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

import qbridge
from support import ROOT, cli

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

# botocore and its like warn of their own calls
pytestmark = pytest.mark.filterwarnings("ignore")
CASE = ROOT / "fixtures/gptq/llama_g128/model"
SECRET = "very-secret-key"
SMALL = {"max_shard_size": 200_000}


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An empty bucket `models` of a server on the loopback, as a file system of s3fs."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    files.call_s3("create_bucket", Bucket="models")
    monkeypatch.chdir(tmp_path)
    yield files
    for each in files.find("models"):
        files.rm_file(each)
    server.stop()


def put(files, folder, name):
    for path in folder.iterdir():
        files.put_file(str(path), f"models/{name}/{path.name}")


def below(files, name):
    root = f"models/{name}/"
    return {path.removeprefix(root): files.cat_file(path) for path in files.find(root)}


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def code_of(call, *arguments, **options):
    with pytest.raises(qbridge.QBridgeError) as caught:
        call(*arguments, **options)
    assert SECRET not in str(caught.value)
    return caught.value.findings[0].code


def test_a_bucket_is_read_as_a_folder_is(bucket, tmp_path, dst):
    put(bucket, CASE, "in")
    assert qbridge.check("s3://models/in", "vllm").ok == qbridge.check(CASE, "vllm").ok
    qbridge.convert("s3://models/in", dst, "compressed-tensors")
    qbridge.convert(CASE, tmp_path / "one", "compressed-tensors")
    assert files_below(dst) == files_below(tmp_path / "one")
    assert qbridge.verify("s3://models/in", CASE).same


@pytest.mark.parametrize("size", [None, 200_000])
def test_a_bucket_gets_the_bytes_of_a_folder(bucket, size, tmp_path):
    put(bucket, CASE, "in")
    report = qbridge.convert("s3://models/in", "s3://models/out", "vllm", max_shard_size=size)
    qbridge.convert(CASE, tmp_path / "one", "vllm", max_shard_size=size)
    assert below(bucket, "out") == files_below(tmp_path / "one")
    assert not report.already_done
    assert qbridge.convert("s3://models/in", "s3://models/out", "vllm", max_shard_size=size).already_done
    assert code_of(qbridge.convert, CASE, "s3://models/out", "compressed-tensors") == "QB031"


def test_parts_meet_in_a_bucket(bucket, tmp_path):
    qbridge.convert(CASE, tmp_path / "one", "vllm", **SMALL)
    order = [1, 2, 3, 4, 2]
    random.Random(2).shuffle(order)
    qbridge.plan_parts(CASE, "s3://models/out", "vllm", **SMALL)
    for part in order:
        assert code_of(qbridge.finish, "s3://models/out") == "QB067"
        qbridge.convert_part(CASE, "s3://models/out", "vllm", part, 4, **SMALL)
        if "config.json" in below(bucket, "out"):
            pytest.fail("it looks like a checkpoint before it is one")
        if len({*order[: order.index(part) + 1]}) == 4:
            break
    qbridge.finish("s3://models/out")
    assert below(bucket, "out") == files_below(tmp_path / "one")


def test_killed_runs_go_on_where_they_stopped(bucket, tmp_path):
    qbridge.convert(CASE, tmp_path / "one", "vllm", **SMALL)
    program = f"import qbridge; qbridge.convert({str(CASE)!r}, 's3://models/out', 'vllm', max_shard_size=200_000)"
    for wait in (1.0, 1.6, 2.2, 3.0):
        process = subprocess.Popen([sys.executable, "-c", program])
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = below(bucket, "out")
        assert "config.json" not in there or there.keys() >= files_below(tmp_path / "one").keys()
    qbridge.convert(CASE, "s3://models/out", "vllm", **SMALL)
    assert below(bucket, "out") == files_below(tmp_path / "one")


def test_clean_lists_and_aborts_what_was_begun(bucket):
    qbridge.plan_parts(CASE, "s3://models/out", "vllm", **SMALL)
    qbridge.convert_part(CASE, "s3://models/out", "vllm", 1, 2, **SMALL)
    bucket.call_s3("create_multipart_upload", Bucket="models", Key="out/model-9.safetensors")
    bucket.call_s3("create_multipart_upload", Bucket="models", Key="other/model.safetensors")
    done = qbridge.clean("s3://models/out")
    assert "model-9.safetensors (an upload that had not ended)" in done.removed
    assert below(bucket, "out") == {}
    left = bucket.call_s3("list_multipart_uploads", Bucket="models")["Uploads"]
    assert [each["Key"] for each in left] == ["other/model.safetensors"]


def test_a_file_that_is_replaced_while_it_is_read_is_seen(bucket, dst, monkeypatch):
    put(bucket, CASE, "in")
    from qbridge.write import writer

    real = writer._Writer.run

    def late(self, executor):
        real(self, executor)
        bucket.put_file(str(CASE / "config.json"), "models/in/model.safetensors")

    monkeypatch.setattr(writer._Writer, "run", late)
    assert code_of(qbridge.convert, "s3://models/in", dst, "vllm") == "QB038"
    assert not dst.exists()


def test_what_is_not_there_or_not_allowed(bucket):
    assert code_of(qbridge.check, "s3://models/nothing", "vllm") == "QB062"
    assert code_of(qbridge.check, "s3://no-such-bucket/x", "vllm") == "QB062"
    assert code_of(qbridge.convert, CASE, "s3://no-such-bucket/x", "vllm") == "QB068"
    for address in ("s3://models/../x", "simplecache::s3://models/in", "s3://models/in::x", "s3://models/a*"):
        assert code_of(qbridge.check, address, "vllm") == "QB061"
    bucket.pipe_file("models/taken/notes.txt", b"mine")
    assert code_of(qbridge.convert, CASE, "s3://models/taken", "vllm") == "QB031"


def test_the_command_line(bucket):
    done = cli("convert", CASE, "s3://models/out", "--to", "vllm")
    assert done.returncode == 0 and SECRET not in done.stdout + done.stderr
    assert cli("check", "s3://models/out", "--for", "vllm").returncode == 0
