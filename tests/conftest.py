"""What every test may use: waiting for what another process does, scripts of the repository."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 120) -> T:
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


@pytest.fixture(scope="session")
def module() -> Callable[[Path], ModuleType]:
    """Load a script of the repository; the ones beside it can be imported by it."""

    def load(path: Path) -> ModuleType:
        sys.path.insert(0, str(path.parent))
        try:
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec and spec.loader
            made = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = made
            spec.loader.exec_module(made)
            return made
        finally:
            sys.path.remove(str(path.parent))

    return load
