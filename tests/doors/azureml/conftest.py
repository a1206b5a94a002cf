"""The Azure ML door by itself: its routes over a store of their own, and a caller with a token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from finery.core import store as stores
from finery.core import workspaces as core_workspaces
from finery.core.compute import Capacity
from finery.core.errors import Failure
from finery.core.files import Files
from finery.core.workspaces import Keys, Workspace
from finery.doors.azureml import (
    assets,
    cloud,
    compute,
    datastores,
    registries,
    wire,
    workspaces,
)
from finery.doors.http import House

WS = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"


@contextmanager
def house_in(folder: Path) -> Iterator[House]:
    """Yield a house with one workspace `w`, whose id is `ws`."""
    database = stores.open_sqlite(folder / "finery.db")
    stores.metadata.create_all(database._engine)
    core_workspaces.create(database, Workspace(id="ws", subscription="s", group="g", name="w"))
    yield House(
        store=database,
        files=Files(folder / "files", database),
        keys=Keys(folder),
        http="http://localhost:8480",
        https="https://testserver",
        wake=lambda: None,
        log=lambda _, __: b"",
        capacity=lambda: Capacity(cpus=1, memory=1, gpus=0),
        default_workspace=("s", "g", "w"),
    )
    database.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    with house_in(tmp_path) as house:
        yield house


@pytest.fixture
def anyone(home: House) -> TestClient:
    """Somebody with no credential."""
    app = FastAPI()
    for router in (assets, cloud, workspaces, datastores, compute, registries):
        app.include_router(router.router(home))
    app.include_router(cloud.refusals(home))

    async def failure(request: Request, exc: Exception) -> Response:
        return wire.failure(request, exc)

    for kind in (Failure, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, failure)
    return TestClient(app, base_url="https://testserver")


@pytest.fixture
def client(home: House, anyone: TestClient) -> TestClient:
    """The administrator."""
    anyone.headers["Authorization"] = f"Bearer {home.keys.admin}"
    return anyone


@pytest.fixture
def put_file(home: House):
    """Put bytes into a datastore of the workspace, as an upload would."""

    def put(path: str, data: bytes = b"x", *, store: str = "workspaceblobstore") -> str:
        file = home.files.path("ws", store, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return f"azureml://datastores/{store}/paths/{path}"

    return put
