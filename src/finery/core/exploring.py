"""One step of a sweep: score what has ended, end what is behind, begin what comes next.

What each of these decides is in `sweeps.py`; here it is looked up and written down.
Every step may be repeated: what was done is in the rows of the trials.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from finery.core import ids, jobs, sweeps
from finery.core.errors import Conflict, Invalid
from finery.core.jobs import Job, Sweep
from finery.core.store import Store
from finery.core.sweeps import Sampler
from finery.core.tracking import Tracking

_AT_A_TIME = 20  # trials that are begun in one step
_PAUSE = 0.5  # seconds between looks at a sweep,
_REST = 9  # or so many times what the last look cost: it may have a thousand trials
_LONGEST = 3.0  # seconds


class Explorer:
    def __init__(self, store: Store, tracking: Tracking, sampler: Sampler) -> None:
        self.store, self.tracking, self.sampler = store, tracking, sampler
        self._due: dict[str, float] = {}  # sweep -> when its trials are looked at again
        self._ended: dict[str, Sequence[float]] = {}  # trial that has ended -> what it had logged

    def advance(self, job: Job, sweep: Sweep) -> tuple[str, Sequence[Job]]:
        """Take a sweep on; return what it is (waiting: nothing changed), and its trials."""
        if time.monotonic() < self._due.get(job.name, 0.0):
            return "waiting", []
        begun = time.thread_time()
        outcome, trials = self._step(job, sweep)
        rest = min(_REST * (time.thread_time() - begun), _LONGEST)
        self._due[job.name] = time.monotonic() + max(_PAUSE, rest)
        if outcome not in ("waiting", "running"):
            self._forget(job, trials)
        return outcome, trials

    def _step(self, job: Job, sweep: Sweep) -> tuple[str, Sequence[Job]]:
        trials = [self._scored(sweep, one) for one in jobs.children(self.store, job.name)]
        job = self._led(job, sweep, trials)
        if self._is_late(job, sweep):
            jobs.warn(self.store, job.name, f"cancelled: it ran past its {sweep.timeout:g} s")
            jobs.cancel(self.store, job.name)
            return "cancelled", trials
        changed = self._end_early(sweep, trials)
        for _ in range(min(sweeps.wanted(sweep, trials), _AT_A_TIME)):
            trials.append(self._begin(sweeps.trial(job, trials, self.sampler)))
            changed = True
        outcome = sweeps.outcome(sweep, trials)
        return ("waiting" if outcome == "running" and not changed else outcome), trials

    def _scored(self, sweep: Sweep, trial: Job) -> Job:
        """Write down the score of a trial that has ended, once."""
        if not trial.final or sweeps.scored(trial):
            return trial
        found = sweeps.best_of(sweep, self.tracking.metrics(trial, sweep.metric))
        if found is None and trial.status == "completed":
            missing = f"it has not logged the metric {sweep.metric!r}: it cannot be the best"
            trial = jobs.warn(self.store, trial.name, missing)
        kept = "" if found is None else repr(found)
        return jobs.update(
            self.store, trial.name, properties={**trial.properties, sweeps.SCORE: kept}
        )

    def _led(self, job: Job, sweep: Sweep, trials: Sequence[Job]) -> Job:
        """Write down which trial leads: what it has made is what the sweep has made."""
        best = sweeps.best(sweep, trials)
        if best is None or job.reused == best.name:
            return job
        known = {**job.properties, sweeps.SCORE: best.properties[sweeps.SCORE]}
        return jobs.update(
            self.store, job.name, reused=best.name, outputs=best.outputs, properties=known
        )

    def _is_late(self, job: Job, sweep: Sweep) -> bool:
        begun = job.started_at or job.created_at
        return bool(sweep.timeout) and (ids.now() - begun).total_seconds() > (sweep.timeout or 0)

    def _end_early(self, sweep: Sweep, trials: Sequence[Job]) -> bool:
        """Cancel the trials that are too far behind; say whether any was."""
        going = [trial.name for trial in trials if trial.status == "running"]
        if sweep.stopping is None or not going:
            return False
        logged = {one.name: self._curve(one, sweep.metric) for one in trials}
        behind = sweeps.stopped(sweep, logged, going)
        for name in behind:
            with suppress(Conflict):  # it has ended since we looked
                why = f"ended early by the {sweep.stopping.rule} policy"
                jobs.cancel(self.store, name, reason=why)
        return bool(behind)

    def _curve(self, trial: Job, metric: str) -> Sequence[float]:
        """Return what a trial has logged; what one that has ended did is asked for once."""
        if trial.status in ("queued", "preparing"):
            return []
        if (kept := self._ended.get(trial.name)) is not None:
            return kept
        found = self.tracking.metrics(trial, metric)
        if trial.final:
            self._ended[trial.name] = found
        return found

    def _forget(self, job: Job, trials: Sequence[Job]) -> None:
        self._due.pop(job.name, None)
        for trial in trials:
            self._ended.pop(trial.name, None)

    def _begin(self, trial: Job) -> Job:
        """Create a trial's job, with the values that it tries, unless it is there."""
        with self.store.transaction():
            found = jobs.find(self.store, trial.name) or jobs.create(self.store, trial)
        if found.parent != trial.parent:
            raise Invalid(f"its trial cannot be called {trial.name!r}: another job is")
        return found
