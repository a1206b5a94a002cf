"""What a serving process writes down: events and requests to stdout, counts to /metrics.

One JSON object a line.  Never a body, a key or a header: a request is its
identifier, its path, what was answered and how long it took.  Requests are
written in batches, at most a tenth of a second late.

What is counted are the requests that a model answers or refuses; the server adds
up the counts of a deployment's processes, so their names stay as they are.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

from finery.serving.wire import Exchange

# Upper bounds of the histogram, in seconds: a trivial model to a long answer.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)


def say(event: str, **details: object) -> None:
    """Write an event."""
    print(json.dumps({"time": _now(), "event": event, **details}), flush=True)


class Journal:
    """The requests of a process: a line each, how many of which kind, and how long they took."""

    def __init__(self) -> None:
        """Empty."""
        self._lines: list[str] = []
        self._answers: Counter[int] = Counter()
        self._seconds = 0.0
        self._took = [0] * (len(BUCKETS) + 1)

    def answered(self, exchange: Exchange, *, scored: bool) -> None:
        """A request has had its answer; `scored` when it was for the model."""
        seconds = time.perf_counter() - exchange.began
        if scored:
            self._answers[exchange.status] += 1
            self._seconds += seconds
            self._took[bisect_left(BUCKETS, seconds)] += 1
        self._lines.append(
            f'{{"time": "{_now()}", "event": "request", "id": {json.dumps(exchange.id)}, "method":'
            f' "{exchange.method}", "path": {json.dumps(exchange.path[:200])}, "status":'
            f' {exchange.status}, "ms": {seconds * 1000:.2f}, "bytes": {exchange.sent}}}\n'
        )
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(0.1, self.flush)

    def flush(self) -> None:
        """Write what is held."""
        lines, self._lines = self._lines, []
        sys.stdout.write("".join(lines))
        sys.stdout.flush()

    def metrics(self, gauges: Mapping[str, float]) -> bytes:
        """The counts in Prometheus' text format, and `gauges` by name, labels included."""
        lines = ["# TYPE finery_requests_total counter"]
        for status, count in sorted(self._answers.items()):
            lines.append(f'finery_requests_total{{status="{status}"}} {count}')
        lines.append("# TYPE finery_request_seconds histogram")
        below = 0
        for bound, count in zip((*BUCKETS, "+Inf"), self._took, strict=True):
            below += count
            lines.append(f'finery_request_seconds_bucket{{le="{bound}"}} {below}')
        lines.append(f"finery_request_seconds_sum {self._seconds:.6f}")
        lines.append(f"finery_request_seconds_count {below}")
        typed = set()
        for name, value in gauges.items():
            bare = name.partition("{")[0]
            if bare not in typed:
                typed.add(bare)
                kind = "counter" if bare.endswith("_total") else "gauge"
                lines.append(f"# TYPE finery_{bare} {kind}")
            lines.append(f"finery_{name} {value:.12g}")
        return ("\n".join(lines) + "\n").encode()


_clock: tuple[int, str] = (0, "")


def _now() -> str:
    """The time, to the millisecond; the second is formatted once."""
    global _clock
    now = time.time()
    second = int(now)
    if _clock[0] != second:
        _clock = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
    return f"{_clock[1]}.{int((now - second) * 1000):03d}Z"
