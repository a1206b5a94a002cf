"""A house with its MLflow door, the real MLflow server behind it.

Loaded once for all tests of this folder, in this process: the real store, its
migrations and its handlers are what these tests are about, and a second load
would cost seconds again.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from finery.core import ids, jobs, store, workspaces
from finery.core.compute import Capacity
from finery.core.files import Files
from finery.core.jobs import Command, Input, Job
from finery.core.workspaces import Caller, Keys, Workspace
from finery.doors.http import House
from finery.doors.mlflow.app import Mlflow


@dataclass(frozen=True)
class Door:
    house: House
    mlflow: Mlflow
    workspace: Workspace
    other: Workspace

    def client(self, token: str | None = None, **headers: str) -> TestClient:
        """A client of ours; the administrator's unless told otherwise ('' is nobody's)."""
        token = self.house.keys.admin if token is None else token
        shown = {"authorization": f"Bearer {token}"} if token else {}
        return TestClient(
            self.mlflow,  # type: ignore[arg-type]
            base_url=self.house.http,
            headers={**shown, **headers},
            follow_redirects=False,
        )

    def job_token(self, workspace: Workspace, name: str = "some-job") -> str:
        caller = Caller(name=name, role="job", workspace=workspace.id)
        return self.house.keys.mint(caller, audience="mlflow", seconds=60, now=ids.now())

    def job(self, name: str, **fields: object) -> Job:
        spec = Command(command="true", inputs={"lr": Input(value="1e-4")})
        job = Job(name=name, workspace=self.workspace.id, spec=spec, experiment="tests")
        return jobs.create(self.house.store, Job(**{**vars(job), **fields}))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    home: Path = tmp_path_factory.mktemp("home")
    kept = store.open_sqlite(home / "finery.db")
    kept.migrate()
    names = {"subscription": "sub", "group": "group"}
    default = workspaces.create(kept, Workspace(**names, name="default"))
    other = workspaces.create(kept, Workspace(**names, name="other"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    house = House(
        store=kept,
        files=Files(home / "files", kept),
        keys=Keys(home),
        http=f"http://127.0.0.1:{port}",
        https=f"https://127.0.0.1:{port}",
        wake=lambda: None,
        log=lambda process, offset: b"",
        capacity=lambda: Capacity(),  # type: ignore[call-arg]  # no test here asks
        default_workspace=("sub", "group", "default"),
    )
    return Door(house=house, mlflow=Mlflow(house, home, None), workspace=default, other=other)


@pytest.fixture(scope="session")
def served(door: Door, until: object) -> Iterator[str]:
    """The same door on its own address, for clients that live in another process."""
    port = int(door.house.http.rpartition(":")[2])
    config = uvicorn.Config(door.mlflow, port=port, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)  # type: ignore[operator]
    yield door.house.http
    server.should_exit = True
    thread.join()
