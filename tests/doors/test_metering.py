"""What was counted of a deployment, in figures for a person."""

from __future__ import annotations

import pytest

from finery.doors import metering
from finery.doors.metering import Line


def test_nobody_has_called_what_was_never_seen():
    assert metering.summary(None) is None
    quiet = metering.summary(Line())
    assert quiet is not None
    assert (quiet.requests, quiet.mean, quiet.half, quiet.most) == (0, None, None, None)


def test_times_are_told_as_the_buckets_know_them():
    line = Line()
    for _ in range(90):
        line.meter.answered(200, 0.004)
    for _ in range(10):
        line.meter.answered(424, 0.4)
    found = metering.summary(line)
    assert found is not None and (found.requests, found.errors) == (100, 10)
    assert found.mean == pytest.approx(0.0436)
    assert (found.half, found.most) == (0.005, 0.5)


def test_what_took_longer_than_any_bucket_is_not_made_up():
    line = Line()
    line.meter.answered(200, 0.01)
    line.meter.answered(200, 500.0)
    found = metering.summary(line)
    assert found is not None and (found.half, found.most) == (0.01, None)
