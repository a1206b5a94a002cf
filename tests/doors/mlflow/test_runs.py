"""The run of a job: opened, joined by the job's own process, closed as the job ended."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from finery.core import ids
from finery.core.jobs import Command, Input, Output, Pipeline
from finery.doors.mlflow.tracking import run_id

API = "/mlflow/api/2.0/mlflow"


def _run(door, name: str) -> dict:
    return door.client().get(f"{API}/runs/get?run_id={run_id(name)}").json()["run"]


def _tags(run: dict) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}


def test_the_run_of_a_job_has_its_name_and_keeps_its_artifacts_with_the_jobs(door) -> None:
    job = door.job("brave-fox", display_name="A brave fox", tags={"team": "red", "b@d": "x"})
    env = door.mlflow.tracking.open(job)
    run = _run(door, "brave-fox")
    assert run["info"]["run_id"] == env["MLFLOW_RUN_ID"] == env["AZUREML_RUN_ID"] == "brave-fox"
    assert run["info"]["status"] == "RUNNING"
    assert run["info"]["run_name"] == "A brave fox"
    place = f"{door.workspace.id}/workspaceartifactstore/ExperimentRun/dcid.brave-fox"
    assert run["info"]["artifact_uri"] == f"mlflow-artifacts:/{place}"
    tags = _tags(run)
    assert (tags["finery.job"], tags["team"], tags["mlflow.source.type"]) == (
        "brave-fox",
        "red",
        "JOB",
    )
    assert "b@d" not in tags  # MLflow has no such names, and would not show the run at all


def test_opening_again_changes_nothing(door) -> None:
    job = door.job("opened-twice")
    first = door.mlflow.tracking.open(job)
    before = _run(door, job.name)
    second = door.mlflow.tracking.open(replace(job, display_name="another name"))
    assert _run(door, job.name) == before
    assert {**first, "MLFLOW_TRACKING_TOKEN": ""} == {**second, "MLFLOW_TRACKING_TOKEN": ""}


def test_a_step_is_a_child_of_its_pipeline(door) -> None:
    parent = door.job("whole-pipeline", spec=Pipeline())
    child = door.job("one-step", parent="whole-pipeline", root="whole-pipeline", step="train")
    door.mlflow.tracking.open(parent)
    env = door.mlflow.tracking.open(child)
    tags = _tags(_run(door, "one-step"))
    assert tags["mlflow.parentRunId"] == tags["mlflow.rootRunId"] == "whole-pipeline"
    assert env["FINERY_ROOT_RUN_ID"] == "whole-pipeline"
    assert "mlflow.parentRunId" not in _tags(_run(door, "whole-pipeline"))


@pytest.mark.parametrize(
    ("ended", "shown"), [("completed", "FINISHED"), ("failed", "FAILED"), ("cancelled", "KILLED")]
)
def test_a_run_ends_as_its_job_ended(door, ended: str, shown: str) -> None:
    job = door.job(f"ends-{ended}")
    door.mlflow.tracking.open(job)
    over = replace(job, status=ended, ended_at=ids.now())
    door.mlflow.tracking.close(over)
    door.mlflow.tracking.close(over)
    info = _run(door, job.name)["info"]
    assert info["status"] == shown
    assert info["end_time"] == int(over.ended_at.timestamp() * 1000)


def test_closing_a_job_that_goes_on_does_nothing(door) -> None:
    job = door.job("goes-on")
    door.mlflow.tracking.open(job)
    door.mlflow.tracking.close(job)
    assert _run(door, job.name)["info"]["status"] == "RUNNING"


def test_a_job_whose_run_was_never_opened_has_one_at_the_end(door) -> None:
    job = door.job("never-opened")
    door.mlflow.tracking.close(replace(job, status="failed", ended_at=ids.now()))
    assert _run(door, job.name)["info"]["status"] == "FAILED"


def test_literal_inputs_become_parameters_unless_the_job_logged_its_own(door) -> None:
    inputs = {
        "lr": Input(value="1e-4"),
        "epochs": Input(value="3"),
        "data": Input(value="asset:data/w/d/1", type="uri_file"),
        "bound": Input(value="${{parent.inputs.x}}"),
    }
    job = door.job("with-inputs")
    job = replace(job, spec=replace(job.spec, inputs=inputs))
    door.mlflow.tracking.open(job)
    own = {"run_id": job.name, "key": "lr", "value": "0.0001"}
    assert door.client().post(f"{API}/runs/log-parameter", json=own).status_code == 200
    over = replace(job, status="completed", ended_at=ids.now())
    door.mlflow.tracking.close(over)
    door.mlflow.tracking.close(over)
    params = _run(door, job.name)["data"]["params"]
    assert {param["key"]: param["value"] for param in params} == {"lr": "0.0001", "epochs": "3"}


def test_a_model_that_a_job_made_is_one_that_its_run_has_logged(door) -> None:
    outputs = {"tuned": Output(type="mlflow_model"), "rows": Output(type="uri_folder")}
    job = door.job("makes-a-model", spec=Command(command="true", outputs=outputs))
    places = {name: f"file:workspaceblobstore/azureml/{job.name}/{name}" for name in outputs}
    folder = door.house.files.path(job.workspace, "workspaceblobstore", f"azureml/{job.name}/tuned")
    folder.mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    env = door.mlflow.tracking.open(job)
    over = replace(job, status="completed", ended_at=ids.now(), outputs=places)
    door.mlflow.tracking.close(over)
    door.mlflow.tracking.close(over)
    search = {
        "experiment_ids": [env["MLFLOW_EXPERIMENT_ID"]],
        "filter": f"source_run_id = '{job.name}'",
    }
    [logged] = door.client().post(f"{API}/logged-models/search", json=search).json()["models"]
    told = (logged["info"]["name"], logged["info"]["status"], logged["info"]["source_run_id"])
    assert told == ("tuned", "LOGGED_MODEL_READY", job.name)
    assert door.client().post(f"{API}/registered-models/create", json={"name": "mine"}).is_success
    id = logged["info"]["model_id"]
    source = {"name": "mine", "source": f"models:/{id}", "model_id": id}
    answer = door.client().post(f"{API}/model-versions/create", json=source)
    assert answer.is_success, answer.text
    made = answer.json()["model_version"]
    assert made["run_id"] == job.name


def test_jobs_of_other_workspaces_have_experiments_of_their_own(door) -> None:
    here = door.mlflow.tracking.open(door.job("is-here"))
    there = door.mlflow.tracking.open(door.job("is-there", workspace=door.other.id))
    assert here["MLFLOW_EXPERIMENT_NAME"] == "tests"
    assert there["MLFLOW_EXPERIMENT_NAME"] == "other/tests"
    assert here["AZUREML_EXPERIMENT_NAME"] == there["AZUREML_EXPERIMENT_NAME"] == "tests"
    assert here["MLFLOW_EXPERIMENT_ID"] != there["MLFLOW_EXPERIMENT_ID"]


def test_a_deleted_experiment_comes_back_with_its_next_job(door) -> None:
    first = door.mlflow.tracking.open(door.job("before-deletion", experiment="deleted"))
    body = {"experiment_id": first["MLFLOW_EXPERIMENT_ID"]}
    assert door.client().post(f"{API}/experiments/delete", json=body).status_code == 200
    again = door.mlflow.tracking.open(door.job("after-deletion", experiment="deleted"))
    assert again["MLFLOW_EXPERIMENT_ID"] == first["MLFLOW_EXPERIMENT_ID"]
    id = first["MLFLOW_EXPERIMENT_ID"]
    found = door.client().get(f"{API}/experiments/get?experiment_id={id}").json()
    assert found["experiment"]["lifecycle_stage"] == "active"


def test_a_name_that_mlflow_cannot_take_is_hashed_and_can_be_found_by_tag(door) -> None:
    door.mlflow.tracking.open(door.job("has.dots"))
    assert run_id("has.dots") != "has.dots"
    assert _tags(_run(door, "has.dots"))["finery.job"] == "has.dots"
    assert run_id("a" * 33) == "a" * 33
    assert len(run_id("a" * 33, short=True)) == 32


def test_a_script_with_no_set_up_joins_its_jobs_own_run(door, served) -> None:
    # The official client in a process of its own, over HTTP: the environment is the point.
    script = """
import json, mlflow
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 0.5, step=1)
    mlflow.log_metrics({"accuracy": 0.75, "none": float("nan")}, step=2)
    mlflow.log_param("own", 1)
    mlflow.log_text("hello", "notes/hello.txt")
print(json.dumps([run.info.run_id, run.info.experiment_id]))
"""
    job = door.job("no-set-up")
    env = door.mlflow.tracking.open(job)
    plain = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**plain, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said == [job.name, env["MLFLOW_EXPERIMENT_ID"]]
    data = _run(door, job.name)["data"]
    metrics = {metric["key"]: metric["value"] for metric in data["metrics"]}
    assert metrics == {"loss": 0.5, "accuracy": 0.75, "none": "NaN"}
    kept = door.house.files.path(
        door.workspace.id,
        "workspaceartifactstore",
        "ExperimentRun/dcid.no-set-up/notes/hello.txt",
    )
    assert kept.read_text() == "hello"


def test_a_metrics_values_are_read_in_the_order_of_time(door) -> None:
    job = door.job("measured")
    door.mlflow.tracking.open(job)
    for at, value in ((1, 0.5), (3, "NaN"), (2, 0.25)):
        body = {"run_id": "measured", "key": "loss", "value": value, "timestamp": at, "step": 0}
        assert door.client().post(f"{API}/runs/log-metric", json=body).status_code == 200
    found = door.mlflow.tracking.metrics(job, "loss")
    assert found[:2] == [0.5, 0.25] and math.isnan(found[2])
    assert door.mlflow.tracking.metrics(job, "other") == []
    assert door.mlflow.tracking.metrics(door.job("never-measured"), "loss") == []


def test_a_command_is_told_where_its_data_lies_as_on_azure(door) -> None:
    data = {"data": Input(value="file:x", type="uri_folder"), "lr": Input(value="1")}
    spec = Command(command="x", inputs=data, outputs={"made": Output()}, nodes=2)
    env = door.mlflow.tracking.open(door.job("told", spec=spec))
    assert env["AZURE_ML_INPUT_data"] == "${{inputs.data}}"
    assert env["AZURE_ML_OUTPUT_made"] == "${{outputs.made}}"
    assert (env["AZUREML_NODE_COUNT"], "AZURE_ML_INPUT_lr" in env) == ("2", False)
