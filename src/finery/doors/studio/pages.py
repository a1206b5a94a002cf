"""Server-rendered pages: log in, see what there is, follow a job.

They show what the API shows and change nothing.  A browser is known by a
signed cookie that ends after some hours; the MLflow door accepts it as well.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader

from finery.core import assets, endpoints, ids, jobs, references, workspaces
from finery.core.errors import NotFound, Unauthenticated
from finery.core.jobs import Job
from finery.core.workspaces import Caller, Workspace
from finery.doors.http import House

HERE = Path(__file__).parent
COOKIE = "finery"
_HOURS = 12
_TAIL = 20_000  # bytes of a log shown on a page


class LoginNeeded(Unauthenticated):
    """No one is logged in."""


def router(house: House) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    pages = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True)
    pages.filters |= {"ago": _ago, "took": _took}

    def page(name: str, **shown: Any) -> HTMLResponse:
        headers = {
            "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
        }
        return HTMLResponse(pages.get_template(name).render(house=house, **shown), headers=headers)

    async def visitor(request: Request) -> Caller:
        try:
            return house.keys.caller(request.cookies.get(COOKIE), now=ids.now())
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

    return routes


def to_login(request: Request) -> Response:
    """Send a browser to the log-in page, and back to where it was going."""
    return RedirectResponse(f"/login?next={quote(request.url.path)}", status_code=303)


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
