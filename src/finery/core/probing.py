"""Whether an instance is well: what its probes have said so far.

As on Kubernetes: a probe that fails `failure_threshold` times in a row turns
"well" into "not well", one that succeeds `success_threshold` times turns it
back.  `initial_delay` is when the first probe is sent, and how long an
instance has to come up at least; one that answers before is taken at its word.
What follows from it is `upkeep.py`'s business.
"""

from __future__ import annotations

import http.client
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from finery.core.serving import Probe

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine


@dataclass
class Watch:
    """One probe of one instance.  It lives in memory: losing it only delays a verdict."""

    next: float  # when to ask again, seconds of the monotonic clock
    well: bool
    opposed: int = 0  # answers in a row that say otherwise
    asking: bool = False

    def look(self, probe: Probe, ask: Callable[[], bool], *, now: float) -> bool:
        """Say whether the instance is well; where it is time, ask it, without waiting."""
        if not self.asking and now >= self.next:
            self.asking = True
            self.next = now + probe.period
            threading.Thread(target=self._ask, args=(probe, ask), daemon=True).start()
        return self.well

    def _ask(self, probe: Probe, ask: Callable[[], bool]) -> None:
        try:
            self.hear(ask(), probe)
        finally:
            self.asking = False

    def hear(self, answered: bool, probe: Probe) -> None:
        """Take note of what a probe has said."""
        self.opposed = 0 if answered is self.well else self.opposed + 1
        if self.opposed >= (probe.success_threshold if answered else probe.failure_threshold):
            self.well, self.opposed = answered, 0


def answers(address: str, timeout: float) -> bool:
    """Say whether something at `address` answers in time that it is well."""
    try:
        with _opener.open(address, timeout=timeout):
            return True
    except (OSError, http.client.HTTPException):
        return False
