"""What `finery.app` puts under `/mlflow`: who may come in, and where a request goes.

    mlflow = Mlflow(house, home, None)
    await mlflow(scope, receive, send)      # any path from /mlflow on
    mlflow.tracking                         # what the supervisor opens and closes runs with

The real server (`embedded.py`) is loaded by the first request or job that
needs it, in a thread; others wait for it and are not refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import MutableMapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from sqlalchemy.exc import SQLAlchemyError

from finery.core import errors, workspaces
from finery.core.jobs import Job
from finery.doors import http
from finery.doors.http import House
from finery.doors.mlflow import access, bodies, embedded, metrics, tracking
from finery.doors.mlflow.deployments import Deployments
from finery.doors.mlflow.embedded import PREFIX, Embedded, Receive, Send
from finery.doors.mlflow.tracking import Tracking

_log = logging.getLogger(__name__)

_CODES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "ENDPOINT_NOT_FOUND",
    400: "INVALID_PARAMETER_VALUE",
    413: "INVALID_PARAMETER_VALUE",
    503: "TEMPORARILY_UNAVAILABLE",
}


class Mlflow:
    """The MLflow door of one house.  Live one at a time in a process (see `embedded.load`)."""

    def __init__(self, house: House, home: Path, store_url: str | None) -> None:
        """`store_url`: a PostgreSQL address where the house has one; else a file in the home."""
        self._house = house
        self._folder = home / "mlflow"
        self._url = store_url or f"sqlite:///{self._folder / 'mlflow.db'}"
        self._turn = threading.Lock()
        self._embedded: Embedded | None = None
        self._default: str | None = None
        # The workspace that this request is about.
        self._workspace: ContextVar[str | None] = ContextVar("workspace", default=None)
        self.tracking = Tracking(house, load=self.load, default=self.default_workspace)
        self.deployments = Deployments(
            house, load=self.load, loaded=lambda: self.ready, default=self.default_workspace
        )

    @property
    def ready(self) -> bool:
        return self._embedded is not None

    def warm(self) -> None:
        """Begin to load the real server, in the background; safe to repeat."""
        if not self.ready and not self._turn.locked():
            threading.Thread(target=self._try_load, name="mlflow", daemon=True).start()

    def load(self) -> Embedded:
        """Return the real server, loaded now if it was not: a few seconds, once.

        From a thread, never from the event loop.
        """
        with self._turn:
            if self._embedded is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                root = self._house.files.root.resolve()
                self._embedded = embedded.load(self._url, root, self._stores, broken=bodies.broken)
            return self._embedded

    def last(self, job: Job, most: int) -> dict[str, float]:
        """Return the last value of a job's metrics, by name.  It does not load the real server."""
        inner = self._embedded
        engine = inner.engine if inner else embedded.unloaded(self._url)
        if engine is None:
            return {}
        run = tracking.run_id(job.name, short=engine.dialect.name != "sqlite")
        try:
            return metrics.last(engine, run, most)
        except SQLAlchemyError:  # its tables are still to be made
            return {}

    def default_workspace(self) -> str:
        """Return the id of the workspace that callers without one of their own are in."""
        if self._default is None:
            self._default = workspaces.get(self._house.store, *self._house.default_workspace).id
        return self._default

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        try:
            await self._answer(scope, headers, receive, send)
        except errors.Unauthenticated as failure:
            if access.wants_page(scope["method"], headers):
                await _redirect(send, f"/login?next={quote(scope['path'])}")
            else:
                await _refuse(send, failure)
        except errors.Failure as failure:
            await _refuse(send, failure)

    async def _answer(
        self,
        scope: MutableMapping[str, Any],
        headers: access.Headers,
        receive: Receive,
        send: Send,
    ) -> None:
        method, path = scope["method"], _inner(scope["path"])
        shown, cookie = access.credential(headers)
        hosts = [urlsplit(url).hostname or "" for url in (self._house.http, self._house.https)]
        access.check_place(method, headers, hosts=hosts, cookie=cookie)
        caller = http.caller(self._house, shown, jobs=True)
        if not path:
            await _redirect(send, f"{PREFIX}/")
            return
        path = _modern(path)
        if path.startswith("/jobs/"):
            inner = await self._ready()
            page = await asyncio.to_thread(self.tracking.page, inner, path.removeprefix("/jobs/"))
            await _redirect(send, f"{PREFIX}/{page}")
            return
        access.check_route(path, caller)
        inner = await self._ready()
        artifact = access.ARTIFACTS.fullmatch(path)
        if artifact is None:
            receive = await bodies.checked(method, path, headers, receive)
        answered, receive = await metrics.answer(inner, method, path, receive, send)
        if answered:
            return
        if artifact is not None:
            query = scope["query_string"]
            access.check_artifact(self._house.files, caller, method, artifact["path"] or "", query)
        self._workspace.set(caller.workspace)
        await inner.app(_scope(scope, path), receive, send)

    async def _ready(self) -> Embedded:
        if self._embedded is not None:
            return self._embedded
        try:
            return await asyncio.to_thread(self.load)
        except Exception as exc:
            _log.exception("MLflow could not be loaded")
            raise errors.Unavailable(f"MLflow could not be loaded: {exc}") from exc

    def _try_load(self) -> None:
        try:
            self.load()
        except Exception:
            _log.exception("MLflow could not be loaded")

    def _stores(self, url: str) -> tuple[Any, Any]:
        from finery.doors.mlflow.registry import Registry  # these import MLflow
        from finery.doors.mlflow.runs import Runs

        runs = Runs(url, self._current)
        return runs, Registry(url, house=self._house, runs=runs, workspace=self._current)

    def _current(self) -> str:
        return self._workspace.get() or self.default_workspace()


def _inner(path: str) -> str:
    """Return the path without our prefix, which a mount may have taken off already."""
    return path[len(PREFIX) :] if path == PREFIX or path.startswith(f"{PREFIX}/") else path


def _modern(path: str) -> str:
    """Old guides list experiments by a route that MLflow 2 took away; `search` answers alike."""
    old, new = "/api/2.0/mlflow/experiments/list", "/api/2.0/mlflow/experiments/search"
    return new if path == old else path


def _scope(scope: MutableMapping[str, Any], path: str) -> MutableMapping[str, Any]:
    """Address the real server: artifacts by its streaming routes, which take no prefix.

    It is not told of an origin, which `access.check_place` has judged: it would
    let the pages of every other server on this machine read what they ask for.
    """
    found = access.ARTIFACTS.fullmatch(path)
    streamed = found is not None and found["path"] and scope["method"] in ("GET", "PUT")
    inner = path if streamed else PREFIX + path
    query = scope["query_string"]
    if path.endswith("/experiments/search") and scope["path"].endswith("/experiments/list"):
        query = b"&".join(part for part in (query, b"max_results=1000") if part)
    raw = quote(inner).encode()
    headers = [pair for pair in scope["headers"] if pair[0] != b"origin"]
    changed = {"path": inner, "raw_path": raw, "root_path": "", "query_string": query}
    return {**scope, **changed, "headers": headers}


async def _refuse(send: Send, failure: errors.Failure) -> None:
    status = http.STATUS.get(type(failure), 500)
    body = {"error_code": _CODES.get(status, "INTERNAL_ERROR"), "message": str(failure)}
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def _redirect(send: Send, to: str) -> None:
    headers = [(b"location", to.encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
