"""Jobs: create, get, list, cancel, move: what was asked for and what became of it.

A job is one run of a command, a graph of such runs, or many runs with other
values (`work.py` has what each of them asks for).  This module writes wishes and
statuses down; it starts nothing (the supervisor does, through an engine) and
speaks no HTTP (the doors do).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    String,
    Table,
    bindparam,
    func,
    insert,
    select,
)
from sqlalchemy import update as update_rows

from finery.core import ids, status, work
from finery.core.errors import AlreadyExists, Conflict, NotFound
from finery.core.store import EVENTS, Page, Store, When, metadata, page
from finery.core.work import Command, Input, Output, Pipeline, Step, Sweep

__all__ = ["Command", "Input", "Job", "Output", "Pipeline", "Queue", "Step", "Sweep"]

JOBS = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("workspace", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("final", Boolean, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("error", JSON),
    Column("warnings", JSON, nullable=False),
    Column("outputs", JSON, nullable=False),
    Column("compute", String(255), nullable=False),
    Column("experiment", String(255), nullable=False),
    Column("display_name", String, nullable=False),
    Column("description", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("properties", JSON, nullable=False),
    Column("parent", String(255), index=True),
    Column("root", String(255), nullable=False),
    Column("step", String(255), nullable=False),
    Column("fingerprint", String(64), index=True),
    Column("reused", String(255)),
    Column("lease", JSON, nullable=False),
    Column("archived", Boolean, nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("created_at", When, nullable=False),
    Column("started_at", When),
    Column("ended_at", When),
    Column("extras", JSON, nullable=False),
    Index("jobs_by_workspace", "workspace", "parent", "seq"),
    # What the supervisor asks at every tick is answered from this index alone.
    Index("jobs_unfinished", "final", "status", "workspace", "compute", "kind", "seq"),
)

_COLUMNS = tuple(JOBS.c.keys())

# Asked most: made once.
_BY_NAME = select(JOBS).where(JOBS.c.name == bindparam("name"))
_KNOWN = select(JOBS.c.seq).where(JOBS.c.name == bindparam("name"))
_ADDED = insert(JOBS)
_CHANGED = update_rows(JOBS).where(JOBS.c.name == bindparam("of"))
_HAPPENED = insert(EVENTS)
_UNFINISHED = select(JOBS).where(~JOBS.c.final).order_by(JOBS.c.seq)
_PLACE = (JOBS.c.workspace, JOBS.c.compute, JOBS.c.kind)
_QUEUES = (
    select(*_PLACE, func.min(JOBS.c.seq))
    .where(~JOBS.c.final, JOBS.c.status == "queued")
    .group_by(*_PLACE)
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job.  Frozen: `move` and `update` return the next version of it."""

    name: str
    workspace: str
    spec: Command | Pipeline | Sweep
    status: str = "queued"
    error: dict[str, Any] | None = None  # message, target
    warnings: list[str] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)  # name -> where it lies, as a location
    compute: str = ""
    experiment: str = "Default"
    display_name: str = ""
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    parent: str | None = None
    root: str = ""
    step: str = ""
    fingerprint: str | None = None  # equal for steps that would do the same work
    reused: str | None = None  # the job whose outputs these are: done before, or a sweep's best
    lease: dict[str, Any] = field(default_factory=dict)  # what the machine gave it: gpus, ranks
    archived: bool = False
    created_by: str = ""
    created_at: datetime = field(default_factory=ids.now)
    started_at: datetime | None = None
    ended_at: datetime | None = None
    extras: dict[str, Any] = field(default_factory=dict)  # the door's; the core never reads it

    @property
    def kind(self) -> str:
        return work.kind(self.spec)

    @property
    def final(self) -> bool:
        return status.is_final(status.JOB, self.status)


@dataclass(frozen=True)
class Queue:
    """Where queued jobs wait for the same thing."""

    workspace: str
    compute: str
    kind: str
    first: int  # grows with the age of the oldest job's submission


@dataclass(frozen=True, kw_only=True)
class Event:
    at: datetime
    status: str
    reason: str


def create(store: Store, job: Job) -> Job:
    """Put a new job in the queue."""
    ids.name(job.name)
    job = replace(job, root=job.root or job.name, display_name=job.display_name or job.name)
    with store.transaction() as connection:
        if connection.execute(_KNOWN, {"name": job.name}).first() is not None:
            raise AlreadyExists(f"job {job.name!r} exists", target=job.name)
        connection.execute(_ADDED, {**vars(job), "kind": job.kind, "final": job.final})
        _event(connection, job, "created")
    return job


def get(store: Store, name: str) -> Job:
    job = find(store, name)
    if job is None:
        raise NotFound(f"no job named {name!r}", target=name)
    return job


def find(store: Store, name: str) -> Job | None:
    row = store.row(_BY_NAME, name=name)
    return _job(row) if row else None


def list(
    store: Store,
    workspace: str,
    *,
    parent: str | None = None,
    archived: bool | None = False,
    status: str | None = None,
    after: str = "",
    limit: int = 100,
) -> Page[Job]:
    """Return a workspace's jobs, newest first: the topmost ones, or a parent's children."""
    query = select(JOBS).where(JOBS.c.workspace == workspace)
    query = query.where(JOBS.c.parent == parent) if parent else query.where(JOBS.c.parent.is_(None))
    if archived is not None:
        query = query.where(JOBS.c.archived == archived)
    if status is not None:
        query = query.where(JOBS.c.status == status)
    if after:
        query = query.where(JOBS.c.seq < ids.whole(after, target="after"))
    rows = store.rows(query.order_by(JOBS.c.seq.desc()).limit(limit + 1))
    return page([_job(row) for row in rows], limit, [str(row.seq) for row in rows])


def children(store: Store, parent: str) -> Sequence[Job]:
    query = select(JOBS).where(JOBS.c.parent == parent).order_by(JOBS.c.seq)
    return [_job(row) for row in store.rows(query)]


def unfinished(store: Store) -> Sequence[Job]:
    """Return every job that the supervisor still has to look after, oldest first."""
    return [_job(row) for row in store.rows(_UNFINISHED)]


def active(store: Store) -> Sequence[Job]:
    """Return the unfinished jobs that do not wait in a queue, oldest first."""
    return [_job(row) for row in store.rows(_UNFINISHED.where(JOBS.c.status != "queued"))]


def queues(store: Store) -> Sequence[Queue]:
    """Return the queues that jobs wait in, the one with the oldest job first."""
    found = [Queue(*row) for row in store.rows(_QUEUES)]
    return sorted(found, key=lambda queue: queue.first)


def waiting(store: Store, queue: Queue, most: int) -> Sequence[Job]:
    """Return the first jobs of a queue, at most so many."""
    query = _UNFINISHED.where(
        JOBS.c.status == "queued",
        JOBS.c.workspace == queue.workspace,
        JOBS.c.compute == queue.compute,
        JOBS.c.kind == queue.kind,
    )
    return [_job(row) for row in store.rows(query.limit(most))]


def busy(store: Store, workspace: str) -> bool:
    query = select(func.count()).select_from(JOBS)
    row = store.row(query.where(JOBS.c.workspace == workspace, ~JOBS.c.final))
    return bool(row and row[0])


def same_work(store: Store, workspace: str, fingerprint: str) -> Job | None:
    """Return the newest completed job that did the same work, if there is one."""
    query = select(JOBS).where(
        JOBS.c.fingerprint == fingerprint,
        JOBS.c.workspace == workspace,
        JOBS.c.status == "completed",
    )
    row = store.row(query.order_by(JOBS.c.seq.desc()).limit(1))
    return _job(row) if row else None


def move(
    store: Store,
    job: Job,
    to: str,
    *,
    error: str = "",
    target: str = "",
    now: datetime | None = None,
    **changed: Any,
) -> Job:
    """Change a job's status, if the machine allows it, and write that down with its event.

    `changed` are other fields that change with it (`warnings`, `outputs`, …).
    Raises `Conflict` where the change is not allowed from the status it has now.
    """
    now = now or ids.now()
    with store.transaction() as connection:
        current = get(store, job.name)
        moved = replace(current, status=status.move(status.JOB, current.status, to), **changed)
        if error:
            moved = replace(moved, error={"message": error, "target": target})
        if to == "running":
            moved = replace(moved, started_at=now)
        if moved.final:
            ended = moved.ended_at or now  # of one that never ran: it began when it ended
            moved = replace(moved, ended_at=ended, started_at=moved.started_at or ended)
        _change(connection, current, moved)
        _event(connection, moved, error, now=now)
    return moved


def update(store: Store, name: str, **changed: Any) -> Job:
    """Change what is not the status: texts, tags, warnings, archive mark, extras."""
    assert "status" not in changed
    with store.transaction() as connection:
        current = get(store, name)
        updated = replace(current, **changed)
        _change(connection, current, updated)
    return updated


def warn(store: Store, name: str, message: str) -> Job:
    """Keep a warning on the job, once, and on its root, where it names its steps."""
    with store.transaction():
        job = get(store, name)
        if message in job.warnings:
            return job
        root = find(store, job.root) if job.root != job.name else None
        if root is not None:
            update(store, root.name, warnings=_of_step(root.warnings, job.step, message))
        return update(store, name, warnings=[*job.warnings, message])


def _of_step(warnings: Sequence[str], step: str, message: str) -> Sequence[str]:
    """Return a pipeline's warnings and a step's: one for all the steps that it is the same for."""
    same = re.compile(rf"steps? (?P<named>'[^']*'(?:, '[^']*')*): {re.escape(message)}")
    for at, warning in enumerate(warnings):
        if found := same.fullmatch(warning):
            named = dict.fromkeys([*found["named"].split(", "), repr(step)])
            said = f"step{'s' * (len(named) > 1)} {', '.join(named)}: {message}"
            return [*warnings[:at], said, *warnings[at + 1 :]]
    return [*warnings, f"step {step!r}: {message}"]


def cancel(store: Store, name: str, *, reason: str = "") -> Job:
    """Ask for a job and what it is made of to end.  Raises `Conflict` when it has ended.

    `reason`, where it was not a person who asked, is kept as a warning.
    """
    with store.transaction():
        job = get(store, name)
        if job.final:
            raise Conflict(f"job {name!r} has ended already ({job.status})", target=name)
        if job.status in ("cancelling", "finalizing"):
            return job
        if reason:
            job = warn(store, name, reason)
        return move(store, job, "cancelled" if job.status == "queued" else "cancelling")


def events(store: Store, name: str) -> Sequence[Event]:
    query = select(EVENTS).where(EVENTS.c.kind == "job", EVENTS.c.id == name).order_by(EVENTS.c.seq)
    return [Event(at=row.at, status=row.status, reason=row.reason) for row in store.rows(query)]


def _change(connection: Connection, old: Job, new: Job) -> None:
    """Write down the fields that differ."""
    before = vars(old)
    changed = {name: value for name, value in vars(new).items() if value != before[name]}
    if changed:
        connection.execute(_CHANGED, {**changed, "final": new.final, "of": old.name})


def _event(connection: Connection, job: Job, reason: str, *, now: datetime | None = None) -> None:
    happened = {"kind": "job", "id": job.name, "status": job.status, "reason": reason}
    connection.execute(_HAPPENED, {**happened, "at": now or job.created_at})


def _job(row: Any) -> Job:
    doc = dict(zip(_COLUMNS, row, strict=True))
    kind, spec = doc.pop("kind"), doc.pop("spec")
    del doc["seq"], doc["final"]
    return Job(spec=work.read(kind, spec), **doc)
