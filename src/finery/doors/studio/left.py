"""What a job has left: its files to fetch, the models registered of it, its last metrics.

Files are fetched by MLflow's own address for them, which asks who calls and
hands them out as downloads: nothing that a job wrote is shown as a page.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from finery.core import jobs, references
from finery.core.errors import NotFound
from finery.core.files import Entry
from finery.core.jobs import Command, Job, Sweep
from finery.doors.http import House
from finery.doors.studio import places
from finery.doors.studio.places import Place

_FILES = 50  # of a job that are listed
_METRICS = 20
_FETCH = "/mlflow/api/2.0/mlflow-artifacts/artifacts"


@dataclass(frozen=True, kw_only=True)
class File:
    place: Place
    size: str


@dataclass(frozen=True, kw_only=True)
class Metric:
    name: str
    value: str


def shown(house: House, job: Job) -> dict[str, Any]:
    """Return what a job's page shows of what it left."""
    files, more = _files(house, job)
    metrics = house.metrics(job, _METRICS + 1)
    values = [Metric(name=name, value=f"{value:.6g}") for name, value in metrics.items()]
    return {
        "files": files,
        "more_files": more,
        "models": [
            Place(f"{model.name}, version {model.version}", places.of_model(model.name))
            for model in references.models(house.store, job.workspace, job.name)
        ],
        "metrics": values[:_METRICS],
        "more_metrics": len(values) > _METRICS,
        "readying": _readying(house, job),
    }


def _files(house: House, job: Job) -> tuple[list[File], bool]:
    """Return the first files of its folder `outputs/`, and whether there are more."""
    maker = job.name if isinstance(job.spec, Sweep) else job.reused or job.name
    above = references.artifacts(maker).removeprefix(f"file:{references.ARTIFACTS}/")
    folder = f"{above}/outputs/"
    try:
        page = house.files.list(job.workspace, references.ARTIFACTS, prefix=folder, limit=_FILES)
    except NotFound:
        return [], False  # no job of this workspace has left anything yet
    base = f"{_FETCH}/{job.workspace}/{references.ARTIFACTS}"
    found = []
    for one in page.items:
        if isinstance(one, Entry):
            text = os.fsencode(one.path.removeprefix(folder)).decode(errors="replace")
            href = f"{base}/{quote(one.path)}" if _taken(text) else ""
            found.append(File(place=Place(text, href), size=places.size(one.size)))
    return found, page.next is not None


def _taken(path: str) -> bool:
    """Say whether MLflow hands out files of this name; others are refused however one asks."""
    return not any(odd in path for odd in "#%\\\ufffd")


def _readying(house: House, job: Job) -> float | None:
    """Return the seconds between its turn and its start; None where it has not come to that."""
    if not isinstance(job.spec, Command) or job.started_at is None:
        return None
    for event in jobs.events(house.store, job.name):
        if event.status == "preparing" and event.at <= job.started_at:
            return (job.started_at - event.at).total_seconds()
    return None
