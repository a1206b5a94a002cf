"""Threads for code that blocks, with a queue in front and a cheap way there and back.

A user's `run()` may take seconds; on a thread of its own it holds up neither
probes nor other requests.  A thread that is done takes the next request at once,
and answers come back to the event loop in batches: one wake-up for all that
finished since the last.  Nothing here can interrupt a call: one that is past its
time is answered, but keeps its thread until it returns.

Limits are Azure's request settings, as in `limits.py`, which does the same for
code that does not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from finery.serving import wire

SWEEP = 0.01  # seconds between two looks at what waits or runs too long


class _Call:
    """A call that waits or runs."""

    __slots__ = ("argument", "dropped", "error", "future", "result", "since", "started")

    def __init__(self, argument: Any, future: asyncio.Future[Any]) -> None:
        self.argument = argument
        self.future = future
        self.since = time.monotonic()  # of waiting, and once it is started of running
        self.started = False
        self.dropped = False
        self.result: Any = None
        self.error: BaseException | None = None


class Workers:
    """A fixed number of daemon threads; made on the event loop that they answer to."""

    def __init__(
        self, function: Callable[[Any], Any], *, places: int, queue: int, wait: float, time: float
    ) -> None:
        """`places` calls at once; `queue` more wait, each `wait` seconds; each may take `time`."""
        self._loop = asyncio.get_running_loop()
        self._function = function
        self._places, self._queue, self._wait, self._time = places, queue, wait, time
        self._todo: SimpleQueue[_Call] = SimpleQueue()
        self._done: deque[_Call] = deque()
        self._calls: dict[_Call, None] = {}  # all that wait or run, oldest first
        self._lock = threading.Lock()
        self._woken = False  # a call of _deliver is under way
        self._sweeping = False
        for number in range(places):
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True).start()

    @property
    def running(self) -> int:
        """Calls that have a thread."""
        return min(len(self._calls), self._places)

    @property
    def waiting(self) -> int:
        """Calls that have none yet."""
        return len(self._calls) - self.running

    async def call(self, argument: Any) -> Any:
        """What the function gives; a Refusal (429, 408) when waiting or running takes too long."""
        if len(self._calls) >= self._places and (self.waiting >= self._queue or self._wait <= 0):
            raise wire.busy(f"{self.running} requests are running and {self.waiting} are waiting")
        call = _Call(argument, self._loop.create_future())
        self._calls[call] = None
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP, self._sweep)
        self._todo.put(call)
        return await call.future

    def _work(self) -> None:
        while True:
            call = self._todo.get()
            with self._lock:
                if call.dropped:
                    continue
                call.started, call.since = True, time.monotonic()
            try:
                call.result = self._function(call.argument)
            except BaseException as error:  # a script may even call sys.exit()
                call.error = error
            self._done.append(call)
            with self._lock:
                wake, self._woken = not self._woken, True
            if wake:
                with contextlib.suppress(RuntimeError):  # the loop has ended; so shall we
                    self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            self._woken = False
        while self._done:
            call = self._done.popleft()
            del self._calls[call]
            future, error = call.future, call.error
            if future.done():
                continue
            if error is None:
                future.set_result(call.result)
            elif isinstance(error, Exception) and not isinstance(error, StopIteration):
                future.set_exception(error)
            else:
                future.set_exception(_Left(error))

    def _sweep(self) -> None:
        """Answer those that have waited or run too long."""
        now = time.monotonic()
        with self._lock:
            late = [
                call
                for call in self._calls
                if now - call.since > (self._time if call.started else self._wait)
                and not call.future.done()
            ]
            for call in late:
                call.dropped = not call.started
        for call in late:
            if call.started:
                call.future.set_exception(wire.late(self._time))
            else:
                del self._calls[call]
                said = f"no place came free within {self._wait * 1000:.0f} ms"
                call.future.set_exception(wire.busy(said))
        self._sweeping = bool(self._calls)
        if self._sweeping:
            self._loop.call_later(SWEEP, self._sweep)


class _Left(Exception):
    """The script raised what no future takes: it tried to end the process, or an iteration."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
