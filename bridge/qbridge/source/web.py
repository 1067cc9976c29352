"""HTTP requests for files and stretches of them, by rules that trust no server. Imported by far storages alone.

Requests go to https, or to the http address on the loopback that a person named. A redirect may lead to another host
over https, whose address is no private one, and to which no token is sent. Nothing is compressed on the way, every
answer has a most that is read of it, and nobody is waited for without end.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from qbridge.findings.finding import QBridgeError, error
from qbridge.ir.dtypes import Array
from qbridge.source.patience import Patience

LOG = logging.getLogger(__name__)
LONGEST = 64 << 20  # bytes of a document, a listing or an index
_SECONDS = 30.0  # without any byte from a server, or without a connection
_HOPS = 5  # redirects of one request
_DISCARDED = 1 << 16  # bytes of an answer that are read for nothing, so that the connection can be used again
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LATER = frozenset({408, 429, 500, 502, 503, 504})
_LOCKED = frozenset({401, 403, 410})
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")

Origin = tuple[str, str, int]


class Locked(Exception):
    """The server answers that this may not be read, or not any more; `status` is what it said, `url` who."""

    def __init__(self, status: int, url: str) -> None:
        """Keep both."""
        self.status, self.url = status, url
        super().__init__(f"HTTP {status}")


class Answer(NamedTuple):
    """What came: the address that answered in the end, its etag, and the headers of all answers on the way to it.

    Where several answers have a header (lowercase), it is the first one's: a Hub tells of a file and redirects to its
    bytes.
    """

    url: str
    etag: str
    headers: Mapping[str, str]


def origin(url: str) -> Origin:
    """(scheme, host, port) of an address; QBridgeError (QB063) where it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError:
        parts, port = urlsplit(""), 0
    if not parts.hostname or not port:
        raise error("QB063", shown(url), ("it is no address of a server",))
    return parts.scheme, parts.hostname, port


def joined(url: str, there: str) -> str:
    """The address that another one leads to; QBridgeError (QB063) for what is none."""
    try:
        return urljoin(url, there)
    except ValueError:
        raise error("QB063", shown(url), (f"it leads to {there[:60]!r}, which is no address",)) from None


def shown(url: str) -> str:
    """An address as it may be printed: without a query or a user, which hold signatures and passwords."""
    return re.sub(r"//[^/@]*@", "//", re.sub(r"[?#].*", "", url, flags=re.DOTALL))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Client:
    """Asks the server at an address that a person named, and where that one redirects to.

    `token` gives what to send to that server alone. Each thread has connections of its own.
    """

    def __init__(self, named: str, token: Callable[[], str | None] = lambda: None) -> None:
        """Nothing is asked yet."""
        self._named, self._token = origin(named), token
        self._thread = threading.local()
        self._connections: list[HTTPConnection] = []

    def document(self, url: str, most: int = LONGEST) -> tuple[bytes, Answer]:
        """A whole document; FileNotFoundError where there is none, Locked, QBridgeError (QB063 if it is longer)."""
        patience = Patience(shown(url))
        while True:
            with self._retried(patience):
                answer, response = self._ask(url, {}, patience)
                data = response.read(most + 1)
                if len(data) > most:
                    raise error("QB063", shown(url), (f"it is longer than {most} bytes",))
                if response.length:  # bytes that were promised and did not come
                    raise ConnectionError("the connection was cut")
                return data, answer

    def fill(self, url: str, begin: int, buffer: Array, size: int | None) -> tuple[Answer, int]:
        """Fill `buffer` (bytes) from an offset of a file of `size` bytes, None if unknown; (answer, its size).

        What was read before a connection was cut is not read again. FileNotFoundError, Locked; QBridgeError: QB063
        for an answer that is not what was asked for, QB404 where none comes.
        """
        view, done, patience = buffer.data.cast("B"), 0, Patience(shown(url))
        while True:
            with self._retried(patience):
                asked = {"Range": f"bytes={begin + done}-{begin + len(view) - 1}"}
                answer, response = self._ask(url, asked, patience)
                size = self._check_range(response, shown(url), begin + done, begin + len(view), size)
                while done < len(view):
                    count = response.readinto(view[done:])
                    if not count:
                        raise ConnectionError("the connection was cut")
                    done += count
                    patience.renew()
                response.read(1)  # its end, so that the connection can be used again
                if not response.isclosed():
                    self._drop()
                return answer, size

    def close(self) -> None:
        """Close every connection of every thread; they open again when they are needed."""
        while self._connections:
            self._connections.pop().close()
        self._thread = threading.local()

    @contextmanager
    def _retried(self, patience: Patience) -> Iterator[None]:
        """One try of a request: it ends well, or after a wait without a fault, to be tried again."""
        try:
            yield
        except (HTTPException, ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror) as fault:
            self._drop()
            patience.wait(fault)
        except QBridgeError:
            self._drop()  # its answer was not read to the end
            raise

    def _ask(self, url: str, headers: Mapping[str, str], patience: Patience) -> tuple[Answer, HTTPResponse]:
        """Follow redirects to an answer that is one; Locked, or ConnectionError where it is to be asked later."""
        told: dict[str, str] = {}
        for _ in range(_HOPS + 1):
            self._check_allowed(url)
            connection = self._connection(url)
            parts = urlsplit(url)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={**_headers(), **self._authorization(url), **headers})
            response = connection.getresponse()
            told = {**{name.lower(): value for name, value in response.getheaders()}, **told}
            if response.status in _REDIRECTS and (there := response.headers.get("Location")):
                self._discard(response, connection)
                url = joined(url, there)
                continue
            if response.status in _LATER:
                self._discard(response, connection)
                patience.asked_to_wait(response.headers.get("Retry-After"))
                raise ConnectionError(f"HTTP {response.status}")
            if response.status == 404:
                self._discard(response, connection)
                raise FileNotFoundError(shown(url))
            if response.status in _LOCKED:
                self._discard(response, connection)
                raise Locked(response.status, url)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                connection.close()
                raise error("QB063", shown(url), ("it is compressed, though that was not asked for",))
            return Answer(url, response.headers.get("ETag", ""), told), response
        raise error("QB063", shown(url), (f"more than {_HOPS} redirects",))

    def _check_range(self, response: HTTPResponse, where: str, begin: int, end: int, size: int | None) -> int:
        """The size of the file; QBridgeError (QB063) for an answer of another stretch or file."""
        length = response.length
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 200 and begin == 0 and length is not None and length in (end, size or end):
            return length
        if response.status != 206 or match is None:
            fact = f"HTTP {response.status} and no range of bytes, where {begin} to {end - 1} were asked for"
            raise error("QB063", where, (fact,))
        first, last, whole = int(match[1]), int(match[2]), int(match[3]) if match[3] != "*" else size
        if (first, last) != (begin, end - 1) or length not in (None, end - begin):
            fact = f"bytes {first} to {last} came, {begin} to {end - 1} were asked for"
            raise error("QB063", where, (fact,))
        if whole is None or size not in (None, whole):
            raise error("QB063", where, (f"it has {whole} bytes, the listing says {size}",))
        return whole

    def _authorization(self, url: str) -> Mapping[str, str]:
        """The token, for nobody but the server that a person named."""
        token = self._token() if origin(url) == self._named else None
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _check_allowed(self, url: str) -> None:
        """QBridgeError (QB063) for an address that no server may send this program to."""
        scheme, host, _ = place = origin(url)
        if place == self._named and (scheme == "https" or is_loopback(host)):
            return
        if scheme != "https":
            raise error("QB063", shown(url), (f"a redirect to {scheme}, which is not encrypted",))
        if urlsplit(url).username is not None:
            raise error("QB063", shown(url), ("a redirect with a user's name",))
        try:
            inside = not ipaddress.ip_address(host).is_global
        except ValueError:
            inside = False
        if inside:
            raise error("QB063", shown(url), ("a redirect to a private address that nobody named",))

    def _connection(self, url: str) -> HTTPConnection:
        """This thread's connection to a server."""
        open_ones: dict[Origin, HTTPConnection] | None = getattr(self._thread, "connections", None)
        if open_ones is None:
            open_ones = self._thread.connections = {}
        place = origin(url)
        if place not in open_ones:
            open_ones[place] = _connected(place, anywhere=place == self._named)
            self._connections.append(open_ones[place])
        return open_ones[place]

    def _drop(self) -> None:
        """Close this thread's connections, of which one has failed."""
        for connection in getattr(self._thread, "connections", {}).values():
            connection.close()

    @staticmethod
    def _discard(response: HTTPResponse, connection: HTTPConnection) -> None:
        response.read(_DISCARDED)
        if not response.isclosed():
            connection.close()


def _headers() -> dict[str, str]:
    return {"User-Agent": "qbridge", "Accept-Encoding": "identity"}


def _connected(place: Origin, anywhere: bool) -> HTTPConnection:
    """A connection that opens when it is used; not `anywhere`: to no private address, whatever a name resolves to."""
    scheme, host, port = place
    if scheme == "http":
        return HTTPConnection(host, port, timeout=_SECONDS)
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")
    if proxy:
        through = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
        connection = HTTPSConnection(through.hostname or "", through.port or 80, timeout=_SECONDS, context=_context())
        connection.set_tunnel(host, port)
        return connection
    connection = HTTPSConnection(host, port, timeout=_SECONDS, context=_context())
    if not anywhere:
        connection._create_connection = _connect_outside  # type: ignore[attr-defined]
    return connection


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _connect_outside(address: tuple[str, int], timeout: float, source: None = None) -> socket.socket:
    """A socket to a public address; QBridgeError (QB063) if the name is one of a private network."""
    for *_, found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        if not ipaddress.ip_address(str(found[0]).partition("%")[0]).is_global:
            raise error("QB063", address[0], ("a redirect to a private address that nobody named",))
    return socket.create_connection((str(found[0]), address[1]), timeout)
