"""A store and files of their own for each test of the core.

The database is SQLite, or the PostgreSQL one that FINERY_TEST_DATABASE names:
everything in its schema `public` is dropped for each test.
"""

from __future__ import annotations

import os
from datetime import datetime

import pytest
from sqlalchemy import text

from finery.core import jobs
from finery.core import store as stores
from finery.core.compute import Capacity, Process, Report, Runtime
from finery.core.files import Files
from finery.core.jobs import Command, Job
from finery.core.store import Store
from finery.core.supervisor import Supervisor


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

    def log(self, id: str, offset: int = 0, *, rank: int = 0) -> bytes:
        return self.logs.get(f"{id}/{rank}" if rank else id, b"")[offset:]

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


class FakeTracking:
    """Runs in memory; `trouble` is raised by the verbs that it names."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: dict[str, str] = {}
        self.ended: dict[str, datetime | None] = {}
        self.trouble: dict[str, Exception] = {}
        self.logged: dict[str, dict[str, list[float]]] = {}  # job -> metric -> values

    def open(self, job: Job) -> dict[str, str]:
        self._raise("open")
        self.opened.append(job.name)
        return {"RUN": job.name}

    def close(self, job: Job) -> None:
        self._raise("close")
        self.closed[job.name] = job.status
        self.ended[job.name] = job.ended_at

    def metrics(self, job: Job, name: str) -> list[float]:
        return self.logged.get(job.name, {}).get(name, [])

    def _raise(self, verb: str) -> None:
        if verb in self.trouble:
            raise self.trouble[verb]


class FakeUpkeep:
    def tick(self, *, woken: bool = True) -> bool:
        return False

    def end(self) -> None: ...


class FakeSampler:
    """Proposes the middle of the space, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list = []

    def propose(self, rule, axes, told, *, seed, maximize) -> dict[str, float]:
        self.told = list(told)
        return dict.fromkeys(axes, 0.5)


class House:
    """A supervisor with what a test does to it, one tick after the other."""

    def __init__(self, store, files, home, engine, environments) -> None:
        self.environments, self.sampler = environments, FakeSampler()
        self.store, self.engine, self.tracking = store, engine, FakeTracking()
        self.home, self.files = home, files
        self.restart()

    def restart(self) -> None:
        """Put another supervisor in the place of this one: all that it knew is lost."""
        self.supervisor = Supervisor(
            self.store,
            self.files,
            self.home,
            engine=self.engine,
            tracking=self.tracking,
            environments=self.environments,
            upkeep=FakeUpkeep(),
            sampler=self.sampler,
        )

    def submit(self, name="j", spec=None, **given) -> Job:
        return jobs.create(
            self.store, Job(name=name, workspace="w", spec=spec or Command(command="run"), **given)
        )

    def tick(self, times=1) -> None:
        """Tick, and wait for the steps of each tick."""
        for _ in range(times):
            self.supervisor.tick()
            self.supervisor.settle()

    def status(self, name="j") -> str:
        return jobs.get(self.store, name).status

    def error(self, name="j") -> str:
        return jobs.get(self.store, name).error["message"]

    def system_log(self, name="j") -> str:
        folder = f"ExperimentRun/dcid.{name}/system_logs/finery.log"
        return self.files.path("w", "workspaceartifactstore", folder).read_text()

    def steps(self, parent) -> dict[str, Job]:
        return {child.step: child for child in jobs.children(self.store, parent)}

    def ends(self, parent, step, code=0, **known) -> None:
        """End the process of a step."""
        self.engine.exits(f"job-{self.steps(parent)[step].name}", code, **known)


@pytest.fixture
def house(store, files, tmp_path, engine, environments):
    made = House(store, files, tmp_path, engine, environments)
    yield made
    made.supervisor.end()
