"""The registry `azureml`, read by everyone and written by nobody: discovery and assets.

Its assets come from files (`catalog.py`).  The SDK reads them below
`/mferp/managementfrontend`, at the address that discovery tells it; the
resource manager's own paths answer too.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from finery.core import assets
from finery.core.errors import NotFound, NotSupported
from finery.core.workspaces import Caller
from finery.doors.azureml import assets as ours
from finery.doors.azureml import wire
from finery.doors.azureml.catalog import REGISTRY
from finery.doors.azureml.versions import version_out
from finery.doors.http import House

FRONT = "/mferp/managementfrontend"
_REGISTRIES = f"{wire.GROUP}/providers/{wire.PROVIDER}/registries"
_DISCOVERY = "/registrymanagement/v1.0/registries/{registry}/discovery"
LOCATION = "local"


def router(house: House) -> APIRouter:
    routes = wire.router()
    who = Depends(wire.need(house))

    @routes.get(_DISCOVERY)
    def discovery(registry: str, caller: Caller = who) -> Response:
        _known(registry)
        subscription, group, _ = house.default_workspace
        return wire.answer(
            {
                "registryName": REGISTRY,
                "tenantId": None,
                "primaryRegion": LOCATION,
                "regions": [LOCATION],
                "subscriptionId": subscription,
                "resourceGroup": group,
                "primaryRegionResourceProviderUri": f"{house.https}/",
            }
        )

    @routes.get(_REGISTRIES)
    def list(request: Request, caller: Caller = who) -> Response:
        path = request.path_params
        return wire.listed(request, [_registry_out(house, path["subscription"], path["group"])])

    @routes.get(f"{_REGISTRIES}/{{registry}}")
    def get(subscription: str, group: str, registry: str, caller: Caller = who) -> Response:
        _known(registry)
        return wire.answer(_registry_out(house, subscription, group))

    for front in ("", FRONT):
        base = f"{front}{_REGISTRIES}/{{registry}}"
        _read(routes, house, f"{base}/{{plural}}")
        _refuse_writing(routes, house, base)
    return routes


def _read(routes: APIRouter, house: House, path: str) -> None:
    who = Depends(wire.need(house))
    one = f"{path}/{{name}}"

    @routes.get(path)
    def list_names(request: Request, registry: str, plural: str, caller: Caller = who) -> Response:
        return ours.names_page(house, request, _known(registry), ours.kind_in(plural))

    @routes.get(one)
    def get_name(registry: str, plural: str, name: str, caller: Caller = who) -> Response:
        kind = ours.kind_in(plural)
        found = assets.find_name(house.store, _known(registry), kind, name)
        if found is None:
            raise NotFound(f"registry {registry!r} has no {kind} {name!r}", target=name)
        return wire.answer(ours.name_out(house, None, REGISTRY, found))

    @routes.get(f"{one}/versions")
    def list_versions(
        request: Request, registry: str, plural: str, name: str, caller: Caller = who
    ) -> Response:
        kind = ours.kind_in(plural)
        if assets.find_name(house.store, _known(registry), kind, name) is None:
            return wire.listed(request, [])  # not 404: the SDK takes only an empty list for "none"
        return ours.versions_page(house, request, REGISTRY, kind, name)

    @routes.get(f"{one}/versions/{{version}}")
    @routes.get(f"{one}/labels/{{version}}")
    def get_version(
        registry: str, plural: str, name: str, version: str, caller: Caller = who
    ) -> Response:
        found = ours.get(house, _known(registry), ours.kind_in(plural), name, version)
        return wire.answer(version_out(house, None, found))


def _refuse_writing(routes: APIRouter, house: House, base: str) -> None:
    who = Depends(wire.need(house))

    @routes.api_route(f"{base}/{{rest:path}}", methods=["PUT", "POST", "PATCH", "DELETE"])
    def write(request: Request, registry: str, rest: str, caller: Caller = who) -> Response:
        _known(registry)
        what = rest.split("/")[0]
        raise NotSupported(
            f"{request.method} {what}: the registry {registry!r} comes with Finery and is "
            "read-only; register what is yours in a workspace",
            target=what,
        )


def _known(registry: str) -> str:
    if registry.lower() != REGISTRY:
        raise NotFound(
            f"no registry {registry!r}; the only one here is {REGISTRY!r}", target=registry
        )
    return REGISTRY


def _registry_out(house: House, subscription: str, group: str) -> dict[str, Any]:
    return {
        "id": f"/subscriptions/{subscription}/resourceGroups/{group}/providers/{wire.PROVIDER}"
        f"/registries/{REGISTRY}",
        "name": REGISTRY,
        "type": f"{wire.PROVIDER}/registries",
        "location": LOCATION,
        "tags": {},
        "properties": {
            "discoveryUrl": house.https + _DISCOVERY.format(registry=REGISTRY),
            "publicNetworkAccess": "Enabled",
            "regionDetails": [],
            "mlFlowRegistryUri": None,
            "managedResourceGroup": None,
            "intellectualPropertyPublisher": None,
        },
    }
