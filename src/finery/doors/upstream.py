"""The way from a door to a process of ours: one HTTP/1.1 exchange, streamed both ways.

Connections are kept open and used again.  It is for addresses on this machine
or in its cluster only: no TLS, no proxies, no redirects, no cookies.  A general
client costs more than a small model's whole answer, so this one is made of a
parser and little else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import cast
from urllib.parse import urlsplit

import httptools

Headers = Iterable[tuple[bytes, bytes]]

_HIGH, _LOW = 1 << 18, 1 << 16  # bytes received and not yet read: stop reading, go on reading
_KEEP = 64  # idle connections for each address
_PLACES = 64  # addresses, before those of processes that ended are forgotten
_CONNECT = 5.0  # seconds

# What belongs to one connection and is never passed on.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


class Lost(Exception):
    """The process did not answer, or not to the end.

    `unsent`: nobody took the connection, so that nothing of the request was read.
    """

    unsent = False


def unsent(said: str) -> Lost:
    lost = Lost(said)
    lost.unsent = True
    return lost


class Answer:
    """An answer whose head is there.  Read its body with `next`; `close` it in any case."""

    def __init__(self, pool: Pool, connection: _Connection) -> None:
        self._pool, self._connection = pool, connection
        self.status: int = connection.parser.get_status_code()
        self.headers = connection.headers

    @property
    def ended(self) -> bool:
        """Say whether there is no more to read."""
        return self._connection.ended

    async def next(self) -> bytes:
        """Return the next piece of the body; nothing at its end.  Raises `Lost`."""
        return await self._connection.next_part()

    def close(self) -> None:
        """Let the answer go; what has not been read of it is not wanted."""
        if self.ended:
            self._pool.give_back(self._connection)
        else:
            self._connection.abort()


class Pool:
    """Connections to our processes.  For use on one event loop."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], deque[_Connection]] = {}

    async def send(
        self,
        address: str,
        method: str,
        target: str,
        *,
        headers: Headers,
        body: bytes | AsyncIterator[bytes],
    ) -> Answer:
        """Send a request to `http://host:port` and wait for the head of the answer.

        Raises `Lost`.
        """
        parts = urlsplit(address)
        place = (parts.hostname or "", parts.port or 80)
        head = _head(method, target, parts.netloc, headers, body)
        kept = self._kept(place) if isinstance(body, bytes) else None
        return await self._exchange(kept or await _connect(place), head, body)

    async def _exchange(
        self, connection: _Connection, head: bytes, body: bytes | AsyncIterator[bytes]
    ) -> Answer:
        try:
            if isinstance(body, bytes):
                connection.begin(head + body)
            else:
                connection.begin(head)
                await connection.send_parts(body)
            await connection.headed
        except BaseException:
            connection.abort()
            raise
        return Answer(self, connection)

    def _kept(self, place: tuple[str, int]) -> _Connection | None:
        idle = self._idle.get(place)
        while idle:
            connection = idle.pop()
            if not connection.over:
                return connection
        return None

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection for the next request, if it can be used again."""
        if connection.over or not connection.reusable:
            return connection.abort()
        if len(self._idle) > _PLACES:
            self._tidy()
        idle = self._idle.setdefault(connection.place, deque())
        if len(idle) >= _KEEP:
            return connection.abort()
        idle.append(connection)
        return None

    def _tidy(self) -> None:
        """Forget the places where nobody answers any more."""
        for place, idle in [*self._idle.items()]:
            if all(connection.over for connection in idle):
                del self._idle[place]

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()


async def _connect(place: tuple[str, int]) -> _Connection:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CONNECT):
            _, connection = await loop.create_connection(lambda: _Connection(place), *place)
    except (OSError, TimeoutError) as exc:
        raise unsent(f"nothing answers at {place[0]}:{place[1]}") from exc
    return connection


def _head(
    method: str, target: str, host: str, headers: Headers, body: bytes | AsyncIterator[bytes]
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n".encode("latin-1")]
    lines += [name + b": " + value + b"\r\n" for name, value in headers]
    if isinstance(body, bytes):
        if body or method not in ("GET", "HEAD"):
            lines.append(b"content-length: %d\r\n" % len(body))
    else:
        lines.append(b"transfer-encoding: chunked\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


class _Connection(asyncio.Protocol):
    """One connection; one exchange on it at a time."""

    def __init__(self, place: tuple[str, int]) -> None:
        self.place = place
        self.over = False
        self.reusable = False
        self.complete = True
        self.begun = False  # something of the answer has arrived
        self.headers: list[tuple[bytes, bytes]] = []
        self.parser: httptools.HttpResponseParser
        self.headed: asyncio.Future[None]
        self._parts: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._more: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._room.set()

    # -- for the pool ------------------------------------------------------------------

    def begin(self, data: bytes) -> None:
        if self.over:
            raise Lost("the connection was closed")
        self.parser = httptools.HttpResponseParser(self)
        self.headers = []
        self.begun = self.complete = self.reusable = False
        self.headed = asyncio.get_running_loop().create_future()
        self._transport.write(data)

    async def send_parts(self, body: AsyncIterator[bytes]) -> None:
        async for part in body:
            if not part:
                continue
            await self._room.wait()
            if self.over:
                raise Lost("the process closed the connection while the request was sent")
            if self.headed.done():
                break  # it has answered already: the rest of the request is not wanted
            self._transport.write(b"%x\r\n" % len(part) + part + b"\r\n")
        self._transport.write(b"0\r\n\r\n")

    @property
    def ended(self) -> bool:
        return self.complete and not self._parts

    async def next_part(self) -> bytes:
        while not self._parts:
            if self.complete:
                return b""
            if self.over:
                raise Lost("the process ended in the middle of its answer")
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        part = self._parts.popleft()
        self._held -= len(part)
        if self._paused and self._held < _LOW:
            self._paused = False
            self._transport.resume_reading()
        return part

    def abort(self) -> None:
        self.over = True
        self._transport.abort()

    # -- asyncio's callbacks -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        if self.complete:
            return self.abort()  # nothing was asked
        self.begun = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()
            self.connection_lost(None)
        return None

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True
        self._room.set()
        if not self.complete:
            if not self.headed.done():
                self.headed.set_exception(Lost("the process closed the connection"))
                self.headed.exception()  # looked at: the caller may have left
            elif self._until_closed():
                self.complete = True
        self._tell()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    # -- the parser's callbacks --------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.parser.get_status_code() >= 200 and not self.headed.done():
            self.headed.set_result(None)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._held += len(body)
        if self._held > _HIGH and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._tell()

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() < 200:
            self.headers = []
            return
        self.complete = True
        self.reusable = self.parser.should_keep_alive()
        self._tell()

    def _tell(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def _until_closed(self) -> bool:
        """Say whether the end of the connection is the end of the answer."""
        names = {name for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names
