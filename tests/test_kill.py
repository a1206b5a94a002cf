"""kill -9 of the server before, during and after each change of a job's status.

Real processes: what is tested is what the operating system leaves behind.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from finery.core import ids, jobs
from finery.core import store as stores
from finery.core.jobs import Command, Job, Output, Sweep

SERVER = Path(__file__).parent / "crashing_server.py"
CHANGES = ("preparing", "running", "finalizing", "completed")


@pytest.fixture
def home(tmp_path):
    return tmp_path


def submit(home: Path, command: str, **given) -> stores.Store:
    store = stores.open_sqlite(home / "finery.db")
    store.migrate()
    spec = Command(command=command, outputs={"model": Output(asset="tuned")})
    jobs.create(store, Job(name="job", workspace=ids.new(), spec=spec, **given))
    return store


def serve(home: Path, *death: str) -> int:
    return subprocess.run([sys.executable, SERVER, home, *death], timeout=180).returncode


@pytest.mark.parametrize("status", CHANGES)
@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_server_killed_around_a_change_loses_nothing_and_repeats_nothing(home, moment, status):
    ran = home / "ran"
    store = submit(home, f"echo once >> {ran}; echo weights > ${{{{outputs.model}}}}/weights")

    assert serve(home, moment, status) == -9
    assert serve(home) == 0

    job = jobs.get(store, "job")
    assert job.status == "completed", job.error
    assert ran.read_text() == "once\n"
    told = [event.status for event in jobs.events(store, "job")]
    assert told == ["queued", *CHANGES]


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_job_that_fails_is_failed_once_whenever_the_server_is_killed(home, moment):
    store = submit(home, "echo it cannot be; exit 3")

    assert serve(home, moment, "failed") == -9
    assert serve(home) == 0

    job = jobs.get(store, "job")
    assert job.status == "failed"
    assert job.error["message"] == "it cannot be (exit status 3)"
    assert [e.status for e in jobs.events(store, "job")].count("failed") == 1


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_cancelled_job_stays_cancelled_whenever_the_server_is_killed(home, moment):
    store = submit(home, "sleep 600")
    assert serve(home, "after", "running") == -9
    jobs.cancel(store, "job")

    assert serve(home, moment, "cancelled") == -9
    assert serve(home) == 0

    assert jobs.get(store, "job").status == "cancelled"


@pytest.mark.parametrize(
    "moment, status",
    [("after", "running"), ("before", "completed"), ("during", "finalizing")],
)
def test_a_sweep_goes_on_where_the_server_was_killed(home, moment, status):
    ran = home / "ran"
    store = stores.open_sqlite(home / "finery.db")
    store.migrate()
    trial = Command(command=f"echo ${{{{inputs.x}}}} >> {ran}")
    space = {"x": ["choice", [1, 3, 2]]}
    spec = Sweep(trial=trial, space=space, metric="m", rule="grid", most=3, at_once=2)
    jobs.create(store, Job(name="job", workspace=ids.new(), spec=spec))

    assert serve(home, moment, status) == -9
    assert serve(home) == 0

    job = jobs.get(store, "job")
    assert (job.status, job.reused) == ("completed", "job_1")
    assert sorted(ran.read_text().split()) == ["1", "2", "3"], "each value was tried once"
