"""Storages: the shipped laws hold for a folder and for memory, and a checkpoint is the same from either."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import qbridge
from qbridge.source.folder import Folder
from qbridge.source.opening import open_source
from qbridge.source.storage import File
from qbridge.testing import FILES, Memory, check_storage
from support import ROOT

CHECKPOINTS = sorted((ROOT / "fixtures").glob("*/*/model"))[::9]


def laid_out(folder):
    """FILES below a folder, with what a storage leaves out: hidden files, and a folder that is a link."""
    for name, data in {**FILES, ".hidden": b"1", ".git/config": b"2"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_and_memory_keep_the_laws(tmp_path):
    check_storage(Folder(laid_out(tmp_path)), FILES)
    check_storage(Memory(FILES), FILES)


class Shifted(Memory):
    def read_into(self, name, offset, buffer):
        return super().read_into(name, max(0, offset - 1), buffer)


class Endless(Memory):
    def read_into(self, name, offset, buffer):
        super().read_into(name, offset, buffer)
        return True


class Forgetful(Memory):
    def __getstate__(self):
        return {"_files": {}, "_url": self.url}


class Silent(Memory):
    def size(self, name):
        return len(self._files.get(name, b""))


class Blind(Memory):
    def names(self):
        return super().names()[:-1]


@pytest.mark.parametrize("broken", [Shifted, Endless, Forgetful, Silent, Blind])
def test_a_storage_that_breaks_a_law_is_told(broken):
    with pytest.raises((AssertionError, OSError)):
        check_storage(broken(FILES), FILES)


def test_a_folder_that_is_a_link_is_named_and_not_followed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"1")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "other")
    assert Folder(tmp_path / "here").names() == ["linked/"]


def test_threads_keep_no_more_files_open_than_they_may(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * 10)
    folder = Folder(tmp_path)
    folder.limit(2)

    def read(number):
        buffer = np.empty(10, np.uint8)
        return folder.read_into(f"{number}.bin", 0, buffer) and set(buffer) == {number}

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with ThreadPoolExecutor(4) as working:
        assert all(working.map(read, [number for number in range(40) for _ in range(3)]))
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 4 * 2 + 4
    folder.close()


@pytest.mark.parametrize("model", CHECKPOINTS, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_a_checkpoint_is_the_same_from_memory(model):
    folder = Folder(model)
    memory = Memory({name: folder.read(name, 1 << 30) for name in folder.names()})
    here, there = (open_source(storage, qbridge.Findings()) for storage in (folder, memory))
    assert (here.config, here.shards, here.side_files) == (there.config, there.shards, there.side_files)
    assert here.tensors.keys() == there.tensors.keys()
    for name, tensor in here.tensors.items():
        assert tensor[2:] == there.tensors[name][2:]
        assert here.read(name).tobytes() == there.read(name).tobytes()
    there.check_unchanged()


def test_a_file_that_ends_while_it_is_read_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    blocks = File(Folder(tmp_path), "file").blocks(2)
    next(blocks)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="ended"):
        list(blocks)


@pytest.mark.parametrize("model", CHECKPOINTS[:3], ids=lambda path: "/".join(path.parts[-3:-1]))
def test_a_source_is_the_same_in_another_process(model):
    with open_source(Folder(model), qbridge.Findings()) as source:
        name = min(source.tensors)
        with source.remembering(forget=False):
            value = source.read(name)
        with pickle.loads(pickle.dumps(source)) as again:
            assert again.tensors == source.tensors and again.config == source.config
            assert again.read(name).tobytes() == value.tobytes()
            again.check_unchanged()
