"""How many requests run at once, how many may wait, and for how long.

Azure's request settings: `max_concurrent_requests_per_instance` and
`max_queue_wait_ms`, for a chat model; code that blocks has its own queue in
`workers.py`.  Places are given in order of arrival.
"""

from __future__ import annotations

import asyncio
from collections import deque

from finery.serving import wire


class Gate:
    """Places for running requests.  For use on one event loop."""

    def __init__(self, places: int, *, queue: int, wait: float) -> None:
        """`places` at once; at most `queue` more wait, each at most `wait` seconds."""
        self.places = places
        self.running = 0
        self._queue = queue
        self._wait = wait
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that have no place yet."""
        return len(self._waiting)

    async def enter(self) -> None:
        """Take a place, after those who came before; a Refusal (429) when it takes too long."""
        if self.running < self.places:
            self.running += 1
            return
        if len(self._waiting) >= self._queue or self._wait <= 0:
            raise wire.busy(f"{self.running} requests are running and {self.waiting} are waiting")
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        timer = loop.call_later(self._wait, self._give_up, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # the place came just as the caller left
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise
        finally:
            timer.cancel()

    def leave(self) -> None:
        """Give the place back: to the first who waits, if someone does."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn.done():
            return
        self._waiting.remove(turn)
        turn.set_exception(wire.busy(f"no place came free within {self._wait * 1000:.0f} ms"))
