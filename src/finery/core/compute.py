"""Where a process can run, and the four verbs that run it.

A job is a process that ends; a deployment is a process that should not.  An
engine knows nothing of either: it is given a `Process` and keeps it.  Compute
targets (named queues with a size) are here too; how a size becomes a lease of
this machine's real processors is `Capacity` and the supervisor's arithmetic.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from sqlalchemy import (
    JSON,
    Column,
    Integer,
    String,
    Table,
    UniqueConstraint,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from finery.core import ids
from finery.core.assets import Asset
from finery.core.errors import Invalid, NotFound
from finery.core.store import Page, Store, When, metadata, page

TARGETS = Table(
    "targets",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("workspace", String(64), nullable=False),
    Column("name", String(255), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("size", String(64), nullable=False),
    Column("cpus", Integer, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("min_instances", Integer, nullable=False),
    Column("max_instances", Integer, nullable=False),
    Column("tier", String(16), nullable=False),
    Column("description", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("created_at", When, nullable=False),
    Column("extras", JSON, nullable=False),
    UniqueConstraint("workspace", "name"),
)


@dataclass(frozen=True, kw_only=True)
class Process:
    """A command, its directory and what it needs.  `id` is unique for all time.

    The environment of the process is the harmless part of the engine's own (where
    programs and certificates are, never a secret of the server) plus `env`.  It also gets
    `FINERY_PROCESS_DIR`: a folder that is private to it, where a serving process
    writes the file `address` once it answers.
    """

    id: str
    command: list[str]  # an argument vector; a shell line is ["bash", "-c", LINE]
    cwd: Path
    log: Path  # stdout and stderr, appended; with ranks > 1 see `rank_log`
    env: dict[str, str] = field(default_factory=dict)
    ranks: int = 1  # so many copies, told apart by RANK, LOCAL_RANK and WORLD_SIZE
    nodes: int = 1  # that the ranks are spread over, the same number on each
    distribution: str = ""  # pytorch, mpi, tensorflow: what else a rank is told, and how
    cpus: float | None = None  # limits where the machine allows them; None: no limit
    memory: int | None = None  # bytes
    shm_size: int | None = None  # bytes of shared memory, where the engine gives each its own
    image: str = ""  # of the container that it runs in; empty: none, a process of this machine
    gpus: tuple[int, ...] = ()  # indices of the devices it may see
    warm: bool = False  # [python, -m, MODULE, ...] of our own environment: may be forked warm
    timeout: float | None = None  # seconds; the engine ends it then, and says so in the report
    grace: float | None = None  # seconds between asking it to end and killing it; None: ours

    def rank_log(self, rank: int) -> Path:
        """Where rank `rank` writes: `std_log.txt`, or `std_log_process_NN.txt` of several."""
        if self.ranks == 1:
            return self.log
        return self.log.with_name(f"{self.log.stem}_process_{rank:02d}{self.log.suffix}")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The Python that an environment has become: an interpreter here, or one in a container."""

    python: str  # its path, here or in the container
    image: str = ""  # of the container; empty: none
    own: bool = False  # the server's own, of which our programs may be forked warm
    warnings: tuple[str, ...] = ()  # what the environment asks for and does not get here
    variables: Mapping[str, str] = field(default_factory=dict)  # those that it sets: below a job's

    @property
    def env(self) -> dict[str, str]:
        """What makes `python` in a command line mean this one."""
        if self.image:
            return {}
        return {"PATH": f"{Path(self.python).parent}:/usr/local/bin:/usr/bin:/bin"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an engine knows of a process now.

    `lost`: it ended by no doing of its own (its keeper was killed, or the machine
    restarted), so that it has no exit code.
    """

    state: Literal["unknown", "starting", "alive", "exited"]
    exit_code: int | None = None
    address: str | None = None  # http://host:port, once a serving process answers
    timed_out: bool = False
    lost: bool = False
    reason: str = ""  # one line, where the engine knows more than the exit code says
    rank: int | None = None  # of several: the first that failed, and ended the others
    started_at: float | None = None  # seconds since the epoch
    ended_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What this engine's machines really have."""

    cpus: int
    memory: int  # bytes
    gpus: int


class Engine(Protocol):
    """Runs processes.  Every verb returns at once and may be called again safely."""

    def capacity(self) -> Capacity:
        """Say what there is to share out."""

    def start(self, process: Process) -> None:
        """Begin the process.  A second call with the same id does nothing."""

    def report(self, id: str) -> Report:
        """Say what became of it, even if this server was restarted since."""

    def stop(self, id: str) -> None:
        """Ask it to end; insist after a grace period.  Gone already is fine."""

    def log(self, id: str, offset: int = 0, *, rank: int = 0) -> bytes:
        """What one of its ranks has written to stdout and stderr since `offset`.

        A negative offset counts from the end: the last so many bytes.
        """

    def warm_up(self) -> None:
        """Processes that may start warm will be wanted soon: get ready, without waiting."""

    def forget(self, id: str) -> None:
        """Drop what is kept of a process that has exited.  Unknown is fine."""


class Environments(Protocol):
    """Turns environments into something that runs.  Returns at once; may be called again."""

    def runtime(
        self, environment: Asset | None, *, serving: bool, log: Path | None = None
    ) -> Runtime | None:
        """Return what runs in an environment; None while it is being built: ask again.

        No environment means our own interpreter.  A model in its place stands for what it
        asks for itself, where it is one that does.  `serving`: it has to hold what
        a serving process needs as well.  `log`: where the log of its building is
        to be seen, where there is one, from the first line on.  Raises `Failure`
        with the cause where it cannot be had.
        """

    def apart(self, runtime: Runtime, folder: Path) -> Runtime:
        """Return the same, for a process that installs: what it does stays in `folder`."""


def last_words(engine: Engine, id: str, *, home: Path, rank: int = 0) -> str:
    """Return the last line that a process wrote: where most programs say why they ended.

    Files of this server are called by their names alone: where `home` is on its
    disk says nothing to those who ask.
    """
    lines = engine.log(id, -4096, rank=rank).decode(errors="replace").splitlines()
    said = _error(next((line.strip() for line in reversed(lines) if line.strip()), ""))
    said = re.sub(rf"{re.escape(str(home))}/(?:[^\s/:,;'\"]+/)*", "", said)
    return re.sub(r"^error: ", "", said, flags=re.IGNORECASE)[:_LONGEST_WORDS]


def why(engine: Engine, id: str, report: Report, *, home: Path) -> str:
    """Return why a process ended that should not have: its last words, and what else is known."""
    said, code, ended = last_words(engine, id, home=home), report.exit_code, report.reason
    if report.state == "exited" and not ended and code is not None:
        named = f"exit status {code}"
        if code < 0:
            named = f"ended by signal {-code}: {signal.strsignal(-code)}"
        ended = named if code != 1 or not said else ""  # those who end with 1 have said why
    return f"{said} ({ended})" if said and ended else said or ended


def _error(line: str) -> str:
    """Return what a line of a log in JSON calls its error; any other line as it is."""
    try:
        found = json.loads(line)
    except ValueError:
        return line
    error = found.get("error") if isinstance(found, dict) else None
    return error if error and isinstance(error, str) else line


@dataclass(frozen=True, kw_only=True)
class Target:
    """A named queue: jobs sent to it run on machines of one size, so many at a time."""

    workspace: str
    name: str
    kind: str = "cluster"  # cluster or instance
    size: str = ""
    cpus: int = 1  # of one machine of that size
    gpus: int = 0
    min_instances: int = 0
    max_instances: int = 1
    tier: str = "dedicated"
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    created_at: datetime = field(default_factory=ids.now)
    extras: dict[str, Any] = field(default_factory=dict)


_MOST_INSTANCES = 100_000
_LONGEST_WORDS = 2000  # of a last line: it may hold a long path, and what is wrong comes after
_ONE = select(TARGETS).where(  # asked most: made once
    TARGETS.c.workspace == bindparam("workspace"), TARGETS.c.name == bindparam("name")
)


def create(store: Store, target: Target) -> Target:
    """Write down a target; one of that name is changed to it."""
    ids.name(target.name)
    least, most = target.min_instances, target.max_instances
    if not 0 <= least <= most or not 1 <= most <= _MOST_INSTANCES:
        raise Invalid(
            f"compute {target.name!r}: instances go from {str(least)[:20]} to {str(most)[:20]}; "
            f"the least must be 0 or more, the most from 1 to {_MOST_INSTANCES}",
            target="maxNodeCount",
        )
    with store.transaction() as connection:
        old = find(store, target.workspace, target.name)
        if old is None:
            connection.execute(insert(TARGETS).values(**vars(target)))
            return target
        target = replace(target, created_at=old.created_at)
        query = update(TARGETS).where(_is(target.workspace, target.name))
        connection.execute(query.values(**vars(target)))
    return target


def get(store: Store, workspace: str, name: str) -> Target:
    target = find(store, workspace, name)
    if target is None:
        raise NotFound(f"no compute named {name!r}", target=name)
    return target


def find(store: Store, workspace: str, name: str) -> Target | None:
    row = store.row(_ONE, workspace=workspace, name=name)
    return _target(row) if row else None


def list(store: Store, workspace: str, *, after: str = "", limit: int = 100) -> Page[Target]:
    query = select(TARGETS).where(TARGETS.c.workspace == workspace)
    begin = ids.whole(after or "0", target="after")
    query = query.where(TARGETS.c.seq > begin).order_by(TARGETS.c.seq)
    rows = store.rows(query.limit(limit + 1))
    return page([_target(row) for row in rows], limit, [str(row.seq) for row in rows])


def remove(store: Store, workspace: str, name: str) -> None:
    """Forget a target; gone already is fine."""
    with store.transaction() as connection:
        connection.execute(delete(TARGETS).where(_is(workspace, name)))


def _is(workspace: str, name: str) -> Any:
    return (TARGETS.c.workspace == workspace) & (TARGETS.c.name == name)


def _target(row: Any) -> Target:
    doc = dict(row._mapping)
    del doc["seq"]
    return Target(**doc)
