"""A store and files of their own for each test of the core.

The database is SQLite, or the PostgreSQL one that FINERY_TEST_DATABASE names:
everything in its schema `public` is dropped for each test.
"""

from __future__ import annotations

import os

import pytest
from sqlalchemy import text

from finery.core import store as stores
from finery.core.compute import Capacity, Process, Report, Runtime
from finery.core.files import Files
from finery.core.store import Store


@pytest.fixture
def store(tmp_path):
    kept = _postgres() or stores.open_sqlite(tmp_path / "finery.db")
    kept.migrate()
    yield kept
    kept.close()


@pytest.fixture
def files(store, tmp_path):
    return Files(tmp_path / "files", store)


def _postgres() -> Store | None:
    url = os.environ.get("FINERY_TEST_DATABASE")
    if not url:
        return None
    kept = Store(url)
    with kept.transaction() as connection:
        connection.execute(text("drop schema public cascade"))
        connection.execute(text("create schema public"))
    return kept


class FakeEnvironments:
    """Environments that a test says something of: built at once unless it says otherwise."""

    def __init__(self) -> None:
        self.building = False
        self.warnings: tuple[str, ...] = ()
        self.trouble: Exception | None = None  # what `runtime` raises
        self.asked: list[tuple[str, bool]] = []  # name, for serving

    def runtime(self, environment, *, serving, log=None) -> Runtime | None:
        self.asked.append((environment.name if environment else "", serving))
        if self.trouble is not None:
            raise self.trouble
        if self.building:
            return None
        return Runtime(python="/usr/bin/python3", own=True, warnings=self.warnings)


class FakeEngine:
    """An engine in memory: a test says what becomes of each process."""

    def __init__(self) -> None:
        self.machine = Capacity(cpus=4, memory=1000, gpus=0)
        self.started: dict[str, Process] = {}
        self.reports: dict[str, Report] = {}
        self.logs: dict[str, bytes] = {}
        self.stopped: list[str] = []
        self.forgotten: set[str] = set()
        self.obedient = True  # a process that is asked to end does so at once
        self.trouble: Exception | None = None  # what `start` raises

    def capacity(self) -> Capacity:
        return self.machine

    def start(self, process: Process) -> None:
        if self.trouble is not None:
            raise self.trouble
        if process.id not in self.started:
            self.started[process.id] = process
            self.reports[process.id] = Report(state="alive")

    def report(self, id: str) -> Report:
        return self.reports.get(id, Report(state="unknown"))

    def stop(self, id: str) -> None:
        if self.report(id).state in ("starting", "alive"):
            self.stopped.append(id)
            if self.obedient:
                self.reports[id] = Report(state="exited", exit_code=-15)

    def log(self, id: str, offset: int = 0) -> bytes:
        return self.logs.get(id, b"")[offset:]

    def warm_up(self) -> None:
        pass

    def forget(self, id: str) -> None:
        if self.reports.pop(id, None) is not None:
            self.forgotten.add(id)

    # What a test does to its processes.

    def exits(self, id: str, code: int | None = 0, *, said: str = "", **known: object) -> None:
        assert self.report(id).state in ("starting", "alive"), id
        self.logs[id] = said.encode()
        self.reports[id] = Report(state="exited", exit_code=code, **known)

    def answers(self, id: str) -> str:
        """Say that a serving process answers, and return its address."""
        address = f"http://{id}"
        self.reports[id] = Report(state="alive", address=address)
        return address

    @property
    def alive(self) -> list[str]:
        return [id for id, report in self.reports.items() if report.state == "alive"]


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def environments():
    return FakeEnvironments()
