"""The official `mlflow` client against a running server, beside `azure-ai-ml`."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.entities import Model
from mlflow import MlflowClient

MODEL = """
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return ["said " + str(x) for x in model_input]

mlflow.models.set_model(Model())
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return str(path)


def test_runs_metrics_params_and_artifacts_come_back(name: str) -> None:
    mlflow.set_experiment(name)
    with mlflow.start_run(run_name="a run") as run:
        mlflow.log_params({"lr": 1e-4, "epochs": 3})
        for step in range(5):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        mlflow.log_metrics({"a": 1, "b": 2}, step=7)
        mlflow.set_tag("team", "red")
        mlflow.log_text("hello", "notes/hello.txt")
        with mlflow.start_run(nested=True, run_name="a child"):
            mlflow.log_metric("inner", 1)
    [child] = mlflow.search_runs(
        [run.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{run.info.run_id}'",
        output_format="list",
    )
    found = mlflow.get_run(run.info.run_id)
    assert child.info.run_name == "a child"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.0001", "epochs": "3"}
    assert found.data.metrics == {"loss": 0.2, "a": 1, "b": 2}
    history = MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(s, 1 / (s + 1)) for s in range(5)]
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/notes/hello.txt") == "hello"
    assert [f.path for f in MlflowClient().list_artifacts(run.info.run_id)] == ["notes"]


def test_a_model_that_mlflow_registers_is_one_of_azures(ml: MLClient, code: str, name: str) -> None:
    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(name="m", python_model=code, pip_requirements=[])
    made = mlflow.register_model(logged.model_uri, name, tags={"team": "red"})
    found = ml.models.get(name, version=made.version)
    assert (found.name, found.version, found.type) == (name, "1", "mlflow_model")
    assert found.tags == {"team": "red"}
    assert mlflow.pyfunc.load_model(f"models:/{name}/1").predict(["x"]) == ["said x"]


def test_a_model_that_azure_registers_is_one_of_mlflows(
    ml: MLClient, code: str, name: str, tmp_path: Path
) -> None:
    mlflow.pyfunc.save_model(tmp_path / "saved", python_model=code, pip_requirements=[])
    model = Model(path=tmp_path / "saved", name=name, type="mlflow_model", description="by azure")
    made = ml.models.create_or_update(model)
    [found] = MlflowClient().search_model_versions(f"name = '{name}'")
    assert (found.version, found.description) == (made.version, "by azure")
    assert mlflow.pyfunc.load_model(f"models:/{name}/{found.version}").predict(["x"]) == ["said x"]
    assert mlflow.pyfunc.load_model(f"models:/{name}/latest").predict(["x"]) == ["said x"]


def test_without_a_token_the_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "wrong")
    with pytest.raises(mlflow.MlflowException, match="not one of this server's"):
        mlflow.search_experiments()
