"""Data, models, environments, components and code of a workspace: the routes.

One set of routes for all five kinds: they differ in what a version says, and
`versions.py` knows that.  The registry's are in `catalog.py`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Body, Depends, Request, Response

from finery.core import assets, ids
from finery.core.assets import Asset, Name
from finery.core.errors import Invalid, NotFound, NotSupported
from finery.core.workspaces import Caller, Workspace
from finery.doors.azureml import references, sas, versions, wire
from finery.doors.azureml.versions import Place
from finery.doors.http import House

# What the SDK asks for when it wants a component without saying which version.
LATEST = ("azureml_default", "latest")
_UPLOAD = timedelta(hours=24)
_ORDERS = ("", "createdtime desc", "createdat desc", "createdtimedesc")


def router(house: House) -> APIRouter:
    """Return the routes of every kind of asset; `plural` is the kind's word in addresses."""
    routes = wire.router()
    _add_names(routes, house, f"{wire.WORKSPACE}/{{plural}}")
    _add_versions(routes, house, f"{wire.WORKSPACE}/{{plural}}/{{name}}/versions")
    return routes


def _add_names(routes: APIRouter, house: House, path: str) -> None:
    who = Depends(wire.need(house))
    anything = Body()
    one = f"{path}/{{name}}"

    @routes.get(path)
    def list_names(request: Request, plural: str, caller: Caller = who) -> Response:
        return names_page(house, request, wire.room(house, request, caller), kind_in(plural))

    @routes.get(one)
    def get_name(request: Request, plural: str, name: str, caller: Caller = who) -> Response:
        workspace = wire.room(house, request, caller)
        found = _name(house, kind_in(plural), workspace, references.bare(name))
        return wire.answer(name_out(house, workspace, workspace.id, found))

    @routes.put(one)
    def put_name(
        request: Request,
        plural: str,
        name: str,
        body: dict[str, Any] = anything,
        caller: Caller = who,
    ) -> Response:
        workspace = wire.room(house, request, caller)
        found = _put_name(house, workspace, kind_in(plural), name, body)
        return wire.answer(name_out(house, workspace, workspace.id, found))

    @routes.delete(one)
    def delete_name(request: Request, plural: str, name: str, caller: Caller = who) -> Response:
        workspace = wire.room(house, request, caller)
        assets.delete_name(house.store, workspace.id, kind_in(plural), name)
        return wire.nothing()


def _add_versions(routes: APIRouter, house: House, path: str) -> None:
    who = Depends(wire.need(house))
    anything = Body()
    one = f"{path}/{{version}}"

    @routes.get(path)
    def list_versions(request: Request, plural: str, name: str, caller: Caller = who) -> Response:
        workspace, kind = wire.room(house, request, caller), kind_in(plural)
        if kind == "code" and request.query_params.get("hash"):
            return _by_hash(house, request, workspace)
        return versions_page(house, request, workspace, kind, references.bare(name))

    @routes.get(one)
    def get_version(
        request: Request, plural: str, name: str, version: str, caller: Caller = who
    ) -> Response:
        workspace = wire.room(house, request, caller)
        found = get(house, workspace.id, kind_in(plural), references.bare(name), version)
        return wire.answer(versions.version_out(house, workspace, found))

    @routes.put(one)
    def put_version(
        request: Request,
        plural: str,
        name: str,
        version: str,
        body: dict[str, Any] = anything,
        caller: Caller = who,
    ) -> Response:
        place = Place(
            house=house,
            workspace=wire.room(house, request, caller),
            kind=kind_in(plural),
            name=name,
            version=version,
            by=caller.name,
        )
        made = versions.put(house, versions.version_in(place, body))
        return wire.answer(versions.version_out(house, place.workspace, made), status=201)

    @routes.delete(one)
    def delete_version(
        request: Request, plural: str, name: str, version: str, caller: Caller = who
    ) -> Response:
        workspace = wire.room(house, request, caller)
        found = assets.find(house.store, workspace.id, kind_in(plural), name, version)
        if found is not None:
            assets.delete(house.store, found)
        return wire.nothing()

    @routes.post(f"{one}/startPendingUpload")
    def start_upload(
        request: Request, plural: str, name: str, version: str, caller: Caller = who
    ) -> Response:
        return wire.answer(_upload(house, wire.room(house, request, caller), kind_in(plural)))


def kind_in(plural: str) -> str:
    """Return the core's kind for the word in an address."""
    return references.KIND[plural.lower()]


def get(house: House, scope: str, kind: str, name: str, version: str) -> Asset:
    """Return a version; the SDK's words for the newest are taken too."""
    return assets.get(house.store, scope, kind, name, "latest" if version in LATEST else version)


def names_page(house: House, request: Request, where: Workspace | str, kind: str) -> Response:
    """Return a page of the names of a workspace or of a registry (its name)."""
    scope = where if isinstance(where, str) else where.id
    found = assets.names(
        house.store,
        scope,
        kind,
        archived=wire.archived(request),
        after=wire.after(request),
        limit=wire.limit(request),
    )
    workspace = None if isinstance(where, str) else where
    return wire.page_out(request, found, lambda name: name_out(house, workspace, scope, name))


def versions_page(
    house: House, request: Request, where: Workspace | str, kind: str, name: str
) -> Response:
    """Return a page of the versions of a name, newest first."""
    order = request.query_params.get("$orderBy", "").lower()
    if order not in _ORDERS:
        raise NotSupported(f"versions come newest first here, not by {order!r}", target="$orderBy")
    for word in ("$tags", "tags", "properties", "feed"):
        if request.query_params.get(word):
            raise NotSupported(f"versions cannot be chosen by {word} here", target=word)
    workspace = None if isinstance(where, str) else where
    found = assets.versions(
        house.store,
        where if isinstance(where, str) else where.id,
        kind,
        name,
        stage=request.query_params.get("stage", ""),
        archived=wire.archived(request),
        after=wire.after(request),
        limit=wire.limit(request),
    )
    items = [versions.version_out(house, workspace, asset) for asset in found.items]
    return wire.listed(request, items, after=found.next)


def name_out(house: House, workspace: Workspace | None, scope: str, name: Name) -> dict[str, Any]:
    """Return a name with its newest version and the number that the next one gets."""
    latest = assets.find(house.store, scope, name.kind, name.name)
    plural = references.PLURAL[name.kind]
    id = (
        references.arm_id(workspace, plural, name.name)
        if workspace
        else f"azureml://registries/{scope}/{plural}/{name.name}"
    )
    properties: dict[str, Any] = {
        "description": name.description or (latest.description if latest else ""),
        "tags": name.tags,
        "properties": name.extras.get("properties", {}),
        "isArchived": name.archived,
        "latestVersion": latest.version if latest else None,
        "nextVersion": str(name.next),
        "provisioningState": "Succeeded",
    }
    if name.kind == "data":
        properties["dataType"] = latest.type if latest else name.extras.get("dataType")
    return {
        "id": id,
        "name": name.name,
        "type": f"{wire.PROVIDER}/workspaces/{plural}",
        "systemData": wire.system_data(name.created_at, modified_at=name.modified_at),
        "properties": properties,
    }


def _name(house: House, kind: str, workspace: Workspace, name: str) -> Name:
    found = assets.find_name(house.store, workspace.id, kind, name)
    if found is None:
        raise NotFound(f"no {kind} {name!r} in workspace {workspace.name!r}", target=name)
    return found


def _put_name(
    house: House, workspace: Workspace, kind: str, name: str, body: dict[str, Any]
) -> Name:
    """Archive or restore a name with all its versions, or write its texts down."""
    given = wire.properties(body, kind)
    known = ("description", "tags", "properties", "isArchived", "dataType", "provisioningState")
    wire.refuse_unknown(given, (*known, "latestVersion", "nextVersion"), kind)
    new = Name(
        scope=workspace.id,
        kind=kind,
        name=name,
        archived=bool(given.get("isArchived")),
        description=str(given.get("description") or ""),
        tags=wire.texts(given.get("tags"), "tags"),
        extras=wire.keep(given, ("properties", "dataType")),
    )
    old = assets.find_name(house.store, workspace.id, kind, name)
    if old is None:
        return assets.create_name(house.store, new)
    extras = {**old.extras, **new.extras}  # other doors keep theirs there too
    kept = replace(new, next=old.next, created_at=old.created_at, extras=extras)
    return assets.update_name(house.store, kept)


def _by_hash(house: House, request: Request, workspace: Workspace) -> Response:
    """Answer whether code with these bytes was uploaded before, under whatever name."""
    found = assets.by_hash(house.store, workspace.id, "code", request.query_params["hash"])
    shown = [versions.version_out(house, workspace, found)] if found else []
    return wire.listed(request, shown)


def _upload(house: House, workspace: Workspace, kind: str) -> dict[str, Any]:
    """Return a fresh folder to upload to, and a signature that allows just that."""
    if kind not in ("code", "data", "model"):
        raise Invalid(f"nothing is uploaded for a {kind}", target="startPendingUpload")
    store, path = "workspaceblobstore", f"uploads/{references.PLURAL[kind]}/{ids.new()}"
    signature = sas.sign(
        house.keys,
        workspace.id,
        container=store,
        path=path,
        covers="folder",
        until=ids.now() + _UPLOAD,
    )
    url = references.blob_url(house, workspace.id, store, path)
    return {
        "pendingUploadId": path.rpartition("/")[2],
        "pendingUploadType": "TemporaryBlobReference",
        "blobReferenceForConsumption": {
            "blobUri": url,
            "storageAccountArmId": references.arm_id(workspace, "datastores", store),
            "credential": {"credentialType": "SAS", "sasUri": f"{url}?{signature}"},
        },
    }
