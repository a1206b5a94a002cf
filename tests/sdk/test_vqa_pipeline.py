"""Pictures and questions, no script: the ready pipeline to a deployment that answers, with the SDK.

One test, because each call stands on the one before.  The training is cut to a
few steps: that it learns is `make quickstart-vqa`'s to show.
"""

from __future__ import annotations

import ast
import base64
import json
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from azure.ai.ml import Input, MLClient
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import (
    Data,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
)
from azure.core.exceptions import HttpResponseError

GENERATOR = Path(__file__).parents[2] / "examples" / "florence2_vqa" / "documents.py"
STEPS = [
    "visual_question_answering_model_import",
    "visual_question_answering_datapreprocess",
    "visual_question_answering_finetune",
    "visual_question_answering_model_converter",
    "visual_question_answering_model_evaluation",
]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder of drawn documents with questions, of no private data."""
    folder = tmp_path / "documents"
    counts = ["--train", "12", "--validation", "3", "--test", "3"]
    python = Path(__file__).parents[2] / ".venv" / "bin" / "python"
    program = python if python.exists() else sys.executable
    subprocess.run([program, GENERATOR, "--out", folder, *counts], check=True)
    return folder


def test_pictures_and_questions_become_a_deployment_that_answers(
    ml: MLClient, registry: MLClient, documents: Path, tmp_path: Path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    stamp = str(int(time.time()))

    # what the catalog has
    base = registry.models.get("Florence-2-base-ft", label="latest")
    assert "stand-in" in base.description.lower()
    defaults = ast.literal_eval(base.tags["model_specific_defaults"])
    component = registry.components.get(name="visual_question_answering_pipeline", label="latest")

    # the data: one folder of pictures and rows
    data = ml.data.create_or_update(
        Data(name=f"documents-{stamp}", version="1", type=AssetTypes.URI_FOLDER, path=documents)
    )
    parameters = {**defaults, "max_steps": 3, "num_beams": 1, "max_test_rows": 6}

    @pipeline(name=f"vqa-{stamp}")
    def create_pipeline():
        tuned = component(
            mlflow_model_path=base.id,
            data_folder_path=Input(type="uri_folder", path=data.id),
            **parameters,
        )
        return {"trained_model": tuned.outputs.mlflow_model_folder}

    job = ml.jobs.create_or_update(create_pipeline(), experiment_name="vqa")
    ml.jobs.stream(job.name)
    streamed = capfd.readouterr().out
    job = ml.jobs.get(job.name)
    assert job.status == "Completed", streamed

    # what the steps did
    (inner,) = ml.jobs.list(parent_job_name=job.name)
    steps = {step.display_name: step for step in ml.jobs.list(parent_job_name=inner.name)}
    assert sorted(steps) == sorted(STEPS)
    run = mlflow.get_run(job.name)
    assert {"eval_loss", "eval_anls", "tuned_anls", "base_exact_match"} <= set(run.data.metrics)
    finetune = steps["visual_question_answering_finetune"].name
    client = mlflow.MlflowClient()
    assert client.list_artifacts(finetune, "samples"), "a picture with the model's answer"
    assert client.list_artifacts(job.name, "evaluation")

    # a model, and a deployment with no code
    model = ml.models.create_or_update(
        Model(
            path=f"azureml://jobs/{job.name}/outputs/trained_model",
            type=AssetTypes.MLFLOW_MODEL,
            name="documents-reader",
            version=stamp,
        )
    )
    endpoint = ManagedOnlineEndpoint(name=f"vqa-{stamp}", auth_mode="key")
    ml.begin_create_or_update(endpoint).wait()
    deployment = ManagedOnlineDeployment(
        name="blue",
        endpoint_name=endpoint.name,
        model=model.id,
        instance_type="Standard_NC6s_v3",
        instance_count=1,
        request_settings=OnlineRequestSettings(request_timeout_ms=90000),
    )
    ml.online_deployments.begin_create_or_update(deployment).wait()

    # a picture and a question, in both ways that a table can be written
    picture = base64.b64encode(next(documents.rglob("*.png")).read_bytes()).decode()
    question = "What is the date?"
    answers = []
    for columns, image in (
        (["image", "question"], picture),
        (["image", "text"], f"data:image/png;base64,{picture}"),
    ):
        table = {"columns": columns, "index": [0], "data": [[image, question]]}
        answers.append(ask(ml, endpoint.name, {"input_data": table}))
    answers.append(ask(ml, endpoint.name, {"input_data": [{"image": picture, "text": question}]}))
    assert isinstance(answers[0][0]["answer"], str)
    assert answers[0] == answers[1] == answers[2]
    with pytest.raises(HttpResponseError, match="is not base64") as refused:
        ask(ml, endpoint.name, {"input_data": [{"image": "?!", "question": question}]})
    assert refused.value.status_code == 424
    assert refused.value.response.headers["ms-azureml-model-error-statuscode"] == "400"
    ml.online_endpoints.begin_delete(name=endpoint.name).wait()


def ask(ml: MLClient, endpoint: str, body: dict) -> list[dict[str, str]]:
    Path("request.json").write_text(json.dumps(body))
    said = ml.online_endpoints.invoke(
        endpoint_name=endpoint, deployment_name="blue", request_file="request.json"
    )
    return json.loads(said)
