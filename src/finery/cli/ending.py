"""`finery down`: the server of a home ends, with all its jobs and deployments."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finery import app
from finery.cli.refused import Refused
from finery.config import Settings
from finery.core import endpoints, instances, jobs

_PATIENCE = 90.0  # seconds for processes to end, and for what is written down of it
_LEAVING = 30.0  # seconds for a server to leave by itself
_ASKED = "server.ending"  # in the home: the process that `down` has told to leave


def down(home: Path, database: str) -> dict[str, Any]:
    """End everything of `home` and say what was ended."""
    if not (home / "finery.db").exists() and not database:
        raise Refused(f"{home} is no home of Finery: there is no database in it")
    lines = _end_server(home)
    platform = app.create(Settings(home=home, database=database), http="", https="")
    try:
        ended_jobs = _end_jobs(platform)
        ended_deployments = _end_deployments(platform)
        _end_rest(platform)
    finally:
        platform.close()
    lines += [f"job {name}: cancelled" for name in ended_jobs]
    lines += [f"deployment {name}: ended" for name in ended_deployments]
    return {"jobs": ended_jobs, "deployments": ended_deployments, "lines": lines}


def _end_server(home: Path) -> list[str]:
    with (home / "server.lock").open("a+") as lock:
        if _free(lock):
            return []
        lock.seek(0)
        pid = int(lock.read() or 0)
        (home / _ASKED).write_text(str(pid))
        os.kill(pid, signal.SIGTERM)
        if not _until(lambda: _free(lock), seconds=_LEAVING):
            os.kill(pid, signal.SIGKILL)
            if not _until(lambda: _free(lock)):
                raise Refused(f"the server (process {pid}) does not end")
        return [f"server (process {pid}): ended"]


def asked(home: Path) -> bool:
    """Say, in a server that has left, whether it was told to by `down`, which ends the rest."""
    try:
        pid = (home / _ASKED).read_text()
        (home / _ASKED).unlink(missing_ok=True)
    except OSError:
        return False
    return pid == str(os.getpid())


def _end_jobs(platform: app.Platform) -> list[str]:
    unfinished = jobs.unfinished(platform.store)
    for job in unfinished:
        if job.parent is None:
            jobs.cancel(platform.store, job.name)

    def ended() -> bool:
        platform.supervisor.step_jobs()
        return not jobs.unfinished(platform.store)

    if unfinished and not _until(ended):
        raise Refused("some jobs do not end: look at `finery job list`")
    return [job.name for job in unfinished]


def _end_deployments(platform: app.Platform) -> list[str]:
    """End the processes; what was asked for stays, and comes up with the next `finery up`."""
    ended, ids = [], []
    for deployment in endpoints.kept(platform.store):
        mine = {*instances.processes(deployment), *deployment.addresses}
        mine |= instances.started(platform.settings.home, deployment)
        running = [id for id in mine if platform.engine.report(id).state in ("starting", "alive")]
        for id in running:
            platform.engine.stop(id)
        if running:
            ended.append(f"{deployment.endpoint}/{deployment.name}")
        ids += list(mine)

    def gone() -> bool:
        return all(_over(platform, id) for id in ids)

    if not _until(gone):
        raise Refused("some deployments do not end: look for their processes")
    for id in ids:
        platform.engine.forget(id)
    return ended


def _end_rest(platform: app.Platform) -> None:
    """End what is being built for them, which the next to ask begins anew, and jobs' services."""
    ids = [
        place.name
        for kind in ("environment", "service")
        for place in platform.engine.home.glob(f"{kind}-*")
    ]
    for id in ids:
        platform.engine.stop(id)
    if not _until(lambda: all(_over(platform, id) for id in ids)):
        raise Refused("some environments or services of jobs do not end: look for their processes")
    for id in ids:
        platform.engine.forget(id)


def _over(platform: app.Platform, id: str) -> bool:
    return platform.engine.report(id).state in ("exited", "unknown")


def _free(lock: Any) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


def _until(condition: Callable[[], bool], *, seconds: float = _PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return held
