"""Models that answer, and chat: `openai`'s `models` and `chat.completions`.

A model's name here is an endpoint's (its traffic decides), or
`endpoint/deployment`.  The request goes on, as it is, to the deployment's own
`/v1/chat/completions` by the way of all scoring requests.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finery.core import endpoints, workspaces
from finery.core.endpoints import Deployment, Endpoint
from finery.core.errors import Failure, Invalid, NotFound, TooLarge
from finery.core.workspaces import Workspace
from finery.doors import http
from finery.doors.http import House
from finery.doors.openai import wire

MAX_BODY = 32 * 2**20  # bytes


def router(house: House, scoring: ASGIApp) -> APIRouter:
    """Return the routes; `scoring` is who answers for an endpoint."""
    routes = APIRouter(include_in_schema=False)

    def here(request: Request) -> Workspace:
        caller = http.caller(house, wire.credential(request))
        found = workspaces.get(house.store, *house.default_workspace)
        caller.need(found.id)
        return found

    @routes.get("/openai/models")
    @routes.get("/openai/v1/models")
    def list(request: Request) -> dict[str, Any]:
        kept = endpoints.list(house.store, here(request).id, limit=1000).items
        found = [(endpoint, endpoints.deployments(house.store, endpoint.name)) for endpoint in kept]
        return wire.listed([model_out(*pair) for pair in found if _answers(pair[1])])

    @routes.get("/openai/models/{name:path}")
    @routes.get("/openai/v1/models/{name:path}")
    def get(name: str, request: Request) -> dict[str, Any]:
        workspace = here(request)
        endpoint = endpoints.find(house.store, name)
        if endpoint is None or endpoint.workspace != workspace.id:
            raise NotFound(f"no model {name!r}: models here are endpoints' names", target="model")
        return model_out(endpoint, endpoints.deployments(house.store, name))

    chat = Chat(house, scoring)
    for path in ("/openai/v1/chat/completions", "/openai/deployments/{model}/chat/completions"):
        routes.routes.append(Route(path, chat, methods=["POST"]))
    return routes


def model_out(endpoint: Endpoint, deployments: Any) -> dict[str, Any]:
    ready = _answers(deployments)
    return {
        "id": endpoint.name,
        "object": "model",
        "created": int(endpoint.created_at.timestamp()),
        "owned_by": "finery",
        "status": "succeeded" if ready else "pending",
        "deployments": [deployment.name for deployment in deployments],
        "warnings": [said for deployment in deployments for said in deployment.warnings],
    }


class Chat:
    """Finds the endpoint that a chat request means, and hands the request on."""

    def __init__(self, house: House, scoring: ASGIApp) -> None:
        self.house, self.scoring = house, scoring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            key = wire.credential(request)
            http.caller(self.house, key)
            body = await _body(receive)
            endpoint, deployment = _model(scope, body)
            if endpoints.find(self.house.store, endpoint) is None:
                raise NotFound(
                    f"no model {endpoint!r}: models here are endpoints' names", target="model"
                )
        except Failure as exc:
            await wire.failure(request, exc)(scope, receive, send)
            return
        kept = (b"content-type", b"accept", b"content-length", b"x-request-id")
        headers = [(name, value) for name, value in scope["headers"] if name in kept]
        headers.append((b"authorization", f"Bearer {key}".encode()))
        if deployment:
            headers.append((b"azureml-model-deployment", deployment.encode()))
        path = f"/endpoints/{endpoint}/v1/chat/completions"
        onward = {
            **scope,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
        }
        await self.scoring(onward, _again(body, receive), send)


def _model(scope: Scope, body: bytes) -> tuple[str, str]:
    """Return the endpoint and the deployment that a request names; "" where traffic decides."""
    named = scope.get("path_params", {}).get("model", "")
    if not named:
        try:
            named = orjson.loads(body).get("model", "")
        except (ValueError, AttributeError):
            raise Invalid("the body is not a JSON object", target="body") from None
    if not isinstance(named, str) or not named:
        raise Invalid("model: missing; it is an endpoint's name", target="model")
    endpoint, _, deployment = named.partition("/")
    return endpoint, deployment


async def _body(receive: Receive) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Invalid("the request ended before its body did", target="body")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise TooLarge(f"the body is larger than {MAX_BODY} bytes", target="body")
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once more, then goes on with the caller's."""
    given = False

    async def once() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return once


def _answers(deployments: Any) -> bool:
    return any(isinstance(one, Deployment) and one.addresses for one in deployments)
