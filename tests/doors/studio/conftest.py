"""A server put together but not started, and a browser without scripts that has logged in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from finery import app
from finery.config import Settings
from finery.core import jobs, workspaces
from finery.core.jobs import Job


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[app.Platform]:
    settings = Settings(home=tmp_path_factory.mktemp("studio"), models="tiny")
    made = app.create(settings, http="http://127.0.0.1:1", https="https://127.0.0.1:2")
    yield made
    made.close()


@pytest.fixture
def visitor(platform: app.Platform) -> Iterator[TestClient]:
    with TestClient(platform.asgi, follow_redirects=False, raise_server_exceptions=False) as made:
        yield made


@pytest.fixture
def browser(platform: app.Platform, visitor: TestClient) -> TestClient:
    key = (platform.settings.home / "admin.key").read_text()
    assert visitor.post("/login", data={"key": key}).headers["location"] == "/studio"
    return visitor


@pytest.fixture(scope="session")
def workspace(platform: app.Platform) -> str:
    return workspaces.get(platform.store, *platform.house.default_workspace).id


@pytest.fixture(scope="session")
def put_job(platform: app.Platform, workspace: str) -> Callable[..., Job]:
    def put(name: str, **given: Any) -> Job:
        given = {"spec": jobs.Command(command="true"), **given}
        return jobs.create(platform.store, Job(name=name, workspace=workspace, **given))

    return put
