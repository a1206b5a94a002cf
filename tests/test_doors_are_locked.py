"""Every route of every door refuses a caller without a credential, but for the few named here."""

from __future__ import annotations

import re

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from finery import app
from finery.config import Settings
from finery.core import ids
from finery.core.workspaces import Caller
from finery.doors.scoring import Scoring

# Asked before there is a credential: addresses, the log-in page and what it looks like.
OPEN = {
    "/metadata/endpoints",
    "/discovery",
    "/login",
    "/logout",
    "/static/{name}",
    "/",
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    made = app.create(
        Settings(home=tmp_path_factory.mktemp("home"), models="tiny"),
        http="http://127.0.0.1:1",
        https="https://127.0.0.1:2",
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(platform):
    with TestClient(platform.asgi, follow_redirects=False, raise_server_exceptions=False) as made:
        yield made


def every_route(platform):
    scoring = Scoring(platform.house)
    found = app.routers(platform.house, scoring)
    for route in (route for router in found for route in router.routes):
        assert isinstance(route, Route), route
        for method in sorted(route.methods - {"HEAD", "OPTIONS"}):
            yield method, route.path
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):  # it has no routes: all is below it
        for path in ("", "{endpoint}", "{endpoint}/", "{endpoint}/score", "{endpoint}/v1/models"):
            yield method, f"/endpoints/{path}"


def test_every_route_refuses_without_a_credential(platform, client):
    found = list(every_route(platform))
    assert len(found) > 100
    client.cookies.clear()  # another test may have logged in
    let_in = []
    for method, path in found:
        if path in OPEN:
            continue
        answer = client.request(method, re.sub(r"{[^}]*}", "x", path))
        sent_to_login = answer.status_code == 303 and answer.headers["location"].startswith(
            "/login"
        )
        if answer.status_code not in (401, 403) and not sent_to_login:
            let_in.append((method, path, answer.status_code))
    assert let_in == []


@pytest.mark.parametrize(
    "path",
    [
        "/mlflow",
        "/mlflow/",
        "/mlflow/api/2.0/mlflow/experiments/search",
        "/mlflow/ajax-api/2.0/mlflow/runs/search",
    ],
)
def test_mlflow_refuses_without_a_credential(client, path):
    assert client.get(path).status_code in (401, 403)


def test_a_token_that_has_ended_is_refused_everywhere(platform, client):
    caller = Caller(name="administrator")
    old = platform.keys.mint(caller, audience="x", seconds=-1, now=ids.now())
    subscription, group, name = platform.house.default_workspace
    path = f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.MachineLearningServices/workspaces/{name}"
    for address in (path, f"{path}/jobs", f"{path}/models", "/openai/v1/models"):
        answer = client.get(address, headers={"Authorization": f"Bearer {old}"})
        assert answer.status_code == 401, address
        assert "expired" in answer.text
    fresh = platform.keys.mint(caller, audience="x", seconds=60, now=ids.now())
    assert client.get(path, headers={"Authorization": f"Bearer {fresh}"}).status_code == 200


def test_the_identity_endpoint_needs_its_header_secret(platform, client):
    asked = {"resource": "https://management.azure.com/"}
    assert client.get("/msi/token", params=asked).status_code == 401
    wrong = {"X-IDENTITY-HEADER": "guess"}
    assert client.get("/msi/token", params=asked, headers=wrong).status_code == 401
    right = {"X-IDENTITY-HEADER": platform.keys.admin}
    answer = client.get("/msi/token", params=asked, headers=right)
    assert answer.status_code == 200
    assert platform.keys.caller(answer.json()["access_token"], now=ids.now()).name


def test_the_log_in_page_lets_in_by_the_key_alone_and_sends_nobody_elsewhere(platform, client):
    assert client.get("/studio").headers["location"] == "/login?next=/studio"
    assert "not this server" in client.post("/login", data={"key": "guess"}).text
    elsewhere = {"key": platform.keys.admin, "next": "//evil.example/x"}
    answer = client.post("/login", data=elsewhere)
    assert answer.headers["location"] == "/studio"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and platform.keys.admin not in cookie


def test_no_secret_and_no_query_is_logged(platform, client, caplog):
    with caplog.at_level("INFO"):
        client.get("/openai/v1/models?sig=topsecret", headers={"api-key": platform.keys.admin})
    assert "/openai/v1/models" in [
        record.path for record in caplog.records if hasattr(record, "path")
    ]
    ours = [record for record in caplog.records if record.name.startswith("finery")]
    said = " ".join(str(vars(record)) for record in ours)
    assert "topsecret" not in said and platform.keys.admin not in said


def test_a_jobs_token_is_for_mlflow_alone(platform, client):
    caller = Caller(name="j", role="job", workspace="w")
    token = platform.keys.mint(caller, audience="mlflow", seconds=60, now=ids.now())
    shown = {"Authorization": f"Bearer {token}"}
    for method, path in every_route(platform):
        if path not in OPEN and not path.startswith(("/studio", "/msi")):
            answer = client.request(method, re.sub(r"{[^}]*}", "x", path), headers=shown)
            assert answer.status_code == 403, (method, path, answer.status_code)
