"""What the way in has seen of each deployment, counted; and as Prometheus' text.

Counts begin anew with the server, as Prometheus expects.  What an instance
counts itself (tokens, say) is asked of it and passed on with its labels.
Cheap, because each request passes here: a few additions, no lock (all of it
is of one event loop; readers on other threads see a count or the next).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from finery.core.endpoints import Deployment
from finery.doors.http import Seen
from finery.doors.traffic import Queue

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_RECENT = 10_000  # times that are remembered for the next reading

Labels = Mapping[str, str]
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)", re.A)
_TYPE = re.compile(r"# (?:TYPE|HELP) ([A-Za-z_:][\w:]*) ", re.A)


@dataclass
class Meter:
    """The requests of one deployment."""

    answers: Counter[int] = field(default_factory=Counter)  # by status
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    retried: int = 0  # requests that were sent again because their instance was lost
    copies: int = 0  # of other deployments' requests, mirrored
    dropped: int = 0  # copies that were not sent: too many were under way
    recent: list[float] = field(default_factory=list)  # seconds of each, since the last reading

    def answered(self, status: int, seconds: float) -> None:
        """A request has had its answer."""
        self.answers[status] += 1
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
        if len(self.recent) < _RECENT:
            self.recent.append(seconds)

    @property
    def requests(self) -> int:
        return sum(self.answers.copy().values())

    @property
    def errors(self) -> int:
        """Requests that were answered with 429, or 5xx, or by a script's failure."""
        found = self.answers.copy()
        return sum(count for code, count in found.items() if code >= 500 or code in (408, 424, 429))

    def within(self, share: float) -> float | None:
        """Return the seconds that this share of the requests took at most, as the buckets know it.

        None where nobody has called, or the longest took longer than can be said.
        """
        count, wanted = 0, share * sum(self.buckets)
        for bound, found in zip(BOUNDS, self.buckets, strict=False):
            count += found
            if count and count >= wanted:
                return bound
        return None

    def take_recent(self) -> list[float]:
        taken, self.recent = self.recent, []
        return taken


@dataclass
class Line:
    """What is kept of a deployment while the server runs."""

    queue: Queue = field(default_factory=Queue)
    meter: Meter = field(default_factory=Meter)
    copies: int = 0  # of others' requests, under way to it


class Text:
    """Prometheus' text format, put together family by family."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}  # name -> its lines; the first says its type

    def add(self, name: str, kind: str, value: float, labels: Labels, *, part: str = "") -> None:
        """Add a sample; `part` is what follows the family's name, of a histogram's."""
        lines = self._families.setdefault(name, [f"# TYPE {name} {kind}"])
        lines.append(f"{name}{part}{{{_labels(labels)}}} {value:.10g}")

    def add_text(self, text: str, labels: Labels) -> None:
        """Add another's text, its samples with more labels."""
        family, more = "", _labels(labels)
        for line in text.splitlines():
            if found := _TYPE.match(line):
                family = found[1]
                self._families.setdefault(family, [line] if line.startswith("# TYPE") else [])
            elif sample := _SAMPLE.fullmatch(line.strip()):
                name, own, value = sample.groups()
                family = family if name.startswith(family) and family else name
                given = ",".join(part for part in (more, own) if part)
                self._families.setdefault(family, []).append(f"{name}{{{given}}} {value}")

    def __bytes__(self) -> bytes:
        return "".join(f"{line}\n" for lines in self._families.values() for line in lines).encode()


def tell(text: Text, deployment: Deployment, line: Line, *, share: int) -> None:
    """Add what is known of a deployment; `share`: its percentage of the traffic."""
    meter, queue = line.meter, line.queue
    own = {"endpoint": deployment.endpoint, "deployment": deployment.name}
    for code, count in sorted(meter.answers.items()):
        name = "finery_endpoint_requests_total"
        text.add(name, "counter", count, {**own, "code": str(code)})
    _histogram(text, meter, own)
    for name, kind, value in (
        ("running", "gauge", queue.running),
        ("queue", "gauge", queue.waiting),
        ("instances_wanted", "gauge", deployment.count),
        ("instances_ready", "gauge", len(deployment.addresses)),
        ("instance_restarts_total", "counter", deployment.falls),
        ("traffic_percent", "gauge", share),
        ("retried_total", "counter", meter.retried),
        ("mirrored_total", "counter", meter.copies),
        ("mirror_dropped_total", "counter", meter.dropped),
    ):
        text.add(f"finery_endpoint_{name}", kind, value, own)


def summary(line: Line | None) -> Seen | None:
    """Return what is known of a deployment, for a person; None where nobody has called it."""
    if line is None:
        return None
    meter, requests = line.meter, line.meter.requests
    return Seen(
        requests=requests,
        errors=meter.errors,
        running=line.queue.running,
        waiting=line.queue.waiting,
        mean=meter.seconds / requests if requests else None,
        half=meter.within(0.5),
        most=meter.within(0.95),
    )


def total(texts: Iterable[str], *names: str) -> float:
    """Return the sum of the samples of these names."""
    found = 0.0
    for text in texts:
        for line in text.splitlines():
            sample = _SAMPLE.fullmatch(line.strip())
            if sample and sample[1] in names:
                found += float(sample[3])
    return found


def _histogram(text: Text, meter: Meter, own: Labels) -> None:
    name, count = "finery_endpoint_request_seconds", 0
    for bound, found in zip((*BOUNDS, float("inf")), meter.buckets, strict=True):
        count += found
        le = "+Inf" if bound == float("inf") else f"{bound:g}"
        text.add(name, "histogram", count, {**own, "le": le}, part="_bucket")
    text.add(name, "histogram", meter.seconds, own, part="_sum")
    text.add(name, "histogram", count, own, part="_count")


def _labels(labels: Labels) -> str:
    return ",".join(f'{name}="{_quoted(value)}"' for name, value in labels.items())


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
