"""Where everything meets: store, engines, doors, supervisor; the only module that imports all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import orjson
import uvicorn
import uvloop
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from finery import certificates, journal, listening, sampling
from finery.config import DEFAULT_WORKSPACE, Settings
from finery.core import endpoints as core_endpoints
from finery.core import instances, services, workspaces
from finery.core import jobs as core_jobs
from finery.core.errors import Failure, Invalid, NotFound, Unavailable
from finery.core.files import Files
from finery.core.store import FULL, Store, sqlite_url
from finery.core.supervisor import Supervisor
from finery.core.upkeep import Upkeep
from finery.core.workspaces import Keys, Workspace
from finery.doors import metering, scoring
from finery.doors.azureml import (
    assets,
    catalog,
    cloud,
    compute,
    datastores,
    endpoints,
    history,
    jobs,
    registries,
    storage,
)
from finery.doors.azureml import wire as azureml_wire
from finery.doors.azureml import workspaces as azureml_workspaces
from finery.doors.figures import Figures
from finery.doors.http import Access, House
from finery.doors.mlflow.app import Mlflow
from finery.doors.openai import chat as openai_chat
from finery.doors.openai import wire as openai_wire
from finery.doors.studio import pages
from finery.engines.environments import Environments
from finery.engines.local import LocalEngine
from finery.serving import spec as serving_spec

# Each is tried in turn; the first one whose path fits answers.
ROUTERS: tuple[Callable[[House], APIRouter], ...] = (
    jobs.router,
    assets.router,
    cloud.router,
    azureml_workspaces.router,
    datastores.router,
    compute.router,
    registries.router,
    endpoints.router,
    history.router,
    storage.router,
    pages.router,
    cloud.refusals,  # last: what no other route of the Azure ML door knows
)

# The framework would ask at each request whether someone listens.
SILENT: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}

# Path prefix -> who words a failure; the first that fits.
WORDINGS: tuple[tuple[str, Callable[[Request, Exception], Response]], ...] = (
    ("/openai", openai_wire.failure),
    ("/blob", storage.failure),
    ("/studio", pages.failure),
    ("/", azureml_wire.failure),
)


@dataclass(frozen=True, kw_only=True)
class Platform:
    settings: Settings
    store: Store
    files: Files
    keys: Keys
    engine: LocalEngine
    environments: Environments
    supervisor: Supervisor
    house: House
    figures: Figures
    asgi: ASGIApp

    def close(self) -> None:
        self.supervisor.end()
        self.environments.minding.close()
        self.engine.close()
        self.store.close()


def create(settings: Settings, *, http: str, https: str) -> Platform:
    """Put a server together for the addresses it will have.  It starts nothing yet."""
    home = settings.home
    url = settings.database or sqlite_url(home / "finery.db")
    store = Store(url, dump=lambda value: orjson.dumps(value).decode(), load=orjson.loads)
    store.migrate()
    files, keys = Files(home / "files", store), Keys(home)
    engine = LocalEngine(home, idle=settings.warm_idle)
    supervisor: Supervisor
    mlflow: Mlflow

    def wake() -> None:
        mlflow.warm()
        supervisor.wake()

    house = House(
        store=store,
        files=files,
        keys=keys,
        http=http,
        https=https,
        wake=wake,
        log=engine.log,
        instance_logs=lambda deployment, lines: instances.logs(home, deployment, lines=lines),
        services=lambda job: services.states(engine, job, home=home),
        probes=lambda process: {
            kind: watch for (of, kind), watch in [*upkeep.watches.items()] if of == process
        },
        seen=lambda deployment: metering.summary(way_in.seen(deployment)),
        metrics=lambda job, most: mlflow.last(job, most),
        containers=lambda: built.client(),
        lacking=lambda model: built.lacking(model),
        kind=_kind,
        capacity=engine.capacity,
        default_workspace=DEFAULT_WORKSPACE,
        tiny=settings.models == "tiny",
    )
    mlflow = Mlflow(house, home, settings.database or None)
    way_in = scoring.Scoring(house)
    built = Environments(
        home,
        engine=engine,
        locate=files.locate,
        kind=_kind,
        strict=settings.strict,
        own_packages=settings.own_packages,
    )
    upkeep = Upkeep(
        store,
        files,
        home,
        engine=engine,
        keys=keys,
        environments=built,
        kind=_kind,
        traffic=way_in,
    )
    supervisor = Supervisor(
        store,
        files,
        home,
        engine=engine,
        tracking=mlflow.tracking,
        environments=built,
        upkeep=upkeep,
        sampler=sampling.Sampler(),
    )
    _furnish(house)
    return Platform(
        settings=settings,
        store=store,
        files=files,
        keys=keys,
        engine=engine,
        environments=built,
        supervisor=supervisor,
        house=house,
        figures=Figures(store, way_in, mlflow.deployments, instances=way_in.telling.instances),
        asgi=Access(
            _dispatch(_doors(house, way_in), mlflow=mlflow, way_in=way_in, telling=way_in.telling)
        ),
    )


def _kind(folder: Path) -> str:
    """Return how a model that comes without code is served."""
    try:
        return serving_spec.detect(folder)
    except serving_spec.BadSpec as exc:
        raise Invalid(str(exc), target="model") from exc


def _furnish(house: House) -> None:
    """Make sure of what every home has: the default workspace and the catalog."""
    subscription, group, name = house.default_workspace
    try:
        workspaces.get(house.store, subscription, group, name)
    except NotFound:
        workspaces.create(house.store, Workspace(subscription=subscription, group=group, name=name))
    catalog.load(house.store, tiny=house.tiny)


def routers(house: House, way_in: ASGIApp) -> list[APIRouter]:
    """Return every door's routes but MLflow's and scoring's, in the order they are tried."""
    return [*(router(house) for router in ROUTERS), openai_chat.router(house, way_in)]


def _doors(house: House, way_in: ASGIApp) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, telemetry=SILENT)
    for router in routers(house, way_in):
        app.router.routes.extend(router.routes)  # including it would match each request twice

    async def failure(request: Request, exc: Exception) -> Response:
        if isinstance(exc, pages.LoginNeeded):
            return pages.to_login(request)
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            exc = Unavailable("the disk is full", target=FULL)
        for prefix, word in WORDINGS:
            if request.url.path.startswith(prefix):
                return word(request, exc)
        raise exc

    for kind in (Failure, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, failure)
    return app


def _dispatch(others: ASGIApp, *, mlflow: ASGIApp, way_in: ASGIApp, telling: ASGIApp) -> ASGIApp:
    """Send each request to who answers it.

    /mlflow goes to the MLflow server as it is: mounting would hide its own path
    checks.  /endpoints goes straight to scoring: looking for a route among all
    would take longer than a small model.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.startswith("/endpoints/"):
            await way_in(scope, receive, send)
        elif path == "/metrics":
            await telling(scope, receive, send)
        elif path == "/mlflow" or path.startswith("/mlflow/"):
            await mlflow(scope, receive, send)
        else:
            await others(scope, receive, send)

    return app


def serve(settings: Settings, *, ready: Callable[[Platform], None]) -> str:
    """Serve until SIGINT or SIGTERM; call `ready` once every door answers.

    Returns what is left running, as words for a person; empty if nothing is.
    """
    os.umask(0o077)
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        _locked(settings.home),
        listening.pair(settings.home, settings.host, settings.port, settings.tls_port) as sockets,
    ):
        journal.start(settings.home / "logs")
        http, https = (
            f"{kind}://{listening.address(settings.host)}:{sock.getsockname()[1]}"
            for kind, sock in zip(("http", "https"), sockets, strict=True)
        )
        signed = certificates.ensure(settings.home / "tls", settings.host)
        platform = create(settings, http=http, https=https)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(platform, sockets, signed, ready))
            return _left(platform)
        finally:
            platform.close()
            (settings.home / "server.json").unlink(missing_ok=True)


async def _serve(
    platform: Platform,
    sockets: list[socket.socket],
    signed: certificates.Certificates,
    ready: Callable[[Platform], None],
) -> None:
    servers = [
        _Server(_config(platform.asgi)),
        _Server(_config(platform.asgi, signed)),
    ]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _leave, servers)
    tasks = [
        asyncio.create_task(server.serve(sockets=[sock]))
        for server, sock in zip(servers, sockets, strict=True)
    ]
    while not all(server.started for server in servers):
        await asyncio.sleep(0.005)
        for task in tasks:
            if task.done():
                task.result()
    loop_thread = threading.Thread(target=platform.supervisor.run, name="supervisor", daemon=True)
    loop_thread.start()
    platform.environments.minding.begin()
    figures = asyncio.create_task(platform.figures.run())
    _announce(platform)
    ready(platform)
    await asyncio.gather(*tasks)
    figures.cancel()


def _leave(servers: list[_Server]) -> None:
    for server in servers:
        server.leave()


def _left(platform: Platform) -> str:
    running = len([job for job in core_jobs.unfinished(platform.store) if job.kind == "command"])
    kept = len([one for one in core_endpoints.kept(platform.store) if one.status != "failed"])
    counts = [(running, "job"), (kept, "deployment")]
    return ", ".join(f"{count} {noun}{'s' * (count > 1)}" for count, noun in counts if count)


class _Server(uvicorn.Server):
    """uvicorn, but signals are ours: two servers share one process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def leave(self) -> None:
        self.force_exit = self.should_exit  # asked a second time: at once
        self.should_exit = True


def _config(app: ASGIApp, signed: certificates.Certificates | None = None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        http="httptools",
        ws="none",
        server_header=False,
        # Clients ask again every few seconds: one must not find its connection closing just then.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        ssl_certfile=signed.certificate if signed else None,
        ssl_keyfile=signed.key if signed else None,
    )


def _announce(platform: Platform) -> None:
    """Write down where the server is, for the command line of the same home."""
    house, home = platform.house, platform.settings.home
    subscription, group, name = house.default_workspace
    found = {
        "pid": os.getpid(),
        "http": house.http,
        "https": house.https,
        "subscription": subscription,
        "group": group,
        "workspace": name,
    }
    part = home / "server.json.part"
    part.write_text(json.dumps(found))
    part.rename(home / "server.json")


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the home's lock.  Raises `Invalid` when another server does."""
    file: IO[str]
    with (home / "server.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Invalid(
                f"a server (process {file.read().strip() or 'unknown'}) serves the home {home} "
                "already: use it, end it with `finery down`, or give another --home",
                target="home",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
