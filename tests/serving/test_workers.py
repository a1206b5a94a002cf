"""The threads behind a scorer, driven by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from finery.serving.wire import Answer, Exchange, Headers
from finery.serving.workers import Workers


class Nowhere:
    """A connection that nobody listens at."""

    paused = False

    def head(self, status: int, headers: Headers, *, length: int | None) -> None: ...
    def data(self, part: bytes) -> None: ...
    def end(self) -> None: ...
    def abort(self) -> None: ...


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_thread_finds_all_requests_that_arrived_in_one_turn_of_the_loop(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    # Woken for the first, it would take the interpreter from the loop before every other.
    scored: list[str] = []

    def score(exchange: Exchange) -> Answer:
        scored.append(exchange.path)
        return Answer(200, [], b"")

    def worked(workers: Workers) -> list[str]:
        """What a thread would find now."""
        workers.stop()
        workers.work()
        return list(scored)

    async def story() -> None:
        told: list[object] = []
        workers = Workers(
            score, lambda one, result: told.append(result), places=1, queue=9, wait=60, time=60
        )
        for name in ("/first", "/second", "/third"):
            workers.submit(Exchange("POST", name, b"", [], Nowhere()))
        assert worked(workers) == []
        await asyncio.sleep(0)
        assert worked(workers) == ["/first", "/second", "/third"]
        assert told == []
        async with asyncio.timeout(20):
            while len(told) < 3:
                await asyncio.sleep(0)
        assert (workers.running, workers.waiting) == (0, 0)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())
