"""What one HTTP exchange is to the serving side: a request, an answer, a refusal.

Bytes on a socket are `connection.py`'s affair; which path means what is said in
`routes.py`; what an answer holds, by the modules of the kinds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"
TEXT = b"text/html; charset=utf-8"  # what Azure's inference server calls whatever is not JSON


class Refusal(Exception):
    """The request is answered with an error; `code` is a word for programs."""

    def __init__(self, status: int, code: str, message: str, *, target: str = "") -> None:
        """`target` names the field that is meant, where there is one."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.target = target


class Answer(NamedTuple):
    """A whole answer, or with `parts` one that is made while it is sent.

    With `parts`, `body` is empty.  An exception from `parts` breaks the answer off.
    """

    status: int
    headers: Headers
    body: bytes
    parts: Iterator[bytes] | None = None


class Line(Protocol):
    """Where the answer to one request goes.  Only on the event loop."""

    paused: bool  # what was written has not gone out yet: write no more for now

    def head(self, status: int, headers: Headers, *, length: int | None) -> None:
        """Begin the answer; without a `length` its end is marked otherwise."""

    def data(self, part: bytes) -> None:
        """Go on with the body."""

    def end(self) -> None:
        """The answer is complete."""

    def abort(self) -> None:
        """Close the connection, so that nobody takes what was sent for the whole."""


Scorer = Callable[["Exchange"], Answer]  # blocks; called on a thread


class Exchange:
    """A request that has arrived whole, and its answer.

    `answer` is called once; or `begin`, `write` as often as needed, and `end`.
    """

    __slots__ = (
        "began", "body", "extra", "fields", "gone", "headers", "id", "line", "method",
        "path", "peer", "query", "resumed", "sent", "status", "tokens",
    )  # fmt: skip

    def __init__(self, method: str, path: str, query: bytes, headers: Headers, line: Line) -> None:
        """Header names are in small letters; `path` is percent-decoded, without its query."""
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.fields = dict(headers)
        self.line = line
        self.body: bytes | bytearray = b""
        self.peer = ""
        self.began = time.perf_counter()
        self.id = ""
        self.status = 0  # of the answer, once it has begun
        self.sent = 0  # bytes of body
        self.extra: Headers = []  # go out with every answer
        self.gone: Callable[[], None] | None = None  # called when the client leaves early
        self.resumed: Callable[[], None] | None = None  # called when writing may go on

    def header(self, name: bytes) -> bytes:
        """A request header, b"" when it is absent."""
        return self.fields.get(name, b"")

    def answer(self, status: int, body: bytes, kind: bytes = JSON) -> None:
        """Send a complete answer."""
        self.send(status, [(b"content-type", kind)], body)

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a complete answer with these headers."""
        self.status, self.sent = status, len(body)
        self.line.head(status, headers + self.extra, length=len(body))
        if body:
            self.line.data(body)
        self.line.end()

    def begin(self, status: int, headers: Headers) -> None:
        """Send the head of an answer whose length is not known."""
        self.status = status
        self.line.head(status, headers + self.extra, length=None)

    def write(self, part: bytes) -> None:
        """Send a part of the body."""
        if part:
            self.sent += len(part)
            self.line.data(part)

    def end(self) -> None:
        """The body is complete."""
        self.line.end()


def invalid(message: str, *, target: str = "") -> Refusal:
    """A request that makes no sense: 400."""
    said = f"{target}: {message}" if target else message
    return Refusal(400, "BadRequest", said, target=target)


def too_large(limit: int) -> Refusal:
    """A body of more than `limit` bytes: 413."""
    return Refusal(413, "PayloadTooLarge", f"the body is larger than the {limit} bytes taken here")


def busy(why: str) -> Refusal:
    """No place for the request: 429."""
    return Refusal(429, "TooManyRequests", f"{why}; try again later")


def late(seconds: float) -> Refusal:
    """A request that took longer than `seconds`: 408."""
    return Refusal(408, "RequestTimeout", f"not answered within {seconds * 1000:.0f} ms")


def unpacked(exchange: Exchange) -> None:
    """Raise a Refusal, 415, for a body that is packed: who reads it would read nonsense."""
    if exchange.header(b"content-encoding") not in (b"", b"identity"):
        raise Refusal(415, "UnsupportedMediaType", "content-encoding is not supported")


def json_in(body: bytes | bytearray) -> Any:
    """The JSON document in a body, or a Refusal that says where it breaks."""
    try:
        return json.loads(body)
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}" if body else "the body is empty") from None


def json_out(document: Any) -> bytes:
    """The document as Azure's inference server writes it: Python's own spacing and escapes."""
    return json.dumps(document).encode()
