"""Which deployment a request goes to, which instance of it, and when it has to wait.

Everything here is of one event loop and lives in memory only: shares and queues
begin anew with the server.  What is wanted is read from the store, and read
again whenever something was written.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from finery.core import endpoints
from finery.core.endpoints import Deployment, Endpoint
from finery.core.errors import NotFound, Unavailable
from finery.core.store import Store


class Full(Exception):
    """No place came free in time."""


@dataclass(frozen=True)
class View:
    """An endpoint and what it can send requests to, as read together."""

    endpoint: Endpoint
    deployments: Mapping[str, Deployment]


class Directory:
    """Endpoints as they are now, without asking the database each time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._views: dict[str, tuple[int, View | None]] = {}

    async def find(self, name: str) -> View | None:
        changes = self._store.changes
        known = self._views.get(name)
        if known is not None and known[0] == changes:
            return known[1]
        view = await run_in_threadpool(self._read, name)
        if view is None:
            self._views.pop(name, None)  # any text can be asked for: remember only what exists
        else:
            self._views[name] = (changes, view)
        return view

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

    @property
    def idle(self) -> bool:
        return not self._waiting and not +self._busy

    async def enter(self, deployment: Deployment) -> str:
        """Take a place and return the process that it is on.

        Raises `Full` when none comes free within the deployment's queue time,
        `Unavailable` when no instance is up.
        """
        self._deployment = deployment
        if not deployment.addresses:
            raise Unavailable(_why_down(deployment), target=deployment.name)
        self._serve()  # an instance may have come up since
        chosen = None if self._waiting else self._free()
        if chosen is not None:
            self._busy[chosen] += 1
            return chosen
        wait = deployment.spec.max_queue_wait_ms / 1000
        if wait <= 0:
            raise Full(f"every place of deployment {deployment.name!r} is taken")
        return await self._wait(wait, deployment.name)

    def leave(self, process: str) -> None:
        """Give a place back: to the first who waits, if someone does."""
        self._busy[process] -= 1
        if self._busy[process] <= 0:
            del self._busy[process]
        self._serve()

    async def _wait(self, seconds: float, name: str) -> str:
        turn: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(seconds):
                return await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self.leave(turn.result())  # the place came just as its taker left
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(exc, TimeoutError):
                raise Full(
                    f"no place of deployment {name!r} came free within {seconds * 1000:.0f} ms"
                ) from None
            raise

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
        process = min(self._deployment.addresses, key=self._busy.__getitem__, default=None)
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


def _why_down(deployment: Deployment) -> str:
    why = f": {deployment.error['message']}" if deployment.error else ""
    said = f"deployment {deployment.name!r} has no instance that answers"
    return f"{said}; it is {deployment.status}{why}"
