"""Search spaces: which values a sweep may try, and the point that a trial is at.

    {"lr": ["loguniform", [-6, -1]], "model": ["choice", ["a", {"depth": ["randint", [4]]}]]}

A trial is at a point of the space: a coordinate for each axis, which for a choice
is the number of the value, and for anything else from 0 up to 1: where in the
distribution's own probability the value lies.  A value of a choice may be an
object that holds distributions; each of those is an axis too.

Pure.  How a point is chosen is in `sweeps.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from finery.core.errors import Invalid

Space = Mapping[str, Sequence[Any]]
Point = Mapping[str, float]

# Kind -> the numbers it takes.
KINDS = {
    "choice": (),
    "randint": ("upper",),
    "uniform": ("min_value", "max_value"),
    "loguniform": ("min_value", "max_value"),
    "quniform": ("min_value", "max_value", "q"),
    "qloguniform": ("min_value", "max_value", "q"),
    "normal": ("mu", "sigma"),
    "lognormal": ("mu", "sigma"),
    "qnormal": ("mu", "sigma", "q"),
    "qlognormal": ("mu", "sigma", "q"),
}
_LARGEST_EXPONENT = 700.0  # of e: a little more is more than a number can hold
_MOST_VALUES = 10_000  # of a choice
_MOST_AXES = 200
_EDGE = 1e-12  # a normal distribution has no value at 0 and 1


def check(space: Space, *, rule: str, logbase: float = math.e) -> None:
    """Raise `Invalid`, its target `search_space.<name>`, for what is no space."""
    if not space:
        raise Invalid("the search space is empty: there is nothing to try", target="search_space")
    for name, distribution in space.items():
        _check(distribution, f"search_space.{name}", logbase)
        if rule == "grid" and not _countable(distribution):
            raise Invalid(
                f"search_space.{name} is {distribution[0]!r}: a grid can be laid over choices "
                "only; use random, sobol or bayesian sampling",
                target=f"search_space.{name}",
            )
    if len(found := axes(space)) > _MOST_AXES:
        raise Invalid(
            f"the search space has {len(found)} axes; {_MOST_AXES} are the most",
            target="search_space",
        )


def size(space: Space) -> int:
    """Return how many points a space of choices has."""
    return math.prod(len(distribution[1]) for distribution in space.values())


def axes(space: Space) -> dict[str, int]:
    """Return the axes: how many values each has; 0: as many as there are numbers."""
    return {name: len(found[1]) * (found[0] == "choice") for name, found in _axes(space, "")}


def at(space: Space, number: int) -> dict[str, float]:
    """Return a point of a space of choices by its number: the last axis turns fastest."""
    point: dict[str, int] = {}
    for name, (_, values) in reversed([*space.items()]):
        number, point[name] = divmod(number, len(values))
    return {name: float(point[name]) for name in space}


def values(space: Space, point: Point, *, logbase: float = math.e) -> dict[str, str]:
    """Return the values at a point, as the texts that a command line gets."""
    found = {
        name: _value(distribution, name, point, logbase) for name, distribution in space.items()
    }
    return {
        name: value if isinstance(value, str) else _text(value) for name, value in found.items()
    }


def is_distribution(value: object) -> bool:
    """Say whether a value inside a choice is a distribution and not a list of its own."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and value[0] in KINDS
        and isinstance(value[1], list | tuple)
    )


def _check(distribution: Sequence[Any], target: str, logbase: float) -> None:
    kind, given = distribution
    if kind == "choice":
        if not given or len(given) > _MOST_VALUES:
            said = "no values" if not given else f"{len(given)} values, of {_MOST_VALUES} at most"
            raise Invalid(f"{target} has {said} to choose from", target=target)
        for name, inner in _inner(given):
            _check(inner, f"{target}.{name.replace('/', '.')}", logbase)
        return
    wanted = KINDS[kind]
    if len(given) != len(wanted) or not all(_is_number(value) for value in given):
        raise Invalid(
            f"{target}: {kind!r} takes the numbers {', '.join(wanted)}, and was given {given!r}",
            target=target,
        )
    numbers = dict(zip(wanted, given, strict=True))
    if wrong := _wrong(kind, numbers, logbase):
        raise Invalid(f"{target}: {kind!r} with {given!r}: {wrong}", target=target)


def _wrong(kind: str, numbers: Mapping[str, float], logbase: float) -> str:
    """Say what is wrong with the numbers of a distribution, if anything is."""
    if kind == "randint" and (numbers["upper"] < 1 or numbers["upper"] != int(numbers["upper"])):
        return "upper must be a whole number from 1 up"
    if "max_value" in numbers and not numbers["min_value"] < numbers["max_value"]:
        return "min_value must be less than max_value"
    if "sigma" in numbers and numbers["sigma"] <= 0:
        return "sigma must be more than 0"
    if "q" in numbers and numbers["q"] <= 0:
        return "q must be more than 0"
    if "log" in kind:
        far = numbers.get("max_value", numbers.get("mu", 0) + 8 * numbers.get("sigma", 0))
        if far * abs(math.log(logbase)) > _LARGEST_EXPONENT:
            return "its values are the exponents' powers, which no number can hold"
    return ""


def _countable(distribution: Sequence[Any]) -> bool:
    return distribution[0] == "choice" and not any(_inner(distribution[1]))


def _inner(given: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the distributions inside the values of a choice, by their names below its own."""
    for number, value in enumerate(given):
        if isinstance(value, Mapping):
            for name, inner in value.items():
                if is_distribution(inner):
                    yield f"{number}/{name}", inner


def _axes(space: Space, prefix: str) -> Iterator[tuple[str, Sequence[Any]]]:
    for name, distribution in space.items():
        yield prefix + name, distribution
        if distribution[0] == "choice":
            yield from _axes(dict(_inner(distribution[1])), f"{prefix}{name}/")


def _value(distribution: Sequence[Any], axis: str, point: Point, logbase: float) -> Any:
    kind, given = distribution
    if kind != "choice":
        return _drawn(kind, given, point[axis], logbase)
    number = int(point[axis])
    chosen = given[number]
    if not isinstance(chosen, Mapping):
        return chosen
    return {
        name: _value(inner, f"{axis}/{number}/{name}", point, logbase)
        if is_distribution(inner)
        else inner
        for name, inner in chosen.items()
    }


def _drawn(kind: str, given: Sequence[float], at: float, logbase: float) -> float:
    """Return the value below which a share of `at` of a distribution lies."""
    if kind == "randint":
        return min(int(at * given[0]), int(given[0]) - 1)
    if kind.endswith("uniform"):
        value = given[0] + at * (given[1] - given[0])
    else:
        value = NormalDist(given[0], given[1]).inv_cdf(min(max(at, _EDGE), 1 - _EDGE))
    if "log" in kind:
        value = logbase**value
    if kind.startswith("q"):
        value = round(value / given[2]) * given[2]
        return int(value) if value == int(value) else round(value, 12)  # not 0.30000000000000004
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping | list | tuple) else str(value)
