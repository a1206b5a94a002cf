"""The services of a job: programs beside it while it runs, to look at it or to work in it.

Each is a process of the engine, in the job's folder and its Python, with the
variables that the job was given and without those of its tracking.  What it runs
is `beside.py`, which finds the program, a port and a password.  A service never
decides what becomes of its job: one that does not run is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finery.core import compute, ids, jobs
from finery.core.compute import Engine, Process, Runtime
from finery.core.errors import Failure, Invalid
from finery.core.jobs import Command, Job
from finery.core.launch import Folder
from finery.core.store import Store
from finery.core.work import Service

PROGRAM = Path(__file__).parents[1] / "beside.py"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ADDRESS = re.compile(
    r"(http://127\.0\.0\.1:(\d{1,5})/[\w?=/-]{0,200})(?:#([\w-]{1,200}))?", re.ASCII
)
_PORTS = range(1024, 65536)
_MOST = 8
_LONGEST = 1024  # characters of a path


@dataclass(frozen=True, kw_only=True)
class State:
    """What became of a service.  The endpoint opens it to whoever has it."""

    status: Literal["waiting", "running", "failed", "ended"]
    endpoint: str = ""  # an address of this machine alone
    port: int | None = None
    password: str = ""  # where the program asks for one
    error: str = ""


def check(services: Mapping[str, Service]) -> None:
    """Raise `Invalid` for services that no job can have."""
    if len(services) > _MOST:
        raise Invalid(f"a job may have {_MOST} services, not {len(services)}", target="services")
    for name, service in services.items():
        where = f"services.{name[:80]}"
        if not _NAME.fullmatch(name):
            raise Invalid(
                f"{name[:80]!r} cannot name a service: 1 to 64 letters, digits, '_' and '-'",
                target=where,
            )
        if service.port and service.port not in _PORTS:
            raise Invalid(
                f"{where}: port {service.port} is not from {_PORTS[0]} to {_PORTS[-1]}: leave it "
                "out for a free one",
                target=where,
            )
        if len(service.folder) > _LONGEST or re.search(r"\$\{\{|\0", service.folder):
            raise Invalid(
                f"{where}: what it looks at must be a path in the job's folder, as outputs/logs",
                target=where,
            )


def process_id(job: Job, name: str) -> str:
    """Return an id that no job's process can have, whatever the job is called."""
    return f"service-{name}-{ids.derived(job.name)}"


def start(store: Store, engine: Engine, job: Job, *, place: Folder, runtime: Runtime) -> None:
    """Start what is to run beside the job, whose process has been started."""
    for name in _asked(job):
        try:
            engine.start(_process(job, name, place=place, runtime=runtime))
        except (Failure, OSError) as exc:
            jobs.warn(store, job.name, f"the service {name!r} did not start: {exc}")


def watch(store: Store, engine: Engine, job: Job, *, home: Path) -> None:
    """Warn of the services that have failed, each once."""
    for name, state in states(engine, job, home=home).items():
        warning = f"the service {name!r} does not run: {state.error}"
        if state.status == "failed" and warning not in job.warnings:
            jobs.warn(store, job.name, warning)


def end(engine: Engine, job: Job) -> None:
    """Stop what runs beside the job; nothing is kept of it but its log."""
    for name in _asked(job):
        engine.stop(process_id(job, name))
        engine.forget(process_id(job, name))


def states(engine: Engine, job: Job, *, home: Path) -> dict[str, State]:
    """Return what became of each of the job's services."""
    return {name: _state(engine, job, name, home=home) for name in _asked(job)}


def _asked(job: Job) -> Mapping[str, Service]:
    return job.spec.services if isinstance(job.spec, Command) else {}


def _process(job: Job, name: str, *, place: Folder, runtime: Runtime) -> Process:
    assert isinstance(job.spec, Command)
    service = job.spec.services[name]
    looks_only = service.kind == "tensorboard"
    return Process(
        id=process_id(job, name),
        command=[
            *(runtime.python, str(PROGRAM)),
            *(service.kind, str(service.port), service.folder or "."),
        ],
        cwd=place.work,
        log=place.system_log.with_name(f"service_{name}.log"),
        env={**runtime.variables, **job.spec.env, **runtime.env},
        image=runtime.image,
        memory=job.lease.get("memory"),
        gpus=() if looks_only else tuple(job.lease.get("gpus", ())),
    )


def _state(engine: Engine, job: Job, name: str, *, home: Path) -> State:
    if job.final:
        return State(status="ended")
    id = process_id(job, name)
    report = engine.report(id)
    match report.state:
        case "unknown" | "starting":
            return State(status="waiting")
        case "alive":
            return _answering(report.address or "")
    if report.exit_code == 0:
        return State(status="ended")  # somebody has ended it from within
    said = report.reason or compute.last_words(engine, id, home=home)
    return State(status="failed", error=said or f"it ended with exit status {report.exit_code}")


def _answering(address: str) -> State:
    """Return what an address says; the job itself could have written any other into its file."""
    found = _ADDRESS.fullmatch(address)
    if not found:
        return State(status="waiting")
    endpoint, port, password = found.groups(default="")
    return State(status="running", endpoint=endpoint, port=int(port), password=password)
