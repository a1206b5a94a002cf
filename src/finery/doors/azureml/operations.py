"""Long-running operations, Azure Resource Manager's way.

An operation is a question about a resource, answered from that resource's row:
nothing is kept about it.  Its address is the resource's own with `/operations/`
and what was asked for.  The resources' modules say what the answer is.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from finery.doors.azureml import wire

PAUSE_MS = "300"  # between two questions; the SDK would take 5 or 30 seconds by itself


def started(request: Request, body: dict[str, Any], what: str, *, status: int) -> Response:
    """Answer a PUT or PATCH whose effect is under way."""
    headers = {"Azure-AsyncOperation": _address(request, what), "retry-after-ms": PAUSE_MS}
    return wire.answer(body, status=status, headers=headers)


def accepted(request: Request, what: str) -> Response:
    """Answer a DELETE or POST whose effect is under way, and the question whether it still is."""
    headers = {"Location": _address(request, what), "retry-after-ms": PAUSE_MS}
    return Response(status_code=202, headers=headers)


def told(name: str, status: str, *, error: dict[str, Any] | None = None) -> Response:
    """Answer the question what became of an operation: InProgress, Succeeded or Failed."""
    body: dict[str, Any] = {"name": name, "status": status}
    if error:
        body["error"] = error
    return wire.answer(body, headers={"retry-after-ms": PAUSE_MS})


def _address(request: Request, what: str) -> str:
    url = request.url
    resource = url.path.partition("/operations/")[0].removesuffix("/cancel")
    return str(url.replace(path=f"{resource}/operations/{what}"))
