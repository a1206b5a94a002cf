"""What every test may use: waiting for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 60) -> T:
    """Ask again and again until the answer is true, and return it; fail after `seconds`.

    They only bound how long a failure takes: a machine may stand still for a while.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s; the last answer: {answer!r}"
        time.sleep(0.005)


@pytest.fixture(name="until", scope="session")
def until_fixture() -> Callable[..., object]:
    """The same as a fixture: a test asks for it by name, from whatever folder."""
    return until
