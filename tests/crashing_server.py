"""A server without doors that kills itself at one point of a job's life; see test_kill.py.

    python crashing_server.py HOME MOMENT STATUS

MOMENT is before, during or after; STATUS the one a job is moved to.  Without
them it serves until no job is unfinished.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from finery.core import jobs
from finery.core import store as stores
from finery.core.files import Files
from finery.core.jobs import Job
from finery.core.supervisor import Supervisor
from finery.core.upkeep import Upkeep
from finery.core.workspaces import Keys
from finery.engines.environments import Environments
from finery.engines.local import LocalEngine
from finery.sampling import Sampler


class NoTracking:
    def open(self, job: Job) -> dict[str, str]:
        return {}

    def close(self, job: Job) -> None: ...

    def metrics(self, job: Job, name: str) -> list[float]:
        return [float(job.spec.inputs["x"].value)]


def main(home: Path, moment: str = "", status: str = "") -> None:
    store = stores.open_sqlite(home / "finery.db")
    store.migrate()
    files, engine = Files(home / "files", store), LocalEngine(home)
    if moment:
        _die(moment, status)

    environments = Environments(home, engine=engine, locate=files.locate)
    upkeep = Upkeep(
        store, files, home, engine=engine, keys=Keys(home), environments=environments, kind=str
    )
    supervisor = Supervisor(
        store,
        files,
        home,
        engine=engine,
        tracking=NoTracking(),
        environments=environments,
        sampler=Sampler(),
        upkeep=upkeep,
    )
    while jobs.unfinished(store):
        supervisor.tick()
        time.sleep(0.02)


def _die(moment: str, status: str) -> None:
    move, event = jobs.move, jobs._event

    def moving(store, job, to, **given):
        if to == status and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        moved = move(store, job, to, **given)
        if to == status and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return moved

    def telling(store, job, reason, **given):
        if job.status == status and moment == "during":  # the row is written, the event is not
            os.kill(os.getpid(), signal.SIGKILL)
        event(store, job, reason, **given)

    jobs.move, jobs._event = moving, telling


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
