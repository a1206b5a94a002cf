"""What the pages of jobs show: a list of them, and one with all that it was asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finery.core import jobs, references
from finery.core.jobs import Command, Input, Job, Output, Pipeline, Sweep
from finery.doors.http import House
from finery.doors.studio import concealing, environments, left, places
from finery.doors.studio.places import Place

MOST = 50  # jobs on a page
_TAIL = 20_000  # bytes of logs shown on a page
_LEAST = 1000  # of each, where there are many

# What a status means, to whoever has not read the documentation.
MEANS = {
    "queued": "It waits for its turn.",
    "preparing": "Its packages and inputs are being made ready.",
    "running": "It is at work.",
    "finalizing": "Its work is done; its outputs are being kept.",
    "cancelling": "It is being ended, as somebody asked.",
    "completed": "It has done its work.",
    "failed": "It ended without doing its work.",
    "cancelled": "Somebody ended it.",
}
_FOR = {"pytorch": "PyTorch", "mpi": "MPI", "tensorflow": "TensorFlow"}


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or an output."""

    name: str
    type: str
    mode: str = ""
    place: Place
    kept: str = ""  # the name that an output is registered under


def listed(house: House, workspace: str, *, after: str = "") -> dict[str, Any]:
    """Return a page of the topmost jobs, newest first."""
    page = jobs.list(house.store, workspace, after=after, limit=MOST)
    return {
        "jobs": page.items,
        "older": page.next,
        "after": after,
        "refresh": not after and any(not job.final for job in page.items),
    }


def shown(house: House, job: Job) -> dict[str, Any]:
    """Return all that a job's page shows."""
    command = _command(job)
    folder = house.files.path(
        job.workspace, *references.artifacts(job.name).removeprefix("file:").split("/", 1)
    )
    log = _tail(*sorted(folder.glob("user_logs/std_log*.txt")))
    built = _tail(folder / "system_logs" / "environment.log")
    return {
        **left.shown(house, job),
        "job": job,
        "means": MEANS[job.status],
        "children": jobs.children(house.store, job.name),
        "inputs": _inputs(job),
        "outputs": _outputs(job),
        "command": concealing.hidden(command.command) if command else "",
        "code": places.place(command.code) if command and command.code else None,
        "names": sorted(command.env) if command else [],
        "spread": _spread(command) if command else "",
        "limits": _limits(command) if command else "",
        "environment": environments.of_job(house, job, command, log=built) if command else None,
        "services": house.services(job),
        "tags": {name: concealing.hidden(value, name=name) for name, value in job.tags.items()},
        "log": log,
        "refresh": not job.final,
    }


def _command(job: Job) -> Command | None:
    """Return the command that it runs; of a sweep, the one of each trial."""
    match job.spec:
        case Command():
            return job.spec
        case Sweep():
            return job.spec.trial
        case Pipeline():
            return None


def _inputs(job: Job) -> list[Port]:
    return [
        Port(
            name=name,
            type="value" if one.type == "literal" else one.type.replace("_", " "),
            mode=one.mode.replace("_", " "),
            place=_given(name, one),
        )
        for name, one in job.spec.inputs.items()
    ]


def _given(name: str, one: Input) -> Place:
    if one.type == "literal":  # whatever it looks like
        return Place(concealing.hidden(one.value, name=name))
    return places.place(one.value)


def _outputs(job: Job) -> list[Port]:
    return [
        Port(
            name=name,
            type=one.type.replace("_", " "),
            mode=one.mode.replace("_", " "),
            place=_where(job, name, one),
            kept=f"{one.asset}{f', version {one.version}' if one.version else ''}",
        )
        for name, one in {**{name: Output() for name in job.outputs}, **job.spec.outputs}.items()
    ]


def _where(job: Job, name: str, asked: Output) -> Place:
    if location := job.outputs.get(name):
        other = places.maker(location, of=job.name)
        return Place(places.place(location).text, places.of_job(other) if other else "")
    if asked.location:
        return Place(f"will be at {places.place(asked.location).text}")
    return Place("none" if job.final else "not there yet")


def _spread(command: Command) -> str:
    """Say in how many processes it runs, where it is more than one."""
    if not command.distribution and command.ranks * command.nodes == 1:
        return ""
    nodes = f"{command.nodes} node{'s' * (command.nodes > 1)}"
    each = f"{command.ranks} process{'es' * (command.ranks > 1)}"
    kind = f", set up for {_FOR[command.distribution]}" if command.distribution in _FOR else ""
    return f"{each} on each of {nodes}{kind}" if command.nodes > 1 else f"{each}{kind}"


def _limits(command: Command) -> str:
    found = []
    if command.timeout:
        found.append(f"ends after {command.timeout:g} s")
    if command.shm_size:
        found.append(f"{command.shm_size} of shared memory")
    return "; ".join(found)


def _tail(*files: Path) -> str:
    said, most = [], max(_TAIL // max(len(files), 1), _LEAST)
    for file in files:
        try:
            with file.open("rb") as log:
                log.seek(max(0, log.seek(0, 2) - most))
                text = log.read(most).decode(errors="replace")
        except OSError:
            continue
        said.append(f"==> {file.stem} <==\n{text}" if len(files) > 1 else text)
    return "\n".join(said)
