"""How the OpenAI API spells things: errors, lists, credentials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.exceptions import HTTPException

from finery.core import errors
from finery.core.errors import Failure
from finery.doors import http

# Failure -> (type, code)
CODES: dict[type[Failure], tuple[str, str | None]] = {
    errors.Unauthenticated: ("authentication_error", "invalid_api_key"),
    errors.Forbidden: ("permission_error", None),
    errors.NotFound: ("invalid_request_error", "not_found"),
    errors.AlreadyExists: ("invalid_request_error", "already_exists"),
    errors.Conflict: ("invalid_request_error", "conflict"),
    errors.Invalid: ("invalid_request_error", None),
    errors.TooLarge: ("invalid_request_error", "request_too_large"),
    errors.NotSupported: ("invalid_request_error", "unsupported"),
    errors.Unavailable: ("server_error", "unavailable"),
    errors.Failure: ("server_error", None),
}


def failure(request: Request, exc: Exception) -> Response:
    """Say in OpenAI's words what went wrong."""
    status, message, target = 500, "something went wrong on the server; its log says what", ""
    kind, code = CODES[Failure]
    if isinstance(exc, Failure):
        status, message, target = http.STATUS[type(exc)], str(exc), exc.target
        kind, code = CODES[type(exc)]
    elif isinstance(exc, HTTPException):
        status = exc.status_code
        kind, code = "invalid_request_error", "unknown_url"
        message = f"{request.method} {request.url.path} is not served here"
    body = {"error": {"message": message, "type": kind, "param": target or None, "code": code}}
    return Response(orjson.dumps(body), status, media_type="application/json")


def credential(request: Request) -> str | None:
    """Return the caller's key: Azure's header, or OpenAI's."""
    return request.headers.get("api-key") or http.bearer(request)


def listed(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": [*items], "has_more": False}
