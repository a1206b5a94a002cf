"""Run history: how jobs are streamed, downloaded and changed by the official SDK."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from finery.core import ids, jobs, status, workspaces
from finery.core import store as stores
from finery.core.compute import Capacity
from finery.core.errors import Failure
from finery.core.files import Files
from finery.core.jobs import Command, Input, Job, Output, Pipeline, Sweep
from finery.core.workspaces import Caller, Keys, Workspace
from finery.doors.azureml import history, storage, wire
from finery.doors.http import House

T = TypeVar("T")
SDK = Path(__file__).parents[3] / ".venv-sdk" / "bin" / "python"
PLACE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
RUNS = f"/history/v1.0{PLACE}"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    database = stores.open_sqlite(tmp_path / "finery.db")
    stores.metadata.create_all(database._engine)
    workspaces.create(database, Workspace(id="ws", subscription="s", group="g", name="w"))
    workspaces.create(database, Workspace(id="ws2", subscription="s", group="g", name="w2"))
    files = Files(tmp_path / "files", database)
    yield House(
        store=database,
        files=files,
        keys=Keys(tmp_path),
        http="http://testserver",
        https="http://testserver",  # the official client is sent to a plain listener below
        wake=lambda: None,
        log=lambda _, __: b"",
        capacity=lambda: Capacity(cpus=1, memory=1, gpus=0),
        default_workspace=("s", "g", "w"),
    )
    database.close()


def app_of(house: House) -> FastAPI:
    app = FastAPI()
    app.include_router(history.router(house))
    app.include_router(storage.router(house))
    app.add_exception_handler(Failure, wire.failure)
    return app


@pytest.fixture
def anyone(house: House) -> TestClient:
    return TestClient(app_of(house))


@pytest.fixture
def client(house: House) -> TestClient:
    return TestClient(app_of(house), headers={"authorization": f"Bearer {house.keys.admin}"})


def command(house: House, name: str, **given: Any) -> Job:
    given = {"spec": Command(command="true"), "experiment": "exp", **given}
    return jobs.create(house.store, Job(name=name, workspace="ws", **given))


def go(house: House, job: Job, *through: str, **changed: Any) -> Job:
    for to in through:
        job = jobs.move(house.store, job, to, **(changed if to == through[-1] else {}))
    return job


def leave(house: House, path: str, text: str, store: str = "workspaceartifactstore") -> Path:
    found = house.files.path("ws", store, path)
    found.parent.mkdir(parents=True, exist_ok=True)
    found.write_text(text)
    return found


def test_every_status_of_a_job_has_a_word_that_the_sdk_knows(
    house: House, client: TestClient
) -> None:
    known = set(
        "Queued NotStarted Preparing Provisioning Starting Running CancelRequested Canceled"
        " Finalizing Completed Failed Paused NotResponding".split()
    )
    assert set(wire.JOB_STATUS) == set(status.JOB)
    assert set(wire.JOB_STATUS.values()) <= known
    job = command(house, "j")
    for said in (said for said in status.JOB if said != "queued"):
        found = history.run_out(
            Workspace(subscription="s", group="g", name="w"), replace(job, status=said)
        )
        assert found["status"] == wire.JOB_STATUS[said]


def test_details_name_the_logs_and_the_address_is_enough_to_read_them(
    house: House, client: TestClient, anyone: TestClient
) -> None:
    job = go(house, command(house, "j"), "preparing", "running")
    leave(house, "ExperimentRun/dcid.j/user_logs/std_log.txt", "step 1\n")
    leave(house, "ExperimentRun/dcid.j/system_logs/finery.log", "started\n")
    leave(house, "ExperimentRun/dcid.j/outputs/model.bin", "weights")
    leave(house, "ExperimentRun/dcid.j2/user_logs/std_log.txt", "another job's")
    found = client.get(f"{RUNS}/runs/j/details").json()
    assert found["status"] == "Running"
    assert sorted(found["logFiles"]) == ["system_logs/finery.log", "user_logs/std_log.txt"]
    address = found["logFiles"]["user_logs/std_log.txt"]
    assert anyone.get(address).text == "step 1\n"
    assert anyone.get(address.replace("std_log.txt", "other.txt")).status_code == 403
    assert anyone.put(address, content=b"x").status_code == 403
    go(house, job, "failed", error="out of memory", target="train.py")
    failed = client.get(f"{RUNS}/runs/j/details").json()
    assert failed["error"]["error"]["message"] == "out of memory"
    assert failed["error"]["error"]["target"] == "train.py"


def test_nothing_is_told_without_a_credential_or_of_another_workspace(
    house: House, client: TestClient, anyone: TestClient
) -> None:
    command(house, "j")
    tries: list[tuple[str, str]] = [
        ("GET", "runs/j"),
        ("GET", "runs/j/details"),
        ("GET", "runs/j/children"),
        ("GET", "runs/j/serviceinstances/0"),
        ("POST", "rundata"),
        ("PATCH", "experiments/exp/runs/j"),
    ]
    caller = Caller(name="me", workspace="ws2")
    token = house.keys.mint(caller, audience="x", seconds=60, now=ids.now())
    for method, path in tries:
        body = {} if method == "GET" else {"json": {"runId": "j"}}
        assert anyone.request(method, f"{RUNS}/{path}", **body).status_code == 401  # type: ignore[arg-type]
        other = {"headers": {"authorization": f"Bearer {token}"}, **body}
        assert anyone.request(method, f"{RUNS}/{path}", **other).status_code == 403  # type: ignore[arg-type]
        there = f"{RUNS}2/{path}"
        assert client.request(method, there, **body).status_code == 404  # type: ignore[arg-type]
    assert anyone.get("/history/v1.0/executionlogs/ws/j").status_code == 403


def test_a_pipelines_log_tells_of_its_steps_in_the_order_of_time(
    house: House, client: TestClient, anyone: TestClient
) -> None:
    parent = go(house, command(house, "p", spec=Pipeline()), "preparing", "running")
    one = command(house, "p-1", parent="p", root="p", step="prepare")
    go(house, one, "preparing", "running", "finalizing", "completed")
    address = client.get(f"{RUNS}/runs/p/details").json()["logFiles"][
        "logs/azureml/executionlogs.txt"
    ]
    before = anyone.get(address).text
    two = command(house, "p-2", parent="p", root="p", step="train")
    go(house, two, "preparing", "running", "failed", error="no data")
    go(house, parent, "failed", error="step train failed")
    after = anyone.get(address).text
    assert after.startswith(before)
    told = [line.partition("] ")[2] for line in after.splitlines()]
    assert "step prepare (p-1): Completed" in told
    assert told[-2:] == [
        "step train (p-2): Failed: no data",
        "pipeline p: Failed: step train failed",
    ]
    children = client.get(f"{RUNS}/runs/p/children").json()["value"]
    assert [child["runId"] for child in children] == ["p-1", "p-2"]
    assert children[0]["parentRunId"] == "p"


def test_a_step_that_kept_a_result_shows_the_logs_of_the_job_that_made_it(
    house: House, client: TestClient
) -> None:
    leave(house, "ExperimentRun/dcid.old/user_logs/std_log.txt", "done before\n")
    go(house, command(house, "new", step="prepare"), "completed", reused="old")
    found = client.get(f"{RUNS}/runs/new/details").json()
    assert list(found["logFiles"]) == ["user_logs/std_log.txt"]
    assert found["properties"]["azureml.reusedrunid"] == "old"


def test_texts_tags_and_the_archive_mark_change_and_nothing_else(
    house: House, client: TestClient
) -> None:
    command(house, "j", tags={"kept": "1"})
    address = f"{RUNS}/experiments/exp/runs/j"
    body = {"displayName": "new", "description": "d", "tags": {"a": "b"}, "hidden": True}
    assert client.patch(address, json=body).status_code == 200
    job = jobs.get(house.store, "j")
    assert (job.display_name, job.description, job.archived) == ("new", "d", True)
    assert job.tags == {"kept": "1", "a": "b"}
    refused = client.patch(address, json={"status": "Completed"})
    assert refused.status_code == 501
    assert "'status'" in refused.text
    assert jobs.get(house.store, "j").status == "queued"
    assert client.patch(f"{RUNS}/experiments/other/runs/j", json={}).status_code == 404


def test_outputs_lead_to_where_their_bytes_are(house: House, client: TestClient) -> None:
    leave(house, "azureml/j/model/weights", "x", store="workspaceblobstore")
    leave(house, "azureml/j/report.txt", "x", store="workspaceblobstore")
    spec = Command(
        command="true",
        outputs={"model": Output(type="mlflow_model"), "report": Output(type="uri_file")},
    )
    places = {
        "model": "file:workspaceblobstore/azureml/j/model",
        "report": "file:workspaceblobstore/azureml/j/report.txt",
    }
    job = command(house, "j", spec=spec)
    go(house, job, "preparing", "running", "finalizing", "completed", outputs=places)
    found = client.post(f"{RUNS}/rundata", json={"runId": "j"}).json()["runMetadata"]["outputs"]
    asked = [output["assetId"] for output in found.values()]
    address = f"/data/v1.0{PLACE}/dataversion/batchGetResolvedUris"
    values = client.post(address, json={"values": asked}).json()["values"]
    long = "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/workspaceblobstore"
    assert {name: values[output["assetId"]]["uri"] for name, output in found.items()} == {
        "model": f"{long}/paths/azureml/j/model/",
        "report": f"{long}/paths/azureml/j/report.txt",
    }
    missing = client.post(address, json={"values": ["azureml://jobs/j/outputs/other"]})
    assert missing.status_code == 404


def test_artifacts_are_listed_with_addresses(
    house: House, client: TestClient, anyone: TestClient
) -> None:
    command(house, "j")
    leave(house, "ExperimentRun/dcid.j/outputs/a.txt", "A")
    leave(house, "ExperimentRun/dcid.j/outputs/deep/b.txt", "B")
    leave(house, "ExperimentRun/dcid.j/logs/c.txt", "C")
    base = f"/artifact/v2.0{PLACE}/artifacts"
    below = client.get(f"{base}/prefix/contentinfo/ExperimentRun/dcid.j/outputs/").json()["value"]
    assert [item["path"] for item in below] == ["outputs/a.txt", "outputs/deep/b.txt"]
    assert anyone.get(below[1]["contentUri"]).text == "B"
    every = client.get(f"{base}/ExperimentRun/dcid.j").json()["value"]
    assert [item["path"] for item in every][0] == "logs/c.txt"
    one = client.get(f"{base}/contentinfo/ExperimentRun/dcid.j/outputs/a.txt").json()
    assert anyone.get(one["contentUri"]).text == "A"
    for path in ("contentinfo/ExperimentRun/dcid.j/none", "contentinfo/Other/dcid.j/outputs/a.txt"):
        assert client.get(f"{base}/{path}").status_code == 404


STREAM = """
import sys
from types import SimpleNamespace
from azure.ai.ml._restclient.runhistory import RunHistoryClient
from azure.ai.ml._restclient.dataset_dataplane import DatasetDataplaneClient
from azure.ai.ml._scope_dependent_operations import OperationConfig, OperationScope
from azure.ai.ml._utils._http_utils import HttpPipeline
from azure.ai.ml.operations import _job_ops_helper as helper
from azure.ai.ml.operations._dataset_dataplane_operations import DatasetDataplaneOperations
from azure.ai.ml.operations._run_operations import RunOperations
from azure.core.pipeline.policies import HeadersPolicy
url, key, name, kind = sys.argv[1:]
given = dict(base_url=url, authentication_policy=HeadersPolicy({"Authorization": "Bearer " + key}))
scope, config = OperationScope("s", "g", "w"), OperationConfig(False, False)
runs = RunOperations(scope, config, RunHistoryClient(object(), **given))
data = DatasetDataplaneOperations(scope, config, DatasetDataplaneClient(object(), **given))
job = SimpleNamespace(
    name=name, properties=SimpleNamespace(job_type=kind, services={}, properties={}))
try:
    helper.stream_logs_until_completion(runs, job, requests_pipeline=HttpPipeline())
finally:
    sys.stdout.flush()
uris = helper.get_job_output_uris_from_dataplane(name, runs, data, None)
print("outputs:", uris)
print("children:", [(child.name, child.status) for child in runs.get_run_children(name)])
"""


@pytest.fixture
def served(house: House, until: Callable[..., T]) -> Iterator[House]:
    """The house on a real listener: the official SDK speaks to nothing else."""
    config = uvicorn.Config(app_of(house), port=0, log_level="warning")
    socket = config.bind_socket()
    house = replace(house, https=f"http://127.0.0.1:{socket.getsockname()[1]}")
    config.app = app_of(house)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    until(lambda: server.started)
    yield house
    server.should_exit = True
    thread.join()
    socket.close()


def stream(house: House, name: str, kind: str, into: Path) -> subprocess.Popen[bytes]:
    environment = {"AZUREML_RUN_POLLING_INTERVAL_MIN": "0", "PYTHONUNBUFFERED": "1"}
    words = [SDK, "-c", STREAM, house.https, house.keys.admin, name, kind]
    with into.open("wb") as out:
        return subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=environment)


@pytest.mark.skipif(not SDK.exists(), reason="no .venv-sdk: `make setup` makes it")
def test_the_official_sdk_streams_a_log_as_it_grows_and_finds_the_outputs(
    served: House, tmp_path: Path, until: Callable[..., T]
) -> None:
    """Starts a listener and a process: only Microsoft's own package says what it really reads."""
    spec = Command(command="true", outputs={"model": Output(type="mlflow_model")})
    job = go(served, command(served, "j", spec=spec), "preparing", "running")
    log = leave(served, "ExperimentRun/dcid.j/user_logs/std_log.txt", "epoch 1\n")
    said = tmp_path / "said"
    process = stream(served, "j", "Command", said)
    until(lambda: "epoch 1" in said.read_text() or process.poll() is not None)
    with log.open("a") as file:
        file.write("epoch 2\n")
    leave(served, "azureml/j/model/weights", "x", store="workspaceblobstore")
    places = {"model": "file:workspaceblobstore/azureml/j/model"}
    go(served, job, "finalizing", "completed", outputs=places)
    assert process.wait(timeout=120) == 0, said.read_text()
    text = said.read_text()
    assert text.count("epoch 1\n") == text.count("epoch 2\n") == 1, text
    assert "datastores/workspaceblobstore/paths/azureml/j/model/" in text


@pytest.mark.skipif(not SDK.exists(), reason="no .venv-sdk: `make setup` makes it")
def test_the_official_sdk_streams_a_pipeline_step_by_step_and_raises_its_error(
    served: House, tmp_path: Path, until: Callable[..., T]
) -> None:
    """Starts a listener and a process, for the same reason."""
    parent = go(served, command(served, "p", spec=Pipeline()), "preparing", "running")
    step = command(served, "p-1", parent="p", root="p", step="train")
    said = tmp_path / "said"
    process = stream(served, "p", "Pipeline", said)
    until(lambda: "train (p-1): Queued" in said.read_text() or process.poll() is not None)
    go(served, step, "preparing", "running", "failed", error="row 3 has no messages")
    go(served, parent, "failed", error="step train failed: row 3 has no messages")
    assert process.wait(timeout=120) == 1
    text = said.read_text()
    assert "step train (p-1): Running" in text
    assert "JobException" in text
    assert "step train failed: row 3 has no messages" in text


def test_while_an_environment_is_built_its_log_is_what_is_streamed(
    house: House, client: TestClient, anyone: TestClient
) -> None:
    job = go(house, command(house, "j"), "preparing")
    leave(house, "ExperimentRun/dcid.j/system_logs/environment.log", "resolving")
    found = client.get(f"{RUNS}/runs/j/details").json()["logFiles"]
    assert anyone.get(found["azureml-logs/20_image_build_log.txt"]).text == "resolving"
    go(house, job, "running")
    found = client.get(f"{RUNS}/runs/j/details").json()["logFiles"]
    assert "azureml-logs/20_image_build_log.txt" not in found
    assert "system_logs/environment.log" in found


def test_a_sweep_has_a_log_of_its_trials_and_only_its_own_artifacts(
    house: House, client: TestClient, anyone: TestClient
) -> None:
    spec = Sweep(trial=Command(command="x"), space={"x": ["choice", [1]]}, metric="m")
    command(house, "s", spec=spec, reused="s_0")
    tried = Command(command="x", inputs={"x": Input(value="1")})
    score = {"finery.score": "0.5"}
    trial = command(house, "s_0", spec=tried, parent="s", root="s", properties=score)
    go(house, trial, "cancelled")
    leave(house, "ExperimentRun/dcid.s_0/outputs/made.txt", "x")
    details = client.get(f"{RUNS}/runs/s/details").json()
    log = anyone.get(details["logFiles"]["azureml-logs/hyperdrive.txt"]).text
    assert "sweep s: Queued\n" in log and "trial x=1 (s_0): Queued\n" in log
    assert "trial x=1 (s_0): Canceled, score 0.5\n" in log
    assert details["properties"]["best_child_run_id"] == "s_0"
    listed = client.get(f"/artifact/v2.0{PLACE}/artifacts/ExperimentRun/dcid.s").json()
    assert listed["value"] == []
