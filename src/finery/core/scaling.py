"""How many instances a deployment should have, from how busy it is.

A rule and the arithmetic of it; nothing here asks or writes.  Who measures is
`doors/traffic.py`, who decides when is `upkeep.py`, and what was decided is in
the deployment's row.

A deployment's load is how many of its requests are being answered or wait for
it, averaged over the rule's polling interval; its places are how many requests
an instance answers at once.  Instances are added as soon as the load asks for
them, and go only when it has asked for fewer for a while: what was too few is
noticed by callers, what was too many is not.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

CALM = 10  # polling intervals that the load has to stay low before an instance goes
_LEAST_CALM = 10.0  # seconds of it, however short the interval is


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Keep so many instances at work that `target` percent of their places are busy."""

    least: int = 1  # 0: none at all while nobody calls; the first call then waits for one
    most: int = 1
    target: int = 70  # percent
    polling: float = 1  # seconds

    @property
    def calm(self) -> float:
        """Seconds that the load has to stay low before an instance goes."""
        return max(CALM * self.polling, _LEAST_CALM)


@dataclass(frozen=True)
class Load:
    """What is asked of a deployment now, and how much was since the server began."""

    now: int = 0  # requests that are being answered or wait
    sum: float = 0.0  # of them over time: request-seconds


def needed(rule: Scaling, load: float, places: int) -> int:
    """Return how many instances a load asks for, of `places` each."""
    wanted = math.ceil(load / (places * rule.target / 100) - 1e-9)
    return min(max(wanted, rule.least), rule.most)


@dataclass
class Gauge:
    """What is remembered of a deployment's load; losing it only delays a change."""

    at: float  # seconds of a clock, when it was read last
    sum: float  # request-seconds until then
    wishes: deque[tuple[float, int]] = field(default_factory=deque)  # when, and how many

    def read(self, rule: Scaling, load: Load, *, now: float, places: int, count: int) -> int:
        """Return how many instances there should be, where there are `count`."""
        if count == 0:
            return 1 if load.now else 0  # at once: somebody waits
        spent = now - self.at
        if spent < rule.polling:
            return min(max(count, rule.least), rule.most)
        average = (load.sum - self.sum) / spent
        self.at, self.sum = now, load.sum
        wish = needed(rule, max(average, 0), places)
        if load.now and not wish:
            wish = 1
        self.wishes.append((now, wish))
        long_enough = self.wishes[0][0] <= now - rule.calm
        while self.wishes[0][0] < now - rule.calm - spent:
            self.wishes.popleft()
        highest = max(wish for _, wish in self.wishes)
        kept = highest if long_enough else max(highest, count)
        return min(max(kept, rule.least), rule.most)


class Traffic(Protocol):
    """What the way in knows of the requests that are under way.  Returns at once."""

    def load(self, deployment: str) -> Load:
        """Say how much is asked of a deployment, by its id."""

    def busy(self, process: str) -> int:
        """Say how many requests a process is answering."""


class NoTraffic:
    """Where there is no way in: nobody asks for anything."""

    def load(self, deployment: str) -> Load:
        return Load()

    def busy(self, process: str) -> int:
        return 0
