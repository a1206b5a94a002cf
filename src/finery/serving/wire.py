"""One HTTP exchange over ASGI: read the body, answer, refuse.

Just what `host.py` needs, on the raw protocol, because a framework costs more
than everything else on the way to a small model.  Routing is in `host.py`;
what answers mean is in the modules of the kinds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"


class Refusal(Exception):
    """The request is answered with an error; `code` is a word for programs."""

    def __init__(self, status: int, code: str, message: str, *, target: str = "") -> None:
        """`target` names the field that is meant, where there is one."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.target = target


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


class Exchange:
    """A request and its answer.  Exactly one of `answer` or `begin` is called."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, headers: Headers) -> None:
        """`headers` go out with every answer."""
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.status = 0  # of the answer, once it has begun
        self.sent = 0  # bytes of body
        self.extra = headers
        self._receive = receive
        self._send = send

    async def body(self, limit: int) -> bytes:
        """The whole body; a Refusal past `limit` bytes or when the client goes away."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Refusal(499, "ClientClosedRequest", "the client went away")
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise too_large(limit)
            if not message.get("more_body", False):
                return part if not parts else b"".join((*parts, part))
            parts.append(part)

    async def gone(self) -> None:
        """Return when the client has gone away.  Only after `body`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(self, status: int, body: bytes, kind: bytes = JSON) -> None:
        """Send a complete answer."""
        await self.begin(status, kind, length=len(body))
        await self.write(body, more=False)

    async def begin(self, status: int, kind: bytes, *, length: int | None = None) -> None:
        """Send the head of an answer."""
        self.status = status
        headers = [(b"content-type", kind), *self.extra]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, part: bytes, *, more: bool = True) -> None:
        """Send a part of the body."""
        self.sent += len(part)
        await self._send({"type": "http.response.body", "body": part, "more_body": more})


def json_in(body: bytes) -> Any:
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


def header(scope: Scope, name: bytes) -> bytes:
    """A request header, b"" when it is absent."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return b""


async def until_gone(exchange: Exchange, leave: Callable[[], None]) -> None:
    """Call `leave` once the client has gone away; a task around one answer."""
    try:
        await exchange.gone()
    except asyncio.CancelledError:
        return
    leave()
