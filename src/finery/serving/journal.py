"""What a serving process writes down: events and requests to stdout, counts to /metrics.

One JSON object a line.  Never a body, a key or a header: a request is its
identifier, its path, what was answered and how long it took.  Requests are
written in batches, at most a tenth of a second late.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping

# What is counted by its own name; anything else a caller makes up is "other".
ROUTES = frozenset(
    "/ /score /v1/chat/completions /chat/completions /v1/models /swagger.json /metrics".split()
)


def say(event: str, **details: object) -> None:
    """Write an event."""
    print(json.dumps({"time": _now(), "event": event, **details}), flush=True)


class Journal:
    """The requests of a process: a line each, and how many of which kind."""

    def __init__(self) -> None:
        """Empty."""
        self._lines: list[str] = []
        self._answers: Counter[tuple[str, int]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def answered(
        self, id: str, method: str, path: str, *, status: int, seconds: float, sent: int
    ) -> None:
        """A request has had its answer."""
        route = path if path in ROUTES else "other"
        self._answers[route, status] += 1
        self._seconds[route] += seconds
        self._lines.append(
            f'{{"time": "{_now()}", "event": "request", "id": {json.dumps(id)}, "method":'
            f' "{method}", "path": {json.dumps(path[:200])}, "status": {status},'
            f' "ms": {seconds * 1000:.2f}, "bytes": {sent}}}\n'
        )
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(0.1, self.flush)

    def flush(self) -> None:
        """Write what is held."""
        lines, self._lines = self._lines, []
        sys.stdout.write("".join(lines))
        sys.stdout.flush()

    def metrics(self, gauges: Mapping[str, float]) -> bytes:
        """The counts in Prometheus' text format, and `gauges` by name."""
        lines = ["# TYPE finery_requests_total counter"]
        for (route, status), count in sorted(self._answers.items()):
            lines.append(f'finery_requests_total{{path="{route}",status="{status}"}} {count}')
        lines.append("# TYPE finery_request_seconds_total counter")
        for route, seconds in sorted(self._seconds.items()):
            lines.append(f'finery_request_seconds_total{{path="{route}"}} {seconds:.6f}')
        for name, value in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE finery_{name} {kind}", f"finery_{name} {value:g}"]
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
