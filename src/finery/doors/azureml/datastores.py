"""Datastores: the four that every workspace has.  Others would be other people's storage.

What a path in one means, and its addresses, is `references.py`; the bytes are
served by `storage.py`, to whoever has a token or one of the signatures made here.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from finery.core import ids
from finery.core.errors import NotFound, NotSupported
from finery.core.workspaces import Caller, Workspace
from finery.doors.azureml import references, sas, wire
from finery.doors.http import House

DEFAULT = "workspaceblobstore"
_SECRET = timedelta(hours=8)


def router(house: House) -> APIRouter:
    routes = wire.router()
    who = Depends(wire.need(house))
    path = f"{wire.WORKSPACE}/datastores"

    @routes.get(path)
    def list(request: Request, caller: Caller = who) -> Response:
        workspace = wire.room(house, request, caller)
        asked = request.query_params
        names = [name for name in references.DATASTORES if _wanted(name, asked.get("isDefault"))]
        if chosen := asked.getlist("names"):
            names = [name for name in names if name in chosen]
        return wire.listed(request, [datastore_out(house, workspace, name) for name in names])

    @routes.get(f"{path}/{{name}}")
    def get(request: Request, name: str, caller: Caller = who) -> Response:
        workspace = wire.room(house, request, caller)
        return wire.answer(datastore_out(house, workspace, _known(name)))

    @routes.post(f"{path}/{{name}}/listSecrets")
    def list_secrets(request: Request, name: str, caller: Caller = who) -> Response:
        workspace = wire.room(house, request, caller)
        until = ids.now() + _SECRET
        token = sas.sign(house.keys, workspace.id, container=_known(name), until=until)
        return wire.answer({"secretsType": "Sas", "sasToken": token})

    @routes.put(f"{path}/{{name}}")
    def put(request: Request, name: str, caller: Caller = who) -> Response:
        wire.room(house, request, caller)
        raise NotSupported(
            f"datastore {name!r}: storage of other accounts cannot be attached here; "
            f"the datastores are {', '.join(references.DATASTORES)}",
            target=name,
        )

    @routes.delete(f"{path}/{{name}}")
    def delete(request: Request, name: str, caller: Caller = who) -> Response:
        wire.room(house, request, caller)
        if name not in references.DATASTORES:
            return wire.nothing()
        raise NotSupported(f"datastore {name!r} belongs to its workspace", target=name)

    return routes


def datastore_out(house: House, workspace: Workspace, name: str) -> dict[str, Any]:
    kind = references.DATASTORES[name]
    container = {"containerName": name} if kind == "AzureBlob" else {"fileShareName": name}
    created = workspace.created_at
    return {
        "id": references.arm_id(workspace, "datastores", name),
        "name": name,
        "type": f"{wire.PROVIDER}/workspaces/datastores",
        "systemData": wire.system_data(created),
        "properties": {
            "datastoreType": kind,
            "accountName": references.account(house, workspace.id),
            **container,
            "endpoint": wire.STORAGE_SUFFIX,
            "protocol": "https",
            "isDefault": name == DEFAULT,
            "description": None,
            "tags": {},
            "properties": {},
            "credentials": {"credentialsType": "Sas"},
            "serviceDataAccessAuthIdentity": "None",
        },
    }


def _known(name: str) -> str:
    if name not in references.DATASTORES:
        raise NotFound(f"no datastore {name!r}", target=name)
    return name


def _wanted(name: str, is_default: str | None) -> bool:
    return is_default is None or (name == DEFAULT) == (is_default.lower() == "true")
