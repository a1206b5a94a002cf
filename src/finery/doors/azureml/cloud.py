"""What a client asks before it asks for anything: which cloud, which token, which addresses.

The SDK takes us for a cloud of our own by its own means (`ARM_CLOUD_METADATA_URL`);
azure-identity takes us for the identity endpoint of the machine it runs on.
Workspaces' own discovery leads to run history (`history.py`).
"""

from __future__ import annotations

import hmac
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from finery.core import ids
from finery.core.errors import Invalid, NotSupported, Unauthenticated
from finery.core.workspaces import Caller
from finery.doors.azureml import wire
from finery.doors.http import House

CLOUD = "Finery"
LOCATION = "local"
# The text after the second dot of the portal's address ends the audience of the SDK's tokens.
_PORTAL = "https://portal.finery.local"
_TOKEN = timedelta(hours=8)


def router(house: House) -> APIRouter:
    routes = wire.router()
    who = Depends(wire.need(house))

    @routes.get("/metadata/endpoints")
    async def endpoints() -> Response:
        return wire.answer([_metadata(house)])

    @routes.get("/msi/token")
    async def token(request: Request) -> Response:
        return _token(house, request)

    @routes.get("/discovery")
    async def discovery() -> Response:  # asked without a credential; addresses are all it says
        address = house.https
        return wire.answer(
            {"api": address, "history": address, "studio": house.http, "experimentation": address}
        )

    @routes.get("/subscriptions/{subscription}")
    def subscription(subscription: str, caller: Caller = who) -> Response:
        return wire.answer(_subscription_out(subscription))

    @routes.get("/subscriptions")
    def subscriptions(request: Request, caller: Caller = who) -> Response:
        return wire.listed(request, [_subscription_out(house.default_workspace[0])])

    @routes.get(wire.GROUP)
    def group(subscription: str, group: str, caller: Caller = who) -> Response:
        return wire.answer(
            {
                "id": f"/subscriptions/{subscription}/resourceGroups/{group}",
                "name": group,
                "type": "Microsoft.Resources/resourceGroups",
                "location": LOCATION,
                "tags": {},
                "properties": {"provisioningState": "Succeeded"},
            }
        )

    return routes


def refusals(house: House) -> APIRouter:
    """Return the route for what no other route knows: it names what is not supported.

    It has to come after every other router of this door.
    """
    routes = wire.router()
    who = Depends(wire.need(house))
    every = ["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD"]

    @routes.api_route("/subscriptions/{rest:path}", methods=every)
    @routes.api_route("/mferp/{rest:path}", methods=every)
    @routes.api_route("/genericasset/{rest:path}", methods=every)
    def unknown(request: Request, rest: str, caller: Caller = who) -> Response:
        what = _operation(rest)
        raise NotSupported(f"{request.method} {what}: not supported here", target=what)

    return routes


def _operation(rest: str) -> str:
    """Return what comes after the provider in a path, without the names that callers choose."""
    words = rest.split("/")
    lower = [word.lower() for word in words]
    if wire.PROVIDER.lower() in lower:
        words = words[lower.index(wire.PROVIDER.lower()) + 1 :]
    if words and words[0].lower() in ("workspaces", "registries", "locations"):
        words = words[2:] or words[:1]
    return "/".join(words[:6]) or rest


def _metadata(house: House) -> dict[str, Any]:
    return {
        "name": CLOUD,
        "portal": _PORTAL,
        "resourceManager": house.https,
        "authentication": {
            "loginEndpoint": f"{house.https}/login",
            "audiences": [house.https],
            "tenant": "common",
        },
        "suffixes": {"storage": wire.STORAGE_SUFFIX},
    }


def _token(house: House, request: Request) -> Response:
    """Give a token to whoever shows the administrator's key: to the machine's own user."""
    shown = request.headers.get("x-identity-header", "")
    if not hmac.compare_digest(shown.encode(), house.keys.admin.encode()):
        raise Unauthenticated("the header X-IDENTITY-HEADER does not hold this server's key")
    audience = request.query_params.get("resource", "")
    if not audience:
        raise Invalid("the query has no 'resource': what the token is for", target="resource")
    for other in ("client_id", "principal_id", "mi_res_id", "object_id"):
        if request.query_params.get(other):
            raise NotSupported("there is one identity here, and none to choose", target=other)
    now, seconds = ids.now(), int(_TOKEN.total_seconds())
    caller = Caller(name="administrator")
    text = house.keys.mint(caller, audience=audience, seconds=seconds, now=now)
    return wire.answer(
        {
            "access_token": text,
            "expires_on": str(int(now.timestamp()) + seconds),
            "resource": audience,
            "token_type": "Bearer",
        },
        headers={"Cache-Control": "no-store"},
    )


def _subscription_out(subscription: str) -> dict[str, Any]:
    return {
        "id": f"/subscriptions/{subscription}",
        "subscriptionId": subscription,
        "displayName": "Finery",
        "state": "Enabled",
    }
