"""Compute targets: clusters and instances, as Azure's resources, and the sizes they may have.

A target is a queue with a size; creating it starts nothing and is done at once.
What this machine really has decides how much of a size a job gets: that is
`core/compute.py` and the supervisor.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import yaml
from fastapi import APIRouter, Body, Depends, Request, Response

from finery.core import compute, files, ids, jobs
from finery.core.compute import Target
from finery.core.errors import Conflict, Invalid, NotFound, NotSupported
from finery.core.workspaces import Caller, Workspace
from finery.doors.azureml import cloud, durations, references, wire
from finery.doors.http import House

KINDS = {"cluster": "AmlCompute", "instance": "ComputeInstance"}
TIERS = {"dedicated": "Dedicated", "low_priority": "LowPriority"}

_PROPERTIES = (
    *("computeType", "description", "disableLocalAuth", "properties"),
    *("computeLocation", "provisioningState", "createdOn", "modifiedOn", "resourceId"),
    *("provisioningErrors", "isAttachedCompute"),
)
# What a cluster is told that makes no difference where its machines are this one.
_ECHOED = ("remoteLoginPortPublicAccess", "enableNodePublicIp", "osType", "isolatedNetwork")
_ANSWERED = (
    *("allocationState", "allocationStateTransitionTime", "errors", "currentNodeCount"),
    *("targetNodeCount", "nodeStateCounts"),
)
_SCALE = ("minNodeCount", "maxNodeCount", "nodeIdleTimeBeforeScaleDown")
_INSTANCE = (
    *("applicationSharingPolicy", "computeInstanceAuthorizationType", "enableSSO"),
    *("enableNodePublicIp", "enableOSPatching", "enableRootAccess", "releaseQuotaOnStop"),
)


def router(house: House) -> APIRouter:
    routes = wire.router()
    who = Depends(wire.need(house))
    anything = Body()
    path = f"{wire.WORKSPACE}/computes"
    one = f"{path}/{{name}}"

    @routes.get(path)
    def list(request: Request, caller: Caller = who) -> Response:
        workspace = wire.room(house, request, caller)
        found = compute.list(
            house.store, workspace.id, after=wire.after(request), limit=wire.limit(request)
        )
        return wire.page_out(request, found, lambda target: target_out(workspace, target))

    @routes.get(one)
    def get(request: Request, name: str, caller: Caller = who) -> Response:
        workspace = wire.room(house, request, caller)
        return wire.answer(target_out(workspace, compute.get(house.store, workspace.id, name)))

    @routes.put(one)
    def put(
        request: Request, name: str, body: dict[str, Any] = anything, caller: Caller = who
    ) -> Response:
        workspace = wire.room(house, request, caller)
        existed = compute.find(house.store, workspace.id, name) is not None
        made = compute.create(house.store, target_in(workspace, name, body))
        house.wake()
        return wire.answer(target_out(workspace, made), status=200 if existed else 201)

    @routes.patch(one)
    def patch(
        request: Request, name: str, body: dict[str, Any] = anything, caller: Caller = who
    ) -> Response:
        workspace = wire.room(house, request, caller)
        old = compute.get(house.store, workspace.id, name)
        made = compute.create(house.store, _rescaled(old, body))
        house.wake()
        return wire.answer(target_out(workspace, made))

    @routes.delete(one)
    def delete(request: Request, name: str, caller: Caller = who) -> Response:
        workspace = wire.room(house, request, caller)
        _idle(house, workspace, name)
        compute.remove(house.store, workspace.id, name)
        return wire.nothing(200)

    locations = f"/subscriptions/{{subscription}}/providers/{wire.PROVIDER}/locations"

    @routes.get(f"{locations}/{{location}}/vmSizes")
    def list_sizes(caller: Caller = who) -> Response:
        return wire.answer({"value": [size_out(size) for size in sizes().values()]})

    return routes


@cache
def sizes() -> dict[str, dict[str, Any]]:
    """Return what sizes there are, by their name in lower case."""
    doc = yaml.safe_load((files.PACKAGE / "sizes.yaml").read_text())
    return {str(size["name"]).lower(): size for size in doc["sizes"]}


def size(name: str) -> dict[str, Any]:
    """Return a size.  Raises `Invalid`, with the nearest names, for one that is not known."""
    found = sizes().get(name.lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), sizes(), n=3, cutoff=0.5)
    hint = ", ".join(str(sizes()[other]["name"]) for other in near) or "see the list of sizes"
    raise Invalid(f"there is no size {name!r}; did you mean {hint}?", target="vmSize")


def size_out(size: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": size["name"],
        "family": size["family"],
        "vCPUs": size["vcpus"],
        "gpus": size["gpus"],
        "memoryGB": float(size["memory_gb"]),
        "osVhdSizeMB": 131072,
        "maxResourceVolumeMB": size["disk_mb"],
        "lowPriorityCapable": True,
        "premiumIO": False,
        "estimatedVMPrices": None,
        "supportedComputeTypes": [*KINDS.values()],
    }


def target_in(workspace: Workspace, name: str, body: Mapping[str, Any]) -> Target:
    where = f"compute {name!r}"
    given = wire.properties(body, where)
    wire.refuse_unknown(body, (*_TOP, "properties"), where)
    wire.refuse_unknown(given, _PROPERTIES, where)
    kind = _kind_in(str(given.get("computeType") or ""))
    wanted = wire.mapping(given.get("properties"), f"{where}: properties")
    found = size(str(wanted.get("vmSize") or ""))
    target = Target(
        workspace=workspace.id,
        name=name,
        kind=kind,
        size=str(wanted["vmSize"]),
        cpus=found["vcpus"],
        gpus=found["gpus"],
        description=str(given.get("description") or ""),
        tags=wire.texts(body.get("tags"), "tags"),
        extras=wire.keep(body, ("identity",)),
    )
    if kind == "instance":
        wire.refuse_unknown(wanted, ("vmSize", *_INSTANCE), where)
        return replace(target, extras={**target.extras, **wire.keep(wanted, _INSTANCE)})
    return _cluster_in(target, wanted, where)


def _kind_in(said: str) -> str:
    if said and said.lower() not in {kind.lower() for kind in KINDS.values()}:
        raise NotSupported(
            f"computes of the type {said!r} are not supported here; {', '.join(KINDS.values())} "
            "are",
            target="computeType",
        )
    return wire.word(KINDS, said, field="computeType")


_TOP = ("id", "name", "type", "location", "tags", "identity", "systemData", "sku")


def _cluster_in(target: Target, wanted: Mapping[str, Any], where: str) -> Target:
    known = ("vmSize", "vmPriority", "scaleSettings", *_ECHOED, *_ANSWERED)
    wire.refuse_unknown(wanted, known, where)
    if str(wanted.get("osType") or "Linux").lower() != "linux":
        raise NotSupported(f"{where}: machines here run Linux", target="osType")
    scaled = _scaled(target, wire.mapping(wanted.get("scaleSettings"), "scaleSettings"), where)
    tier = wire.word(TIERS, str(wanted.get("vmPriority") or "Dedicated"), field="vmPriority")
    extras = {**scaled.extras, **wire.keep(wanted, _ECHOED)}
    return replace(scaled, tier=tier, extras=extras)


def _scaled(target: Target, scale: Mapping[str, Any], where: str) -> Target:
    wire.refuse_unknown(scale, _SCALE, f"{where}: scaleSettings")
    idle = scale.get("nodeIdleTimeBeforeScaleDown")
    if idle is not None:
        durations.seconds_in(idle, field="nodeIdleTimeBeforeScaleDown")
    return replace(
        target,
        min_instances=_count(scale.get("minNodeCount"), target.min_instances, "minNodeCount"),
        max_instances=_count(scale.get("maxNodeCount"), target.max_instances, "maxNodeCount"),
        extras={**target.extras, **({"idle": idle} if idle is not None else {})},
    )


def _rescaled(old: Target, body: Mapping[str, Any]) -> Target:
    """Return a cluster with other limits: all that a PATCH may change."""
    given = wire.properties(body, f"compute {old.name!r}")
    wire.refuse_unknown(given, ("properties", "scaleSettings"), f"compute {old.name!r}")
    inner = wire.mapping(given.get("properties"), "properties") or given
    wire.refuse_unknown(inner, ("scaleSettings",), f"compute {old.name!r}")
    scale = wire.mapping(inner.get("scaleSettings"), "scaleSettings")
    return _scaled(old, scale, f"compute {old.name!r}")


def _count(given: Any, default: int, field: str) -> int:
    if given is None:
        return default
    return ids.whole(str(given), target=field)


def _idle(house: House, workspace: Workspace, name: str) -> None:
    """Raise unless the target is there and nothing waits for it or runs on it."""
    if compute.find(house.store, workspace.id, name) is None:
        raise NotFound(f"no compute named {name!r}", target=name)
    for job in jobs.unfinished(house.store):
        if job.workspace == workspace.id and job.compute == name:
            raise Conflict(
                f"compute {name!r} has unfinished jobs ({job.name!r} is {job.status}): "
                "cancel them or wait",
                target=name,
            )


def target_out(workspace: Workspace, target: Target) -> dict[str, Any]:
    id = references.arm_id(workspace, "computes", target.name)
    created = wire.iso(target.created_at)
    inner = _cluster_out(target) if target.kind == "cluster" else _instance_out(target)
    return {
        "id": id,
        "name": target.name,
        "type": f"{wire.PROVIDER}/workspaces/computes",
        "location": cloud.LOCATION,
        "tags": target.tags,
        "identity": target.extras.get("identity"),
        "systemData": wire.system_data(target.created_at),
        "properties": {
            "computeType": KINDS[target.kind],
            "computeLocation": cloud.LOCATION,
            "description": target.description,
            "provisioningState": "Succeeded",
            "provisioningErrors": None,
            "createdOn": created,
            "modifiedOn": created,
            "resourceId": None,
            "isAttachedCompute": False,
            "disableLocalAuth": True,
            "properties": inner,
        },
    }


def _cluster_out(target: Target) -> dict[str, Any]:
    idle = target.extras.get("idle") or "PT120S"
    return {
        "osType": "Linux",
        "vmSize": target.size,
        "vmPriority": TIERS[target.tier],
        "scaleSettings": {
            "minNodeCount": target.min_instances,
            "maxNodeCount": target.max_instances,
            "nodeIdleTimeBeforeScaleDown": idle,
        },
        "remoteLoginPortPublicAccess": "NotSpecified",
        "allocationState": "Steady",
        "errors": None,
        **{name: target.extras[name] for name in _ECHOED if name in target.extras},
    }


def _instance_out(target: Target) -> dict[str, Any]:
    return {
        "vmSize": target.size,
        "state": "Running",
        "applications": [],
        "connectivityEndpoints": None,
        "createdBy": None,
        "errors": [],
        "lastOperation": None,
        "schedules": None,
        "sshSettings": {"sshPublicAccess": "Disabled"},
        **{name: target.extras[name] for name in _INSTANCE if name in target.extras},
    }
