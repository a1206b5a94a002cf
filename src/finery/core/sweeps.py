"""Sweeps: which trial comes next, which is ended early, which is the best.

A trial is a job below the sweep's own, with the values it tries as inputs.  All
of a sweep that matters is in these rows: where each trial is in the space, and,
once it has ended, its score.  So whatever is proposed here can be proposed again
after an interruption, and comes out the same.

Pure but for the sampler.  The supervisor creates and cancels the trials; what a
space is and how it is drawn from is in `spaces.py`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Protocol

from finery.core import ids, spaces
from finery.core.errors import Invalid
from finery.core.jobs import Command, Input, Job
from finery.core.work import Output, Stopping, Sweep

RULES = ("random", "sobol", "grid", "bayesian")
SCORE = "finery.score"  # the property of a trial, and of its sweep, that holds the metric
MOST_TRIALS = 1000
_TOLERATED = 5  # trials that fail before any has completed: then the command itself is wrong

Told = tuple[Mapping[str, float], float | None]  # a point, and the score where one is known


class Sampler(Protocol):
    """Chooses points by what is known of others.  The same question has the same answer."""

    def propose(
        self, rule: str, axes: Mapping[str, int], told: Sequence[Told], *, seed: int, maximize: bool
    ) -> dict[str, float]:
        """Return the next point after those in `told`, in a space of these axes (`spaces.py`).

        `rule` is sobol or bayesian.  A score that is None is not known yet, or never will be.
        """


def check(sweep: Sweep, name: str) -> None:
    """Raise `Invalid`, its target the field, for a sweep that could not work."""
    spaces.check(sweep.space, rule=sweep.rule, logbase=sweep.logbase)
    if not sweep.metric:
        raise Invalid("the objective names no metric", target="objective.primary_metric")
    for field, value in (
        ("max_total_trials", sweep.most),
        ("max_concurrent_trials", sweep.at_once),
    ):
        if not 1 <= value <= MOST_TRIALS:
            raise Invalid(
                f"limits.{field} is {value}; it must be from 1 to {MOST_TRIALS}",
                target=f"limits.{field}",
            )
    ids.name(trial_name(name, sweep.most), target="name")
    for taken in sweep.space.keys() & sweep.inputs.keys():
        raise Invalid(
            f"{taken!r} is an input and in the search space: it can be one of them",
            target=f"search_space.{taken}",
        )
    if sweep.stopping:
        _check_stopping(sweep.stopping)


def _check_stopping(stopping: Stopping) -> None:
    target = "early_termination"
    if stopping.interval < 1 or stopping.delay < 0:
        raise Invalid("an interval is 1 or more, a delay 0 or more", target=target)
    if stopping.rule == "bandit" and (
        min(stopping.factor, stopping.amount) < 0 or bool(stopping.factor) == bool(stopping.amount)
    ):
        raise Invalid(
            "a bandit policy needs either a slack_factor or a slack_amount, above 0", target=target
        )
    if stopping.rule == "truncation" and not 1 <= stopping.percent <= 99:
        raise Invalid("truncation_percentage goes from 1 to 99", target=target)


def total(sweep: Sweep) -> int:
    """Return how many trials there will be."""
    return min(sweep.most, spaces.size(sweep.space)) if sweep.rule == "grid" else sweep.most


def trial_name(sweep: str, number: int) -> str:
    return f"{sweep}_{number}"


def wanted(sweep: Sweep, trials: Sequence[Job]) -> int:
    """Return how many trials can be begun now."""
    if given_up(trials):
        return 0
    going = sum(not trial.final for trial in trials)
    return max(0, min(total(sweep) - len(trials), sweep.at_once - going))


def given_up(trials: Sequence[Job]) -> bool:
    """Say whether the command fails whatever it is given."""
    ended = [trial.status for trial in trials if trial.final]
    return ended.count("failed") >= _TOLERATED and "completed" not in ended


def outcome(sweep: Sweep, trials: Sequence[Job]) -> str:
    """Return running, completed or failed: what the sweep is by its trials."""
    if wanted(sweep, trials) or any(not trial.final for trial in trials):
        return "running"
    return "completed" if any(trial.status == "completed" for trial in trials) else "failed"


def failure(trials: Sequence[Job]) -> str:
    """Say in one line why no trial has completed."""
    failed = [trial for trial in trials if trial.status == "failed"]
    if not failed:
        return "none of its trials has completed: they were cancelled"
    why = failed[0].error["message"] if failed[0].error else "no reason is known"
    up = f" (given up after {len(trials)})" if given_up(trials) else ""
    return f"none of its trials has completed{up}; {failed[0].name} failed: {why}"


def trial(parent: Job, trials: Sequence[Job], sampler: Sampler) -> Job:
    """Return the next trial of a sweep that has these already; the same one when asked again."""
    sweep = parent.spec
    assert isinstance(sweep, Sweep)
    number = len(trials)
    name = trial_name(parent.name, number)
    point = _point(parent.name, sweep, trials, sampler)
    tried = spaces.values(sweep.space, point, logbase=sweep.logbase)
    inputs = {key: Input(value=value) for key, value in tried.items()}
    outputs = {key: _own(output, name) for key, output in sweep.outputs.items()}
    command = sweep.trial
    return Job(
        name=name,
        workspace=parent.workspace,
        spec=replace(command, inputs={**command.inputs, **inputs}, outputs=outputs, point=point),
        compute=parent.compute,
        experiment=parent.experiment,
        tags=parent.tags,
        parent=parent.name,
        root=parent.root,
        step=f"trial_{number}",
        created_by=parent.created_by,
    )


def _own(output: Output, trial: str) -> Output:
    """Return a trial's output: no two write to one place, and only the best is registered."""
    location = f"{output.location}/{trial}" if output.location else ""
    return replace(output, location=location, asset="", version="")


def _point(name: str, sweep: Sweep, trials: Sequence[Job], sampler: Sampler) -> dict[str, float]:
    number, axes = len(trials), spaces.axes(sweep.space)
    if sweep.rule == "grid":
        return spaces.at(sweep.space, number)
    if sweep.rule == "random":
        draw = random.Random(f"{name if sweep.seed is None else sweep.seed}/{number}").random
        return {axis: float(int(draw() * most)) if most else draw() for axis, most in axes.items()}
    seed = sweep.seed
    if seed is None:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    told = [(_at(one), score(one)) for one in trials]
    seed %= 2**32
    return sampler.propose(sweep.rule, axes, told, seed=seed, maximize=sweep.goal == "maximize")


def _at(trial: Job) -> Mapping[str, float]:
    assert isinstance(trial.spec, Command)
    return trial.spec.point


# -- scores ----------------------------------------------------------------------------


def scored(trial: Job) -> bool:
    """Say whether a trial's score was looked for after it ended."""
    return SCORE in trial.properties


def score(trial: Job) -> float | None:
    kept = trial.properties.get(SCORE)
    return float(kept) if kept else None


def best_of(sweep: Sweep, logged: Sequence[float]) -> float | None:
    """Return the best of the values that a trial has logged: that is its score."""
    real = [value for value in logged if not math.isnan(value)]
    if not real:
        return None
    return max(real) if sweep.goal == "maximize" else min(real)


def best(sweep: Sweep, trials: Sequence[Job]) -> Job | None:
    """Return the best trial of those that have completed; of equals the first."""
    done = [one for one in trials if one.status == "completed" and score(one) is not None]
    sign = 1 if sweep.goal == "maximize" else -1
    return max(done, key=lambda one: sign * (score(one) or 0.0), default=None)


# -- early termination -----------------------------------------------------------------


def stopped(sweep: Sweep, logged: Mapping[str, Sequence[float]], going: Sequence[str]) -> list[str]:
    """Return which trials of `going` are ended early.

    `logged` are the values of every trial, those that have ended too, in the order
    of time.  A trial is compared at the newest point where it is looked at, with
    what the others had logged by then.
    """
    stopping = sweep.stopping
    if stopping is None:
        return []
    # From here on more is better.
    sign = 1.0 if sweep.goal == "maximize" else -1.0
    curves = {name: [sign * value for value in values] for name, values in logged.items()}
    found = []
    for name in going:
        at = len(curves.get(name, ())) // stopping.interval * stopping.interval
        if at < max(stopping.delay, 1):
            continue
        others = {other: curve[:at] for other, curve in curves.items() if len(curve) >= at}
        if _is_behind(stopping, name, others):
            found.append(name)
    return found


def _is_behind(stopping: Stopping, name: str, curves: Mapping[str, Sequence[float]]) -> bool:
    """Say whether a trial is too far behind the others, each a curve of the same length."""
    tops = {other: max(map(_real, curve)) for other, curve in curves.items()}
    own, lead = tops[name], max(tops.values())
    match stopping.rule:
        case "bandit":
            return own < lead - _slack(stopping, lead)
        case "median":
            return own < median(fmean(map(_real, curve)) for curve in curves.values())
        case _:
            worst = int(len(tops) * stopping.percent / 100)
            return sum(top < own for top in tops.values()) < worst and own < lead


def _slack(stopping: Stopping, lead: float) -> float:
    """Return how far behind the leader a trial may be.

    Where more is better the ratio is of the leader to the trial, where less is
    better of the trial to the leader; below zero they change places.
    """
    if stopping.amount or not math.isfinite(lead):
        return stopping.amount
    share = stopping.factor / (1 + stopping.factor) if lead > 0 else stopping.factor
    return abs(lead) * share


def _real(value: float) -> float:
    return -math.inf if math.isnan(value) else value
