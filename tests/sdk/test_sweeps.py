"""Sweeps with the official `azure-ai-ml`: small trials, but real ones.

Trials really run here and log to MLflow as scripts do: that the SDK takes what we
answer, that a metric logged in a process decides and that a trial which is behind
is really ended is what nothing smaller shows.
"""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from azure.ai.ml import Input, MLClient, Output, command, load_job
from azure.ai.ml import sweep as spaces
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import AmlCompute
from azure.ai.ml.sweep import BanditPolicy, Choice, RandomSamplingAlgorithm, Uniform
from azure.core.exceptions import HttpResponseError
from azure.identity import DefaultAzureCredential

Ended = Callable[[MLClient, str], Any]
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
x, out, how = float(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
while how.startswith("/") and not os.path.exists(how):
    time.sleep(0.1)
out.mkdir(parents=True, exist_ok=True)
(out / "x.txt").write_text(sys.argv[1])
slow = how == "slow" and x != 3
for step in range(3000 if slow else 60 if how == "slow" else 1):
    log("loss", (x - 3) ** 2, step)
    if slow:
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


def idea(how: str = "quick") -> Any:
    """A trial; `how`: quick, slow (it goes on until it is ended), or a file that it waits for."""
    return command(
        code="./src",
        command=f"python try.py ${{{{inputs.x}}}} ${{{{outputs.made}}}} {how}",
        inputs={"x": 1},
        outputs={"made": Output(type="uri_folder")},
        environment=ENVIRONMENT,
        compute="sweeps",
    )


def swept(job: Any, **given: Any) -> Any:
    settings = {"sampling_algorithm": "random", "primary_metric": "loss", "goal": "Minimize"}
    return job.sweep(compute="sweeps", **{**settings, **given})


def test_a_grid_finds_the_best_and_its_outputs_are_the_sweeps(
    ml: MLClient, folder: Path, streamed: Callable[..., str]
):
    kept = f"best-{uuid.uuid4().hex[:8]}"
    made = swept(idea(f"{folder}/seen")(x=Choice([1, 3, 5])), sampling_algorithm="grid")
    made.set_limits(max_total_trials=10, max_concurrent_trials=2, timeout=600, trial_timeout=300)
    made.outputs.made.name = kept
    made.experiment_name = "sdk-sweep"
    job = ml.jobs.create_or_update(made)
    assert job.type == "sweep"
    shown = streamed(ml, job.name, word="Running", file=folder / "seen")
    assert f"trial x=5 ({job.name}_2): Running" in shown
    done = ml.jobs.get(job.name)
    assert (done.status, done.properties["best_child_run_id"]) == ("Completed", f"{job.name}_1")
    assert float(done.properties["score"]) == 0
    assert done.search_space["x"].values == [1, 3, 5]
    assert (done.limits.max_total_trials, done.limits.trial_timeout) == (10, 300)
    children = list(ml.jobs.list(parent_job_name=job.name))
    assert sorted(child.name for child in children) == [f"{job.name}_{n}" for n in range(3)]
    ml.jobs.download(job.name, download_path="got", output_name="made")
    assert next(Path("got").rglob("x.txt")).read_text() == "3"
    assert ml.data.get(kept, label="latest").path
    run = mlflow.get_run(f"{job.name}_1")
    assert run.data.tags["mlflow.parentRunId"] == job.name
    assert (run.data.params["x"], run.data.metrics["loss"]) == ("3", 0)


def test_a_trial_that_is_behind_is_ended_early(ml: MLClient, folder: Path, ended: Ended):
    made = swept(idea("slow")(x=Choice([3, 9])), sampling_algorithm="grid")
    made.set_limits(max_total_trials=2, max_concurrent_trials=2)
    made.early_termination = BanditPolicy(slack_factor=0.2, evaluation_interval=1)
    job = ml.jobs.create_or_update(made)
    done = ended(ml, job.name)
    assert (done.status, done.properties["best_child_run_id"]) == ("Completed", f"{job.name}_0")
    behind = ml.jobs.get(f"{job.name}_1")
    assert behind.status == "Canceled"
    assert "ended early by the bandit policy" in behind.properties["finery.warnings"]
    assert done.early_termination.slack_factor == 0.2


def test_every_distribution_is_drawn_from_and_comes_back_as_it_went(ml: MLClient, ended: Ended):
    space = {
        "a": Choice(["x", {"deep": Uniform(0, 1)}]),
        "b": spaces.Randint(upper=7),
        "c": Uniform(0, 1),
        "d": spaces.LogUniform(-6, -1),
        "e": spaces.QUniform(1, 100, 5),
        "f": spaces.QLogUniform(0, 5, 2),
        "g": spaces.Normal(0, 1),
        "h": spaces.LogNormal(0, 1),
        "i": spaces.QNormal(10, 2, 1),
        "j": spaces.QLogNormal(1, 1, 1),
    }
    line = "echo " + " ".join(f"${{{{inputs.{name}}}}}" for name in space)
    tried = command(
        command=line, inputs=dict.fromkeys(space, 1), environment=ENVIRONMENT, compute="sweeps"
    )
    sobol = RandomSamplingAlgorithm(rule="sobol", seed=7, logbase="e")
    made = swept(tried(**space), sampling_algorithm=sobol, goal="maximize")
    made.set_limits(max_total_trials=2, max_concurrent_trials=1)
    job = ml.jobs.create_or_update(made)
    done = ended(ml, job.name)
    assert {name: done.search_space[name] for name in space} == space
    assert (done.sampling_algorithm.rule.lower(), done.sampling_algorithm.seed) == ("sobol", 7)
    assert done.objective.goal.lower() == "maximize"
    assert done.trial.command == line.replace("inputs.", "search_space.")
    # Nobody logged the metric: there is no best, and the sweep says why.
    assert (done.status, "best_child_run_id" in done.properties) == ("Completed", False)
    assert "has not logged the metric 'loss'" in done.properties["finery.warnings"]
    tried_first = mlflow.get_run(f"{job.name}_0").data.params
    assert set(tried_first) == set(space) and 0 <= int(tried_first["b"]) < 7


def test_a_cancelled_sweep_takes_its_trials_with_it(ml: MLClient, until: Callable[..., Any]):
    tried = command(
        command="sleep ${{inputs.x}}", inputs={"x": 1}, environment=ENVIRONMENT, compute="sweeps"
    )
    made = swept(tried(x=Choice([601, 602, 603])))
    made.set_limits(max_total_trials=3, max_concurrent_trials=3)
    job = ml.jobs.create_or_update(made)
    until(lambda: len(list(ml.jobs.list(parent_job_name=job.name))) == 3)
    ml.jobs.begin_cancel(job.name).wait()
    assert ml.jobs.get(job.name).status == "Canceled"
    states = {child.status for child in ml.jobs.list(parent_job_name=job.name)}
    assert states == {"Canceled"}
    with pytest.raises(HttpResponseError):
        ml.jobs.begin_cancel(job.name).wait()


@pytest.mark.parametrize(
    "space, changed, target",
    [
        (Uniform(0, 1), {"sampling_algorithm": "grid"}, "search_space.x"),
        (Uniform(1, 0), {}, "search_space.x"),
        (Choice([]), {}, "search_space.x"),
        (Choice([1]), {"primary_metric": ""}, "objective.primary_metric"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_with_the_field(
    ml: MLClient, folder: Path, space: Any, changed: dict[str, Any], target: str
):
    made = swept(idea()(x=space), **changed)
    made.set_limits(max_total_trials=1, max_concurrent_trials=1)
    with pytest.raises(HttpResponseError) as caught:
        ml.jobs.create_or_update(made)
    assert (caught.value.status_code, caught.value.error.target) == (400, target)


HELLO = """
$schema: https://azuremlschemas.azureedge.net/latest/sweepJob.schema.json
type: sweep
trial:
  command: >-
    echo ${{search_space.A}} ${{inputs.B}} ${{search_space.C}} > ${{outputs.said}}
  environment: ENVIRONMENT
inputs:
  B: 5
outputs:
  said: {type: uri_file}
compute: azureml:sweeps
sampling_algorithm: random
search_space:
  A: {type: choice, values: [1, 2]}
  C: {type: uniform, min_value: 0.1, max_value: 0.5}
objective: {goal: minimize, primary_metric: random_metric}
limits: {max_total_trials: 2, max_concurrent_trials: 2, timeout: 3600}
display_name: hello-sweep-example
experiment_name: hello-sweep-example
description: Hello sweep job example.
"""


def test_a_sweep_may_be_written_in_yaml(ml: MLClient, tmp_path: Path, ended: Ended):
    (tmp_path / "sweep.yml").write_text(HELLO.replace("ENVIRONMENT", ENVIRONMENT))
    job = ml.jobs.create_or_update(load_job(tmp_path / "sweep.yml"))
    assert ended(ml, job.name).status == "Completed"
    ml.jobs.download(f"{job.name}_1", download_path=tmp_path / "got", output_name="said")
    a, b, c = next((tmp_path / "got").rglob("said/**/said")).read_text().split()
    assert (a in "12", b, 0.1 <= float(c) <= 0.5) == (True, "5", True)


def test_a_sweep_is_a_step_of_a_pipeline_and_its_best_goes_on(
    ml: MLClient, folder: Path, ended: Ended
):
    tried = idea().component
    read = command(
        name="read",
        command="cat ${{inputs.made}}/x.txt > ${{outputs.kept}}/x.txt",
        inputs={"made": Input(type="uri_folder")},
        outputs={"kept": Output(type="uri_folder")},
        environment=ENVIRONMENT,
    ).component

    @pipeline()
    def tuned():
        tune = tried(x=Choice([1, 3])).sweep(
            primary_metric="loss", goal="minimize", sampling_algorithm="grid"
        )
        tune.set_limits(max_total_trials=2, max_concurrent_trials=2, trial_timeout=300)
        last = read(made=tune.outputs.made)
        return {"kept": last.outputs.kept}

    made = tuned()
    made.settings.default_compute = "sweeps"
    job = ml.jobs.create_or_update(made, experiment_name="sdk-sweep")
    assert job.jobs["tune"].type == "sweep"
    done = ended(ml, job.name)
    assert done.status == "Completed", done.properties
    assert done.jobs["tune"].search_space["x"].values == [1, 3]
    ml.jobs.download(job.name, download_path="got", output_name="kept")
    assert next(Path("got").rglob("x.txt")).read_text() == "3"
