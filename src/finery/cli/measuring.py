"""Requests by the clock: what `finery bench` measures, without a word on where it is shown.

Times are of whole answers, as a caller sees them.  Only answers of status 200
have a time: whatever else comes back, or does not, is counted by what it said.
"""

from __future__ import annotations

import http.client
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PATIENCE = 600  # seconds for one answer
_SHOWN = 200  # characters of what a failed call said


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go: an address, the headers and the body."""

    address: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; times in seconds, throughput in answers per second.

    Without one good answer there are no times.
    """

    threads: int
    duration: float
    throughput: float
    avg_sec: float | None
    std_sec: float | None
    p95_sec: float | None
    p99_sec: float | None
    errors: int = 0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row and what it was made of."""

    row: Row
    times: list[float]  # of the good answers
    failed: Counter[str]  # what was said instead, and how often
    answered_by: Counter[str]  # deployments


@dataclass(frozen=True, kw_only=True)
class _Answer:
    seconds: float
    error: str = ""
    deployment: str = ""


@dataclass
class Progress:
    """Says how far it is and how long it takes: on a terminal often, in a log now and then."""

    total: int
    every: float = field(default_factory=lambda: 0.5 if sys.stderr.isatty() else 30)
    clock: Callable[[], float] = time.monotonic
    done: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.row("warm-up")

    def row(self, name: str) -> None:
        """Another row begins; it is no measure of how fast the one before was."""
        self._name, self._before, self._begun = name, self.done, self.clock()
        self._next = self._begun + self.every

    def tick(self) -> None:
        """One more request is over."""
        with self._lock:
            self.done += 1
            if self.clock() < self._next:
                return
            self._next = self.clock() + self.every
            each = (self.clock() - self._begun) / (self.done - self._before)
            left = each * (self.total - self.done)
            said = f"{self._name}: {self.done} of {self.total} requests, about {_span(left)} left"
        print(f"\r{said}\033[K" if sys.stderr.isatty() else said, file=sys.stderr, end=self._end)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    @property
    def _end(self) -> str:
        return "" if sys.stderr.isatty() else "\n"


def warm(target: Target, requests: int, *, progress: Progress) -> None:
    """Send requests that nobody measures; what is wrong with them the measured ones will say."""
    with closing(_connect(target)) as connection:
        for _ in range(requests):
            _ask(connection, target)
            progress.tick()


def measure(target: Target, threads: int, *, requests: int, progress: Progress) -> Measured:
    """Send `requests` from each of `threads` at once, each with one connection of its own."""
    progress.row(f"{threads} thread{'s' if threads > 1 else ''}")
    stop = threading.Event()

    def work(_: int) -> list[_Answer]:
        found: list[_Answer] = []
        with closing(_connect(target)) as connection:
            while len(found) < requests and not stop.is_set():
                found.append(_ask(connection, target))
                progress.tick()
        return found

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        try:
            answers = [answer for part in pool.map(work, range(threads)) for answer in part]
        except BaseException:
            stop.set()
            raise
    return _measured(answers, threads=threads, duration=time.perf_counter() - started)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile, interpolated linearly between the values beside it (as NumPy)."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _measured(answers: Sequence[_Answer], *, threads: int, duration: float) -> Measured:
    times = [answer.seconds for answer in answers if not answer.error]
    row = Row(
        threads=threads,
        duration=duration,
        throughput=len(times) / duration,
        avg_sec=statistics.fmean(times) if times else None,
        std_sec=statistics.pstdev(times) if times else None,
        p95_sec=percentile(times, 95) if times else None,
        p99_sec=percentile(times, 99) if times else None,
        errors=len(answers) - len(times),
    )
    return Measured(
        row=row,
        times=times,
        failed=Counter(answer.error for answer in answers if answer.error),
        answered_by=Counter(answer.deployment for answer in answers if answer.deployment),
    )


def _connect(target: Target) -> http.client.HTTPConnection:
    parts = urlsplit(target.address)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE)


def _ask(connection: http.client.HTTPConnection, target: Target) -> _Answer:
    """Send one request; its time is over when the whole answer is there."""
    started = time.perf_counter()
    try:
        connection.request("POST", urlsplit(target.address).path, target.body, target.headers)
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as exc:
        connection.close()  # the next request opens it again
        return _Answer(seconds=0, error=f"no answer: {type(exc).__name__}")
    taken = time.perf_counter() - started
    by = answer.getheader("azureml-model-deployment", "")
    if answer.status == 200:
        return _Answer(seconds=taken, deployment=by)
    # Of a script that raised, the answer says no more than that it did.
    said = answer.getheader("ms-azureml-model-error-reason", "").encode() or said
    text = " ".join(said.decode(errors="replace").split())[:_SHOWN]
    return _Answer(seconds=taken, error=f"{answer.status} {text}".strip(), deployment=by)


def _span(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 90 else f"{whole // 60} min {whole % 60} s"
