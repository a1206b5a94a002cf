"""Jobs: submit, get, list, cancel, archive, restore; what every kind of job has in common.

What only one kind has is in `commands.py`, `pipelines.py` and `sweeps.py`; the runs,
logs and children that `jobs.stream` and `jobs.download` ask for are in `history.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import fastapi
from fastapi import APIRouter, Depends, Request, Response

from finery.core import jobs, submission
from finery.core import references as core_references
from finery.core.errors import AlreadyExists, NotFound, NotSupported
from finery.core.jobs import Command, Job, Pipeline, Sweep
from finery.core.workspaces import Caller, Workspace
from finery.doors.azureml import (
    commands,
    operations,
    pipelines,
    ports,
    references,
    services,
    sweeps,
    wire,
)
from finery.doors.http import House

Body = Annotated[dict[str, Any], fastapi.Body()]

PATH = f"{wire.WORKSPACE}/jobs"
KINDS = {"command": "Command", "pipeline": "Pipeline", "sweep": "Sweep"}
_COMMON = (
    "jobType",
    "displayName",
    "description",
    "tags",
    "properties",
    "experimentName",
    "computeId",
    "isArchived",
    "services",
    "identity",
    "queueSettings",
    "notificationSetting",
    "status",  # only ever answered
)
_ECHOED = ("identity", "queueSettings", "notificationSetting")
# Properties that we answer, beside those that begin with `finery.`.
_OURS = ("azureml.isreused", "azureml.reusedrunid", *sweeps.RESULTS)


def router(house: House) -> APIRouter:
    """Return the routes of jobs."""
    routes = wire.router()
    need = Depends(wire.need(house))

    @routes.put(f"{PATH}/{{name}}")
    async def submit(request: Request, name: str, body: Body, caller: Caller = need) -> Response:
        # Here as well: threads that take turns at the store cost more than what they do there.
        return _put(house, request, name, caller, body)

    @routes.get(f"{PATH}/{{name}}")
    async def get(request: Request, name: str, caller: Caller = need) -> Response:
        # Here, not in a thread: a look at two rows takes less than the way to a thread and back.
        workspace = wire.room(house, request, caller)
        return wire.answer(job_out(house, workspace, _get(house, workspace, name)))

    @routes.get(PATH)
    def list(request: Request, caller: Caller = need) -> Response:
        return _list(house, request, wire.room(house, request, caller))

    @routes.patch(f"{PATH}/{{name}}")
    def change(request: Request, name: str, body: Body, caller: Caller = need) -> Response:
        return _patch(house, request, name, caller, body)

    @routes.post(f"{PATH}/{{name}}/cancel")
    def cancel(request: Request, name: str, caller: Caller = need) -> Response:
        job = _get(house, wire.room(house, request, caller), name)
        cancelled = jobs.cancel(house.store, job.name)
        house.wake()
        return _until_final(request, cancelled)

    @routes.get(f"{PATH}/{{name}}/operations/cancel")
    def cancelling(request: Request, name: str, caller: Caller = need) -> Response:
        return _until_final(request, _get(house, wire.room(house, request, caller), name))

    @routes.delete(f"{PATH}/{{name}}")
    def delete(request: Request, name: str, caller: Caller = need) -> Response:
        _get(house, wire.room(house, request, caller), name)
        raise NotSupported("a job cannot be deleted here: archive it instead", target=name)

    return routes


_Read = Callable[
    [House, Workspace, str, Mapping[str, Any]],
    tuple[Command | Pipeline | Sweep, dict[str, Any], list[str]],
]
_READ: dict[str, tuple[tuple[str, ...], _Read]] = {
    "command": (commands.FIELDS, commands.command_in),
    "pipeline": (pipelines.FIELDS, pipelines.pipeline_in),
    "sweep": (sweeps.FIELDS, sweeps.sweep_in),
}
_WRITE: dict[str, Callable[[Workspace, Job], dict[str, Any]]] = {
    "command": commands.command_out,
    "pipeline": pipelines.pipeline_out,
    "sweep": sweeps.sweep_out,
}


def job_in(
    house: House, workspace: Workspace, name: str, body: Mapping[str, Any], *, by: str = ""
) -> Job:
    """Return the job that a PUT asks for.  Raises where it names what is not there."""
    props = wire.properties(body, "job")
    kind = _kind_in(props)
    own, read = _READ[kind]
    wire.refuse_unknown(props, (*_COMMON, *own), "job")
    if kind != "command":
        services.refuse(props.get("services"), "job")
    spec, extras, warnings = read(house, workspace, name, props)
    extras |= wire.keep(props, _ECHOED)
    compute = references.compute_in(wire.text(props.get("computeId"), "computeId"))
    if compute.lower() == "local":
        raise NotSupported(
            "compute 'local' would run on the caller's own machine: name a compute of this "
            "workspace, or none",
            target="computeId",
        )
    return Job(
        name=name,
        workspace=workspace.id,
        spec=spec,
        warnings=warnings,
        compute=compute,
        experiment=wire.text(props.get("experimentName"), "experimentName") or "Default",
        display_name=wire.text(props.get("displayName"), "displayName"),
        description=wire.text(props.get("description"), "description"),
        tags=wire.texts(props.get("tags"), "tags"),
        properties=wire.texts(props.get("properties"), "properties"),
        archived=bool(props.get("isArchived")),
        created_by=by,
        extras=extras,
    )


def job_out(house: House, workspace: Workspace, job: Job) -> dict[str, Any]:
    """Return a job as Azure writes it."""
    return {
        "id": references.arm_id(workspace, "jobs", job.name),
        "name": job.name,
        "type": f"{wire.PROVIDER}/workspaces/jobs",
        "systemData": wire.system_data(
            job.created_at,
            created_by=job.created_by,
            modified_at=job.ended_at or job.started_at or job.created_at,
        ),
        "properties": {
            **{name: job.extras[name] for name in _ECHOED if name in job.extras},
            "jobType": KINDS[job.kind],
            "status": wire.JOB_STATUS[job.status],
            "displayName": job.display_name,
            "description": job.description or None,
            "experimentName": job.experiment,
            "computeId": pipelines.compute_out(workspace, job.compute),
            "isArchived": job.archived,
            "tags": job.tags,
            "properties": _properties_out(job),
            "services": _services_out(house, workspace, job),
            "inputs": ports.inputs_out(workspace, job.spec.inputs),
            "outputs": _outputs_out(workspace, job),
            "parentJobName": job.parent,
            **_WRITE[job.kind](workspace, job),
        },
    }


def _services_out(house: House, workspace: Workspace, job: Job) -> dict[str, Any]:
    """Return where to look at a job.  The SDK puts `&tid=…` behind the studio's address."""
    page = f"{house.http}/studio/jobs/{job.name}?workspace={workspace.name}"
    return {
        **services.services_out(house, job),
        "Studio": {"jobServiceType": "Studio", "endpoint": page},
        "Tracking": {"jobServiceType": "Tracking", "endpoint": f"{house.http}/mlflow"},
    }


def _properties_out(job: Job) -> dict[str, str]:
    found = dict(job.properties)
    if job.warnings:
        found["finery.warnings"] = "\n".join(job.warnings)
    if job.error:
        found["finery.error"] = job.error["message"]
        if job.error.get("target"):
            found["finery.error_target"] = job.error["target"]
    return found | sweeps.results_out(job) | reuse_out(job)


def reuse_out(job: Job) -> dict[str, str]:
    if not job.reused or isinstance(job.spec, Sweep):
        return {}
    return {"azureml.isreused": "true", "azureml.reusedrunid": job.reused}


def _outputs_out(workspace: Workspace, job: Job) -> dict[str, Any]:
    """Return where a job's outputs are, or will be.

    Not `default`, the job's own folder: where it is named, the SDK (1.35) takes
    the datastore's signature for an account's key, signs the addresses of the
    logs with it and streams nothing.  Without it, it reads them from run history
    (`history.py`), and downloads that folder all the same.
    """
    found: dict[str, Any] = {}
    for name, output in job.spec.outputs.items():
        where = job.outputs.get(name) or output.location
        if not where and isinstance(job.spec, Command):
            where = core_references.output(job.name, name)
        found[name] = ports.output_out(workspace, output, where)
    return found


def _kind_in(props: Mapping[str, Any]) -> str:
    said = str(props.get("jobType") or "")
    if said.lower() not in KINDS:
        raise NotSupported(
            f"jobs of type {said!r} are not supported here; command, pipeline and sweep jobs are",
            target="jobType",
        )
    return said.lower()


def _put(
    house: House, request: Request, name: str, caller: Caller, body: dict[str, Any]
) -> Response:
    workspace = wire.room(house, request, caller)
    old = jobs.find(house.store, name)
    if old is not None:
        return wire.answer(job_out(house, workspace, _again(house, workspace, old, body)))
    job = job_in(house, workspace, name, body, by=caller.name)
    submission.check(house.store, house.files, job)
    created = jobs.create(house.store, job)
    house.wake()
    return wire.answer(job_out(house, workspace, created), status=201)


def _again(house: House, workspace: Workspace, old: Job, body: Mapping[str, Any]) -> Job:
    """Change what may change of a job that was submitted: texts, tags, archive mark."""
    props = wire.properties(body, "job")
    same_work = _kind_in(props) == old.kind and _is_same(old.spec, props)
    if old.workspace != workspace.id or not same_work:
        raise AlreadyExists(
            f"job {old.name!r} exists, and what a job does never changes: submit a new one",
            target=old.name,
        )
    return jobs.update(house.store, old.name, **_texts_in(old, props))


def _is_same(old: Command | Pipeline | Sweep, props: Mapping[str, Any]) -> bool:
    """Say whether a job that is sent again asks for what it asked for."""
    match old:
        case Command():
            return props.get("command") in (None, old.command)
        case Pipeline():
            return set(wire.mapping(props.get("jobs"), "jobs")) in (set(), set(old.steps))
        case Sweep():
            said = wire.mapping(props.get("trial"), "trial").get("command")
            return said is None or sweeps.trial_command(str(said)) == old.trial.command


def _texts_in(old: Job, props: Mapping[str, Any]) -> dict[str, Any]:
    given = wire.texts(props.get("properties"), "properties")
    own = {
        key: value
        for key, value in given.items()
        if key not in _OURS and not key.startswith("finery.")
    }
    changed: dict[str, Any] = {"properties": {**old.properties, **own}}
    if props.get("tags") is not None:
        changed["tags"] = wire.texts(props["tags"], "tags")
    if props.get("displayName") is not None:
        changed["display_name"] = str(props["displayName"])
    if props.get("description") is not None:
        changed["description"] = str(props["description"])
    if props.get("isArchived") is not None:
        changed["archived"] = bool(props["isArchived"])
    return changed


def _patch(
    house: House, request: Request, name: str, caller: Caller, body: dict[str, Any]
) -> Response:
    workspace = wire.room(house, request, caller)
    job = _get(house, workspace, name)
    props = {**wire.properties({"properties": {}, **body}, "job")}
    if body.get("tags") is not None:
        props["tags"] = body["tags"]
    wire.refuse_unknown(
        props,
        ("tags", "properties", "displayName", "description", "isArchived", "jobType"),
        "job",
    )
    if props.get("tags") is not None:
        props["tags"] = {**job.tags, **wire.texts(props["tags"], "tags")}
    changed = jobs.update(house.store, name, **_texts_in(job, props))
    return wire.answer(job_out(house, workspace, changed))


def _list(house: House, request: Request, workspace: Workspace) -> Response:
    asked = request.query_params
    kind, tag = asked.get("jobType", "").lower(), asked.get("tag", "")
    for word in ("properties", "assetName", "scheduled", "scheduleId"):
        if asked.get(word, "").lower() not in ("", "false"):
            raise NotSupported(f"jobs cannot be chosen by {word} here", target=word)
    page = jobs.list(
        house.store,
        workspace.id,
        archived=wire.archived(request),
        after=wire.after(request),
        limit=wire.limit(request),
    )
    fitting = [
        job
        for job in page.items
        if (not kind or job.kind == kind) and (not tag or _has_tag(job, tag))
    ]
    return wire.page_out(
        request, replace(page, items=fitting), lambda job: job_out(house, workspace, job)
    )


def _has_tag(job: Job, said: str) -> bool:
    """Say whether a job has a tag, said as `NAME` or `NAME=VALUE`."""
    name, equals, value = said.partition("=")
    return name in job.tags and (not equals or job.tags[name] == value)


def _get(house: House, workspace: Workspace, name: str) -> Job:
    job = jobs.get(house.store, name)
    if job.workspace != workspace.id:
        raise NotFound(f"no job named {name!r} in this workspace", target=name)
    return job


def _until_final(request: Request, job: Job) -> Response:
    if wire.job_is_final(job.status):
        return Response(status_code=200)
    return operations.accepted(request, "cancel")
