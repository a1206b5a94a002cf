"""The way in to deployed models: `/endpoints/{endpoint}/{path}`.

Checks the caller's key or token, chooses a deployment and an instance
(`traffic.py`), and passes bytes through, both ways as they come (`upstream.py`,
`answering.py`).  It understands no body: what a model makes of a request is
`serving/`'s affair.  What it has seen is counted in `metering.py`, and told by
`telling.py`.

A request whose instance was lost before it said anything is sent once more, to
another instance or to the one that takes its place, within the request's time:
where nobody had taken it, or where it was read whole before it was sent (see
`_AT_ONCE`).  A script may therefore see a request twice, if the first
time has killed its process.

Raw ASGI: for a small model a framework would cost more than the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence

from starlette.types import Receive, Scope, Send

from finery.core import errors, ids, tickets
from finery.core.endpoints import Deployment
from finery.core.errors import Failure
from finery.core.scaling import Load
from finery.doors import answering, http, traffic, upstream
from finery.doors.answering import Call, Gone
from finery.doors.http import House
from finery.doors.metering import Line
from finery.doors.telling import Telling
from finery.doors.traffic import Directory, Full, Queue, Shares, View
from finery.doors.upstream import Answer, Lost, Pool

_log = logging.getLogger(__name__)

MAX_BODY = 100 * 2**20  # bytes
COLD = 60.0  # seconds that a call waits at least for the first instance of a deployment without any
_AT_ONCE = 16 * 2**20  # a body up to this size is read before it is sent, and can be sent twice
_HELD = 256 * 2**20  # bytes of such bodies in all; past it only the smallest are held
_SMALL = 2**16
_GRACE = 0.5  # seconds that the instance has to refuse a late request itself, which it can explain
_DOWN = 1.0  # seconds without requests for an instance that takes no connection
_SHAKY = 0.25  # and for one that broke one off: it may be about to end
_LOOK = 0.02  # seconds between looks at what has changed, while a request waits
_SENDS = 5  # times that a request is offered to an instance that takes no connection
_MIRRORED = 64  # copies under way at most
_MIRRORED_EACH = 16  # of one deployment
_MIRRORED_BYTES = 64 * 2**20

_UNKNOWN = "something went wrong on the server; its log says what"
_OWN = (
    frozenset((b"host", b"content-length", b"authorization", b"api-key", b"expect"))
    | upstream.HOP_BY_HOP
)


class Scoring:
    """The ASGI application: everything below /endpoints/.  For use on one event loop.

    `max_body` is the most bytes of a request.
    """

    def __init__(self, house: House, *, max_body: int = MAX_BODY) -> None:
        self.house, self.max_body = house, max_body
        self._directory = Directory(house.store)
        self._pool = Pool()
        self.telling = Telling(
            house, self._directory, self._pool, line=self._line, secret=self._secret
        )
        self._shares: dict[str, Shares] = defaultdict(Shares)
        self._mirrors: dict[str, Shares] = defaultdict(Shares)
        self._lines: dict[str, Line] = {}  # by the deployment's id
        self._secrets: dict[str, bytes] = {}
        self._copies: set[asyncio.Task[None]] = set()
        self._copied = self._held = 0  # bytes under way
        self._waiting = 0  # requests that wait for a place
        self._attendant: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        call = answering.read(scope, receive, send)
        try:
            await self._serve(call)
        except Gone:
            pass
        except Failure as exc:
            await answering.refuse(call, *answering.told(exc))
        except Full as exc:
            await answering.refuse(call, 429, "TooManyRequests", f"{exc}; try again later")
        except Lost as exc:
            message = f"the instance was lost: {exc}"
            await answering.refuse(call, 503, "ServiceUnavailable", message)
        except Exception:
            _log.exception("request %s failed", call.id)
            with contextlib.suppress(RuntimeError):  # the answer had begun: it breaks off
                await answering.refuse(call, 500, "InternalServerError", _UNKNOWN)
        finally:
            if line := self._lines.get(call.deployment):
                line.meter.answered(call.status, time.perf_counter() - call.began)

    async def _serve(self, call: Call) -> None:
        name, changes = call.scope["path"].split("/", 3)[2], self.house.store.changes
        view = await self._directory.find(name)
        self._admit(call, view)
        if view is None:
            raise errors.NotFound(f"no endpoint named {name!r}", target=name)
        if call.scope["method"] not in answering.METHODS:
            message = f"an endpoint answers to {' and '.join(answering.METHODS)} only"
            return await answering.refuse(call, 405, "MethodNotAllowed", message)
        if call.target == "/metrics":
            return await self.telling.tell(call, [view])
        try:
            body = await self._body(call)
            if self.house.store.changes != changes:  # while the body came in
                view = await self._directory.find(name) or view
            wanted = call.headers.get(b"azureml-model-deployment", b"").decode("latin-1")
            deployment = traffic.choose(view, wanted, self._shares[name])
            call.deployment = deployment.id
            if not wanted and isinstance(body, bytes) and view.endpoint.mirror:
                self._mirror(call, view, deployment, body)
            if isinstance(body, bytes):
                await answering.unless_gone(call.receive, self._forward(call, deployment, body))
            else:
                await self._forward(call, deployment, body)
        finally:
            self._let_go(call, call.held)

    # -- who may -----------------------------------------------------------------------

    def _admit(self, call: Call, view: View | None) -> None:
        """Raise `Unauthenticated` or `Forbidden` unless the caller may call this endpoint."""
        shown = answering.credential(call.headers)
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

    async def _body(self, call: Call) -> bytes | AsyncIterator[bytes]:
        """Return a small body whole, a large one as it comes.

        What has been read of it counts as held until it is sent on, or the call ends.
        """
        length = call.headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.max_body:
            raise self._too_large()
        parts = self._parts(call)
        if length.isdigit() and int(length) > _AT_ONCE:
            return parts  # nothing of it is read while it waits for a place
        held: deque[bytes] = deque()
        async for part in parts:
            held.append(part)
            call.held += len(part)
            self._held += len(part)
            if call.held > (_AT_ONCE if self._held < _HELD else _SMALL):
                return self._after(call, held, parts)
        return b"".join(held)

    async def _after(
        self, call: Call, held: deque[bytes], parts: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        while held:
            part = held.popleft()
            self._let_go(call, len(part))
            yield part
        async for part in parts:
            yield part

    def _let_go(self, call: Call, size: int) -> None:
        size = min(size, call.held)  # what sends it on may outlive the call for a moment
        call.held -= size
        self._held -= size

    async def _parts(self, call: Call) -> AsyncIterator[bytes]:
        size, more = 0, True
        while more:
            message = await call.receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > self.max_body:
                raise self._too_large()
            yield part

    def _too_large(self) -> Failure:
        return errors.TooLarge(f"a request may have {self.max_body} bytes here, and has more")

    # -- the way through ---------------------------------------------------------------

    async def _forward(
        self, call: Call, deployment: Deployment, body: bytes | AsyncIterator[bytes]
    ) -> None:
        line, seconds = self._line(deployment.id), _patience(deployment)
        wait, ends = self._wait(line.queue, deployment), 0.0
        lost: list[Lost] = []
        while True:
            process = await self._enter(line.queue, deployment, seconds=wait, lost=lost)
            try:
                deployment = line.queue.deployment or deployment
                ends = ends or time.monotonic() + seconds
                try:
                    async with asyncio.timeout(ends - time.monotonic()):
                        answer = await self._ask(call, deployment, process, body)
                except TimeoutError:
                    message = f"not answered within {deployment.spec.request_timeout_ms} ms"
                    return await answering.refuse(call, 408, "RequestTimeout", message)
                except Lost as exc:
                    line.queue.shun(process, seconds=_DOWN if exc.unsent else _SHAKY)
                    self.house.wake()  # it may have ended: the sooner that is noticed the better
                    lost.append(exc)
                    if not _again(lost, body):
                        raise
                    line.meter.retried += 1
                    wait = max(ends - time.monotonic(), 0)
                    continue
                try:
                    return await answering.pass_on(call, deployment.name, answer, seconds)
                finally:
                    answer.close()
            finally:
                line.queue.leave(process)

    async def _ask(
        self,
        call: Call,
        deployment: Deployment,
        process: str,
        body: bytes | AsyncIterator[bytes],
    ) -> Answer:
        headers = [(name, value) for name, value in call.scope["headers"] if name not in _OWN]
        headers.append((b"x-finery-secret", self._secret(process)))
        headers.append((b"x-ms-request-id", call.id.encode()))
        address = deployment.addresses.get(process)
        if address is None:  # it was let go just as the place came free
            raise upstream.unsent(f"instance {process} is no more")
        method = call.scope["method"]
        answer = await self._pool.send(address, method, call.target, headers=headers, body=body)
        if answer.status == 401 and answering.refused(answer):
            answer.close()
            raise Lost(f"at the address of instance {process} is another")  # it ended just now
        return answer

    def _wait(self, queue: Queue, deployment: Deployment) -> float:
        """Return the seconds that a request may wait for a place."""
        queued = deployment.spec.max_queue_wait_ms / 1000
        if queue.reaches(deployment):
            return queued
        self.house.wake()
        if deployment.count == 0:  # nobody called for a while: one is started for this call
            return max(queued, COLD)
        return max(queued, deployment.spec.request_timeout_ms / 1000)

    async def _enter(
        self,
        queue: Queue,
        deployment: Deployment,
        *,
        seconds: float,
        lost: Sequence[Lost] = (),
    ) -> str:
        """Take a place; where one has to be waited for, see to it that new ones are noticed.

        `lost`: what happened to the request before.
        """
        if (process := queue.take(deployment)) is not None:
            return process
        self._waiting += 1
        if self._attendant is None or self._attendant.done():
            self._attendant = asyncio.get_running_loop().create_task(self._attend())
        try:
            return await queue.wait(deployment, seconds=seconds)
        except (Full, errors.Unavailable):
            if lost:  # that is the reason: nothing took its place in time
                raise lost[0] from None
            raise
        finally:
            self._waiting -= 1

    async def _attend(self) -> None:
        """Tell the queues what has become of their deployments, while somebody waits."""
        while True:
            await asyncio.sleep(_LOOK)
            if not self._waiting:
                return
            for line in [*self._lines.values()]:
                found = line.queue.deployment
                if found is None or not line.queue.waiting:
                    continue
                try:
                    view = await self._directory.find(found.endpoint)
                except Exception as exc:  # whoever waits goes on waiting: it is asked again
                    _log.warning("endpoint %s cannot be looked up: %s", found.endpoint, exc)
                    continue
                now = view.deployments.get(found.name) if view else None
                if now is not None and now.id == found.id:
                    line.queue.renew(now)

    def _line(self, id: str) -> Line:
        line = self._lines.get(id)
        if line is None:
            line = self._lines[id] = Line()
        return line

    def _secret(self, process: str) -> bytes:
        if process not in self._secrets:
            if len(self._secrets) > 1024:
                self._secrets.clear()
            self._secrets[process] = self.house.keys.derived("serving", process).encode()
        return self._secrets[process]

    # -- copies ------------------------------------------------------------------------

    def _mirror(self, call: Call, view: View, chosen: Deployment, body: bytes) -> None:
        """Send copies of a request where they are due; the caller never learns of it."""
        for name in self._mirrors[view.endpoint.name].due(view.endpoint.mirror):
            other = view.deployments.get(name)
            if other is None or other.name == chosen.name:
                continue
            line = self._line(other.id)
            full = len(self._copies) >= _MIRRORED or line.copies >= _MIRRORED_EACH
            if full or self._copied + len(body) > _MIRRORED_BYTES:
                line.meter.dropped += 1
                continue
            copy = asyncio.get_running_loop().create_task(self._copy(call, other, line, body))
            self._copies.add(copy)
            copy.add_done_callback(self._copies.discard)

    async def _copy(self, call: Call, deployment: Deployment, line: Line, body: bytes) -> None:
        line.copies += 1
        line.meter.copies += 1
        self._copied += len(body)
        began, status = time.perf_counter(), 503
        # Whatever goes wrong with a copy is in that deployment's own log, or is no matter.
        try:
            queued = deployment.spec.max_queue_wait_ms / 1000
            process = await self._enter(line.queue, deployment, seconds=queued)
            try:
                async with asyncio.timeout(_patience(deployment)):
                    deployment = line.queue.deployment or deployment
                    answer = await self._ask(call, deployment, process, body)
                    try:
                        while await answer.next():
                            pass
                        status = answering.status(answer)
                    finally:
                        answer.close()
            finally:
                line.queue.leave(process)
        except Full:
            status = 429
        except TimeoutError:
            status = 408
        except (Failure, Lost):
            pass
        finally:
            line.copies -= 1
            self._copied -= len(body)
            line.meter.answered(status, time.perf_counter() - began)

    # -- what was seen -----------------------------------------------------------------

    def load(self, deployment: str) -> Load:
        """Say how much is asked of a deployment.  From any thread."""
        line = self._lines.get(deployment)
        return line.queue.load() if line else Load()

    def busy(self, process: str) -> int:
        """Say how many requests a process is answering.  From any thread."""
        return sum(line.queue.busy(process) for line in [*self._lines.values()])

    def seen(self, deployment: str) -> Line | None:
        """Return what is known of a deployment, if it was ever asked for anything."""
        return self._lines.get(deployment)

    def forget(self, kept: set[str]) -> None:
        """Let go of deployments that are no more; `kept` are the ids of those that are."""
        for id in {*self._lines} - kept:
            if self._lines[id].queue.idle and not self._lines[id].copies:
                del self._lines[id]


def _again(lost: Sequence[Lost], body: bytes | AsyncIterator[bytes]) -> bool:
    """Say whether a request may be sent once more, after what happened to it.

    Where an instance that was lost may have read it, once more is enough: it may
    be the request that does it.
    """
    if lost[-1].unsent:
        return len(lost) < _SENDS
    return isinstance(body, bytes) and sum(not exc.unsent for exc in lost) < 2


def _patience(deployment: Deployment) -> float:
    """Return the seconds after which an instance that has said nothing is given up."""
    spec = deployment.spec
    queued = 0 if spec.script else spec.max_queue_wait_ms  # then it waits in the instance
    return (spec.request_timeout_ms + queued) / 1000 + _GRACE
