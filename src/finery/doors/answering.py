"""One request to a deployed model, and the three ways to end it: an answer, a refusal, silence.

Raw ASGI; used by `scoring.py`, which says what becomes of a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from finery.core import errors
from finery.core.errors import Failure
from finery.doors import http, upstream
from finery.doors.upstream import Answer, Lost

_log = logging.getLogger("finery.doors.scoring")

METHODS = ("GET", "POST")
GONE, BROKEN = 499, 502  # for the counts: the caller left; the answer broke off
_MINE = b"x-finery-refused"  # an instance marks with it what is not its model's word
_STATUS, _REASON = b"ms-azureml-model-error-statuscode", b"ms-azureml-model-error-reason"
# Of these it puts one on whatever its model says outside 2xx.
_MODELS = frozenset((b"x-ms-run-function-failed", b"x-ms-run-fn-exec-ms", _REASON))
_ANSWERED = frozenset(
    (b"x-ms-request-id", b"azureml-model-deployment", b"date", b"server", _MINE, _STATUS)
)
_CODES: dict[type[Failure], str] = {
    errors.Unauthenticated: "Unauthorized",
    errors.Forbidden: "Forbidden",
    errors.NotFound: "NotFound",
    errors.TooLarge: "PayloadTooLarge",
    errors.Unavailable: "ServiceUnavailable",
}


class Gone(Exception):
    """The caller went away."""


@dataclass(slots=True)
class Call:
    """One request, how to answer it, and what became of it."""

    scope: Scope
    receive: Receive
    send: Send
    id: str
    target: str  # path and query below the endpoint
    headers: dict[bytes, bytes]
    deployment: str = ""  # the id of the one that it went to
    status: int = GONE  # of the answer
    held: int = 0  # bytes of its body that are in memory
    began: float = field(default_factory=time.perf_counter)


def read(scope: Scope, receive: Receive, send: Send) -> Call:
    raw = scope.get("raw_path") or scope["path"].encode()
    below = raw.split(b"/", 3)[3] if raw.count(b"/") > 2 else b""
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    id = scope.get("state", {}).get("request_id") or uuid.uuid4().hex
    target = (b"/" + below + query).decode("latin-1")
    return Call(scope, receive, send, id, target, dict(scope["headers"]))


def credential(headers: dict[bytes, bytes]) -> str | None:
    """Return the key or token, with or without its `Bearer`, or from `api-key`."""
    given = (headers.get(b"authorization") or headers.get(b"api-key") or b"").decode("latin-1")
    return (given[7:] if given[:7].lower() == "bearer " else given).strip() or None


async def unless_gone(receive: Receive, work: Awaitable[Any]) -> None:
    """Do `work`, and stop it when the caller goes away.  Raises `Gone`."""
    me = asyncio.current_task()
    assert me is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        me.cancel()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not gone:
            raise
        me.uncancel()
        raise Gone from None
    finally:
        watcher.cancel()


def status(answer: Answer) -> int:
    """Return what a caller is told: as on Azure 424 for whatever a model says outside 2xx.

    What the serving process refuses for us (its limits; all that our own chat
    engine says) is marked as such and stays what it is.
    """
    return answer.status if 200 <= answer.status < 300 or refused(answer) else 424


def refused(answer: Answer) -> bool:
    """Say whether it is not the model's word but the serving process's, which speaks for us.

    One that an earlier server has begun, and that runs on, does not mark it.
    """
    names = {name for name, _ in answer.headers}
    return _MINE in names or not names & _MODELS


async def pass_on(call: Call, deployment: str, answer: Answer, seconds: float) -> None:
    """Send an answer on as it comes; `seconds` is how long it may say nothing in between."""
    headers = [
        (name, value)
        for name, value in answer.headers
        if name not in upstream.HOP_BY_HOP and name not in _ANSWERED
    ]
    headers.append((b"azureml-model-deployment", deployment.encode()))
    headers.append((b"x-ms-request-id", call.id.encode()))
    told = status(answer)
    if told == 424:
        headers.append((_STATUS, str(answer.status).encode()))
        if not any(name == _REASON for name, _ in headers):
            headers.append((_REASON, b"model_error"))
    if told >= 400 and not _small(call):
        headers.append((b"connection", b"close"))  # or the rest of the body would still be read
    call.status = BROKEN  # until it is whole
    await call.send({"type": "http.response.start", "status": told, "headers": headers})
    more = True
    while more:
        try:
            async with asyncio.timeout(seconds):
                part = await answer.next()
        except (TimeoutError, Lost) as exc:
            _log.warning("answer %s of deployment %s broke off: %s", call.id, deployment, exc)
            return  # incomplete: the server closes the connection, and so the caller can tell
        more = not answer.ended
        await call.send({"type": "http.response.body", "body": part, "more_body": more})
    call.status = told


async def answer(call: Call, body: bytes, kind: bytes) -> None:
    """Answer with something of our own."""
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    headers.append((b"x-ms-request-id", call.id.encode()))
    call.status = 200
    await call.send({"type": "http.response.start", "status": 200, "headers": headers})
    await call.send({"type": "http.response.body", "body": body})


async def refuse(call: Call, status: int, code: str, message: str) -> None:
    body = orjson.dumps(_error(code, message, call.scope["path"]))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-ms-request-id", call.id.encode()),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 405:
        headers.append((b"allow", ", ".join(METHODS).encode()))
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))
    if not _small(call):
        headers.append((b"connection", b"close"))  # or the rest of the body would still be read
    call.status = status
    await call.send({"type": "http.response.start", "status": status, "headers": headers})
    await call.send({"type": "http.response.body", "body": body})


def told(exc: Failure) -> tuple[int, str, str]:
    """Return a failure's status, code and message."""
    kind = next(kind for kind in type(exc).__mro__ if kind in http.STATUS)
    return http.STATUS[kind], _CODES.get(kind, "InternalServerError"), str(exc)


def _small(call: Call) -> bool:
    """Say whether what is left of the body, if anything, costs less than a new connection."""
    length = call.headers.get(b"content-length", b"0")
    return b"transfer-encoding" not in call.headers and length.isdigit() and int(length) <= 2**20


def _error(code: str, message: str, path: str) -> dict[str, Any]:
    """Return an error's body; below `/v1/` it is also what OpenAI's clients read."""
    error: dict[str, Any] = {"code": code, "message": message}
    if "/v1/" in path:
        error |= {"type": "invalid_request_error", "param": None}
    return {"error": error}
