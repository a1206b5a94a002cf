"""Who may come in to MLflow, from where, and to which of its routes."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from finery.core import errors, store
from finery.core.files import Files
from finery.core.workspaces import Caller
from finery.doors.mlflow import access

ADMINISTRATOR = Caller(name="administrator")
JOB = Caller(name="job", role="job", workspace="w1")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({b"authorization": b"Bearer abc"}, ("abc", False)),
        ({b"authorization": b"bearer  abc "}, ("abc", False)),
        ({b"authorization": b"Basic " + base64.b64encode(b"me:a:b")}, ("a:b", False)),
        ({b"authorization": b"Basic ???"}, (None, False)),
        ({b"cookie": b"theme=dark; finery=abc"}, ("abc", True)),
        ({b"cookie": b"notfinery=abc"}, (None, False)),
        ({}, (None, False)),
    ],
)
def test_a_credential_is_a_token_a_password_or_the_studio_cookie(headers, expected) -> None:
    assert access.credential(headers) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/static-files/static/js/main.js",
        "/version",
        "/api/2.0/mlflow/experiments/search",
        "/ajax-api/2.0/mlflow/runs/search",
        "/ajax-api/3.0/mlflow/traces/search",
        "/api/2.0/mlflow/logged-models/m-1/artifacts/directories",
        "/api/2.0/mlflow-artifacts/artifacts/w1/workspaceartifactstore/x",
        "/graphql",
        "/v1/traces",
    ],
)
def test_what_a_client_and_the_pages_need_is_let_through(path: str) -> None:
    access.check_route(path, JOB)


@pytest.mark.parametrize(
    "path",
    [
        "/ajax-api/3.0/mlflow/assistant/message",
        "/api/3.0/mlflow/assistant/message",
        "/gateway/mlflow/v1/chat/completions",
        "/gateway/proxy/x/y",
        "/api/3.0/mlflow/gateway/endpoints/create",
        "/ajax-api/2.0/mlflow/gateway-proxy",
        "/ajax-api/3.0/jobs/",
        "/ajax-api/3.0/mlflow/jobs/1",
        "/ajax-api/3.0/mlflow/mcp-servers",
        "/api/2.0/mlflow/webhooks",
        "/ajax-api/3.0/mlflow/scorer/invoke",
        "/ajax-api/3.0/mlflow/issues/invoke",
        "/ajax-api/3.0/mlflow/genai/evaluate/invoke",
        "/api/3.0/mlflow/scorers/online-config",
        "/api/3.0/mlflow/prompt-optimization/jobs",
        "/ajax-api/3.0/mlflow/demo/generate",
        "/ajax-api/3.0/mlflow/demo/generate/",
        "//gateway/proxy/x/y",
        "/api/2.0/mlflow//webhooks",
        "/api/2.0/mlflow",
    ],
)
def test_what_runs_things_on_this_machine_is_refused_by_name(path: str) -> None:
    with pytest.raises(errors.NotFound, match="not offered here"):
        access.check_route(path, ADMINISTRATOR)


def test_a_job_may_log_but_not_delete_what_is_shared() -> None:
    access.check_route("/api/2.0/mlflow/runs/log-metric", JOB)
    access.check_route("/api/2.0/mlflow/experiments/delete", ADMINISTRATOR)
    with pytest.raises(errors.Forbidden, match="experiments/delete"):
        access.check_route("/api/2.0/mlflow/experiments/delete", JOB)


@pytest.mark.parametrize("path", ["/get-artifact", "/ajax-api/2.0/mlflow/upload-artifact"])
def test_a_job_does_not_reach_other_runs_files_by_the_routes_of_the_pages(path: str) -> None:
    access.check_route(path, ADMINISTRATOR)
    with pytest.raises(errors.Forbidden, match="own addresses"):
        access.check_route(path, JOB)


def test_a_foreign_host_name_is_refused_where_only_loopback_is_ours() -> None:
    def ask(host: bytes, *hosts: str) -> None:
        access.check_place("GET", {b"host": host}, hosts=hosts, cookie=False)

    for host in (b"127.0.0.1:80", b"localhost:80", b"localhost", b"[::1]:80"):
        ask(host, "127.0.0.1")
    with pytest.raises(errors.Forbidden, match="evil.example"):
        ask(b"evil.example:80", "127.0.0.1")
    ask(b"studio.example:80", "0.0.0.0")


def test_a_change_from_another_site_is_refused() -> None:
    def ask(origin: bytes | None, *, cookie: bool, method: str = "POST") -> None:
        headers = {b"host": b"127.0.0.1:80"} | ({b"origin": origin} if origin else {})
        access.check_place(method, headers, hosts=("127.0.0.1",), cookie=cookie)

    ask(None, cookie=False)  # a program
    ask(b"http://127.0.0.1:80", cookie=True)  # our own page
    ask(b"http://127.0.0.1:3000", cookie=True, method="GET")
    for origin in (b"http://127.0.0.1:3000", b"https://evil.example", b"null"):
        with pytest.raises(errors.Forbidden, match="cross-origin"):
            ask(origin, cookie=False)
    with pytest.raises(errors.Forbidden, match="cross-origin"):
        ask(None, cookie=True)  # a browser always says where a form comes from


def test_artifacts_stay_in_the_callers_workspace_and_in_its_artifact_store(tmp_path: Path) -> None:
    files = Files(tmp_path / "files", store.open_sqlite(tmp_path / "db"))
    outside = tmp_path / "secret"
    outside.write_text("secret")
    inside = files.path("w1", access.STORE)
    inside.mkdir(parents=True)
    (inside / "link").symlink_to(outside)

    def ask(method: str, path: str, caller: Caller = JOB, query: bytes = b"") -> None:
        access.check_artifact(files, caller, method, path, query)

    ask("PUT", f"w1/{access.STORE}/ExperimentRun/dcid.x/a.txt")
    ask("GET", "w1/workspaceblobstore/model/MLmodel")
    ask("GET", "", query=b"path=w1%2Fworkspaceartifactstore")
    with pytest.raises(errors.Forbidden):
        ask("GET", "w2/workspaceblobstore/model/MLmodel")
    with pytest.raises(errors.Forbidden):
        ask("GET", "", query=b"path=w2%2Fworkspaceartifactstore")
    with pytest.raises(errors.Forbidden):
        ask("PUT", "w1/workspaceblobstore/model/MLmodel")
    with pytest.raises(errors.Forbidden):
        ask("DELETE", "w1/workspaceblobstore/model/MLmodel", ADMINISTRATOR)
    for path in (f"w1/{access.STORE}/link", f"w1/{access.STORE}/../../w2/x", "w1", ""):
        with pytest.raises(errors.Invalid):
            ask("GET", path)
