"""What was asked of each deployment, at intervals, for whoever keeps it: from counts to figures.

A point every ten seconds while a deployment is called, one more when the calls
have ceased, then nothing until the next one.  The counts are the way in's
(`metering.py`); where the figures go is given (MLflow's run of the deployment).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from starlette.concurrency import run_in_threadpool

from finery.core import endpoints, ids
from finery.core.endpoints import Deployment
from finery.core.store import Store
from finery.doors import metering
from finery.doors.metering import Line

_log = logging.getLogger(__name__)

EVERY = 10.0  # seconds
_TOKENS = ("finery_tokens_total", "finery_prompt_tokens_total", "finery_generated_tokens_total")


class Ledger(Protocol):
    """Who keeps figures.  Both verbs may take a while, and are called on threads."""

    def log(self, deployment: Deployment, figures: dict[str, float], *, at: datetime) -> None:
        """Keep the figures of a deployment at a time."""

    def close(self, kept: set[str]) -> bool:
        """End what is kept of deployments whose ids are not among these; False: not now."""


class WayIn(Protocol):
    """What has seen the requests."""

    def seen(self, deployment: str) -> Line | None:
        """Return what is known of a deployment, by its id, if it was asked for anything."""

    def forget(self, kept: set[str]) -> None:
        """Let go of deployments whose ids are not among these."""


@dataclass
class _Last:
    """The counts at the last point."""

    at: datetime
    requests: int = 0
    errors: int = 0
    tokens: float = 0.0
    quiet: bool = True  # nobody has called since the point before


class Figures:
    """For use on the event loop of the way in."""

    def __init__(
        self,
        store: Store,
        way_in: WayIn,
        ledger: Ledger,
        *,
        instances: Callable[[Deployment], Awaitable[dict[str, str]]],
    ) -> None:
        """`instances`: what the instances of a deployment tell of themselves."""
        self._store, self._way_in, self._ledger = store, way_in, ledger
        self._instances = instances
        self._last: dict[str, _Last] = {}
        self._kept: set[str] | None = None  # as the ledger was told last

    async def run(self) -> None:
        """Look at intervals, for ever."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.look(now=ids.now())
            except Exception:
                _log.exception("the figures of the deployments were not kept this time")

    async def look(self, *, now: datetime) -> None:
        """Keep a point of each deployment that was called."""
        deployments = await run_in_threadpool(endpoints.kept, self._store)
        kept = {deployment.id for deployment in deployments}
        for deployment in deployments:
            await self._point(deployment, now)
        self._way_in.forget(kept)
        self._last = {id: last for id, last in self._last.items() if id in kept}
        if kept != self._kept:
            closed = await run_in_threadpool(self._ledger.close, kept)
            self._kept = kept if closed else None

    async def _point(self, deployment: Deployment, now: datetime) -> None:
        line = self._way_in.seen(deployment.id)
        last = self._last.setdefault(deployment.id, _Last(deployment.created_at))
        if line is None:
            return
        requests = line.meter.requests
        quiet = requests == last.requests and line.queue.idle
        if quiet and last.quiet:
            last.at = now
            return
        told = await self._instances(deployment)
        tokens = metering.total(told.values(), *_TOKENS)
        seconds = min(max((now - last.at).total_seconds(), 1e-3), 2 * EVERY)
        found = {
            "requests_per_second": (requests - last.requests) / seconds,
            "errors_per_second": (line.meter.errors - last.errors) / seconds,
            "tokens_per_second": max(tokens - last.tokens, 0) / seconds,
            "running": float(line.queue.running),
            "queue": float(line.queue.waiting),
            "instances": float(len(deployment.addresses)),
            **_latency(line.meter.take_recent()),
        }
        new = _Last(now, requests, line.meter.errors, tokens, quiet)
        self._last[deployment.id] = new
        await run_in_threadpool(lambda: self._ledger.log(deployment, found, at=now))


def _latency(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ranked = sorted(seconds)
    return {
        f"latency_p{share}_ms": ranked[min(len(ranked) * share // 100, len(ranked) - 1)] * 1000
        for share in (50, 95, 99)
    }
