"""How sweeps choose with libraries; the libraries are the real ones: they are what is asked."""

from __future__ import annotations

import pytest

from finery.sampling import Sampler

AXES = {"x": 0, "kind": 3}


def told(rule, count, score=lambda point: (point["x"] - 0.3) ** 2 + point["kind"], seed=3):
    """Return the points that are proposed one after the other, each with its score."""
    found = []
    for _ in range(count):
        point = Sampler().propose(rule, AXES, found, seed=seed, maximize=False)
        found.append((point, score(point)))
    return found


@pytest.mark.parametrize("rule", ["sobol", "bayesian"])
def test_a_sampler_that_is_made_anew_goes_on_where_the_last_one_was(rule):
    found = told(rule, 12)
    assert found == told(rule, 12)
    assert found != told(rule, 12, seed=4)
    assert all(0 <= point["x"] <= 1 and point["kind"] in (0, 1, 2) for point, _ in found)


def test_sobols_points_are_spread_evenly():
    points = [point for point, _ in told("sobol", 16)]
    assert sorted(int(point["x"] * 16) for point in points) == list(range(16))


def test_bayesian_sampling_learns_where_it_is_good():
    scores = [score for _, score in told("bayesian", 40)]
    assert min(scores) < 0.001
    late = [point["kind"] for point, _ in told("bayesian", 40)[20:]]
    assert late.count(0) > 10


def test_a_trial_without_a_score_does_not_stop_it():
    found = told("bayesian", 20, score=lambda point: None if point["kind"] == 1 else point["x"])
    assert len(found) == 20
