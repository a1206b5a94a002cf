"""Server-rendered pages: log in, see what there is, follow a job.

They show what the API shows and change nothing.  A browser is known by a
signed cookie that ends after some hours; the MLflow door accepts it as well.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader
from starlette.exceptions import HTTPException

from finery.core import assets, endpoints, ids, jobs, references, workspaces
from finery.core.errors import Failure, NotFound, Unauthenticated
from finery.core.jobs import Job
from finery.core.workspaces import Caller, Workspace
from finery.doors import http
from finery.doors.http import House

_logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
COOKIE = "finery"
_HOURS = 12
_TAIL = 20_000  # bytes of a log shown on a page


class LoginNeeded(Unauthenticated):
    """No one is logged in."""


def router(house: House) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    page = partial(rendered, house=house)

    async def visitor(request: Request) -> Caller:
        try:
            return http.caller(house, request.cookies.get(COOKIE))
        except Unauthenticated as exc:
            raise LoginNeeded(target=request.url.path) from exc

    who = Depends(visitor)

    @routes.get("/")
    def front() -> Response:
        return RedirectResponse("/studio")

    @routes.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in {file.name for file in (HERE / "static").iterdir()}:
            raise NotFound(f"no file {name!r}", target=name)
        return FileResponse(HERE / "static" / name)

    @routes.get("/login")
    def login(next: str = "/studio") -> Response:
        return page("login.html", next=_own(next), wrong=False)

    @routes.post("/login")
    def log_in(key: str = Form(max_length=4096), next: str = Form("/studio")) -> Response:
        try:
            caller = house.keys.caller(key.strip(), now=ids.now())
            caller.need_administrator()
        except Unauthenticated:
            return page("login.html", next=_own(next), wrong=True)
        token = house.keys.mint(caller, audience="studio", seconds=_HOURS * 3600, now=ids.now())
        answer = RedirectResponse(_own(next), status_code=303)
        answer.set_cookie(COOKIE, token, max_age=_HOURS * 3600, httponly=True, samesite="lax")
        return answer

    @routes.post("/logout")
    def log_out() -> Response:
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(COOKIE)
        return answer

    @routes.get("/studio")
    def studio(caller: Caller = who) -> Response:
        workspace = workspaces.get(house.store, *house.default_workspace)
        return page("studio.html", **_everything(house, workspace))

    @routes.get("/studio/jobs/{name}")
    def job(name: str, caller: Caller = who) -> Response:
        found = jobs.get(house.store, name)
        caller.need(found.workspace)
        children = jobs.children(house.store, name)
        return page(
            "job.html",
            job=found,
            children=children,
            services=house.services(found),
            log=_log(house, found),
            refresh=not found.final,
        )

    @routes.get("/studio/{rest:path}")
    def unknown(rest: str, caller: Caller = who) -> Response:
        raise NotFound("There is no such page here.", target=rest)

    return routes


def rendered(name: str, *, status: int = 200, **shown: Any) -> HTMLResponse:
    """Return a page.  It runs no script and nothing of it is kept by the browser."""
    headers = {
        "Content-Security-Policy": "default-src 'self'; script-src 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    text = _templates().get_template(name).render(**shown)
    return HTMLResponse(text, status_code=status, headers=headers)


def failure(request: Request, exc: Exception) -> Response:
    """Return the page that says what is wrong, and leads back."""
    status, said = 500, "Something went wrong on the server; its log says what."
    if isinstance(exc, Failure):
        kind = next(kind for kind in type(exc).__mro__ if kind in http.STATUS)
        status, said = http.STATUS[kind], str(exc)
    elif isinstance(exc, HTTPException):
        status, said = exc.status_code, str(exc.detail)
    elif isinstance(exc, RequestValidationError):
        status, said = 400, "The address has something in it that makes no sense here."
    else:
        _logger.error("the page %s failed", request.url.path, exc_info=exc)
    return rendered("failure.html", status=status, said=said, number=status)


def to_login(request: Request) -> Response:
    """Send a browser to the log-in page, and back to where it was going."""
    return RedirectResponse(f"/login?next={quote(request.url.path)}", status_code=303)


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True
    )
    made.filters |= {"ago": _ago, "took": _took}
    return made


def _own(address: str) -> str:
    """Return a path of ours: whoever logs in is never sent elsewhere."""
    if not address.startswith("/") or address.startswith(("//", "/\\")):
        return "/studio"
    return address


def _everything(house: House, workspace: Workspace) -> dict[str, Any]:
    store = house.store
    models = [
        assets.find(store, scope, "model", name.name)
        for scope in (workspace.id, "azureml")
        for name in assets.names(store, scope, "model", limit=200).items
    ]
    kept = endpoints.list(store, workspace.id, limit=200).items
    return {
        "jobs": jobs.list(store, workspace.id, limit=50).items,
        "models": [model for model in models if model is not None],
        "endpoints": [(e, endpoints.deployments(store, e.name)) for e in kept],
        "refresh": True,
    }


def _log(house: House, job: Job) -> str:
    where = references.artifacts(job.name, "user_logs").removeprefix("file:")
    datastore, _, path = where.partition("/")
    folder = house.files.path(job.workspace, datastore, path)
    said = []
    for file in sorted(folder.glob("std_log*.txt")):
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - _TAIL))
            said.append(log.read().decode(errors="replace"))
    return "\n".join(said)


def _ago(time: datetime | None) -> str:
    return time.astimezone().strftime("%d %b %Y %H:%M:%S") if time else ""


def _took(job: Job) -> str:
    if job.started_at is None:
        return ""
    seconds = ((job.ended_at or datetime.now(UTC)) - job.started_at).total_seconds()
    return str(timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.1f} s"
