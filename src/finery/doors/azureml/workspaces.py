"""Workspaces: get, list, create, change, delete.

The SDK creates one by sending the resource manager a whole template of storage,
vaults and insights; of that we need the name and the texts (`deployments`): a
workspace here has its storage within it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Body, Depends, Request, Response

from finery.core import endpoints, ids, jobs, workspaces
from finery.core.errors import Invalid, NotFound, NotSupported
from finery.core.workspaces import Caller, Workspace
from finery.doors.azureml import cloud, references, wire
from finery.doors.http import House

_DEPLOYMENT = f"{wire.GROUP}/providers/Microsoft.Resources/deployments/{{deployment}}"
# What is about Azure's own networks, vaults and bills, and changes nothing here.
_HARMLESS = (
    *("publicNetworkAccess", "hbiWorkspace", "systemDatastoresAuthMode", "storageAccount"),
    *("allowRoleAssignmentOnRG", "v1LegacyMode", "primaryUserAssignedIdentity", "keyVault"),
    *("applicationInsights", "containerRegistry", "enableDataIsolation"),
)
# What we answer, and so get back.
_ANSWERED = ("provisioningState", "workspaceId", "discoveryUrl", "mlFlowTrackingUri")
_KNOWN = ("friendlyName", "description", *_HARMLESS, *_ANSWERED)


def router(house: House) -> APIRouter:
    routes = wire.router()
    who = Depends(wire.need(house))
    anything = Body()
    everywhere = f"/subscriptions/{{subscription}}/providers/{wire.PROVIDER}/workspaces"

    @routes.get(wire.WORKSPACES)
    def list_in_group(
        request: Request, subscription: str, group: str, caller: Caller = who
    ) -> Response:
        return _page(house, request, caller, subscription, group)

    @routes.get(everywhere)
    def list_in_subscription(request: Request, subscription: str, caller: Caller = who) -> Response:
        return _page(house, request, caller, subscription, None)

    @routes.get(wire.WORKSPACE)
    def get(request: Request, caller: Caller = who) -> Response:
        return wire.answer(workspace_out(house, wire.room(house, request, caller)))

    @routes.put(wire.WORKSPACE)
    def put(
        request: Request, workspace: str, body: dict[str, Any] = anything, caller: Caller = who
    ) -> Response:
        caller.need_administrator()
        path = request.path_params
        _check(body)
        made = _put(house, path["subscription"], path["group"], workspace, _texts(body))
        return wire.answer(workspace_out(house, made))

    @routes.patch(wire.WORKSPACE)
    def patch(request: Request, body: dict[str, Any] = anything, caller: Caller = who) -> Response:
        found = wire.room(house, request, caller)
        caller.need_administrator()
        _check(body)
        return wire.answer(
            workspace_out(house, workspaces.update(house.store, replace(found, **_texts(body))))
        )

    @routes.delete(wire.WORKSPACE)
    def delete(request: Request, caller: Caller = who) -> Response:
        found = wire.room(house, request, caller)
        caller.need_administrator()
        _delete(house, found)
        return wire.nothing(200)

    @routes.put(_DEPLOYMENT)
    def deploy(
        request: Request,
        subscription: str,
        group: str,
        deployment: str,
        body: dict[str, Any] = anything,
        caller: Caller = who,
    ) -> Response:
        caller.need_administrator()
        given = wire.mapping(body.get("properties"), "properties")
        name, texts = _from_template(wire.mapping(given.get("parameters"), "parameters"))
        _put(house, subscription, group, name, texts)
        return wire.answer(_deployment_out(subscription, group, deployment), status=201)

    @routes.get(_DEPLOYMENT)
    @routes.get(f"{wire.GROUP}/deployments/{{deployment}}")
    def deployed(subscription: str, group: str, deployment: str, caller: Caller = who) -> Response:
        return wire.answer(_deployment_out(subscription, group, deployment))

    @routes.get(f"{wire.GROUP}/deployments/{{deployment}}/operations")
    def operations(request: Request, caller: Caller = who) -> Response:
        return wire.listed(request, [])

    return routes


def workspace_out(house: House, workspace: Workspace) -> dict[str, Any]:
    def of(provider: str) -> str:
        base = f"/subscriptions/{workspace.subscription}/resourceGroups/{workspace.group}"
        return f"{base}/providers/{provider}/{workspace.id}"

    return {
        "id": references.arm_id(workspace),
        "name": workspace.name,
        "type": f"{wire.PROVIDER}/workspaces",
        "location": cloud.LOCATION,
        "kind": "Default",
        "tags": workspace.tags,
        "systemData": wire.system_data(workspace.created_at),
        "properties": {
            "workspaceId": workspace.id,
            "friendlyName": workspace.display_name or workspace.name,
            "description": workspace.description,
            "discoveryUrl": f"{house.https}/discovery",
            "mlFlowTrackingUri": f"{house.http}/mlflow",
            "storageAccount": of("Microsoft.Storage/storageAccounts"),
            "keyVault": None,
            "applicationInsights": None,
            "containerRegistry": None,
            "provisioningState": "Succeeded",
            "publicNetworkAccess": "Disabled",
            "hbiWorkspace": False,
            "privateLinkCount": 0,
            "storageHnsEnabled": False,
            "v1LegacyMode": False,
        },
    }


def _page(
    house: House, request: Request, caller: Caller, subscription: str, group: str | None
) -> Response:
    found = workspaces.list(
        house.store,
        subscription=subscription,
        group=group,
        after=wire.after(request),
        limit=wire.limit(request),
    )
    shown = [item for item in found.items if caller.workspace in (None, item.id)]
    items = [workspace_out(house, item) for item in shown]
    return wire.listed(request, items, after=found.next)


def _put(
    house: House, subscription: str, group: str, name: str, texts: dict[str, Any]
) -> Workspace:
    with house.store.transaction():
        try:
            old = workspaces.get(house.store, subscription, group, name)
        except NotFound:
            made = Workspace(subscription=subscription, group=group, name=ids.name(name), **texts)
            return workspaces.create(house.store, made)
        return workspaces.update(house.store, replace(old, **texts))


def _check(body: Mapping[str, Any]) -> None:
    """Refuse what would have to change something here and does not."""
    given = dict(wire.mapping(body.get("properties"), "properties"))
    if not wire.mapping(given.get("networkAcls"), "networkAcls").get("ipRules"):
        given.pop("networkAcls", None)  # the SDK sends an empty list with every change
    wire.refuse_unknown(given, _KNOWN, "workspace")


def _texts(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a body says of a workspace that is kept, under the core's names."""
    given = wire.mapping(body.get("properties"), "properties")
    kept: dict[str, Any] = {}
    if given.get("friendlyName") is not None:
        kept["display_name"] = str(given["friendlyName"])
    if given.get("description") is not None:
        kept["description"] = str(given["description"])
    if body.get("tags") is not None:
        kept["tags"] = wire.texts(body["tags"], "tags")
    return kept


def _from_template(parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the texts of the workspace that a template's parameters describe."""

    def value(name: str) -> Any:
        return wire.mapping(parameters.get(name), f"parameters.{name}").get("value")

    name = value("workspaceName")
    if not name:
        raise NotSupported(
            "templates are taken here only for workspaces; this one names none",
            target="deployments",
        )
    kind = str(value("kind") or "Default").lower()
    if kind != "default":
        raise NotSupported(f"workspaces of the kind {kind!r} are not supported here", target="kind")
    if value("encryption_status") == "Enabled":
        raise NotSupported("encryption with keys of your own is not supported here")
    texts = _texts(
        {
            "properties": {
                "friendlyName": value("friendlyName"),
                "description": value("description"),
            },
            "tags": value("tagValues"),
        }
    )
    return str(name), texts


def _delete(house: House, workspace: Workspace) -> None:
    subscription, group, name = house.default_workspace
    if (workspace.subscription, workspace.group, workspace.name) == (subscription, group, name):
        raise Invalid("the default workspace stays: it exists from the start", target=name)
    served = endpoints.list(house.store, workspace.id, limit=1).items
    busy = bool(served) or jobs.busy(house.store, workspace.id)
    workspaces.remove(house.store, workspace, busy=busy)


def _deployment_out(subscription: str, group: str, name: str) -> dict[str, Any]:
    """Return a deployment that is done: nothing here takes time."""
    base = f"/subscriptions/{subscription}/resourceGroups/{group}"
    return {
        "id": f"{base}/providers/Microsoft.Resources/deployments/{name}",
        "name": name,
        "type": "Microsoft.Resources/deployments",
        "properties": {
            "provisioningState": "Succeeded",
            "mode": "Incremental",
            "duration": "PT0S",
            "correlationId": name,
        },
    }
