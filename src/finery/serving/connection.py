"""HTTP/1.1 on one socket: bytes to whole requests, answers to bytes.

httptools reads heads and chunks; a body of known length goes past it, straight
into the memory that it ends in, because a picture is mostly body.  One request
at a time on each connection; what a client sends ahead waits.  Heads and bodies are
bounded, as is the time that a head may take and that a body may pause; a body that
is refused is not read.

What requests mean is `routes.py`'s affair; TLS, HTTP/2 and who may call from
outside are the server's.
"""

from __future__ import annotations

import asyncio
import http
import time
from typing import Any, Protocol, cast
from urllib.parse import unquote

import httptools

from finery.serving.wire import Exchange, Headers, Refusal, invalid, too_large

MAX_HEAD = 64 * 2**10  # bytes
PATIENCE = 30.0  # seconds that a head may take, and that a body may pause
KEEP = 75.0  # seconds that a connection may be silent between requests
_LINGER = 2.0  # seconds that a client has to read a refusal while it still sends
_LINGER_BYTES = 8 * 2**20

_SPACE = 16 * 2**10  # bytes read at once where it is not known what comes
_CHUNKS = 256 * 2**10  # bytes read at once of a body in chunks

_REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus}
_BODILESS = frozenset((204, 304))


class Application(Protocol):
    """What requests are given to."""

    def admit(self, exchange: Exchange, length: int) -> int:
        """Look at a head: the most bytes that its body may have; a Refusal when none may.

        `length` is what the head promises, 0 when it does not say.
        """

    def handle(self, exchange: Exchange) -> None:
        """Answer a whole request, now or later."""

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer with an error."""


class Listener:
    """All connections of a process.  For use on one event loop."""

    def __init__(self, application: Application) -> None:
        """`application` answers."""
        self.application = application
        self.connections: set[Connection] = set()
        self.closing = False

    def connect(self) -> Connection:
        """A new connection: what `create_server` wants."""
        return Connection(self)

    def sweep(self) -> None:
        """Close connections that say nothing; calls itself again."""
        now = time.monotonic()
        for connection in list(self.connections):
            connection.look(now)
        asyncio.get_running_loop().call_later(5, self.sweep)

    async def close(self, seconds: float) -> None:
        """Take no more requests; let those under way have so many seconds."""
        self.closing = True
        until = time.monotonic() + seconds
        while True:
            for connection in list(self.connections):
                connection.close_when_idle()
            if not self.connections or time.monotonic() > until:
                return
            await asyncio.sleep(0.01)


class Connection(asyncio.BufferedProtocol):
    """One client.  It is the `Line` of the request that is being answered."""

    def __init__(self, listener: Listener) -> None:
        """Not connected yet."""
        self.paused = False
        self._listener = listener
        self._application = listener.application
        self._since = time.monotonic()  # something was last heard
        self._view = memoryview(bytearray(_SPACE))  # heads and small bodies arrive here
        self._rest = b""  # received and not used yet
        self._held = False  # reading is paused until what was sent ahead is used
        self._queued = False  # a call of _go_on is under way
        self._exchange: Exchange | None = None  # being received or answered
        self._busy = False  # it is being answered
        self._parser: Any = None
        self._body: bytearray | None = None  # of known length, and how much of it is there
        self._body_view: memoryview | None = None
        self._have = 0
        self._parts: list[bytes] | None = None  # a body in chunks
        self._limit = 0
        self._complete = False  # as the parser says
        self._surplus = False  # more came in the piece in which a chunked body ended
        self._version = ""
        self._headers: Headers = []
        self._url = b""
        self._keep = False
        self._chunked = False  # the answer
        self._mute = False  # the answer has no body, whatever is written
        self._out = b""  # a head that waits for the body, to go out with it
        self._discarding = -1  # bytes still to be thrown away after a refusal

    # -- asyncio's callbacks -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._listener.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or the connection was closed here."""
        self._listener.connections.discard(self)
        exchange, self._exchange = self._exchange, None
        self.paused = False
        if exchange is not None and self._busy:
            if exchange.gone:
                exchange.gone()
            if exchange.resumed:
                exchange.resumed()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        if self._body_view is not None:
            return self._body_view[self._have :]
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have arrived there."""
        if self._body is not None:
            self._since = time.monotonic()
            self._have += nbytes
            if self._have == len(self._body):
                self._received(self._body)
            return
        self._heard(bytes(self._view[:nbytes]))

    def eof_received(self) -> None:
        """The client will send no more; nor will it read."""

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self.paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self.paused = False
        if self._exchange is not None and self._exchange.resumed:
            self._exchange.resumed()

    # -- a request comes in ------------------------------------------------------------

    def _heard(self, data: bytes) -> None:
        if self._exchange is not None or not self._rest:  # a head is not renewed by its bytes
            self._since = time.monotonic()
        if self._discarding >= 0:
            self._discarding -= len(data)
            if self._discarding < 0:
                self._transport.abort()
        elif self._busy or self._queued:
            self._rest += data  # sent ahead: at most what fits into the space, then no more
            self._held = True
            self._transport.pause_reading()
        elif self._parts is not None:
            self._feed(data)
        else:
            self._head((self._rest + data) if self._rest else data)

    def _head(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n")
        if end == 0 or (end < 0 and data[:1] == b"\r"):  # empty lines before a request
            data = data.lstrip(b"\r\n")
            end = data.find(b"\r\n\r\n")
        if (len(data) if end < 0 else end) > MAX_HEAD:
            large = Refusal(431, "HeadTooLarge", f"more than {MAX_HEAD} bytes of headers")
            return self._refuse(large)
        if end < 0:
            self._rest = data
            return
        head, self._rest = data[: end + 4], data[end + 4 :]
        self._headers, self._url, self._complete = [], b"", False
        self._parser = parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # it is offered, not demanded
        except httptools.HttpParserError as error:
            return self._refuse(invalid(f"this is not HTTP: {error}"))
        self._begun(parser)

    def _begun(self, parser: Any) -> None:
        """The head is there: may the body come?"""
        path, _, query = self._url.partition(b"?")
        if path[:1] != b"/":  # the absolute form that proxies are sent
            path = b"/" + path.split(b"/", 3)[3] if path.count(b"/") > 2 else b"/"
        name = path.decode("latin-1")
        if "%" in name:
            name = unquote(name, errors="replace")
        method = parser.get_method().decode("latin-1")
        self._version = parser.get_http_version()
        self._keep = parser.should_keep_alive() and self._version == "1.1"
        exchange = Exchange(method, name, query, self._headers, self)
        self._exchange = exchange
        given = exchange.fields.get(b"content-length")
        chunked = b"transfer-encoding" in exchange.fields
        length = int(given) if given and not chunked else 0
        try:
            self._understood(exchange.fields, parser)
            self._limit = self._application.admit(exchange, length)
            if length > self._limit:
                raise too_large(self._limit)
        except Refusal as refusal:
            return self._refuse(refusal)
        if b"expect" in exchange.fields and not self._rest:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._have = 0
        if chunked:
            self._parts, self._surplus = [], False
            self._view = memoryview(bytearray(_CHUNKS))
            rest, self._rest = self._rest, b""
            return self._feed(rest)
        if length <= len(self._rest):
            body, self._rest = self._rest[:length], self._rest[length:]
            return self._received(body)
        self._body = bytearray(length)
        self._body_view = memoryview(self._body)
        self._have = len(self._rest)
        self._body_view[: self._have] = self._rest
        self._rest = b""

    def _understood(self, fields: dict[bytes, bytes], parser: Any) -> None:
        """Raise a refusal where we and others could differ on where the request ends."""
        if self._version not in ("1.0", "1.1"):
            raise Refusal(505, "VersionNotSupported", f"HTTP/{self._version} is not spoken here")
        coding = fields.get(b"transfer-encoding")
        if coding is None:
            return
        if coding.lower() != b"chunked":
            raise Refusal(501, "NotImplemented", "the only transfer-encoding taken is chunked")
        if parser.should_upgrade():  # httptools then takes the body for another protocol's
            raise invalid("a body in chunks does not go with an upgrade")

    def _feed(self, data: bytes) -> None:
        """A piece of a chunked body."""
        assert self._parts is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            return self._refuse(invalid(f"this is not HTTP: {error}"))
        if self._have > self._limit:
            return self._refuse(too_large(self._limit))
        if self._complete:
            self._keep = self._keep and not self._surplus
            self._received(b"".join(self._parts))

    def _received(self, body: bytes | bytearray) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._body = self._body_view = self._parts = self._parser = None
        self._busy = True
        exchange.body = body
        self._application.handle(exchange)

    # -- the parser's callbacks --------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        if not self._complete:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        if self._parts is None:  # else it is a trailer
            self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_body(self, body: bytes) -> None:
        """A piece of a chunked body."""
        if self._parts is None or self._complete:
            return
        self._have += len(body)
        if self._have <= self._limit:
            self._parts.append(body)

    def on_message_begin(self) -> None:
        """A request begins; a second one in the same piece is not kept."""
        if self._complete:
            self._surplus = True

    def on_message_complete(self) -> None:
        """A chunked body is there, or there was none."""
        self._complete = True

    # -- the answer goes out -----------------------------------------------------------

    def head(self, status: int, headers: Headers, *, length: int | None) -> None:
        """Begin the answer."""
        exchange = self._exchange
        if exchange is None:
            return
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b""))]
        lines += [b"%b: %b\r\n" % field for field in headers]
        self._mute = exchange.method == "HEAD" or status in _BODILESS
        self._chunked = False
        if status in _BODILESS:
            pass
        elif length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        elif self._version == "1.0":
            self._keep = False
        else:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if self._listener.closing:
            self._keep = False
        if not self._keep:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._out = b"".join(lines)
        if length is None or self._mute:
            self._flush()

    def data(self, part: bytes) -> None:
        """Go on with the body."""
        if self._exchange is None or self._mute:
            return
        if self._chunked:
            self._transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        elif self._out and len(part) < 65536:
            self._transport.write(self._out + part)
            self._out = b""
        else:
            self._flush()
            self._transport.write(part)

    def end(self) -> None:
        """The answer is complete: on to the next request."""
        if self._exchange is None:
            return
        self._flush()
        if self._chunked and not self._mute:
            self._transport.write(b"0\r\n\r\n")
        self._exchange = None
        self._busy = False
        if not self._keep:
            return self._transport.close() if self._discarding < 0 else None
        self._since = time.monotonic()
        if self._rest:
            self._queued = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def abort(self) -> None:
        """Break the answer off."""
        self._keep = False
        self._exchange = None
        self._transport.abort()

    def _go_on(self) -> None:
        """The next of the requests that were sent ahead; more is read when they are used up."""
        self._queued = False
        if self._transport.is_closing():
            return
        rest, self._rest = self._rest, b""
        self._head(rest)
        if self._held and not self._busy and not self._queued:
            self._held = False
            self._transport.resume_reading()

    def _flush(self) -> None:
        if self._out:
            self._transport.write(self._out)
            self._out = b""

    def _refuse(self, refusal: Refusal) -> None:
        """Answer a request that has not arrived whole, and hear no more of it."""
        if self._exchange is None:
            self._exchange = Exchange("GET", "", b"", [], self)
        self._body = self._body_view = self._parts = self._parser = None
        self._rest, self._keep, self._busy = b"", False, True
        # Closing now would reset the connection before the client has read why.
        self._discarding = _LINGER_BYTES
        self._application.refuse(self._exchange, refusal)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER, self._transport.abort)

    # -- for the listener --------------------------------------------------------------

    def look(self, now: float) -> None:
        """Close a connection that has been silent for too long."""
        if self._busy:
            return
        begun = bool(self._rest) or self._exchange is not None
        if now - self._since > (PATIENCE if begun else KEEP):
            self._transport.abort()

    def close_when_idle(self) -> None:
        """Close once nothing is under way."""
        self._keep = False
        if not self._busy and self._exchange is None:
            self._transport.close()
