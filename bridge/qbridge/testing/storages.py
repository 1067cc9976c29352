"""The laws of a storage, shipped so that a storage of another package tests itself, and one that lies in memory.

from qbridge.testing import check_storage, FILES
def test_laws(tmp_path): upload(FILES, tmp_path); check_storage(MyStorage(tmp_path), FILES)"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence

import numpy as np

from qbridge.ir.dtypes import Array
from qbridge.source.storage import File, Storage

FILES: Mapping[str, bytes] = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "config.json": b"{}",
    "empty.txt": b"",
    "a b/one é.bin": bytes(range(256)) * 300,
    "a b/c/two.bin": b"2",
}
"""What a storage holds while its laws are checked, by name."""


class Memory(Storage):
    """Files that lie in memory: what everything but a folder is tested with."""

    def __init__(self, files: Mapping[str, bytes], url: str = "memory") -> None:
        """`files` are the bytes by name."""
        self._files, self._url = dict(files), url

    def __eq__(self, other: object) -> bool:
        """Whether it has the same name and files."""
        return isinstance(other, Memory) and (self._url, self._files) == (other._url, other._files)

    def __hash__(self) -> int:
        """That of its name."""
        return hash(self._url)

    @property
    def url(self) -> str:
        """The name that it was given."""
        return self._url

    @property
    def identity(self) -> str:
        """The same name."""
        return self._url

    def names(self) -> Sequence[str]:
        """Every file, those of the top first."""
        return sorted(self._files, key=lambda name: ("/" in name, name))

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._files

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return len(self._data(name))

    def stamp(self, name: str) -> str:
        """A digest of its bytes."""
        return hashlib.sha256(self._data(name)).hexdigest()

    def read_into(self, name: str, offset: int, buffer: Array) -> bool:
        """Fill `buffer` (bytes) from an offset of a file; whether the file had that many."""
        data = self._data(name)[offset : offset + buffer.nbytes]
        if len(data) < buffer.nbytes:
            return False
        buffer[:] = np.frombuffer(data, np.uint8)
        return True

    def _data(self, name: str) -> bytes:
        try:
            return self._files[name]
        except KeyError:
            raise FileNotFoundError(name) from None


def check_storage(storage: Storage, files: Mapping[str, bytes]) -> None:
    """The laws of a storage that holds `files`, all of them visible; AssertionError names the law that is broken.

    It lists each file once and reads any range of it; a range beyond the end is no range, and a file that is not
    there an OSError. Stamps tell files apart and stay. It can be read after it was closed, and is equal and can
    be read in another process.
    """
    _require(set(storage.names()) == files.keys(), f"names() gives {list(storage.names())}")
    _require(len(storage.names()) == len(files), "names() gives one twice")
    _require(bool(storage.url and storage.identity), "it has no url, or no identity")
    _check_files(storage, files)
    for ask in (storage.size, storage.stamp, storage.read):
        try:
            ask("absent.bin")
        except OSError:
            continue
        raise AssertionError(f"{ask.__name__} of a file that is not there raises no OSError")
    _require(not storage.has("absent.bin"), "it has a file that is not there")
    storage.close()
    _check_files(storage, files)
    again = pickle.loads(pickle.dumps(storage))  # noqa: S301  it is what was pickled here
    _require(again == storage and hash(again) == hash(storage), "it is another when it was pickled")
    _check_files(again, files)
    storage.close()
    again.close()


def _check_files(storage: Storage, files: Mapping[str, bytes]) -> None:
    stamps = set()
    for name, data in files.items():
        file = File(storage, name)
        _require(storage.has(name) and file.size == len(data), f"{name}: it is not there, or of another size")
        _require(file.stamp == file.stamp, f"{name}: its stamp changes")
        _require(file.read() == data and file.read(3) == data[:3], f"{name}: read() gives other bytes")
        _require(b"".join(bytes(block) for block in file.blocks(100)) == data, f"{name}: blocks() gives other bytes")
        for begin, end in ((0, len(data)), (1, len(data)), (len(data) // 3, len(data) // 2)):
            buffer = np.empty(max(0, end - begin), np.uint8)
            full = file.read_into(begin, buffer)
            _require(full and buffer.tobytes() == data[begin:end], f"{name}: bytes {begin} to {end} are others")
        _require(not file.read_into(len(data), np.empty(1, np.uint8)), f"{name}: a range beyond its end is read")
        _require(not storage.strays(name), f"{name}: it leads out")
        stamps.add((name, file.stamp))
    _require(len(stamps) == len(files), "two files have one stamp")


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(law)
