"""How a sweep chooses what to try next, with libraries: `core/sweeps.py` has the protocol.

Sobol's sequence is SciPy's (scrambled by the seed), Bayesian optimization is Optuna's
tree-structured Parzen estimator.  Both are made anew for each question from what is
known of the trials so far, so that nothing is lost with the server; both are
imported by the first sweep that needs them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

Told = tuple[Mapping[str, float], float | None]

_STARTUP = 8  # trials drawn at random before Parzen's estimate is asked


class Sampler:
    def propose(
        self, rule: str, axes: Mapping[str, int], told: Sequence[Told], *, seed: int, maximize: bool
    ) -> dict[str, float]:
        if rule == "sobol":
            return _sobol(axes, number=len(told), seed=seed)
        return _parzen(axes, told, seed=seed, maximize=maximize)


def _sobol(axes: Mapping[str, int], *, number: int, seed: int) -> dict[str, float]:
    qmc = importlib.import_module("scipy.stats.qmc")
    sequence = qmc.Sobol(len(axes), scramble=True, rng=seed)
    if number:
        sequence.fast_forward(number)
    drawn = sequence.random(1)[0]
    return {
        axis: float(int(at * most)) if most else float(at)
        for (axis, most), at in zip(axes.items(), drawn, strict=True)
    }


def _parzen(
    axes: Mapping[str, int], told: Sequence[Told], *, seed: int, maximize: bool
) -> dict[str, float]:
    optuna = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    over = {axis: _distribution(optuna, most) for axis, most in axes.items()}
    # A sampler of its own for each trial: the answer depends on what is told, and on nothing else.
    sampler = optuna.samplers.TPESampler(
        seed=(seed + len(told)) % 2**32, n_startup_trials=_STARTUP, constant_liar=True
    )
    study = optuna.create_study(direction="maximize" if maximize else "minimize", sampler=sampler)
    for point, score in told:
        study.add_trial(_trial(optuna, over, point, score))
    found: dict[str, Any] = study.ask(over).params
    return {axis: float(found[axis]) for axis in axes}


def _distribution(optuna: Any, most: int) -> Any:
    if most:
        return optuna.distributions.CategoricalDistribution(list(range(most)))
    return optuna.distributions.FloatDistribution(0.0, 1.0)


def _trial(
    optuna: Any, over: Mapping[str, Any], point: Mapping[str, float], score: float | None
) -> Any:
    """Return a trial as Optuna keeps it; one without a score counts as running."""
    states = optuna.trial.TrialState
    params = {axis: int(at) if hasattr(over[axis], "choices") else at for axis, at in point.items()}
    return optuna.trial.create_trial(
        params=params,
        distributions=dict(over),
        value=score,
        state=states.RUNNING if score is None else states.COMPLETE,
    )
