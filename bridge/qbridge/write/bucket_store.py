"""A folder of a bucket as the store of an output: each file is sent whole, config.json last.

Of s3://, uploads that a killed process has begun are listed and aborted by `abort_uploads`; those of the other
services vanish by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from qbridge.findings.finding import error
from qbridge.source.bucket import asked, below, entry_of, file_system, root_of
from qbridge.write.local_spool import spool_folder, spool_room
from qbridge.write.stores import HIDDEN, Store

_PROBE = f"{HIDDEN}probe"


class BucketStore(Store):
    """The files below an address."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet."""
        self._url, self._root, self._service = url, root_of(url), file_system(url, "QB068")

    @property
    def url(self) -> str:
        """As it was given."""
        return self._url

    def check_writable(self, restricted: str) -> None:
        """Write a file, and remove it; QBridgeError (QB068)."""
        try:
            self.put(_PROBE, b"qbridge")
            self.remove([_PROBE])
        except FileNotFoundError:
            raise error("QB068", self._url, ("there is no such bucket",)) from None

    def names(self) -> Sequence[str]:
        """As they are now."""
        with self._asked():
            try:
                listed = self._service.find(self._root, detail=True)
            except FileNotFoundError:
                return []
        return sorted(name for name, _ in below(self._root, listed))

    def size(self, name: str) -> int | None:
        """As `Store.size`."""
        with self._asked():
            try:
                return entry_of(self._service.info(self._path(name))).size
            except FileNotFoundError:
                return None

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """As `Store.read`."""
        with self._asked():
            try:
                data: bytes = self._service.cat_file(self._path(name), start=0 if most else None, end=most)
            except FileNotFoundError:
                return None
        return data

    def create(self, name: str, data: bytes) -> bool:
        """A request that the service refuses where there is one."""
        with self._asked():
            try:
                self._service.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def put(self, name: str, data: bytes) -> None:
        """As `Store.put`."""
        with self._asked():
            self._service.pipe_file(self._path(name), data)

    def take(self, path: Path, name: str) -> None:
        """Send it in parts where it is large; it is there when the last has come."""
        with self._asked():
            try:
                self._service.put_file(str(path), self._path(name))
            except BaseException:
                self._abort(self._path(name))
                raise
        path.unlink()

    def remove(self, names: Iterable[str]) -> None:
        """As `Store.remove`."""
        with self._asked():
            for name in names:
                try:
                    self._service.rm_file(self._path(name))
                except FileNotFoundError:
                    continue

    def working(self, name: str) -> AbstractContextManager[Path]:
        """A temporary folder."""
        return spool_folder(name)

    def room(self, largest: int) -> int:
        """As many as fit in the temporary folder."""
        return spool_room(largest)

    def commit(self, whole: bool) -> None:
        """All is seen at once."""

    def abort_uploads(self) -> list[str]:
        """Abort what killed processes have begun to send, and have not ended; the names."""
        with self._asked():
            return sorted(key.removeprefix(f"{self._key('')}") for key in self._abort(f"{self._root}/"))

    def _abort(self, prefix: str) -> list[str]:
        """Abort the uploads whose paths begin so; their keys."""
        if not hasattr(self._service, "call_s3"):
            return []
        bucket, _, begin = prefix.partition("/")
        told: dict[str, Any] = self._service.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=begin)
        uploads = told.get("Uploads", [])
        for each in uploads:
            self._service.call_s3("abort_multipart_upload", Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"])
        return [str(each["Key"]) for each in uploads]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _key(self, name: str) -> str:
        return self._path(name).partition("/")[2]

    def _asked(self) -> AbstractContextManager[None]:
        return asked(self._url, "QB068")
