"""What goes in to the real MLflow server, and what it says when it breaks on it.

Bodies are bounded, and JSON objects where its API takes JSON: it would hold
any size in memory, and fall over any other shape.  Files are not looked at:
they go through as they come.
"""

from __future__ import annotations

import errno
import logging
import traceback
from typing import Any

import orjson

from finery.core.errors import Invalid, TooLarge
from finery.doors.mlflow.embedded import Message, Receive

_log = logging.getLogger(__name__)

MOST = 32 << 20  # bytes
_CHANGES = ("POST", "PUT", "PATCH", "DELETE")
_READS = ("_get_request_message", "_validate_param_against_schema")  # MLflow's, of a request
_MISNAMED = (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.EISDIR)
_NO_ROOM = ("disk is full", "No space left on device")


async def checked(method: str, path: str, headers: dict[bytes, bytes], receive: Receive) -> Receive:
    """Return how to read the body once it is known to be fit.  Raises `TooLarge`, `Invalid`."""
    if method not in _CHANGES:
        return receive
    body = await _whole(receive)
    kind = headers.get(b"content-type", b"application/json" if body else b"").lower()
    if path.startswith(("/api/", "/ajax-api/")) and b"json" in kind:
        try:
            found = orjson.loads(body)
        except ValueError as exc:
            raise Invalid(f"the body is not JSON: {exc}", target="body") from exc
        if not isinstance(found, dict):
            raise Invalid("the body must be a JSON object", target="body")
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def broken(exc: Exception) -> tuple[int, dict[str, str]]:
    """Return the status and the words for what MLflow did not catch itself."""
    frames = {frame.name for frame in traceback.extract_tb(exc.__traceback__)}
    if frames.intersection(_READS):
        return 400, _said("INVALID_PARAMETER_VALUE", f"a field is of the wrong kind: {exc}")
    if isinstance(exc, OSError) and exc.errno in _MISNAMED:
        return 400, _said("INVALID_PARAMETER_VALUE", f"a path cannot be used: {exc.strerror}")
    if any(words in str(exc) for words in _NO_ROOM):
        return 503, _said("TEMPORARILY_UNAVAILABLE", "the disk is full")
    _log.error("MLflow failed", exc_info=exc)
    return 500, _said("INTERNAL_ERROR", "something went wrong on the server; its log says what")


def _said(code: str, message: str) -> dict[str, str]:
    return {"error_code": code, "message": message[:500]}


async def _whole(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message: dict[str, Any] = dict(await receive())
        if message["type"] == "http.disconnect":
            raise Invalid("the request ended before its body did", target="body")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST:
            raise TooLarge(f"a body may have {MOST >> 20} MiB here, and has more", target="body")
        more = message.get("more_body", False)
    return b"".join(parts)
