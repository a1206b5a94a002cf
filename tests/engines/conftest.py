"""An engine in a home of its own, and a process that is quickly described."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finery.core.compute import Process
from finery.engines.local import LocalEngine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    surroundings = {"PATH": os.environ["PATH"], "FINERY_SECRET": "s3cret"}
    made = LocalEngine(tmp_path / "home", surroundings=surroundings, grace=0.3, stack="json")
    yield made
    for directory in (tmp_path / "home" / "processes").glob("*/"):
        made.stop(directory.name)
    made.close()


@pytest.fixture
def a_process(tmp_path: Path) -> Callable[..., Process]:
    """A shell line as a process; further fields by name."""

    def make(line: str, id: str = "p1", **fields: Any) -> Process:
        said = {"command": ["bash", "-c", line], "cwd": tmp_path, "log": tmp_path / f"{id}.txt"}
        return Process(id=id, **(said | fields))

    return make
