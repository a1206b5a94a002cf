"""Online endpoints with the official `azure-ai-ml`, as the guides write them.

A model is really served here: what the SDK makes of operations, addresses and
keys only shows when something answers behind them.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.constants._endpoint import EndpointInvokeFields
from azure.ai.ml.entities import (
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
    ProbeSettings,
)
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential

ENVIRONMENT = "azureml://registries/azureml/environments/minimal-py312-inference/labels/latest"
SCRIPT = """
import json, os
def init():
    global folder
    folder = sorted(os.listdir(os.environ["AZUREML_MODEL_DIR"]))
    print("the model is", folder)
def run(data):
    return {"folder": folder, "given": json.loads(data), "by": os.environ["BY"]}
"""
FAILS = """
def init():
    raise RuntimeError("these weights are of no use")
def run(data):
    return data
"""


@pytest.fixture(scope="module")
def ml() -> MLClient:
    return MLClient(
        DefaultAzureCredential(),
        os.environ["AZURE_SUBSCRIPTION_ID"],
        os.environ["AZURE_RESOURCE_GROUP"],
        os.environ["AZURE_ML_WORKSPACE"],
        retry_total=0,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    for path, text in (
        ("src/score.py", SCRIPT),
        ("src/fails.py", FAILS),
        ("model/weights.bin", "w"),
        ("request.json", json.dumps({"x": 1})),
    ):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture(scope="module")
def model(ml: MLClient, folder: Path) -> Model:
    return ml.models.create_or_update(
        Model(name="sdk-serving", path=folder / "model", type="custom_model")
    )


def deployment(endpoint: str, name: str, model: Model, folder: Path, **more: Any) -> Any:
    usual: dict[str, Any] = {
        "environment": ENVIRONMENT,
        "code_path": str(folder / "src"),
        "scoring_script": "score.py",
        "environment_variables": {"BY": name},
        "instance_type": "Standard_DS3_v2",
        "instance_count": 1,
        "request_settings": OnlineRequestSettings(
            max_concurrent_requests_per_instance=3,
            request_timeout_ms=90_000,
            max_queue_wait_ms=60_000,
        ),
        "liveness_probe": ProbeSettings(
            failure_threshold=30, success_threshold=1, period=100, initial_delay=500
        ),
        "readiness_probe": ProbeSettings(
            failure_threshold=30, success_threshold=1, period=100, initial_delay=500
        ),
    }
    return ManagedOnlineDeployment(
        name=name, endpoint_name=endpoint, model=model, **{**usual, **more}
    )


@pytest.fixture(scope="module")
def endpoint(ml: MLClient, model: Model, folder: Path) -> Iterator[str]:
    """An endpoint with one deployment, `blue`, that gets no traffic."""
    name = f"sdk-{uuid.uuid4().hex[:12]}"
    ml.begin_create_or_update(ManagedOnlineEndpoint(name=name, tags={"a": "1"})).wait()
    ml.begin_create_or_update(deployment(name, "blue", model, folder)).result()
    yield name
    ml.online_endpoints.begin_delete(name).wait()
    with pytest.raises(ResourceNotFoundError):
        ml.online_endpoints.get(name)


def invoke(ml: MLClient, endpoint: str, folder: Path, **more: Any) -> Any:
    # The SDK (1.35) goes on naming the deployment of the last call that named one.
    EndpointInvokeFields.DEFAULT_HEADER.pop(EndpointInvokeFields.MODEL_DEPLOYMENT, None)
    answer = ml.online_endpoints.invoke(endpoint, request_file=folder / "request.json", **more)
    return json.loads(answer)


def test_a_deployment_comes_back_as_it_was_asked_for(ml: MLClient, endpoint: str, model: Model):
    got = ml.online_deployments.get("blue", endpoint)
    assert (got.provisioning_state, got.instance_count) == ("Succeeded", 1)
    assert got.model.endswith(f"/models/sdk-serving/versions/{model.version}")
    assert got.request_settings.request_timeout_ms == 90_000
    assert got.liveness_probe.initial_delay == 500
    assert got.code_configuration.scoring_script == "score.py"


def test_a_named_deployment_answers_and_then_the_traffic_s(
    ml: MLClient, endpoint: str, folder: Path
):
    changed = ml.online_endpoints.get(endpoint)
    changed.traffic = {"blue": 0}  # whatever another test has left
    ml.begin_create_or_update(changed).wait()
    expected = {"folder": ["model"], "given": {"x": 1}, "by": "blue"}
    assert invoke(ml, endpoint, folder, deployment_name="blue") == expected
    with pytest.raises(HttpResponseError, match="set its traffic"):
        invoke(ml, endpoint, folder)
    changed = ml.online_endpoints.get(endpoint)
    changed.traffic = {"blue": 100}
    assert ml.begin_create_or_update(changed).result().traffic == {"blue": 100}
    assert invoke(ml, endpoint, folder) == expected


def test_a_key_made_anew_is_the_one_that_counts(ml: MLClient, endpoint: str, folder: Path):
    old = ml.online_endpoints.get_keys(endpoint)
    ml.online_endpoints.begin_regenerate_keys(endpoint, key_type="primary").wait()
    new = ml.online_endpoints.get_keys(endpoint)
    assert new.primary_key != old.primary_key
    assert new.secondary_key == old.secondary_key
    assert invoke(ml, endpoint, folder, deployment_name="blue")["by"] == "blue"


def test_logs_are_what_the_script_printed(ml: MLClient, endpoint: str):
    log = ml.online_deployments.get_logs("blue", endpoint, lines=50)
    assert "the model is ['model']" in log


def test_a_deployment_that_fails_raises_with_the_reason(
    ml: MLClient, endpoint: str, model: Model, folder: Path
):
    bad = deployment(endpoint, "green", model, folder, scoring_script="fails.py")
    with pytest.raises(HttpResponseError, match="these weights are of no use"):
        ml.begin_create_or_update(bad).result()
    assert ml.online_deployments.get("green", endpoint).provisioning_state == "Failed"
    ml.online_deployments.begin_delete("green", endpoint).wait()
    assert "green" not in [one.name for one in ml.online_deployments.list(endpoint)]


def test_a_custom_model_without_a_script_is_refused_at_once(
    ml: MLClient, endpoint: str, model: Model, folder: Path
):
    bare = deployment(
        endpoint, "red", model, folder, environment=None, code_path=None, scoring_script=None
    )
    with pytest.raises(HttpResponseError) as caught:
        ml.begin_create_or_update(bare)
    assert caught.value.error.target == "codeConfiguration"


def test_a_deployment_with_traffic_is_not_deleted(ml: MLClient, endpoint: str):
    changed = ml.online_endpoints.get(endpoint)
    changed.traffic = {"blue": 100}
    ml.begin_create_or_update(changed).wait()
    with pytest.raises(ResourceExistsError, match="traffic"):
        ml.online_deployments.begin_delete("blue", endpoint)


def test_an_endpoint_with_tokens_is_called_with_one(ml: MLClient, model: Model, folder: Path):
    name = f"sdk-{uuid.uuid4().hex[:12]}"
    ml.begin_create_or_update(ManagedOnlineEndpoint(name=name, auth_mode="aml_token")).wait()
    assert ml.online_endpoints.get_keys(name).access_token
    with pytest.raises(HttpResponseError, match="set its traffic"):  # it was let in
        invoke(ml, name, folder)
    ml.online_endpoints.begin_delete(name).wait()
