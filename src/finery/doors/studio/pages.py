"""Server-rendered pages: log in, see what there is, follow a job or an endpoint.

What a page of each kind shows is in `jobs.py` and `endpoints.py`.  Pages show
what the API shows and change nothing.  A browser is known by a
signed cookie that ends after some hours; the MLflow door accepts it as well.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from starlette.exceptions import HTTPException

from finery.core import assets, ids, workspaces
from finery.core import endpoints as core_endpoints
from finery.core import jobs as core_jobs
from finery.core.errors import Failure, NotFound, Unauthenticated
from finery.core.jobs import Job
from finery.core.workspaces import Caller, Workspace
from finery.doors import http
from finery.doors.http import House
from finery.doors.studio import endpoints, jobs, places

_logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
COOKIE = "finery"
_HOURS = 12
_NEWEST = 10  # jobs on the first page


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
        caller.need(workspace.id)
        return page("studio.html", **_everything(house, workspace))

    @routes.get("/studio/jobs")
    def list_jobs(after: str = "", caller: Caller = who) -> Response:
        workspace = workspaces.get(house.store, *house.default_workspace)
        caller.need(workspace.id)
        return page("jobs.html", **jobs.listed(house, workspace.id, after=after))

    @routes.get("/studio/jobs/{name}")
    def job(name: str, caller: Caller = who) -> Response:
        found = core_jobs.get(house.store, name)
        caller.need(found.workspace)
        return page("job.html", **jobs.shown(house, found))

    @routes.get("/studio/endpoints")
    def list_endpoints(caller: Caller = who) -> Response:
        return RedirectResponse("/studio#endpoints", status_code=303)

    @routes.get("/studio/endpoints/{name}")
    def endpoint(name: str, caller: Caller = who) -> Response:
        found = core_endpoints.get(house.store, name)
        caller.need(found.workspace)
        return page("endpoint.html", **endpoints.shown(house, found, key=False))

    @routes.post("/studio/endpoints/{name}")  # nothing changes: an address with it would be kept
    def endpoint_with_its_key(name: str, caller: Caller = who) -> Response:
        found = core_endpoints.get(house.store, name)
        caller.need(found.workspace)
        return page("endpoint.html", **endpoints.shown(house, found, key=True))

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
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/login?next={quote(request.url.path + query)}", status_code=303)


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True
    )
    made.filters |= {"when": _when, "took": _took, "lasting": places.lasting}
    made.globals |= {"of_job": places.of_job, "of_endpoint": places.of_endpoint}
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
    newest = core_jobs.list(store, workspace.id, limit=_NEWEST)
    kept = core_endpoints.list(store, workspace.id, limit=200).items
    return {
        "jobs": newest.items,
        "more": newest.next is not None,
        "models": [model for model in models if model is not None],
        "endpoints": [(e, core_endpoints.deployments(store, e.name)) for e in kept],
        "refresh": True,
    }


def _when(time: datetime | None) -> str:
    if time is None:
        return ""
    there = time.astimezone(UTC)  # whoever reads it may be elsewhere than the server
    said = Markup('<time datetime="{}">{}</time>')
    return said.format(there.isoformat(timespec="seconds"), there.strftime("%d %b %Y %H:%M:%S UTC"))


def _took(job: Job) -> str:
    if job.started_at is None or job.started_at == job.ended_at:
        return ""  # it never ran
    return places.lasting(((job.ended_at or datetime.now(UTC)) - job.started_at).total_seconds())
