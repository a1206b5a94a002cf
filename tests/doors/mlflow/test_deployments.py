"""The runs of deployments, in the real store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finery.core import assets, endpoints, ids
from finery.core.assets import Asset
from finery.core.endpoints import Deployment, Endpoint, Serving
from finery.core.jobs import Command, Output


@pytest.fixture
def blue(door) -> Deployment:
    name = f"ep-{ids.new()}"
    store = door.house.store
    made = {"scope": door.workspace.id, "kind": "model", "name": "tuned", "location": "file:b/m"}
    model = assets.create(store, Asset(**made, type="mlflow_model", made_by="trained/model"))
    endpoints.create(store, Endpoint(name=name, workspace=door.workspace.id))
    spec = Serving(model=model.ref)
    deployment = Deployment(endpoint=name, name="blue", workspace=door.workspace.id, spec=spec)
    return endpoints.deploy(store, deployment)


def run(door, blue: Deployment) -> dict:
    answer = door.client().get(f"/mlflow/api/2.0/mlflow/runs/get?run_id={blue.id}")
    assert answer.status_code == 200, answer.text
    return answer.json()["run"]


def test_a_run_begins_with_the_first_figures_in_the_experiment_of_its_endpoint(door, blue):
    for rate in (3.0, 4.0):
        door.mlflow.deployments.log(blue, {"requests_per_second": rate}, at=ids.now())
    found = run(door, blue)
    assert (found["info"]["run_name"], found["info"]["status"]) == ("blue", "RUNNING")
    tags = {tag["key"]: tag["value"] for tag in found["data"]["tags"]}
    assert (tags["finery.model"], tags["finery.deployment"]) == ("tuned", "blue")
    values = {metric["key"]: metric["value"] for metric in found["data"]["metrics"]}
    assert values == {"requests_per_second": 4.0}
    url = f"/mlflow/api/2.0/mlflow/experiments/get?experiment_id={found['info']['experiment_id']}"
    assert door.client().get(url).json()["experiment"]["name"] == f"endpoints/{blue.endpoint}"


def test_a_run_ends_with_its_deployment_and_no_other_does(door, blue):
    green = replace(blue, id=ids.new(), name="green")
    for deployment in (blue, green):
        door.mlflow.deployments.log(deployment, {"queue": 0}, at=ids.now())
    assert door.mlflow.deployments.close({green.id}) is True
    assert run(door, blue)["info"]["status"] == "FINISHED"
    assert run(door, green)["info"]["status"] == "RUNNING"


def test_the_model_that_a_job_has_made_is_an_input_of_the_run(door, blue):
    spec = Command(command="true", outputs={"model": Output(type="mlflow_model")})
    job = door.job("trained", spec=spec)
    door.mlflow.tracking.open(job)
    ended = {"status": "completed", "ended_at": ids.now(), "outputs": {"model": "file:b/m"}}
    door.mlflow.tracking.close(replace(job, **ended))
    door.mlflow.deployments.log(blue, {"queue": 0}, at=ids.now())
    [given] = run(door, blue)["inputs"]["model_inputs"]
    shown = door.client().get(f"/mlflow/api/2.0/mlflow/logged-models/{given['model_id']}")
    assert shown.json()["model"]["info"]["source_run_id"] == "trained"
