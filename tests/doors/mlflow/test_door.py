"""The door itself: credentials, refusals, and the real server behind it."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from finery.doors.mlflow.app import Mlflow

API = "/mlflow/api/2.0/mlflow"


def test_a_door_that_nobody_has_used_has_not_loaded_mlflow() -> None:
    # A process of its own: in this one, other tests have loaded it.
    code = "import sys; import finery.doors.mlflow.app; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_without_a_credential_there_is_no_answer(door) -> None:
    answer = door.client("").get(f"{API}/experiments/search?max_results=1")
    assert answer.status_code == 401
    assert answer.json()["error_code"] == "UNAUTHENTICATED"
    assert door.client("wrong").get(f"{API}/experiments/search").status_code == 401


def test_a_browser_without_a_credential_is_sent_to_the_log_in_page(door) -> None:
    answer = door.client("", accept="text/html,*/*").get("/mlflow/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/login?next=/mlflow/")


# MLflow's WSGI adapter leaves it to the collector to close a file that it has sent.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_studio_cookie_opens_the_pages(door) -> None:
    client = door.client("", cookie=f"finery={door.job_token(door.workspace)}")
    assert client.get("/mlflow").headers["location"] == "/mlflow/"
    page = client.get("/mlflow/")
    assert page.status_code == 200
    assert "static-files/" in page.text
    script = page.text.split('src="')[1].split('"')[0]
    assert client.get(f"/mlflow/{script}").status_code == 200


def test_a_password_is_a_token_too(door) -> None:
    client = door.client("")
    search = f"{API}/experiments/search?max_results=1"
    assert client.get(search, auth=("me", door.house.keys.admin)).status_code == 200
    assert client.get(search, auth=("me", "wrong")).status_code == 401


def test_experiments_are_listed_by_the_old_route_as_well(door) -> None:
    client = door.client()
    made = client.post(f"{API}/experiments/create", json={"name": "old-route"}).json()
    listed = client.get(f"{API}/experiments/list").json()["experiments"]
    assert made["experiment_id"] in [found["experiment_id"] for found in listed]


def test_a_job_s_page_leads_nowhere_while_it_has_no_run(door) -> None:
    answer = door.client().get("/mlflow/jobs/waiting")
    assert answer.status_code == 404
    assert "no run of a job named 'waiting'" in answer.json()["message"]


def test_what_is_not_offered_is_refused_in_mlflows_words(door) -> None:
    answer = door.client().post("/mlflow/ajax-api/3.0/mlflow/assistant/message", json={})
    assert answer.status_code == 404
    assert answer.json()["error_code"] == "ENDPOINT_NOT_FOUND"
    assert "assistant" in answer.json()["message"]


def test_another_sites_page_can_change_nothing(door) -> None:
    evil = door.client(origin="https://evil.example")
    assert evil.post(f"{API}/experiments/create", json={"name": "evil"}).status_code == 403
    path = (
        f"/mlflow/api/2.0/mlflow-artifacts/artifacts/{door.workspace.id}/workspaceartifactstore/x"
    )
    assert evil.put(path, content=b"evil").status_code == 403
    assert not door.house.files.path(door.workspace.id, "workspaceartifactstore", "x").exists()


def test_another_local_servers_page_may_not_read_the_answers(door) -> None:
    client = door.client(origin="http://localhost:3000")
    answer = client.get(f"{API}/experiments/search?max_results=1")
    assert "access-control-allow-origin" not in answer.headers


def test_our_own_page_may_change_things_by_whatever_name_it_was_reached(door) -> None:
    house = replace(door.house, http="http://0.0.0.0:80")
    public = Mlflow(house, door.mlflow._folder.parent, None)
    public._embedded = door.mlflow.load()
    headers = {"host": "studio.example", "origin": "https://studio.example"}
    client = replace(door, mlflow=public).client(**headers)
    body = {"name": "by-its-name"}
    assert client.post(f"{API}/experiments/create", json=body).status_code == 200


def test_artifacts_go_to_the_workspaces_files_and_come_back(door) -> None:
    base = "/mlflow/api/2.0/mlflow-artifacts/artifacts"
    root = f"{door.workspace.id}/workspaceartifactstore/ExperimentRun/dcid.artifacts-go"
    client = door.client(door.job_token(door.workspace))
    assert client.put(f"{base}/{root}/sub/a b.txt", content=b"hello").status_code == 200
    kept = door.house.files.path(
        door.workspace.id, "workspaceartifactstore", "ExperimentRun/dcid.artifacts-go/sub/a b.txt"
    )
    assert kept.read_bytes() == b"hello"
    assert client.get(f"{base}/{root}/sub/a b.txt").content == b"hello"
    listed = client.get(base, params={"path": f"{root}/sub"}).json()["files"]
    assert [(file["path"], file["file_size"]) for file in listed] == [("a b.txt", 5)]
    assert client.delete(f"{base}/{root}/sub/a b.txt").status_code == 200
    assert not kept.exists()


def test_another_workspaces_artifacts_are_closed_to_a_job(door) -> None:
    base = "/mlflow/api/2.0/mlflow-artifacts/artifacts"
    path = f"{base}/{door.workspace.id}/workspaceartifactstore/x.txt"
    client = door.client(door.job_token(door.other))
    assert client.put(path, content=b"x").status_code == 403
    assert client.get(path).status_code == 403


def test_an_experiment_cannot_keep_its_artifacts_elsewhere_on_the_machine(door) -> None:
    body = {"name": "elsewhere", "artifact_location": "file:///etc"}
    answer = door.client().post(f"{API}/experiments/create", json=body)
    assert answer.status_code == 400
    assert "artifact_location" in answer.json()["message"]


def test_an_experiment_of_another_workspace_keeps_its_artifacts_there(door) -> None:
    client = door.client(door.job_token(door.other))
    made = client.post(f"{API}/experiments/create", json={"name": "others"}).json()
    id = made["experiment_id"]
    found = client.get(f"{API}/experiments/get?experiment_id={id}").json()["experiment"]
    assert found["artifact_location"].startswith(f"mlflow-artifacts:/{door.other.id}/")


def test_first_requests_at_the_same_time_load_the_server_once(door, tmp_path, monkeypatch) -> None:
    loads: list[str] = []
    entered = threading.Event()

    def load(url: str, files: object, stores: object, *, broken: object) -> str:
        loads.append(url)
        entered.wait(1)
        return "loaded"

    monkeypatch.setattr("finery.doors.mlflow.embedded.load", load)
    fresh = Mlflow(door.house, tmp_path, None)
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(fresh.load())) for _ in range(4)]
    for thread in threads:
        thread.start()
    entered.set()
    for thread in threads:
        thread.join()
    assert (len(loads), answers) == (1, ["loaded"] * 4)


def test_a_server_that_cannot_be_loaded_says_so_and_is_tried_again(
    door, tmp_path, monkeypatch
) -> None:
    def fail(url: str, files: object, stores: object, *, broken: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("finery.doors.mlflow.embedded.load", fail)
    fresh = Mlflow(door.house, tmp_path, None)
    client = replace(door, mlflow=fresh).client()
    for _ in range(2):
        answer = client.get(f"{API}/experiments/search?max_results=1")
        assert answer.status_code == 503
        assert "no space left" in answer.json()["message"]
