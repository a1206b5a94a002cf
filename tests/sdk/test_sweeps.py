"""Sweeps with the official `azure-ai-ml`: an idea of the trial is enough, the runs are real.

Trials really run here and log to MLflow as scripts do: that the SDK takes what we
answer, that a metric logged in a process decides and that a trial which is behind
is really ended is what nothing smaller shows.
"""

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from azure.ai.ml import MLClient, Output, command
from azure.ai.ml.entities import AmlCompute
from azure.ai.ml.sweep import BanditPolicy, Choice, LogUniform, Normal, RandomSamplingAlgorithm, Uniform
from azure.core.exceptions import HttpResponseError
from azure.identity import DefaultAzureCredential

ENVIRONMENT = "azureml://registries/azureml/environments/sklearn-1.5/labels/latest"
# What mlflow.log_metric does, without the seconds that importing mlflow takes.
SCRIPT = """
import json, os, pathlib, sys, time, urllib.request
def log(key, value, step=0):
    body = {"run_id": os.environ["MLFLOW_RUN_ID"], "key": key, "value": value, "step": step,
            "timestamp": int(time.time() * 1000)}
    request = urllib.request.Request(
        os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric",
        json.dumps(body).encode(),
        {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"],
         "Content-Type": "application/json"})
    urllib.request.urlopen(request).read()
x, out = float(sys.argv[1]), pathlib.Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
(out / "x.txt").write_text(sys.argv[1])
for step in range(int(sys.argv[3])):
    log("loss", (x - 3) ** 2, step)
    if len(sys.argv) > 4 and x != 3:
        time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def ml() -> MLClient:
    client = MLClient(
        DefaultAzureCredential(),
        os.environ["AZURE_SUBSCRIPTION_ID"],
        os.environ["AZURE_RESOURCE_GROUP"],
        os.environ["AZURE_ML_WORKSPACE"],
        retry_total=0,
    )
    cluster = AmlCompute(name="sweeps", size="Standard_DS3_v2", min_instances=0, max_instances=2)
    client.compute.begin_create_or_update(cluster).result()
    return client


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "try.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def idea(*, steps: int = 1, slow: str = "") -> Any:
    return command(
        code="./src",
        command=f"python try.py ${{{{inputs.x}}}} ${{{{outputs.made}}}} {steps} {slow}",
        inputs={"x": 1},
        outputs={"made": Output(type="uri_folder")},
        environment=ENVIRONMENT,
        compute="sweeps",
    )


def sweep_of(job: Any, **given: Any) -> Any:
    settings = {"sampling_algorithm": "random", "primary_metric": "loss", "goal": "Minimize"}
    return job.sweep(compute="sweeps", **{**settings, **given})


def wait(ml: MLClient, name: str, *, seconds: float = 60) -> Any:
    return until(lambda: (job := ml.jobs.get(name)).status in FINAL and job, seconds=seconds)


FINAL = ("Completed", "Failed", "Canceled")


def until(condition: Callable[[], Any], *, seconds: float = 60) -> Any:
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def test_a_grid_finds_the_best_and_its_outputs_are_the_sweeps(
    ml: MLClient, folder: Path, capsys: pytest.CaptureFixture[str]
):
    kept = f"best-{uuid.uuid4().hex[:8]}"
    made = sweep_of(idea()(x=Choice([1, 3, 5])), sampling_algorithm="grid")
    made.set_limits(max_total_trials=10, max_concurrent_trials=2, timeout=600, trial_timeout=60)
    made.outputs.made.name = kept
    made.experiment_name = "sdk-sweep"
    job = ml.jobs.create_or_update(made)
    assert job.type == "sweep"
    ml.jobs.stream(job.name)
    assert "trial_2" in capsys.readouterr().out
    done = ml.jobs.get(job.name)
    assert (done.status, done.properties["best_child_run_id"]) == ("Completed", f"{job.name}_1")
    assert float(done.properties["score"]) == 0
    assert done.search_space["x"].values == [1, 3, 5]
    assert (done.limits.max_total_trials, done.limits.trial_timeout) == (10, 60)
    children = list(ml.jobs.list(parent_job_name=job.name))
    assert sorted(child.name for child in children) == [f"{job.name}_{n}" for n in range(3)]
    ml.jobs.download(job.name, download_path="got", output_name="made")
    assert next(Path("got").rglob("x.txt")).read_text() == "3"
    assert ml.data.get(kept, label="latest").path
    run = mlflow.get_run(f"{job.name}_1")
    assert run.data.tags["mlflow.parentRunId"] == job.name
    assert (run.data.params["x"], run.data.metrics["loss"]) == ("3", 0)
