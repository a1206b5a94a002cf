"""What every HTTP door needs: status codes, what it is given, who calls, page parameters.

It speaks no dialect: each door's `wire.py` does.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finery.core import errors, ids
from finery.core.compute import Capacity
from finery.core.jobs import Job
from finery.core.probing import Watch
from finery.core.services import State
from finery.core.workspaces import Caller, Keys

if TYPE_CHECKING:
    from finery.core.assets import Asset
    from finery.core.endpoints import Deployment
    from finery.core.files import Files
    from finery.core.store import Store

_log = logging.getLogger("finery.access")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

STATUS: dict[type[errors.Failure], int] = {
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.Conflict: 409,
    errors.Invalid: 400,
    errors.TooLarge: 413,
    errors.NotSupported: 501,
    errors.Unavailable: 503,
    errors.Failure: 500,
}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was asked of a deployment.  Times in seconds; None where nobody has called."""

    requests: int
    errors: int
    running: int
    waiting: int
    mean: float | None
    half: float | None  # half of the requests took no longer than this
    most: float | None  # 95 of 100


@dataclass(frozen=True, kw_only=True)
class House:
    """What a door may use of the house."""

    store: Store
    files: Files
    keys: Keys
    http: str  # our address, http://host:port, without a slash at the end
    https: str
    wake: Callable[[], None]  # tell the supervisor that there is something to do
    log: Callable[[str, int], bytes]  # a process's log, by process id, from an offset
    capacity: Callable[[], Capacity]
    # the last lines of a deployment's instances, so many of each
    instance_logs: Callable[[Deployment, int], str] = lambda deployment, lines: ""
    # what became of the services of a job, by their names
    services: Callable[[Job], dict[str, State]] = lambda job: {}
    # what the probes of a process, `live` and `ready`, have said so far, by its id
    probes: Callable[[str], Mapping[str, Watch]] = lambda process: {}
    # what was asked of a deployment since the server began, by its id
    seen: Callable[[str], Seen | None] = lambda deployment: None
    # the last value of each metric of a job, the first so many of them by name
    metrics: Callable[[Job, int], Mapping[str, float]] = lambda job, most: {}
    # the client of a container engine that runs here, empty for none; None while it is sought
    containers: Callable[[], str | None] = lambda: None
    # what a model asks for and our own Python lacks, where it runs with that; else None
    lacking: Callable[[Asset], Sequence[str] | None] = lambda model: None
    # how a model's folder is served that comes without code; raises `Invalid`
    kind: Callable[[Path], str] = lambda folder: "pyfunc"
    default_workspace: tuple[str, str, str]  # subscription, resource group, name
    tiny: bool = False  # catalog names resolve to stand-ins


def bearer(request: Request) -> str | None:
    """Return the credential of the Authorization header, with or without its `Bearer`."""
    header = request.headers.get("authorization", "")
    return header[7:].strip() if header[:7].lower() == "bearer " else header.strip() or None


def caller(house: House, credential: str | None, *, jobs: bool = False) -> Caller:
    """Say who shows `credential`.  Raises `Unauthenticated`.

    A job's own token is for logging: `Forbidden` where the door does not take `jobs`.
    """
    found = house.keys.caller(credential, now=ids.now())
    if not jobs:
        found.need_administrator()
    return found


class Access:
    """ASGI middleware: gives each request an id, answers with it, and logs one line for it.

    The line says method, path, status and time; never a query (signatures), a
    header or a body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = next((v for k, v in scope["headers"] if k == b"x-ms-client-request-id"), b"")
        id = given.decode("latin-1") if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = id
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name.lower() for name, _ in message["headers"]}
                if b"x-ms-request-id" not in names:
                    message["headers"] = [
                        *message["headers"],
                        (b"x-ms-request-id", id.encode()),
                    ]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            if _log.isEnabledFor(logging.INFO):
                took = round((time.perf_counter() - started) * 1000, 1)
                _log.info(
                    "request",
                    extra={
                        "request": id,
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "ms": took,
                    },
                )
