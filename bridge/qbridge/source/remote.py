"""Files on a server as a storage: read in ranges, in parallel, each checked against what the server first said."""

from __future__ import annotations

import re
import threading
from abc import abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from posixpath import normpath
from typing import NamedTuple

import numpy as np

from qbridge.findings.finding import error
from qbridge.findings.hints import size
from qbridge.ir.dtypes import Array
from qbridge.source.spool import Spool
from qbridge.source.storage import Range, Storage
from qbridge.source.web import LOG, Answer, Client, Locked, shown

CONNECTIONS = 64  # requests for small ranges that are under way at a time
GAP = 1 << 17  # bytes between two ranges that cost less than a request does
LARGEST = 16 << 20  # bytes of one request for small ranges
_SHA256 = re.compile(r"[0-9a-f]{64}")  # what tells the content of a file of Git LFS
_SIGNED = 5  # addresses of one file that may have expired before they are asked
HELD = 96 << 20  # bytes of prefetched ranges that are kept in memory


class Entry(NamedTuple):
    """A file as the server lists it: its bytes, and what tells its content (a digest or an etag)."""

    size: int
    etag: str


class Remote(Storage):
    """The files that a server lists under one address.

    A subclass says where a file is to be asked for (`_address`), what is checked of an answer (`_check`), and what is
    sent to another process (`__reduce__`).
    """

    def __init__(self, url: str, identity: str, client: Client, files: Mapping[str, Entry]) -> None:
        """`url` as a person named it; `files` by plain relative names."""
        self._url, self._identity, self._client, self._files = url, identity, client, files
        self._redirected: dict[str, tuple[str, str]] = {}  # by name: (address, etag) of where the bytes are
        self._fetching: ThreadPoolExecutor | None = None
        self._held = Held(HELD)
        self._spool: Spool | None = None
        self._expected: list[Range] | None = None  # all that will be read, where that is known

    def __eq__(self, other: object) -> bool:
        """Whether it is the same content at the same place."""
        return isinstance(other, Remote) and (self._identity, self._files) == (other._identity, other._files)

    def __hash__(self) -> int:
        """That of its identity."""
        return hash(self._identity)

    @property
    def url(self) -> str:
        """The address as it was given."""
        return self._url

    @property
    def identity(self) -> str:
        """The address with all that tells it from others."""
        return self._identity

    @property
    def is_far(self) -> bool:
        """It is."""
        return True

    def names(self) -> Sequence[str]:
        """Every file that is listed, those beside config.json first."""
        visible = (name for name in self._files if name == ".gitattributes" or not _is_hidden(name))
        return sorted(visible, key=lambda name: ("/" in name, name))

    def has(self, name: str) -> bool:
        """Whether it is listed."""
        return normpath(name) in self._files

    def size(self, name: str) -> int:
        """Bytes of a file, as listed."""
        return self._entry(name).size

    def stamp(self, name: str) -> str:
        """Its size and what tells its content, which every answer is checked against."""
        entry = self._entry(name)
        return f"{entry.size} {entry.etag}"

    def etag(self, name: str) -> str:
        """As the server lists it."""
        return self._entry(name).etag

    def read_into(self, name: str, offset: int, buffer: Array) -> bool:
        """Fill `buffer` (bytes) from an offset of a file; whether the file has that many.

        QBridgeError where the server does not give them: what cannot be fetched is not absent.
        """
        name = normpath(name)
        if buffer.nbytes and offset + buffer.nbytes > self._entry(name).size:
            return False
        if not buffer.nbytes or self._held.copy(name, offset, buffer):
            return True
        if self._spool is not None:
            self._spool.read_into(name, offset, buffer)
        else:
            self._fetch(name, offset, buffer)
        return True

    def prefetch(self, ranges: Iterable[Range]) -> None:
        """Fetch ranges in parallel, near ones in one request, and hold as many as there is room for."""
        wanted = [each for each in self._clipped(ranges) if not self._held.has(each)]
        chosen, room = [], HELD
        for each in merged(wanted):
            room -= each.end - each.begin
            if room < 0:
                break
            chosen.append(each)
        if not chosen:
            return
        if self._fetching is None:  # its threads keep their connections
            self._fetching = ThreadPoolExecutor(CONNECTIONS, "qbridge-fetch")
        list(self._fetching.map(self._hold, chosen))

    def expect(self, ranges: Iterable[Range]) -> None:
        """Fetch nothing else before it is asked for."""
        self._expected = list(ranges)

    def spool(self, folder: Path, memory: int, files: int) -> None:
        """Read whole files from now on, through unnamed files of a folder."""
        if self._spool is None:
            sizes = {name: entry.size for name, entry in self._files.items()}
            digests = {name: entry.etag for name, entry in self._files.items() if _SHA256.fullmatch(entry.etag)}
            self._spool = Spool(sizes, self._fetch, folder, memory, files, self._expected, digests)

    def check_read(self) -> None:
        """QBridgeError (QB063) for a file that was spooled whole and has another sha256 than is listed."""
        if self._spool is not None:
            self._spool.check()

    def close(self) -> None:
        """Close connections and remove what was spooled."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        if self._fetching is not None:
            self._fetching.shutdown(cancel_futures=True)
            self._fetching = None
        self._client.close()

    @abstractmethod
    def _address(self, name: str) -> str:
        """Where a file is asked for."""

    @abstractmethod
    def _check(self, name: str, answer: Answer) -> None:
        """QBridgeError (QB063) if an answer from `_address` is not of the file that was listed."""

    @abstractmethod
    def _locked(self, fault: Locked) -> Exception:
        """The error for a server that refuses."""

    def _entry(self, name: str) -> Entry:
        try:
            return self._files[normpath(name)]
        except KeyError:
            raise FileNotFoundError(f"{name} is not listed at {self._url}") from None

    def _clipped(self, ranges: Iterable[Range]) -> Iterator[Range]:
        for each in ranges:
            name = normpath(each.name)
            end = min(each.end, self._files[name].size) if name in self._files else 0
            if each.begin < end:
                yield Range(name, each.begin, end)

    def announce(self, ranges: Iterable[Range], what: str) -> None:
        """A line with the bytes, and their share of all."""
        wanted = [each for each in self._clipped(ranges) if not self._held.has(each)]
        count, whole = sum(each.end - each.begin for each in wanted), sum(e.size for e in self._files.values())
        files = len({each.name for each in wanted})
        if not files:
            return
        share = f"{100 * count / max(whole, 1):.3g} %"
        LOG.info("reading %s: %s of %s (%s) in %d files", what, size(count), size(whole), share, files)

    def _hold(self, wanted: Range) -> None:
        buffer = np.empty(wanted.end - wanted.begin, np.uint8)
        self._fetch(wanted.name, wanted.begin, buffer)
        self._held.add(wanted, buffer)

    def _fetch(self, name: str, begin: int, buffer: Array) -> None:
        """Fill a buffer from the address that the file was redirected to before, or from its own."""
        for _ in range(_SIGNED):
            try:
                if self._fetch_redirected(name, begin, buffer):
                    return
                address = self._address(name)
                answer, _ = self._client.fill(address, begin, buffer, self._entry(name).size)
            except Locked as fault:
                if fault.url == self._address(name):
                    raise self._locked(fault) from None
                self._redirected.pop(name, None)  # a signed address has expired: ask for another one
                continue
            except FileNotFoundError:
                raise error("QB063", name, ("it is listed, and not there",)) from None
            self._check(name, answer)
            if answer.url != address:
                self._redirected[name] = answer.url, answer.etag
            return
        raise error("QB063", name, (f"{_SIGNED} addresses that it was redirected to are locked",))

    def _fetch_redirected(self, name: str, begin: int, buffer: Array) -> bool:
        """Whether there was an address that the file had been redirected to, and it gave the bytes."""
        url, etag = self._redirected.get(name, ("", ""))
        if not url:
            return False
        answer, _ = self._client.fill(url, begin, buffer, self._entry(name).size)
        if not same_etag(answer.etag, etag):
            raise error("QB063", name, (f"its etag was {etag[:80]}, and is {answer.etag[:80]} now",))
        return True


class Held:
    """Stretches of files in memory; where there are too many bytes, first those go that were read, then the oldest.

    What was fetched ahead and not read yet thus stays: it would be asked for again, one by one.
    """

    def __init__(self, room: int) -> None:
        """`room` is how many bytes are held at most."""
        self._room, self._size, self._lock = room, 0, threading.Lock()
        self._ranges: OrderedDict[Range, Array] = OrderedDict()
        self._begins: dict[str, list[Range]] = {}

    def add(self, place: Range, data: Array) -> None:
        """Hold the bytes of a range."""
        with self._lock:
            while self._ranges and self._size + data.nbytes > self._room:
                oldest, gone = self._ranges.popitem(last=False)
                self._begins[oldest.name].remove(oldest)
                self._size -= gone.nbytes
            if place not in self._ranges:
                ranges = self._begins.setdefault(place.name, [])
                ranges.insert(bisect_right(ranges, place), place)
                self._size += data.nbytes
            self._ranges[place] = data

    def has(self, wanted: Range) -> bool:
        """Whether every byte of a range is held in one stretch."""
        with self._lock:
            return self._around(wanted) is not None

    def copy(self, name: str, offset: int, buffer: Array) -> bool:
        """Fill a buffer from what is held; False where not all of it is."""
        with self._lock:
            around = self._around(Range(name, offset, offset + buffer.nbytes))
            if around is None:
                return False
            data = self._ranges[around]
            if offset + buffer.nbytes == around.end:
                self._ranges.move_to_end(around, last=False)
        buffer[:] = data[offset - around.begin : offset - around.begin + buffer.nbytes]
        return True

    def _around(self, wanted: Range) -> Range | None:
        ranges = self._begins.get(wanted.name, [])
        place = bisect_right(ranges, (wanted.name, wanted.begin, float("inf")))
        before = (each for each in reversed(ranges[:place]) if each.end >= wanted.end)
        return next(before, None)


def merged(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges in order, near ones of a file as one, none of them longer than `LARGEST` unless it was."""
    last: Range | None = None
    for each in sorted(ranges):
        if last and each.name == last.name and each.begin <= last.end + GAP and each.end - last.begin <= LARGEST:
            last = Range(last.name, last.begin, max(last.end, each.end))
            continue
        if last:
            yield last
        last = each
    if last:
        yield last


def check_names(names: Iterable[str], where: str) -> None:
    """QBridgeError (QB063) if a listing has a name that is not plain and relative."""
    for name in names:
        parts = name.split("/")
        if "\\" in name or not all(name.isprintable() and part not in ("", ".", "..") for part in parts):
            raise error("QB063", shown(where), (f"it lists {name[:80]!r}, which is no plain relative name",))


def same_etag(first: str, second: str) -> bool:
    """Whether two etags are one; a weak one is the same content, too."""
    return _bare(first) == _bare(second)


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
