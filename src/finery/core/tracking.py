"""Where the metrics of jobs go and come from: the little of it that the core needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from finery.core.jobs import Job


class Tracking(Protocol):
    """Where a job's metrics go.  Both verbs may be called again safely."""

    def open(self, job: Job) -> dict[str, str]:
        """Begin the job's run and return the environment that joins it.

        A value that is `${{inputs.NAME}}` or `${{outputs.NAME}}` is filled in by who asks.
        """

    def close(self, job: Job) -> None:
        """End the job's run as the job ended."""

    def metrics(self, job: Job, name: str) -> Sequence[float]:
        """Return every value of a metric that the job has logged, in the order of time."""
