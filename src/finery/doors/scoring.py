"""The way in to deployed models: `/endpoints/{endpoint}/{path}`.

Checks the caller's key or token, chooses a deployment and an instance
(`traffic.py`), and passes bytes through, both ways as they come (`upstream.py`).
It understands no body: what a model makes of a request is `serving/`'s affair.

Raw ASGI: for a small model a framework would cost more than the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from finery.core import errors, ids, tickets
from finery.core.endpoints import Deployment
from finery.core.errors import Failure
from finery.doors import http, traffic, upstream
from finery.doors.http import House
from finery.doors.traffic import Directory, Full, Queue, Shares, View
from finery.doors.upstream import Answer, Lost, Pool

_log = logging.getLogger(__name__)

MAX_BODY = 100 * 2**20  # bytes
_AT_ONCE = 2**20  # a body up to this size is read before it is sent, and can be sent twice
_GRACE = 0.5  # seconds that the instance has to refuse a late request itself, which it can explain
_MIRRORED = 64  # copies under way at most

_METHODS = ("GET", "POST")
_UNKNOWN = "something went wrong on the server; its log says what"
_CODES: dict[type[Failure], str] = {
    errors.Unauthenticated: "Unauthorized",
    errors.Forbidden: "Forbidden",
    errors.NotFound: "NotFound",
    errors.TooLarge: "PayloadTooLarge",
    errors.Unavailable: "ServiceUnavailable",
}
_OWN = (
    frozenset((b"host", b"content-length", b"authorization", b"api-key", b"expect"))
    | upstream.HOP_BY_HOP
)
_FAILED = (b"x-ms-run-function-failed", b"True")
_ANSWERED = frozenset((b"x-ms-request-id", b"azureml-model-deployment", b"date", b"server"))


class _Gone(Exception):
    """The caller went away."""


@dataclass(frozen=True)
class _Call:
    """One request, and how to answer it."""

    scope: Scope
    receive: Receive
    send: Send
    id: str
    target: str  # path and query below the endpoint
    headers: dict[bytes, bytes]


class Scoring:
    """The ASGI application: everything below /endpoints/.  For use on one event loop.

    `max_body` is the most bytes of a request.
    """

    def __init__(self, house: House, *, max_body: int = MAX_BODY) -> None:
        self.house, self.max_body = house, max_body
        self._directory = Directory(house.store)
        self._pool = Pool()
        self._shares: dict[str, Shares] = defaultdict(Shares)
        self._mirrors: dict[str, Shares] = defaultdict(Shares)
        self._queues: dict[str, Queue] = defaultdict(Queue)
        self._secrets: dict[str, bytes] = {}
        self._copies: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        call = _call(scope, receive, send)
        try:
            await self._serve(call)
        except _Gone:
            pass
        except Failure as exc:
            await _refuse(call, *_told(exc))
        except Full as exc:
            await _refuse(call, 429, "TooManyRequests", f"{exc}; try again later")
        except Lost as exc:
            await _refuse(call, 503, "ServiceUnavailable", f"the instance was lost: {exc}")
        except Exception:
            _log.exception("request %s failed", call.id)
            with contextlib.suppress(RuntimeError):  # the answer had begun: it breaks off
                await _refuse(call, 500, "InternalServerError", _UNKNOWN)

    async def _serve(self, call: _Call) -> None:
        name = call.scope["path"].split("/", 3)[2]
        view = await self._directory.find(name)
        self._admit(call, view)
        if view is None:
            raise errors.NotFound(f"no endpoint named {name!r}", target=name)
        if call.scope["method"] not in _METHODS:
            message = f"an endpoint answers to {' and '.join(_METHODS)} only"
            return await _refuse(call, 405, "MethodNotAllowed", message)
        wanted = call.headers.get(b"azureml-model-deployment", b"").decode("latin-1")
        deployment = traffic.choose(view, wanted, self._shares[name])
        body = await self._body(call)
        if not wanted and isinstance(body, bytes) and view.endpoint.mirror:
            self._mirror(call, view, deployment, body)
        if isinstance(body, bytes):
            await _unless_gone(call.receive, self._forward(call, deployment, body))
        else:
            await self._forward(call, deployment, body)
        return None

    # -- who may -----------------------------------------------------------------------

    def _admit(self, call: _Call, view: View | None) -> None:
        """Raise `Unauthenticated` or `Forbidden` unless the caller may call this endpoint."""
        shown = _credential(call.headers)
        if view is not None and shown:
            given, endpoint = shown.encode(), view.endpoint
            if endpoint.auth == "key":
                known = [hmac.compare_digest(given, key.encode()) for key in endpoint.keys.values()]
                if any(known):
                    return
            elif tickets.valid(self.house.keys, endpoint, shown, now=ids.now()):
                return
        caller = http.caller(self.house, shown)
        if view is not None:
            caller.need(view.endpoint.workspace)

    # -- what comes in -----------------------------------------------------------------

    async def _body(self, call: _Call) -> bytes | AsyncIterator[bytes]:
        """Return a small body whole, a large one as it comes."""
        length = call.headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.max_body:
            raise self._too_large()
        parts = self._parts(call)
        held, size = [], 0
        async for part in parts:
            held.append(part)
            size += len(part)
            if size > _AT_ONCE:
                return _after(held, parts)
        return b"".join(held)

    async def _parts(self, call: _Call) -> AsyncIterator[bytes]:
        size, more = 0, True
        while more:
            message = await call.receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > self.max_body:
                raise self._too_large()
            yield part

    def _too_large(self) -> Failure:
        return errors.TooLarge(f"a request may have {self.max_body} bytes here, and has more")

    # -- the way through ---------------------------------------------------------------

    async def _forward(
        self, call: _Call, deployment: Deployment, body: bytes | AsyncIterator[bytes]
    ) -> None:
        queue = self._queue(deployment)
        process = await queue.enter(deployment)
        try:
            seconds = _patience(deployment)
            try:
                async with asyncio.timeout(seconds):
                    answer = await self._ask(call, deployment, process, body)
            except TimeoutError:
                message = f"not answered within {deployment.spec.request_timeout_ms} ms"
                return await _refuse(call, 408, "RequestTimeout", message)
            try:
                await _pass_on(call, deployment.name, answer, seconds)
            finally:
                answer.close()
        finally:
            queue.leave(process)
        return None

    async def _ask(
        self,
        call: _Call,
        deployment: Deployment,
        process: str,
        body: bytes | AsyncIterator[bytes],
    ) -> Answer:
        headers = [(name, value) for name, value in call.scope["headers"] if name not in _OWN]
        headers.append((b"x-finery-secret", self._secret(process)))
        headers.append((b"x-ms-request-id", call.id.encode()))
        address = deployment.addresses[process]
        method = call.scope["method"]
        return await self._pool.send(address, method, call.target, headers=headers, body=body)

    def _queue(self, deployment: Deployment) -> Queue:
        if len(self._queues) > 256:
            for id in [id for id, queue in self._queues.items() if queue.idle]:
                del self._queues[id]
        return self._queues[deployment.id]

    def _secret(self, process: str) -> bytes:
        if process not in self._secrets:
            if len(self._secrets) > 1024:
                self._secrets.clear()
            self._secrets[process] = self.house.keys.derived("serving", process).encode()
        return self._secrets[process]

    # -- copies ------------------------------------------------------------------------

    def _mirror(self, call: _Call, view: View, chosen: Deployment, body: bytes) -> None:
        """Send copies of a request where they are due; the caller never learns of it."""
        for name in self._mirrors[view.endpoint.name].due(view.endpoint.mirror):
            other = view.deployments.get(name)
            if other is None or other.name == chosen.name or len(self._copies) >= _MIRRORED:
                continue
            copy = asyncio.get_running_loop().create_task(self._copy(call, other, body))
            self._copies.add(copy)
            copy.add_done_callback(self._copies.discard)

    async def _copy(self, call: _Call, deployment: Deployment, body: bytes) -> None:
        # Whatever goes wrong with a copy is in that deployment's own log, or is no matter.
        with contextlib.suppress(Failure, Full, Lost, TimeoutError):
            queue = self._queue(deployment)
            process = await queue.enter(deployment)
            try:
                async with asyncio.timeout(_patience(deployment)):
                    answer = await self._ask(call, deployment, process, body)
                    while await answer.next():
                        pass
                    answer.close()
            finally:
                queue.leave(process)


def _call(scope: Scope, receive: Receive, send: Send) -> _Call:
    raw = scope.get("raw_path") or scope["path"].encode()
    below = raw.split(b"/", 3)[3] if raw.count(b"/") > 2 else b""
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    id = scope.get("state", {}).get("request_id") or uuid.uuid4().hex
    target = (b"/" + below + query).decode("latin-1")
    return _Call(scope, receive, send, id, target, dict(scope["headers"]))


def _credential(headers: dict[bytes, bytes]) -> str | None:
    """Return the key or token, with or without its `Bearer`, or from `api-key`."""
    given = (headers.get(b"authorization") or headers.get(b"api-key") or b"").decode("latin-1")
    return (given[7:] if given[:7].lower() == "bearer " else given).strip() or None


def _patience(deployment: Deployment) -> float:
    """Return the seconds after which an instance that has said nothing is given up."""
    spec = deployment.spec
    queued = 0 if spec.script else spec.max_queue_wait_ms  # then it waits in the instance
    return (spec.request_timeout_ms + queued) / 1000 + _GRACE


async def _after(held: Sequence[bytes], parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for part in held:
        yield part
    async for part in parts:
        yield part


async def _unless_gone(receive: Receive, work: Any) -> None:
    """Do `work`, and stop it when the caller goes away."""
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
        raise _Gone from None
    finally:
        watcher.cancel()


async def _pass_on(call: _Call, deployment: str, answer: Answer, seconds: float) -> None:
    """Send an answer on as it comes; `seconds` is how long it may say nothing in between."""
    headers = [
        (name, value)
        for name, value in answer.headers
        if name not in upstream.HOP_BY_HOP and name not in _ANSWERED
    ]
    headers.append((b"azureml-model-deployment", deployment.encode()))
    headers.append((b"x-ms-request-id", call.id.encode()))
    status = answer.status
    if _FAILED in answer.headers:  # as on Azure: the host says 500, its way in 424
        headers.append((b"ms-azureml-model-error-statuscode", str(status).encode()))
        status = 424
    await call.send({"type": "http.response.start", "status": status, "headers": headers})
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


async def _refuse(call: _Call, status: int, code: str, message: str) -> None:
    body = orjson.dumps(_error(code, message, call.scope["path"]))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-ms-request-id", call.id.encode()),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 405:
        headers.append((b"allow", ", ".join(_METHODS).encode()))
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))
    await call.send({"type": "http.response.start", "status": status, "headers": headers})
    await call.send({"type": "http.response.body", "body": body})


def _told(exc: Failure) -> tuple[int, str, str]:
    kind = next(kind for kind in type(exc).__mro__ if kind in http.STATUS)
    return http.STATUS[kind], _CODES.get(kind, "InternalServerError"), str(exc)


def _error(code: str, message: str, path: str) -> dict[str, Any]:
    """Return an error's body; below `/v1/` it is also what OpenAI's clients read."""
    error: dict[str, Any] = {"code": code, "message": message}
    if "/v1/" in path:
        error |= {"type": "invalid_request_error", "param": None}
    return {"error": error}
