"""Threads for code that blocks, with a cheap way there and back.

A user's `run()` may take seconds; on a thread of its own it holds up neither
probes nor other requests.  Answers come back to the event loop in batches: one
wake-up for all that finished since the last.  Nothing here can interrupt a
call; `limits.Gate` keeps its place taken until it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from finery.serving import wire

Work = tuple[Callable[[Any], Any], Any, "asyncio.Future[Any]"]
Done = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Workers:
    """A fixed number of daemon threads; made on the event loop that they answer to."""

    def __init__(self, count: int, *, finished: Callable[[], None]) -> None:
        """`count` calls run at once; `finished` is called on the loop after each has ended."""
        self._loop = asyncio.get_running_loop()
        self._finished = finished
        self._todo: SimpleQueue[Work] = SimpleQueue()
        self._done: deque[Done] = deque()
        self._lock = threading.Lock()
        self._woken = False  # a call of _deliver is under way
        for number in range(count):
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True).start()

    async def call(self, function: Callable[[Any], Any], argument: Any, *, timeout: float) -> Any:
        """What `function(argument)` gives, on a thread; a Refusal (408) after `timeout` seconds."""
        future: asyncio.Future[Any] = self._loop.create_future()
        timer = self._loop.call_later(timeout, _expire, future, timeout)
        self._todo.put((function, argument, future))
        try:
            return await future
        finally:
            timer.cancel()

    def _work(self) -> None:
        while True:
            function, argument, future = self._todo.get()
            try:
                done: Done = (future, function(argument), None)
            except BaseException as error:  # a script may even call sys.exit()
                done = (future, None, error)
            self._done.append(done)
            with self._lock:
                wake, self._woken = not self._woken, True
            if wake:
                with contextlib.suppress(RuntimeError):  # the loop has ended; so shall we
                    self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            self._woken = False
        while self._done:
            future, result, error = self._done.popleft()
            self._finished()
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            elif isinstance(error, Exception) and not isinstance(error, StopIteration):
                future.set_exception(error)
            else:
                future.set_exception(_Left(error))


def _expire(future: asyncio.Future[Any], timeout: float) -> None:
    if not future.done():
        future.set_exception(wire.late(timeout))


class _Left(Exception):
    """The script raised what no future takes: it tried to end the process, or an iteration."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
