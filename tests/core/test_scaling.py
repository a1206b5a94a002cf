"""How many instances a load asks for."""

from __future__ import annotations

import pytest

from finery.core.scaling import Gauge, Load, Scaling, needed

RULE = Scaling(least=1, most=4, target=50, polling=1)


@pytest.mark.parametrize(
    "load, places, wanted",
    [(0, 2, 1), (1, 2, 1), (1.01, 2, 2), (2, 2, 2), (3.5, 2, 4), (1000, 2, 4), (7, 10, 2)],
)
def test_so_many_that_the_target_of_their_places_is_busy(load, places, wanted):
    assert needed(RULE, load, places) == wanted


def test_none_are_needed_where_none_are_asked_for():
    assert needed(Scaling(least=0, most=2), 0, 1) == 0


class Clock:
    """A gauge that is read each second, under loads that a test makes up."""

    def __init__(self, rule: Scaling, count: int = 1) -> None:
        self.rule, self.count, self.now, self.sum = rule, count, 0.0, 0.0
        self.gauge = Gauge(0.0, 0.0)

    def tick(self, load: float, seconds: int = 1, *, under_way: int | None = None) -> int:
        for _ in range(seconds):
            self.now += 1
            self.sum += load
            asked = Load(round(load) if under_way is None else under_way, self.sum)
            self.count = self.gauge.read(self.rule, asked, now=self.now, places=1, count=self.count)
        return self.count


def test_more_come_at_once_and_fewer_after_ten_intervals():
    clock = Clock(RULE)
    assert clock.tick(2) == 4
    assert clock.tick(0.4, 9) == 4
    assert clock.tick(0.4, 3) == 1


def test_a_lull_in_between_ends_nothing():
    clock = Clock(RULE)
    for _ in range(6):
        clock.tick(2)
        assert clock.tick(0.1, 5) == 4


def test_it_is_looked_at_once_an_interval():
    clock = Clock(Scaling(least=1, most=4, polling=60))
    assert clock.tick(3, 59) == 1
    assert clock.tick(3) == 4


def test_the_last_goes_only_when_nobody_is_being_answered():
    clock = Clock(Scaling(least=0, most=4))
    assert clock.tick(0, 30, under_way=1) == 1
    assert clock.tick(0, 12) == 0
    assert clock.tick(0, 12) == 0
    assert clock.tick(0, under_way=1) == 1
