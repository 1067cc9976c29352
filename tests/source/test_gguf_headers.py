"""GGUF headers: what they say, and that nothing they claim is believed before it is checked."""

from __future__ import annotations

import struct
import time
import tracemalloc

import numpy as np
import pytest

import qbridge
from gguf_files import F32, Q4_0, entry, gguf, padded, small, text, u16, u32
from qbridge.source.folder import Folder
from qbridge.source.gguf import read_gguf
from qbridge.source.storage import File
from support import cli, codes

NORM = np.ones(64, np.float32)
BIG = 1 << 62


def header(tmp_path, data):
    (tmp_path / "model.gguf").write_bytes(data)
    return read_gguf(File(Folder(tmp_path), "model.gguf"))


def test_what_a_header_says(tmp_path):
    found = header(
        tmp_path, small(**{"general.name": "x", "a.count": 3, "a.eps": 0.5, "a.yes": True, "t": ["a", "b"]})
    )
    assert found.version == 3 and found.alignment == 32
    assert found.metadata == {
        **{"general.architecture": "llama", "general.name": "x", "a.count": 3, "a.eps": 0.5, "a.yes": True},
        "t": ("a", "b"),
    }
    norm, matrix = found.tensors.values()
    assert (norm.kind, str(norm.dtype), norm.shape) == ("F32", "F32", (64,))
    assert (matrix.kind, str(matrix.dtype), matrix.shape) == ("Q4_0", "U8", (3, 36))
    data = (tmp_path / "model.gguf").read_bytes()
    assert data[norm.begin : norm.end] == NORM.tobytes()
    assert data[matrix.begin : matrix.end] == bytes(range(108))


def test_version_2_and_an_alignment_of_its_own(tmp_path):
    offsets, data = padded(NORM, NORM, alignment=256)
    entries = [entry(name, (64,), F32, offset) for name, offset in zip("ab", offsets, strict=True)]
    found = header(tmp_path, gguf({"general.alignment": u32(256)}, entries, data, version=2, alignment=256))
    assert found.version == 2 and found.tensors["b"].begin == 512


def test_arrays_of_numbers(tmp_path):
    array = 9, struct.pack("<IQ", 6, 3) + np.array([1, 2, 3], "<f4").tobytes()
    flags = 9, struct.pack("<IQ", 7, 2) + b"\0\1"
    found = header(tmp_path, gguf({"scores": array, "flags": flags}, []))
    assert found.metadata["scores"].tolist() == [1, 2, 3] and found.metadata["flags"].tolist() == [False, True]


def with_tensor(*args):
    return gguf({}, [entry(*args)], NORM.tobytes())


def array(kind, count, data=b""):
    return gguf({"a": (9, struct.pack("<IQ", kind, count) + data)}, [])


BAD = {
    "empty": (b"", "asks for 4 bytes"),
    "magic": (b"GGML" + small()[4:], "does not begin"),
    "version 1": (gguf({}, [], version=1), "version 1"),
    "version 4": (gguf({}, [], version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensors": (gguf({}, [], tensors=BIG), "claims 4611686018427387904 tensors"),
    "keys": (gguf({}, [], keys=BIG), "claims 4611686018427387904 keys"),
    "one tensor too many": (gguf({}, [entry("a", (64,), F32, 0)], NORM.tobytes(), tensors=2), ""),
    "a long key": (gguf({}, [], keys=1) + struct.pack("<Q", BIG), ""),
    "a key without name": (gguf({"": 1}, []), "1 to 65535"),
    "a key twice": (gguf({}, [text("a") + b"\7\0\0\0\1"] * 2, keys=2, tensors=0), "appears twice"),
    "a key with NUL": (gguf({"a\0b": 1}, []), "NUL"),
    "a key that is no text": (gguf({}, [text(b"\xff") + b"\7\0\0\0\1"], keys=1, tensors=0), "not text"),
    "a long string": (gguf({"a": (8, struct.pack("<Q", BIG))}, []), "a: at byte"),
    "a type": (gguf({"a": (13, b"")}, []), "no type 13"),
    "a bool": (gguf({"a": (7, b"\2")}, []), "a bool is 2"),
    "a billion strings": (array(8, 10**9), "1000000000 strings"),
    "a billion numbers": (array(4, 10**9), "longer than the file"),
    "more than there is": (array(4, BIG), "longer than the file"),
    "arrays of arrays": (array(9, 1), "type 9"),
    "a bool of an array": (array(7, 2, b"\0\2"), "another number"),
    "alignment 0": (gguf({"general.alignment": u32(0)}, []), "power of two"),
    "alignment 24": (gguf({"general.alignment": u32(24)}, []), "power of two"),
    "alignment of text": (gguf({"general.alignment": "32"}, []), "power of two"),
    "no name": (with_tensor("", (64,), F32, 0), "1 to 63"),
    "a long name": (with_tensor("a" * 64, (64,), F32, 0), "1 to 63"),
    "a name with NUL": (with_tensor("a\0", (64,), F32, 0), "NUL"),
    "no dims": (with_tensor("a", (), F32, 0), "0 dims"),
    "five dims": (with_tensor("a", (64, 1, 1, 1, 1), F32, 0), "5 dims"),
    "a dim of 0": (with_tensor("a", (0,), F32, 0), "1 or more"),
    "large dims": (with_tensor("a", (1 << 40, 1 << 40), F32, 0), "2^63"),
    "a dropped type": (with_tensor("a", (64,), 4, 0), "type 4"),
    "an unknown type": (with_tensor("a", (64,), 999, 0), "type 999"),
    "broken blocks": (with_tensor("a", (33,), Q4_0, 0), "no whole blocks of 32"),
    "a hole": (with_tensor("a", (32,), F32, 128), "hole"),
    "beyond the file": (with_tensor("a", (65,), F32, 0), "truncated"),
    "an offset beyond all": (with_tensor("a", (64,), F32, (1 << 64) - 32), "hole"),
    "an overlap": (gguf({}, [entry("a", (64,), F32, 0), entry("b", (64,), F32, 0)], bytes(512)), "overlaps"),
    "two of a name": (gguf({}, [entry("a", (64,), F32, 0), entry("a", (64,), F32, 256)], bytes(512)), "this name"),
    "truncated": (small()[:-40], "truncated"),
    "bytes at the end": (small() + bytes(64), "belong to none"),
}


@pytest.mark.parametrize("kind", BAD)
def test_headers_that_lie(kind, tmp_path):
    data, wanted = BAD[kind]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.inspect(path)
    assert codes(excinfo) == {"QB049"} and excinfo.value.exit_code == 3
    assert wanted in str(excinfo.value)


def test_every_cut_of_a_header_is_an_answer(tmp_path):
    whole = small(**{"a": ["x", "y"]})
    path = tmp_path / "model.gguf"
    for end in range(len(whole) - 20):
        path.write_bytes(whole[:end])
        with pytest.raises(qbridge.QBridgeError):
            qbridge.inspect(path)


@pytest.mark.parametrize("kind", ["a billion strings", "a billion numbers", "tensors", "keys"])
def test_what_is_claimed_takes_no_memory_and_no_time(kind, tmp_path):
    path = tmp_path / "model.gguf"
    with open(path, "wb") as stream:  # a hole of 10 GB in a sparse file: there would be room for it
        stream.write(BAD[kind][0])
        stream.truncate(10 << 30)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(qbridge.QBridgeError):
        qbridge.inspect(path)
    assert time.process_time() - start < 10
    assert tracemalloc.get_traced_memory()[1] < 1 << 29
    tracemalloc.stop()


def splits(tmp_path, count=3, **changes):
    """Splits of one tensor each; `changes` are metadata by the place of a split."""
    for place in range(count):
        keys = {"split.no": u16(place), "split.count": u16(count), "split.tensors.count": count}
        keys.update(changes.get(f"at{place}", {}))
        first = {"general.architecture": "llama"} if place == 0 else {}
        data = gguf({**first, **keys}, [entry(f"t{place}", (64,), F32, 0)], NORM.tobytes())
        (tmp_path / f"m-{place + 1:05}-of-{count:05}.gguf").write_bytes(data)
    return tmp_path / f"m-00001-of-{count:05}.gguf"


def test_splits_are_one_model_whichever_is_named(tmp_path):
    first = splits(tmp_path)
    for path in (first, tmp_path / "m-00002-of-00003.gguf"):
        found = qbridge.inspect(path)
        assert len(found.shards) == found.unquantized_tensors == 3 and found.architecture == "llama"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"at1": {"split.no": u16(2)}}, "QB005"),
        ({"at1": {"split.count": u16(2)}}, "QB005"),
        ({"at0": {"split.tensors.count": 4}}, "QB005"),
        ({"at2": {"split.count": "many"}}, "QB005"),
        ({"at1": {"general.alignment": u32(3)}}, "QB049"),
    ],
)
def test_splits_that_contradict_each_other(changes, code, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.inspect(splits(tmp_path, **changes))
    assert codes(excinfo) == {code}


def test_a_split_that_is_absent_is_named(tmp_path):
    first = splits(tmp_path)
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.inspect(first)
    assert codes(excinfo) == {"QB003"} and excinfo.value.findings[0].where == ("m-00003-of-00003.gguf",)


def test_one_tensor_in_two_splits(tmp_path):
    first = splits(tmp_path, 2)
    first.write_bytes(gguf({"split.count": u16(2), "split.no": u16(0)}, [entry("t1", (64,), F32, 0)], NORM.tobytes()))
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.inspect(first)
    assert codes(excinfo) == {"QB005"} and "t1" in str(excinfo.value)


def test_inspect_says_what_a_file_is(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small())
    found = qbridge.inspect(path)
    assert (found.format, found.architecture, found.quantized_bytes) == ("gguf", "llama", 108)
    assert [row["scheme"] for row in found.schemes] == ["Q4_0, 32 weights in 18 bytes (4.5 bits each)"]
    done = cli("inspect", str(path))
    assert done.returncode == 0 and "Q4_0" in done.stdout


def test_a_file_without_tensors_is_described(tmp_path):
    (tmp_path / "vocab.gguf").write_bytes(gguf({"general.architecture": "llama"}, []))
    assert qbridge.inspect(tmp_path / "vocab.gguf").schemes == []


def test_text_that_is_none_is_shown(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf({"general.architecture": (8, text(b"\xff\xfe"))}, []))
    assert cli("inspect", str(tmp_path / "m.gguf")).returncode == 0
