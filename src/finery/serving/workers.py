"""Threads for code that blocks, with a queue in front and a cheap way there and back.

A user's `run()` may take seconds; on a thread of its own it holds up neither
probes nor other requests.  Requests go to the threads in batches, after the turn of
the event loop that read them.  A thread that is done takes the next one at once, and
answers come back in batches: one wake-up for all that finished since the last.
Nothing here can interrupt a call: one that is past its time is answered, but keeps
its thread until it returns.

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

from finery.serving import wire
from finery.serving.wire import Answer, Exchange, Refusal, Scorer

SWEEP = 0.01  # seconds between two looks at what waits or runs too long
_AHEAD = 8  # pieces of an answer that may be on their way to the loop


class Call:
    """A request that waits, runs, or is being answered piece by piece."""

    __slots__ = (
        "answer", "dropped", "error", "exchange", "held", "permits", "settled", "since", "started",
    )  # fmt: skip

    def __init__(self, exchange: Exchange) -> None:
        """It waits from now on."""
        self.exchange = exchange
        self.since = time.monotonic()  # of waiting, and once it is started of running
        self.started = False
        self.dropped = False  # nobody wants the answer any more
        self.settled = False  # `done` has been told
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.permits: threading.Semaphore | None = None  # of an answer in pieces
        self.held = 0  # permits kept back until the client has caught up


Done = Callable[[Exchange, Answer | BaseException], None]
_NO_ANSWER = Answer(500, [], b"")


class Workers:
    """A fixed number of places; made on the event loop that is told what became of each call."""

    def __init__(
        self, scorer: Scorer, done: Done, *, places: int, queue: int, wait: float, time: float
    ) -> None:
        """`places` calls at once; `queue` more wait, each `wait` seconds; each may take `time`.

        `done` is called on the loop, once for each call that is submitted: with a whole
        answer to send, with an answer in pieces once its pieces have been sent, or with
        what went wrong (then `exchange.status` says whether the answer had begun).
        """
        self._loop = asyncio.get_running_loop()
        self._scorer, self._tell = scorer, done
        self._places, self._queue, self._wait, self._time = places, queue, wait, time
        self._todo: SimpleQueue[Call | None] = SimpleQueue()
        self._done: deque[Call] = deque()
        self._calls: dict[Call, None] = {}  # all that wait or run, oldest first
        self._lock = threading.Lock()
        self._woken = False  # a call of _deliver is under way
        self._sweeping = False

    def start(self, *, spare: int = 0) -> None:
        """Start the threads, but for `spare` that the caller brings: each must call `work`."""
        for number in range(self._places - spare):
            threading.Thread(target=self.work, name=f"worker-{number}", daemon=True).start()

    def stop(self) -> None:
        """Let threads that have nothing to do return from `work`."""
        for _ in range(self._places):
            self._todo.put(None)

    @property
    def running(self) -> int:
        """Calls that have a thread."""
        return min(len(self._calls), self._places)

    @property
    def waiting(self) -> int:
        """Calls that have none yet."""
        return len(self._calls) - self.running

    def submit(self, exchange: Exchange) -> None:
        """Have it scored; a Refusal (429) when there is no place even to wait."""
        if len(self._calls) >= self._places and (self.waiting >= self._queue or self._wait <= 0):
            raise wire.busy(f"{self.running} requests are running and {self.waiting} are waiting")
        call = Call(exchange)
        self._calls[call] = None
        exchange.gone = lambda: self._left(call)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP, self._sweep)
        # Woken at once, the thread would quarrel with the loop about the interpreter while the
        # loop reads what else has arrived; after this turn they find all of it.
        self._loop.call_soon(self._todo.put, call)

    # -- on the threads ----------------------------------------------------------------

    def work(self) -> None:
        """Score what is submitted, until stopped."""
        while (call := self._todo.get()) is not None:
            with self._lock:
                if call.dropped:
                    continue
                call.started, call.since = True, time.monotonic()
            try:
                call.answer = answer = self._scorer(call.exchange)
                if answer.parts is not None:
                    self._pour(call, answer)
            except BaseException as error:  # a script may even call sys.exit()
                call.error = error
            self._done.append(call)
            with self._lock:
                wake, self._woken = not self._woken, True
            if wake:
                self._post(self._deliver)

    def _pour(self, call: Call, answer: Answer) -> None:
        """Send pieces as they are made, no faster than the client takes them."""
        parts = answer.parts
        assert parts is not None
        call.permits = permits = threading.Semaphore(_AHEAD)
        try:
            part = next(parts, b"")  # what fails before its first piece can still be refused
            self._post(self._begin, call)
            while True:
                permits.acquire()
                if call.dropped:
                    return
                self._post(self._write, call, part)
                part = next(parts)
        except StopIteration:
            return
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended; so shall we
            self._loop.call_soon_threadsafe(function, *arguments)

    # -- on the loop -------------------------------------------------------------------

    def _deliver(self) -> None:
        with self._lock:
            self._woken = False
        while self._done:
            call = self._done.popleft()
            del self._calls[call]
            if call.error is not None:
                self._settle(call, call.error)
            else:
                self._settle(call, call.answer or _NO_ANSWER)

    def _settle(self, call: Call, result: Answer | BaseException) -> None:
        if not call.settled:
            call.settled = True
            call.exchange.gone = call.exchange.resumed = None
            self._tell(call.exchange, result)

    def _begin(self, call: Call) -> None:
        if not call.dropped and call.answer is not None:
            call.exchange.begin(call.answer.status, call.answer.headers)
            call.exchange.resumed = lambda: self._resume(call)

    def _write(self, call: Call, part: bytes) -> None:
        if not call.dropped:
            call.exchange.write(part)
            if call.exchange.line.paused:
                call.held += 1
                return
        assert call.permits is not None
        call.permits.release()

    def _resume(self, call: Call) -> None:
        assert call.permits is not None
        held, call.held = call.held, 0
        for _ in range(held):
            call.permits.release()

    def _left(self, call: Call) -> None:
        with self._lock:
            call.dropped = True
        self._drop(call, Refusal(499, "ClientClosedRequest", "the client went away"))

    def _drop(self, call: Call, why: Refusal) -> None:
        """Nobody waits for it any more."""
        if not call.started:
            self._calls.pop(call, None)
        if call.permits is not None:
            self._resume(call)
        self._settle(call, why)

    def _sweep(self) -> None:
        """Answer those that have waited or run too long.

        One with a place waits for none, however late its thread takes it up.
        """
        now = time.monotonic()
        late = wire.late(self._time)
        full = wire.busy(f"no place came free within {self._wait * 1000:.0f} ms")
        for place, call in enumerate(list(self._calls)):
            if call.settled or now - call.since <= min(self._time, self._wait):
                continue
            with self._lock:  # it may be starting just now
                runs = call.started or place < self._places
                if now - call.since <= (self._time if runs else self._wait):
                    continue
                call.dropped = True
            self._drop(call, late if runs else full)
        self._sweeping = bool(self._calls)
        if self._sweeping:
            self._loop.call_later(SWEEP, self._sweep)
