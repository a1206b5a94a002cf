"""Run history: what `jobs.stream`, `jobs.download` and the child jobs of a pipeline are read from.

The same jobs as in `jobs.py`, as runs: their details with the addresses of
their log files, their children, where their outputs lie, their artifacts.  A
log's address carries a signature of its own, for that file and an hour; it is
read again and again while it grows.  A pipeline has a log that nobody writes:
what happened to its steps, told from their events.

Not here, and answered as missing: metrics and experiments (MLflow has them),
starting and ending runs from outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Body, Depends, Request, Response

from finery.core import ids, jobs, status
from finery.core import references as core_references
from finery.core import sweeps as core_sweeps
from finery.core.errors import Invalid, NotFound
from finery.core.files import Entry
from finery.core.jobs import Command, Job, Pipeline, Sweep
from finery.core.workspaces import Caller, Workspace
from finery.doors.azureml import jobs as jobs_door
from finery.doors.azureml import references, sas, services, sweeps, wire
from finery.doors.http import House

_LASTS = timedelta(hours=1)
_MOST_LOGS = 1000  # of a job
# The names that the SDK streams: of a pipeline, of a sweep, and before a job's own log is there.
_EXECUTION_LOG = "logs/azureml/executionlogs.txt"
_SWEEP_LOG = "azureml-logs/hyperdrive.txt"
_ENVIRONMENT_LOG = "system_logs/environment.log"  # where it lies
_BUILD_LOG = "azureml-logs/20_image_build_log.txt"
_FINAL = status.final(status.JOB)
_RUN_TYPES = {
    "command": "azureml.commandjob",
    "pipeline": "azureml.PipelineRun",
    "sweep": "azureml.sweep",
}
_ORIGIN = "ExperimentRun"
_RUNS = f"/history/v1.0{wire.WORKSPACE}"
_ARTIFACTS = f"/artifact/v2.0{wire.WORKSPACE}/artifacts"
_SENT = Body()
_KNOWN = "displayName description tags properties hidden runId experimentId name".split()


def router(house: House) -> APIRouter:
    routes = wire.router()
    who = Depends(wire.need(house))
    _run_routes(house, routes, who)
    _more_run_routes(house, routes, who)
    _output_routes(house, routes, who)
    _artifact_routes(house, routes, who)
    return routes


def _run_routes(house: House, routes: APIRouter, who: Any) -> None:
    @routes.get(f"{_RUNS}/runs/{{run}}")
    def get(request: Request, run: str, caller: Caller = who) -> Response:
        return wire.answer(run_out(*_found(house, request, caller, run)))

    @routes.get(f"{_RUNS}/runs/{{run}}/details")
    def details(request: Request, run: str, caller: Caller = who) -> Response:
        return wire.answer(details_out(house, *_found(house, request, caller, run)))

    @routes.get(f"{_RUNS}/runs/{{run}}/children")
    def children(request: Request, run: str, caller: Caller = who) -> Response:
        workspace, job = _found(house, request, caller, run)
        below = jobs.children(house.store, job.name)
        return wire.answer({"value": [run_out(workspace, child) for child in below]})

    @routes.get(f"{_RUNS}/runs/{{run}}/serviceinstances/{{node}}")
    def instances(request: Request, run: str, node: str, caller: Caller = who) -> Response:
        _, job = _found(house, request, caller, run)
        return wire.answer({"instances": services.instances_out(house, job, node)})


def _more_run_routes(house: House, routes: APIRouter, who: Any) -> None:
    @routes.post(f"{_RUNS}/rundata")
    def data(request: Request, caller: Caller = who, body: dict[str, Any] = _SENT) -> Response:
        workspace, job = _found(house, request, caller, str(body.get("runId") or ""))
        return wire.answer({"runMetadata": run_out(workspace, job)})

    @routes.patch(f"{_RUNS}/experiments/{{experiment}}/runs/{{run}}")
    def change(
        request: Request,
        experiment: str,
        run: str,
        caller: Caller = who,
        body: dict[str, Any] = _SENT,
    ) -> Response:
        workspace, job = _found(house, request, caller, run)
        if job.experiment != experiment:
            raise NotFound(f"no run {run!r} in the experiment {experiment!r}", target=run)
        changed = jobs.update(house.store, run, **_change_in(job, body))
        return wire.answer(run_out(workspace, changed))

    @routes.get("/history/v1.0/executionlogs/{scope}/{run}")
    def execution_log(request: Request, scope: str, run: str) -> Response:
        """Its address is its permission: the SDK fetches logs without a token."""
        path = f"{_folder(run)}{_EXECUTION_LOG}"
        sas.check(
            house.keys,
            dict(request.query_params),
            scope,
            container=core_references.ARTIFACTS,
            path=path,
            verbs="r",
            now=ids.now(),
        )
        job = jobs.get(house.store, run)
        if job.workspace != scope:
            raise NotFound(f"no run {run!r}", target=run)
        return Response(execution_log_out(house, job), media_type="text/plain")


def _output_routes(house: House, routes: APIRouter, who: Any) -> None:
    """Where the bytes of data and of models lie, by the ids that a run's outputs have."""

    @routes.post(f"/data/v1.0{wire.WORKSPACE}/dataversion/batchGetResolvedUris")
    def data(request: Request, caller: Caller = who, body: dict[str, Any] = _SENT) -> Response:
        return _resolved(house, request, caller, body, "uri")

    @routes.post(f"/modelregistry/v1.0{wire.WORKSPACE}/models/batchGetResolvedUris")
    def models(request: Request, caller: Caller = who, body: dict[str, Any] = _SENT) -> Response:
        return _resolved(house, request, caller, body, "path")


def _artifact_routes(house: House, routes: APIRouter, who: Any) -> None:
    """What a job left in its own folder, file by file; a run's container is `dcid.<job>`."""

    @routes.get(f"{_ARTIFACTS}/prefix/contentinfo/{{origin}}/{{container}}/{{path:path}}")
    def below(
        request: Request, origin: str, container: str, path: str, caller: Caller = who
    ) -> Response:
        return _listed(house, request, caller, origin, container, path)

    @routes.get(f"{_ARTIFACTS}/contentinfo/{{origin}}/{{container}}/{{path:path}}")
    def one(
        request: Request, origin: str, container: str, path: str, caller: Caller = who
    ) -> Response:
        workspace, job = _contained(house, request, caller, origin, container)
        name = _folder(_maker(job)) + path
        house.files.get(workspace.id, core_references.ARTIFACTS, name)
        return wire.answer(_artifact_out(house, job, path))

    @routes.get(f"{_ARTIFACTS}/{{origin}}/{{container}}")
    def all(request: Request, origin: str, container: str, caller: Caller = who) -> Response:
        prefix = request.query_params.get("path", "")
        return _listed(house, request, caller, origin, container, prefix)


def run_out(workspace: Workspace, job: Job) -> dict[str, Any]:
    """Return a job as a run; SDK 1.35 reads child jobs and the outputs of all jobs so."""
    compute = {"target": job.compute} if job.compute else None
    return {
        "runId": job.name,
        "parentRunId": job.parent,
        "rootRunId": job.root,
        "experimentId": job.experiment,
        "runType": _RUN_TYPES[job.kind],
        "displayName": job.display_name,
        "description": job.description or None,
        "status": wire.JOB_STATUS[job.status],
        "hidden": job.archived,
        "createdUtc": wire.iso(job.created_at),
        "startTimeUtc": wire.iso(job.started_at),
        "endTimeUtc": wire.iso(job.ended_at),
        "lastModifiedUtc": wire.iso(job.ended_at or job.started_at or job.created_at),
        "createdBy": {"userName": job.created_by or "finery"},
        "target": job.compute or None,
        "compute": compute,
        "tags": job.tags,
        "properties": _properties(job),
        "dataContainerId": f"dcid.{job.name}",
        "error": _error(job),
        "warnings": [{"source": "finery", "message": text} for text in job.warnings],
        "outputs": {
            # Said of models too: 1.35 fails on whatever is answered about an output of a model's
            # type (it takes a method of the answer for its content), and a folder is what it is.
            name: {"assetId": _output_id(job, name), "type": _place_type(job, name)}
            for name, location in job.outputs.items()
            if location.startswith("file:")
        },
    }


def details_out(house: House, workspace: Workspace, job: Job) -> dict[str, Any]:
    """Return what is asked again and again while a job is streamed."""
    known = (
        "runId parentRunId rootRunId status error warnings tags properties target createdBy"
        " startTimeUtc endTimeUtc outputs"
    ).split()
    run = run_out(workspace, job)
    return {
        **{name: run[name] for name in known},
        "createdTimeUtc": run["createdUtc"],
        "logFiles": dict(_logs(house, job)),
    }


def execution_log_out(house: House, job: Job) -> str:
    """Return what happened to a pipeline and its steps, a line each, in the order of time."""
    lines = sorted(_happened(house, job), key=lambda line: line[0])
    return "".join(f"[{time:%Y-%m-%d %H:%M:%SZ}] {text}\n" for time, text in lines)


def _happened(house: House, job: Job, name: str = "") -> Iterator[tuple[Any, str]]:
    who = f"{name} ({job.name})" if name else f"{job.kind} {job.name}"
    score = job.properties.get(core_sweeps.SCORE)
    for event in jobs.events(house.store, job.name):
        reason = f": {event.reason}" if event.reason not in ("", "created") else ""
        kept = _maker(job) != job.name and event.status != "queued"
        again = f", kept result of {job.reused}" if kept else ""
        found = f", score {score}" if score and event.status in _FINAL else ""
        yield event.at, f"{who}: {wire.JOB_STATUS[event.status]}{reason}{again}{found}"
    for child in jobs.children(house.store, job.name):
        if isinstance(job.spec, Sweep):
            tried = (f"{key}={child.spec.inputs[key].value}" for key in job.spec.space)
            yield from _happened(house, child, " ".join(["trial", *tried]))
        else:
            inner = name.removeprefix("step ")
            yield from _happened(
                house, child, f"step {inner}.{child.step}" if inner else f"step {child.step}"
            )


def _logs(house: House, job: Job) -> Iterator[tuple[str, str]]:
    """Yield the name and the signed address of each log file that there is."""
    if not isinstance(job.spec, Command):
        query = _signature(house, job, _folder(job.name) + _EXECUTION_LOG)
        address = f"{house.https}/history/v1.0/executionlogs/{job.workspace}/{job.name}"
        yield _EXECUTION_LOG if isinstance(job.spec, Pipeline) else _SWEEP_LOG, f"{address}?{query}"
    elif job.status == "preparing" and _artifacts(house, job, _ENVIRONMENT_LOG):
        yield _BUILD_LOG, _address(house, job, _ENVIRONMENT_LOG)
    for prefix in ("logs/", "system_logs/", "user_logs/"):
        for name in _artifacts(house, job, prefix):
            yield name, _address(house, job, name)


def _artifacts(house: House, job: Job, prefix: str, limit: int = _MOST_LOGS) -> Sequence[str]:
    folder = _folder(_maker(job))
    try:
        page = house.files.list(
            job.workspace, core_references.ARTIFACTS, prefix=folder + prefix, limit=limit
        )
    except NotFound:
        return []  # no job of this workspace has left anything yet
    return [item.path.removeprefix(folder) for item in page.items if isinstance(item, Entry)]


def _address(house: House, job: Job, name: str) -> str:
    path = _folder(_maker(job)) + name
    address = sas.address(house, job.workspace, core_references.ARTIFACTS, path)
    return f"{address}?{_signature(house, job, path)}"


def _signature(house: House, job: Job, path: str) -> str:
    return sas.sign(
        house.keys,
        job.workspace,
        container=core_references.ARTIFACTS,
        path=path,
        covers="blob",
        verbs="r",
        until=ids.now() + _LASTS,
    )


def _maker(job: Job) -> str:
    """Return the job that left what this one shows: another one, where a result was kept."""
    return job.name if isinstance(job.spec, Sweep) else job.reused or job.name


def _folder(name: str) -> str:
    return f"{_ORIGIN}/dcid.{name}/"


def _found(house: House, request: Request, caller: Caller, name: str) -> tuple[Workspace, Job]:
    workspace = wire.room(house, request, caller)
    job = jobs.find(house.store, name)
    if job is None or job.workspace != workspace.id:
        raise NotFound(f"no run {name!r} in this workspace", target=name)
    return workspace, job


def _contained(
    house: House, request: Request, caller: Caller, origin: str, container: str
) -> tuple[Workspace, Job]:
    if origin.lower() != _ORIGIN.lower() or not container.startswith("dcid."):
        raise NotFound(f"no artifacts {origin}/{container}", target=container)
    return _found(house, request, caller, container.removeprefix("dcid."))


def _listed(
    house: House, request: Request, caller: Caller, origin: str, container: str, prefix: str
) -> Response:
    _, job = _contained(house, request, caller, origin, container)
    names = _artifacts(house, job, prefix, limit=5000)
    return wire.answer({"value": [_artifact_out(house, job, name) for name in names]})


def _artifact_out(house: House, job: Job, name: str) -> dict[str, Any]:
    return {
        "artifactId": f"{_ORIGIN}/dcid.{job.name}/{name}",
        "origin": _ORIGIN,
        "container": f"dcid.{job.name}",
        "path": name,
        "contentUri": _address(house, job, name),
    }


def _change_in(job: Job, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what changes of a job: texts, tags, archive mark.  Tags are added to its own."""
    wire.refuse_unknown(body, _KNOWN, "run")
    changed: dict[str, Any] = {}
    for field, name in (("displayName", "display_name"), ("description", "description")):
        if body.get(field) is not None:
            changed[name] = str(body[field])
    for field in ("tags", "properties"):
        if body.get(field) is not None:
            changed[field] = {**getattr(job, field), **wire.texts(body[field], field)}
    if body.get("hidden") is not None:
        changed["archived"] = bool(body["hidden"])
    return changed


def _resolved(
    house: House, request: Request, caller: Caller, body: dict[str, Any], field: str
) -> Response:
    workspace = wire.room(house, request, caller)
    wanted = body.get("values")
    if not isinstance(wanted, list):
        raise Invalid("'values' must be a list of ids", target="values")
    values = {str(id): _place_out(house, workspace, str(id), field) for id in wanted}
    return wire.answer({"values": values})


def _place_out(house: House, workspace: Workspace, id: str, field: str) -> dict[str, str]:
    """Return where the bytes behind an id lie; a folder's address ends with a slash.

    The SDK takes it for the beginning of the blobs' names, so that without the
    slash `model` would bring `model2` along.
    """
    ref = references.ref_in(house, workspace, id, kind="data" if field == "uri" else "model")
    scope, location = core_references.location(house.store, ref)
    if not location.startswith("file:") or scope not in ("", workspace.id):
        raise NotFound(f"{id!r} is not in a datastore of this workspace", target=id)
    folder = house.files.locate(workspace.id, location).is_dir()
    uri = references.uri_out(workspace, location).rstrip("/") + "/" * folder
    return {field: uri, "type": "uri_folder" if folder else "uri_file"}


def _output_id(job: Job, name: str) -> str:
    return f"azureml://jobs/{job.name}/outputs/{name}"


def _place_type(job: Job, name: str) -> str:
    output = job.spec.outputs.get(name)
    kept = output.type if output else ""
    return kept if kept in ("uri_file", "mltable") else "uri_folder"


def _properties(job: Job) -> dict[str, str]:
    return {**job.properties, **sweeps.results_out(job), **jobs_door.reuse_out(job)}


def _error(job: Job) -> dict[str, Any] | None:
    if not job.error:
        return None
    error = {"code": "UserError", "message": job.error.get("message", "")}
    if job.error.get("target"):
        error["target"] = job.error["target"]
    return {"error": error}
