"""Which deployment a request goes to, which instance of it, and when it has to wait.

Everything here is of one event loop and lives in memory only: shares and queues
begin anew with the server.  What is wanted is read from the store, and read
again whenever something was written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from finery.core import endpoints
from finery.core.endpoints import Deployment, Endpoint
from finery.core.errors import NotFound, Unavailable
from finery.core.scaling import Load
from finery.core.store import Store

_log = logging.getLogger(__name__)

_STALE = 1.0  # seconds after which what is known of an endpoint is looked up again, by the way


class Full(Exception):
    """No place came free in time."""


@dataclass(frozen=True)
class View:
    """An endpoint and what it can send requests to, as read together."""

    endpoint: Endpoint
    deployments: Mapping[str, Deployment]


class Directory:
    """Endpoints as they are now, without asking the database each time.

    What this server writes is seen at once; what the command line wrote into the
    same database, a second later.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._views: dict[str, tuple[int, float, View | None]] = {}
        self._looks: set[asyncio.Task[View | None]] = set()

    async def find(self, name: str) -> View | None:
        known = self._views.get(name)
        if known is not None and known[0] == self._store.changes:
            now = time.monotonic()
            if now - known[1] > _STALE:
                self._views[name] = (known[0], now, known[2])
                look = asyncio.get_running_loop().create_task(self._look(name))
                self._looks.add(look)
                look.add_done_callback(self._looked)
            return known[2]
        return await self._look(name)

    async def _look(self, name: str) -> View | None:
        changes = self._store.changes
        view = await run_in_threadpool(self._read, name)
        if view is None:
            self._views.pop(name, None)  # any text can be asked for: remember only what exists
        else:
            self._views[name] = (changes, time.monotonic(), view)
        return view

    def _looked(self, look: asyncio.Task[View | None]) -> None:
        self._looks.discard(look)
        if not look.cancelled() and look.exception():
            _log.warning("an endpoint could not be read again: %s", look.exception())

    def _read(self, name: str) -> View | None:
        endpoint = endpoints.find(self._store, name)
        if endpoint is None or endpoint.status != "ready":
            return None
        found = endpoints.deployments(self._store, name)
        return View(endpoint, {deployment.name: deployment for deployment in found})


class Shares:
    """Turns that follow percentages exactly: after a hundred requests, each had its share."""

    def __init__(self) -> None:
        self._of: Mapping[str, int] = {}
        self._credit: dict[str, int] = {}

    def next(self, shares: Mapping[str, int]) -> str:
        """Return whose turn it is; one of `shares` is more than 0."""
        credit = self._started(shares)
        for name, share in shares.items():
            credit[name] += share
        chosen = max(credit, key=credit.__getitem__)
        credit[chosen] -= sum(shares.values())
        return chosen

    def due(self, shares: Mapping[str, int]) -> list[str]:
        """Return who gets a copy of this request: of a hundred, each gets its percentage."""
        credit = self._started(shares)
        for name, share in shares.items():
            credit[name] += share
        found = [name for name in credit if credit[name] >= 100]
        for name in found:
            credit[name] -= 100
        return found

    def _started(self, shares: Mapping[str, int]) -> dict[str, int]:
        if shares != self._of:
            self._of = dict(shares)
            self._credit = dict.fromkeys(shares, 0)
        return self._credit


class Queue:
    """The places of one deployment, over all its instances; first come, first served."""

    def __init__(self) -> None:
        self._deployment: Deployment | None = None
        self._busy: Counter[str] = Counter()
        self._waiting: deque[asyncio.Future[str]] = deque()
        self._shunned: dict[str, float] = {}  # processes that were just lost, and until when
        self._under_way = 0
        self._sum, self._at = 0.0, time.monotonic()  # of requests over time

    @property
    def deployment(self) -> Deployment | None:
        """As it was when it was asked for last."""
        return self._deployment

    @property
    def idle(self) -> bool:
        return not self._under_way

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return self._under_way - len(self._waiting)

    def busy(self, process: str) -> int:
        return self._busy[process]

    def load(self) -> Load:
        """Return how much is asked now, and was so far.  From any thread."""
        now = self._under_way
        return Load(now, self._sum + now * (time.monotonic() - self._at))

    def take(self, deployment: Deployment) -> str | None:
        """Take a place that is free, and return the process that it is on."""
        self.renew(deployment)  # an instance may have come up since
        chosen = None if self._waiting else self._free()
        if chosen is not None:
            self._count(1)
            self._busy[chosen] += 1
        return chosen

    async def wait(self, deployment: Deployment, *, seconds: float) -> str:
        """Wait for a place and return the process that it is on.

        Raises `Full` when none comes free within `seconds`, `Unavailable` when
        no instance is up in that time, or none will be.
        """
        self._count(1)
        try:
            self.renew(deployment)
            if not deployment.addresses and not _comes(deployment):
                raise Unavailable(why_down(deployment), target=deployment.name)
            return await self._wait(seconds)
        except BaseException:
            self._count(-1)
            raise

    def leave(self, process: str) -> None:
        """Give a place back: to the first who waits, if someone does."""
        self._count(-1)
        self._vacate(process)

    def renew(self, deployment: Deployment) -> None:
        """Take note of what the deployment is now: an instance may have come or gone."""
        self._deployment = deployment
        self._serve()

    def reaches(self, deployment: Deployment) -> bool:
        """Say whether there is an instance that was not just lost."""
        if not self._shunned:
            return bool(deployment.addresses)
        now = time.monotonic()
        return any(self._shunned.get(id, 0) <= now for id in deployment.addresses)

    def shun(self, process: str, *, seconds: float) -> None:
        """Send nothing more to a process that was lost, until it is known what became of it."""
        now = time.monotonic()
        self._shunned = {id: until for id, until in self._shunned.items() if until > now}
        self._shunned[process] = now + seconds

    def _vacate(self, process: str) -> None:
        self._busy[process] -= 1
        if self._busy[process] <= 0:
            del self._busy[process]
        self._serve()

    def _count(self, change: int) -> None:
        now = time.monotonic()
        self._sum += self._under_way * (now - self._at)
        self._at = now
        self._under_way += change

    async def _wait(self, seconds: float) -> str:
        turn: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            if seconds <= 0:
                raise TimeoutError
            async with asyncio.timeout(seconds):
                return await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self._vacate(turn.result())  # the place came just as its taker left
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(exc, TimeoutError):
                raise self._refusal(seconds) from None
            raise

    def _refusal(self, seconds: float) -> Exception:
        assert self._deployment is not None
        name = self._deployment.name
        if not self.reaches(self._deployment):
            return Unavailable(why_down(self._deployment), target=name)
        if seconds <= 0:
            return Full(f"every place of deployment {name!r} is taken")
        said = f"no place of deployment {name!r} came free within {seconds * 1000:.0f} ms"
        return Full(said)

    def _serve(self) -> None:
        while self._waiting:
            chosen = self._free()
            if chosen is None:
                return
            turn = self._waiting.popleft()
            if not turn.done():
                self._busy[chosen] += 1
                turn.set_result(chosen)

    def _free(self) -> str | None:
        """Return the least busy process that has a place, if one has."""
        assert self._deployment is not None
        places = _places(self._deployment)
        there: Iterator[str] = iter(self._deployment.addresses)
        if self._shunned:
            now = time.monotonic()
            there = (id for id in there if self._shunned.get(id, 0) <= now)
        process = min(there, key=self._busy.__getitem__, default=None)
        if process is None or (places and self._busy[process] >= places):
            return None
        return process


def choose(view: View, wanted: str, shares: Shares) -> Deployment:
    """Return the deployment named, or the one whose turn it is.  Raises `NotFound`."""
    known = ", ".join(view.deployments) or "none"
    name = view.endpoint.name
    if wanted:
        if wanted not in view.deployments:
            raise NotFound(
                f"endpoint {name!r} has no deployment {wanted!r} (it has: {known})", target=wanted
            )
        return view.deployments[wanted]
    traffic = {key: share for key, share in view.endpoint.traffic.items() if share > 0}
    if not traffic:
        raise NotFound(
            f"endpoint {name!r} sends its traffic to no deployment (it has: {known}): set its "
            "traffic, or name one in the header azureml-model-deployment",
            target="traffic",
        )
    chosen = shares.next(traffic)
    if chosen not in view.deployments:
        raise NotFound(f"deployment {chosen!r} of endpoint {name!r} is gone", target=chosen)
    return view.deployments[chosen]


def _places(deployment: Deployment) -> int:
    """Return how many requests each instance takes at once; 0 for as many as come.

    Only a script is held to the number here.  What is served without one keeps
    its own queue, because it may answer many requests in one go.
    """
    return deployment.spec.max_concurrent_requests if deployment.spec.script else 0


def _comes(deployment: Deployment) -> bool:
    """Say whether a deployment without an instance will have one soon: it is worth waiting."""
    return deployment.status in ("ready", "unhealthy", "updating")


def why_down(deployment: Deployment) -> str:
    why = f": {deployment.error['message']}" if deployment.error else ""
    said = f"deployment {deployment.name!r} has no instance that answers"
    return f"{said}; it is {deployment.status}{why}"
