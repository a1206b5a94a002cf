"""Search spaces: what is one, and which value is at a point."""

from __future__ import annotations

import math

import pytest

from finery.core import spaces
from finery.core.errors import Invalid


def value(distribution, at, **given):
    return spaces.values({"x": distribution}, {"x": at}, **given)["x"]


@pytest.mark.parametrize(
    "distribution, at, expected",
    [
        (["uniform", [2, 4]], 0.25, "2.5"),
        (["quniform", [0, 10, 4]], 0.7, "8"),
        (["quniform", [0, 1, 0.1]], 0.31, "0.3"),
        (["loguniform", [math.log(1), math.log(100)]], 0.5, "10"),
        (["qloguniform", [math.log(1), math.log(100), 3]], 0.5, "9"),
        (["normal", [5, 2]], 0.5, "5"),
        (["lognormal", [0, 1]], 0.5, "1"),
        (["qnormal", [5, 2, 3]], 0.5, "6"),
        (["qlognormal", [2, 1, 2]], 0.5, "8"),
        (["randint", [4]], 0.999, "3"),
        (["choice", ["a", True, 0.5]], 1, "True"),
    ],
)
def test_a_point_is_a_value_of_each_distribution(distribution, at, expected):
    found = value(distribution, at)
    assert found == expected or float(found) == pytest.approx(float(expected))


def test_no_coordinate_leads_out_of_a_distribution():
    assert (value(["uniform", [2, 4]], 0), value(["randint", [4]], 0)) == ("2", "0")
    assert -100 < float(value(["normal", [0, 1]], 0)) < float(value(["normal", [0, 1]], 1)) < 100


def test_the_base_of_logarithms_may_be_chosen():
    assert float(value(["loguniform", [-4, -2]], 0.5, logbase=10)) == pytest.approx(1e-3)


NESTED = {"model": ["choice", ["tree", {"kind": "net", "width": ["quniform", [8, 16, 4]]}]]}


def test_a_value_may_bring_distributions_of_its_own():
    assert spaces.axes(NESTED) == {"model": 2, "model/1/width": 0}
    assert spaces.values(NESTED, {"model": 0, "model/1/width": 0.9}) == {"model": "tree"}
    found = spaces.values(NESTED, {"model": 1, "model/1/width": 0.5})
    assert found == {"model": '{"kind": "net", "width": 12}'}


def test_a_grid_has_every_point_once():
    space = {"a": ["choice", [1, 2]], "b": ["choice", ["x", "y", "z"]]}
    points = [tuple(spaces.at(space, n).values()) for n in range(spaces.size(space))]
    assert points == [(a, b) for a in (0, 1) for b in (0, 1, 2)]


@pytest.mark.parametrize(
    "distribution, said",
    [
        (["uniform", [1]], "min_value, max_value"),
        (["uniform", [1, "b"]], "takes the numbers"),
        (["uniform", [2, 1]], "less than"),
        (["uniform", [0, math.inf]], "takes the numbers"),
        (["quniform", [0, 1, 0]], "q must"),
        (["normal", [0, 0]], "sigma"),
        (["randint", [0]], "upper"),
        (["randint", [1.5]], "upper"),
        (["loguniform", [0, 1000]], "no number can hold"),
        (["choice", []], "no values"),
        (["choice", [{"w": ["uniform", [1, 0]]}]], "x.0.w"),
    ],
)
def test_what_is_no_distribution_is_refused_by_its_name(distribution, said):
    with pytest.raises(Invalid, match=said) as caught:
        spaces.check({"x": distribution}, rule="random")
    assert caught.value.target.startswith("search_space.x")


def test_a_grid_over_numbers_is_refused():
    for space in ({"x": ["uniform", [0, 1]]}, NESTED):
        spaces.check(space, rule="bayesian")
        with pytest.raises(Invalid, match="a grid can be laid over choices only"):
            spaces.check(space, rule="grid")


def test_a_space_of_more_axes_than_anyone_can_search_is_refused():
    space = {f"x{n}": ["uniform", [0, 1]] for n in range(201)}
    with pytest.raises(Invalid, match="201 axes"):
        spaces.check(space, rule="random")
