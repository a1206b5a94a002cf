"""Online endpoints: create, get, list, change, delete; their keys and tokens.

What runs behind one is in `deployments.py`, the way in for requests in
`doors/scoring.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import fastapi
from fastapi import APIRouter, Depends, Request, Response

from finery.core import endpoints, ids, tickets
from finery.core import rollback as core_rollback
from finery.core.endpoints import Endpoint
from finery.core.errors import Conflict, Invalid, NotFound, NotSupported
from finery.core.workspaces import Caller, Workspace
from finery.doors.azureml import deployments, operations, references, wire
from finery.doors.http import House

Body = Annotated[dict[str, Any], fastapi.Body()]

PATH = f"{wire.WORKSPACE}/onlineEndpoints"
TOKEN_SECONDS = 3600
# Azure has two kinds of token; both are answered by tokens of this server.
_AUTH: dict[str, Literal["key", "token"]] = {
    "key": "key",
    "amltoken": "token",
    "aadtoken": "token",
}
_FIELDS = (
    "authMode",
    "description",
    "keys",
    "properties",
    "traffic",
    "mirrorTraffic",
    "publicNetworkAccess",
    # only ever answered, or always the same
    "provisioningState",
    "scoringUri",
    "swaggerUri",
    "endpoint",
)
_TOP = ("id", "name", "type", "systemData", "location", "tags", "properties", "identity", "kind")
_WARNINGS = "finery.warnings"
_OPEN = "public_network_access is not honoured: it is reached wherever this server is"


def router(house: House) -> APIRouter:
    """Return the routes of online endpoints and of their deployments."""
    routes = wire.router()
    need = Depends(wire.need(house))
    one = f"{PATH}/{{name}}"

    @routes.put(one)
    def put(request: Request, name: str, body: Body, caller: Caller = need) -> Response:
        workspace = wire.room(house, request, caller)
        return _put(house, workspace, endpoint_in(workspace, name, body, by=caller.name))

    @routes.get(one)
    def get(request: Request, name: str, caller: Caller = need) -> Response:
        workspace = wire.room(house, request, caller)
        return wire.answer(endpoint_out(house, workspace, find(house, workspace, name)))

    @routes.get(PATH)
    def list(request: Request, caller: Caller = need) -> Response:
        workspace = wire.room(house, request, caller)
        page = endpoints.list(
            house.store, workspace.id, after=wire.after(request), limit=wire.limit(request)
        )
        return wire.page_out(request, page, lambda item: endpoint_out(house, workspace, item))

    @routes.patch(one)
    def change(request: Request, name: str, body: Body, caller: Caller = need) -> Response:
        workspace = wire.room(house, request, caller)
        with house.store.transaction():  # or a key made anew at the same time would be the old one
            changed = _changed(find(house, workspace, name), body)
            made = endpoints.update(house.store, changed)
        return wire.answer(endpoint_out(house, workspace, made))

    @routes.delete(one)
    def delete(request: Request, name: str, caller: Caller = need) -> Response:
        workspace = wire.room(house, request, caller)
        if endpoints.find(house.store, name) is None:
            return wire.nothing()
        endpoints.delete(house.store, find(house, workspace, name).name)
        house.wake()
        return _while_deleting(house, request, name)

    @routes.get(f"{one}/operations/delete")
    def deleting(request: Request, name: str, caller: Caller = need) -> Response:
        wire.room(house, request, caller)
        return _while_deleting(house, request, name)

    @routes.post(f"{one}/listKeys")
    def keys(request: Request, name: str, caller: Caller = need) -> Response:
        endpoint = _with_keys(house, request, name, caller)
        primary, secondary = endpoint.keys["primary"], endpoint.keys["secondary"]
        return wire.answer({"primaryKey": primary, "secondaryKey": secondary})

    @routes.post(f"{one}/regenerateKeys")
    def regenerate(request: Request, name: str, body: Body, caller: Caller = need) -> Response:
        endpoint = _with_keys(house, request, name, caller)
        which, value = str(body.get("keyType") or "").lower(), str(body.get("keyValue") or "")
        if value == endpoint.keys.get(which):
            value = ""  # the SDK sends the key that is to be replaced
        endpoints.regenerate(house.store, name, which, value)
        return Response(status_code=200)

    @routes.post(f"{one}/rollback")  # ours: Azure has no word for it
    def rollback(request: Request, name: str, caller: Caller = need) -> Response:
        workspace = wire.room(house, request, caller)
        find(house, workspace, name)
        back = core_rollback.traffic(house.store, name)
        return wire.answer(endpoint_out(house, workspace, back))

    @routes.post(f"{one}/token")
    def token(request: Request, name: str, caller: Caller = need) -> Response:
        endpoint = find(house, wire.room(house, request, caller), name)
        return wire.answer(_token_out(house, endpoint))

    deployments.add(routes, house)
    return routes


def endpoint_in(
    workspace: Workspace, name: str, body: Mapping[str, Any], *, by: str = ""
) -> Endpoint:
    """Return the endpoint that a PUT asks for."""
    wire.refuse_unknown(body, (*_TOP, "sku"), "endpoint")
    props = wire.properties(body, "endpoint")
    if props.get("compute"):
        raise NotSupported("endpoints on Kubernetes are not supported here", target="compute")
    wire.refuse_unknown(props, (*_FIELDS, "compute"), "endpoint")
    mode = str(props.get("authMode") or "Key")
    if mode.lower() not in _AUTH:
        raise Invalid(
            f"authMode is {mode!r}; it must be Key, AMLToken or AADToken", target="authMode"
        )
    told = wire.texts(props.get("properties"), "properties")
    identity = wire.mapping(body.get("identity"), "identity")
    given = wire.mapping(props.get("keys"), "keys")
    keys = {}
    if given:
        keys = {
            "primary": str(given.get("primaryKey") or ids.secret()),
            "secondary": str(given.get("secondaryKey") or ids.secret()),
        }
    return Endpoint(
        name=name,
        workspace=workspace.id,
        auth=_AUTH[mode.lower()],
        keys=keys,
        traffic=_shares(props.get("traffic"), "traffic"),
        mirror=_shares(props.get("mirrorTraffic"), "mirrorTraffic"),
        description=str(props.get("description") or ""),
        tags=wire.texts(body.get("tags"), "tags"),
        properties={key: text for key, text in told.items() if key != _WARNINGS},
        created_by=by,
        extras={
            "authMode": mode,
            **wire.keep({**body, "identity": identity}, ("identity", "kind")),
            **wire.keep(props, ("publicNetworkAccess",)),
        },
    )


def endpoint_out(house: House, workspace: Workspace, endpoint: Endpoint) -> dict[str, Any]:
    """Return an endpoint as Azure writes it."""
    base = f"{house.http}/endpoints/{endpoint.name}"
    access = endpoint.extras.get("publicNetworkAccess") or "Enabled"
    open_ = {_WARNINGS: _OPEN} if str(access).lower() == "disabled" else {}
    return {
        "id": references.arm_id(workspace, "onlineEndpoints", endpoint.name),
        "name": endpoint.name,
        "type": f"{wire.PROVIDER}/workspaces/onlineEndpoints",
        "location": wire.LOCATION,
        "kind": endpoint.extras.get("kind") or "Managed",
        "tags": endpoint.tags,
        "identity": _identity_out(endpoint),
        "systemData": wire.system_data(endpoint.created_at, created_by=endpoint.created_by),
        "properties": {
            "authMode": _mode_out(endpoint),
            "description": endpoint.description or None,
            "properties": endpoint.properties | open_,
            "provisioningState": wire.ENDPOINT[endpoint.status],
            "publicNetworkAccess": access,
            "scoringUri": f"{base}/score",
            "swaggerUri": f"{base}/swagger.json",
            "traffic": endpoint.traffic,
            "mirrorTraffic": endpoint.mirror,
        },
    }


def find(house: House, workspace: Workspace, name: str) -> Endpoint:
    """Return an endpoint of this workspace, or raise `NotFound`."""
    endpoint = endpoints.get(house.store, name)
    if endpoint.workspace != workspace.id:
        raise NotFound(f"no endpoint named {name!r} in this workspace", target=name)
    return endpoint


def _put(house: House, workspace: Workspace, wanted: Endpoint) -> Response:
    with house.store.transaction():  # whoever puts the same at once waits for what is made here
        old = endpoints.find(house.store, wanted.name)
        if old is None or old.workspace != workspace.id:
            made = endpoints.create(house.store, wanted)
            return wire.answer(endpoint_out(house, workspace, made), status=201)
        same = {name: getattr(old, name) for name in ("keys", "created_at", "created_by", "before")}
        kept = replace(wanted, **same)
        made = endpoints.update(house.store, kept)
    return wire.answer(endpoint_out(house, workspace, made))


def _changed(endpoint: Endpoint, body: Mapping[str, Any]) -> Endpoint:
    """Return the endpoint with what a PATCH changes."""
    wire.refuse_unknown(body, ("tags", "properties", "identity", "kind"), "endpoint")
    props = wire.mapping(body.get("properties"), "properties")
    known = ("traffic", "mirrorTraffic", "description", "properties")
    wire.refuse_unknown(props, known, "endpoint")
    changed: dict[str, Any] = {}
    if body.get("tags") is not None:
        changed["tags"] = {**endpoint.tags, **wire.texts(body["tags"], "tags")}
    if props.get("traffic") is not None:
        changed["traffic"] = _shares(props["traffic"], "traffic")
    if props.get("mirrorTraffic") is not None:
        changed["mirror"] = _shares(props["mirrorTraffic"], "mirrorTraffic")
    if props.get("description") is not None:
        changed["description"] = str(props["description"])
    if props.get("properties") is not None:
        more = wire.texts(props["properties"], "properties")
        changed["properties"] = {**endpoint.properties, **more}
    return replace(endpoint, **changed)


def _while_deleting(house: House, request: Request, name: str) -> Response:
    endpoint = endpoints.find(house.store, name)
    if endpoint is not None and endpoint.status == "deleting":
        return operations.accepted(request, "delete")
    return Response(status_code=200)


def _with_keys(house: House, request: Request, name: str, caller: Caller) -> Endpoint:
    endpoint = find(house, wire.room(house, request, caller), name)
    if endpoint.auth != "key":
        raise Conflict(f"endpoint {name!r} takes tokens, not keys", target="authMode")
    return endpoint


def _token_out(house: House, endpoint: Endpoint) -> dict[str, Any]:
    now = ids.now()
    return {
        "accessToken": tickets.issue(house.keys, endpoint, seconds=TOKEN_SECONDS, now=now),
        "tokenType": "Bearer",
        "expiryTimeUtc": int(now.timestamp()) + TOKEN_SECONDS,
        "refreshAfterTimeUtc": int(now.timestamp()) + TOKEN_SECONDS // 2,
    }


def _shares(given: Any, field: str) -> dict[str, int]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Invalid(f"{field} must be an object of percentages", target=field)
    found = {}
    for name, share in given.items():
        if isinstance(share, bool) or not isinstance(share, int):
            raise Invalid(f"{field} of {name!r} must be a whole number", target=field)
        found[str(name)] = share
    return found


def _mode_out(endpoint: Endpoint) -> str:
    known = {"key": "Key", "token": "AMLToken"}
    said = str(endpoint.extras.get("authMode") or known[endpoint.auth])
    return {"key": "Key", "amltoken": "AMLToken", "aadtoken": "AADToken"}[said.lower()]


def _identity_out(endpoint: Endpoint) -> dict[str, Any]:
    """Return the identity asked for; the ids that Azure would give it are derived."""
    given = endpoint.extras.get("identity") or {}
    return {
        "type": given.get("type") or "SystemAssigned",
        "principalId": ids.derived("endpoint", endpoint.name),
        "tenantId": ids.derived("tid"),
        "userAssignedIdentities": given.get("userAssignedIdentities"),
    }
