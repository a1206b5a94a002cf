"""What a reference in a row points to.

    asset:<kind>/<scope>/<name>/<version>    a version of an asset
    job:<job>/<output>[/<path>]              a named output of a job
    job:<job>/artifacts/<path>               what the job left in its own folder
    file:… package:… https:…                 a location: see `files.py`

A reference is followed when the thing is needed, so that a step may refer to
what an earlier step has yet to make.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from finery.core import assets, jobs
from finery.core.assets import Asset
from finery.core.errors import Conflict, NotFound
from finery.core.files import Files
from finery.core.jobs import Job
from finery.core.store import Store

ARTIFACTS = "workspaceartifactstore"  # the datastore of what jobs leave behind
OUTPUTS = "workspaceblobstore"  # the datastore of named outputs

# The places that `artifacts` and `output` give, and a reference that is not followed yet.
_MADE = re.compile(
    rf"(?:job:|file:{ARTIFACTS}/ExperimentRun/dcid\.|file:{OUTPUTS}/azureml/)(?P<job>[^/]+)/"
)


def location(store: Store, ref: str) -> tuple[str, str]:
    """Return the scope and the location that `ref` leads to.

    A location itself has no scope: it is the caller's workspace ("").  Raises
    `NotFound` where the thing does not exist, `Conflict` where a job has yet to
    make it.
    """
    if ref.startswith("asset:"):
        asset = assets.by_ref(store, ref)
        if asset.location.startswith("job:"):
            return location(store, asset.location)
        return asset.scope, asset.location
    if ref.startswith("job:"):
        name, _, rest = ref.removeprefix("job:").partition("/")
        job = jobs.get(store, name)
        return job.workspace, _of_job(job, rest)
    return "", ref


def path(store: Store, files: Files, workspace: str, ref: str) -> Path:
    """Return the file or folder that `ref` leads to.  Raises `NotFound` where none is."""
    scope, found = location(store, ref)
    return files.locate(scope or workspace, found)


def artifacts(job: str, path: str = "") -> str:
    """Return the location of what a job left in its own folder."""
    return f"file:{ARTIFACTS}/ExperimentRun/dcid.{job}" + (f"/{path}" if path else "")


def output(job: str, name: str) -> str:
    """Return the location of a named output, where the caller chose none."""
    return f"file:{OUTPUTS}/azureml/{job}/{name}"


def models(store: Store, workspace: str, job: str, *, limit: int = 20) -> list[Asset]:
    """Return the registered models that are outputs or artifacts of a job, newest first."""
    below = (f"job:{job}/", f"{artifacts(job)}/", output(job, ""))
    return assets.made(store, workspace, "model", job, below=below, limit=limit)


def maker(asset: Asset) -> str:
    """Return the job whose output or artifact an asset is; empty where no job made it."""
    if asset.made_by:
        return asset.maker
    found = _MADE.match(asset.location)
    return found["job"] if found else ""


def _of_job(job: Job, rest: str) -> str:
    name, _, below = rest.partition("/")
    if name == "artifacts":
        return artifacts(job.name, str(PurePosixPath(below)))
    if name not in job.spec.outputs:
        known = ", ".join(job.spec.outputs) or "none"
        raise NotFound(f"job {job.name!r} has no output {name!r} (it has: {known})", target=name)
    if name not in job.outputs:
        raise Conflict(f"job {job.name!r} has not made its output {name!r} yet", target=name)
    return job.outputs[name] + (f"/{PurePosixPath(below)}" if below else "")
