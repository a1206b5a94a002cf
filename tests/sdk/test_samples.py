"""Deployments in the shape of Microsoft's public samples, with the official SDK.

The samples are in `samples/`: scripts, conda files and YAML as one would write
them for Azure.  Their environment is built from the conda file, from the
package index, once for all of them, and one more from what a model asks for; every deployment is a process of its own,
because what they show is that such a script runs in such an environment.
"""

from __future__ import annotations

import io
import json
import shutil
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import mlflow
import numpy
import pytest
import requests
from azure.ai.ml import MLClient, load_online_deployment, load_online_endpoint
from azure.ai.ml.constants._endpoint import EndpointInvokeFields
from azure.ai.ml.entities import (
    CodeConfiguration,
    Environment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
)
from azure.core.exceptions import HttpResponseError
from PIL import Image
from sklearn.linear_model import LinearRegression

IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu20.04:latest"
PICKLE = "sklearn_regression_model.pkl"
ONE, TWO = [385.0, 220.0], [-385.0, -220.0]  # what the two models make of the request

# Nobody is refused because the machine stands still for a while.
PATIENT = OnlineRequestSettings(request_timeout_ms=60_000, max_queue_wait_ms=60_000)
Until = Callable[..., Any]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples with two models: one weighs the n-th of ten numbers by n, the other by -n."""
    folder = tmp_path_factory.mktemp("samples") / "samples"
    shutil.copytree(Path(__file__).parent / "samples", folder)
    rows = numpy.eye(10)
    for name, sign in (("model", 1), ("model-2", -1)):
        model = LinearRegression().fit(rows, sign * numpy.arange(1.0, 11.0))
        (folder / name).mkdir()
        joblib.dump(exact(model, sign), folder / name / PICKLE)
    return folder


def exact(model: LinearRegression, sign: int) -> LinearRegression:
    model.coef_, model.intercept_ = sign * numpy.arange(1.0, 11.0), 0.0
    return model


@pytest.fixture(scope="module")
def environment(samples: Path) -> Environment:
    return Environment(conda_file=samples / "environment" / "conda.yaml", image=IMAGE)


@pytest.fixture(scope="module")
def open_endpoint(ml: MLClient) -> Iterator[Callable[..., ManagedOnlineEndpoint]]:
    """Make endpoints; they are deleted in the end, deployments and all."""
    made: list[str] = []

    def open(**more: Any) -> ManagedOnlineEndpoint:
        endpoint = ManagedOnlineEndpoint(name=f"smp-{uuid.uuid4().hex[:10]}", **more)
        made.append(endpoint.name)
        return ml.begin_create_or_update(endpoint).result()

    yield open
    for name in made:
        if name in [one.name for one in ml.online_endpoints.list()]:
            ml.online_endpoints.begin_delete(name=name).wait()


def deploy(ml: MLClient, endpoint: str, name: str, **what: Any) -> ManagedOnlineDeployment:
    usual: dict[str, Any] = {"instance_type": "Standard_DS3_v2", "instance_count": 1}
    usual["request_settings"] = PATIENT
    asked = ManagedOnlineDeployment(name=name, endpoint_name=endpoint, **{**usual, **what})
    return ml.online_deployments.begin_create_or_update(asked).result()


def invoke(ml: MLClient, endpoint: str, request: Path, **more: Any) -> Any:
    # The SDK (1.35) goes on naming the deployment of the last call that named one.
    EndpointInvokeFields.DEFAULT_HEADER.pop(EndpointInvokeFields.MODEL_DEPLOYMENT, None)
    return json.loads(ml.online_endpoints.invoke(endpoint, request_file=request, **more))


def code(samples: Path, folder: str, script: str = "score.py") -> CodeConfiguration:
    return CodeConfiguration(code=str(samples / folder), scoring_script=script)


# -- safe rollout: blue, green, mirrored, 90/10, over ------------------------------------------


@pytest.fixture(scope="module")
def rollout(
    ml: MLClient,
    samples: Path,
    environment: Environment,
    open_endpoint: Callable[..., ManagedOnlineEndpoint],
) -> ManagedOnlineEndpoint:
    """An endpoint with `blue`, which has all the traffic, and `green`, which has none."""
    endpoint = open_endpoint(auth_mode="key", tags={"foo": "bar"}, description="a rollout")
    for name, model in (("blue", "model"), ("green", "model-2")):
        deploy(
            ml,
            endpoint.name,
            name,
            model=Model(path=samples / model / PICKLE),
            environment=environment,
            code_configuration=code(samples, "regression"),
        )
    endpoint.traffic = {"blue": 100}
    return ml.begin_create_or_update(endpoint).result()


def answers(ml: MLClient, endpoint: str, request: Path, calls: int) -> Counter[str]:
    names = {ONE[0]: "blue", TWO[0]: "green"}
    return Counter(names[invoke(ml, endpoint, request)[0]] for _ in range(calls))


def test_each_deployment_answers_by_its_name_with_its_own_model(
    ml: MLClient, samples: Path, rollout: ManagedOnlineEndpoint
) -> None:
    request = samples / "regression" / "request.json"
    assert invoke(ml, rollout.name, request) == ONE
    assert invoke(ml, rollout.name, request, deployment_name="green") == TWO
    assert invoke(ml, rollout.name, request, deployment_name="blue") == ONE


def test_a_pickle_is_read_by_the_packages_of_the_conda_file(
    ml: MLClient, samples: Path, rollout: ManagedOnlineEndpoint
) -> None:
    log = ml.online_deployments.get_logs(
        name="blue", endpoint_name=rollout.name, lines=100, container_type="inference-server"
    )
    assert "the regression is loaded" in log


def test_a_deployment_is_scaled_to_two(
    ml: MLClient, samples: Path, rollout: ManagedOnlineEndpoint
) -> None:
    blue = ml.online_deployments.get(name="blue", endpoint_name=rollout.name)
    blue.instance_count = 2
    scaled = ml.online_deployments.begin_create_or_update(blue).result()
    assert (scaled.instance_count, scaled.provisioning_state) == (2, "Succeeded")
    request = samples / "regression" / "request.json"
    assert answers(ml, rollout.name, request, 4) == {"blue": 4}


def test_mirrored_traffic_reaches_green_and_no_caller_sees_it(
    ml: MLClient, samples: Path, rollout: ManagedOnlineEndpoint, until: Until
) -> None:
    def asked() -> int:
        log = ml.online_deployments.get_logs(name="green", endpoint_name=rollout.name, lines=1000)
        return log.count("asked about 2 rows")

    endpoint = ml.online_endpoints.get(rollout.name)
    endpoint.mirror_traffic = {"green": 50}
    ml.begin_create_or_update(endpoint).result()
    before = asked()
    request = samples / "regression" / "request.json"
    assert answers(ml, rollout.name, request, 12) == {"blue": 12}
    until(lambda: asked() - before >= 5)
    endpoint.mirror_traffic = {"green": 0}
    assert not any(ml.begin_create_or_update(endpoint).result().mirror_traffic.values())


def test_ninety_to_ten_is_what_the_callers_get(
    ml: MLClient, samples: Path, rollout: ManagedOnlineEndpoint
) -> None:
    endpoint = ml.online_endpoints.get(rollout.name)
    endpoint.traffic = {"blue": 90, "green": 10}
    ml.begin_create_or_update(endpoint).result()
    seen = answers(ml, rollout.name, samples / "regression" / "request.json", 40)
    assert 3 <= seen["green"] <= 5


def test_when_green_has_it_all_blue_goes(
    ml: MLClient, samples: Path, rollout: ManagedOnlineEndpoint
) -> None:
    endpoint = ml.online_endpoints.get(rollout.name)
    endpoint.traffic = {"blue": 0, "green": 100}
    ml.begin_create_or_update(endpoint).result()
    ml.online_deployments.begin_delete(name="blue", endpoint_name=rollout.name).result()
    assert [one.name for one in ml.online_deployments.list(rollout.name)] == ["green"]
    request = samples / "regression" / "request.json"
    assert answers(ml, rollout.name, request, 3) == {"green": 3}


# -- descriptions ------------------------------------------------------------------------------


def test_a_decorated_script_checks_its_data_and_describes_itself(
    ml: MLClient,
    samples: Path,
    environment: Environment,
    open_endpoint: Callable[..., ManagedOnlineEndpoint],
) -> None:
    endpoint = open_endpoint()
    deploy(
        ml,
        endpoint.name,
        "decorated",
        model=Model(path=samples / "model"),
        environment=environment,
        code_configuration=code(samples, "decorated"),
    )
    endpoint.traffic = {"decorated": 100}
    endpoint = ml.begin_create_or_update(endpoint).result()
    request = samples / "regression" / "request.json"
    assert invoke(ml, endpoint.name, request) == {"output": ONE}

    key = ml.online_endpoints.get_keys(endpoint.name).primary_key
    bearer = {"Authorization": f"Bearer {key}"}
    described = requests.get(endpoint.openapi_uri, headers=bearer, timeout=180).json()
    third = requests.get(endpoint.openapi_uri, params={"version": 3}, headers=bearer, timeout=180)
    assert third.json()["openapi"].startswith("3.")
    for document in (described, third.json()):
        schemas = document.get("definitions") or document["components"]["schemas"]
        assert "data" in schemas["ServiceInput"]["properties"]
        assert "output" in schemas["ServiceOutput"]["properties"]
    assert requests.get(endpoint.openapi_uri, timeout=180).status_code == 401


def test_a_script_s_own_description_is_the_one_that_is_given(
    ml: MLClient, samples: Path, open_endpoint: Callable[..., ManagedOnlineEndpoint], tmp_path: Path
) -> None:
    endpoint = open_endpoint()
    curated = "azureml://registries/azureml/environments/minimal-py312-inference/labels/latest"
    described = code(samples, "described")
    deploy(ml, endpoint.name, "custom", environment=curated, code_configuration=described)
    endpoint.traffic = {"custom": 100}
    endpoint = ml.begin_create_or_update(endpoint).result()
    (tmp_path / "request.json").write_text(json.dumps({"data": [1, 2, 3]}))
    assert invoke(ml, endpoint.name, tmp_path / "request.json") == {"sum": 6}
    key = ml.online_endpoints.get_keys(endpoint.name).primary_key
    bearer = {"Authorization": f"Bearer {key}"}
    document = requests.get(endpoint.openapi_uri, headers=bearer, timeout=180).json()
    assert document == json.loads((samples / "described" / "swagger2.json").read_text())


# -- pictures ----------------------------------------------------------------------------------


def picture(size: tuple[int, int]) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, "teal").save(made, format="JPEG")
    return made.getvalue()


def test_a_raw_script_takes_a_picture_and_gives_one_and_is_changed_for_another(
    ml: MLClient,
    samples: Path,
    environment: Environment,
    open_endpoint: Callable[..., ManagedOnlineEndpoint],
) -> None:
    endpoint = open_endpoint()
    deployment = deploy(
        ml,
        endpoint.name,
        "binarypayloads",
        model=Model(path=samples / "pictures"),
        environment=environment,
        code_configuration=code(samples, "pictures", "resize-score.py"),
    )
    endpoint.traffic = {"binarypayloads": 100}
    endpoint = ml.begin_create_or_update(endpoint).result()
    key = ml.online_endpoints.get_keys(endpoint.name).primary_key
    headers = {"Authorization": f"Bearer {key}"}

    def send(*files: tuple[str, Any]) -> requests.Response:
        return requests.post(
            endpoint.scoring_uri, headers=headers, files=files or None, timeout=180
        )

    answer = send(("file", ("input.jpg", picture((640, 480)))))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpg")
    assert Image.open(io.BytesIO(answer.content)).size == (128, 128)
    refused = send()
    assert (refused.status_code, refused.text) == (424, "no file was sent")
    assert refused.headers["ms-azureml-model-error-statuscode"] == "422"

    deployment.code_configuration = CodeConfiguration(
        code=deployment.code_configuration.code, scoring_script="sizes-score.py"
    )
    ml.online_deployments.begin_create_or_update(deployment).result()
    answer = send(("file[]", ("a.jpg", picture((6, 4)))), ("file[]", ("b.jpg", picture((8, 9)))))
    assert answer.json() == {
        "response": [{"filename": "a.jpg", "size": [6, 4]}, {"filename": "b.jpg", "size": [8, 9]}]
    }


# -- with less, and with registered things -----------------------------------------------------


def test_the_minimal_sample_is_deployed_from_its_yaml_files(
    ml: MLClient, samples: Path, open_endpoint: Callable[..., ManagedOnlineEndpoint]
) -> None:
    name = open_endpoint().name
    endpoint = load_online_endpoint(
        samples / "minimal" / "endpoint.yml", params_override=[{"name": name}]
    )
    ml.online_endpoints.begin_create_or_update(endpoint).result()  # again: the same one
    deployment = load_online_deployment(
        samples / "minimal" / "deployment.yml", params_override=[{"endpoint_name": name}]
    )
    deployment.request_settings = PATIENT
    ml.online_deployments.begin_create_or_update(deployment).result()
    endpoint.traffic = {"blue": 100}
    assert ml.online_endpoints.begin_create_or_update(endpoint).result().traffic == {"blue": 100}
    assert invoke(ml, name, samples / "regression" / "request.json") == ONE


def test_a_registered_model_and_environment_are_deployed_by_name(
    ml: MLClient,
    samples: Path,
    name: str,
    open_endpoint: Callable[..., ManagedOnlineEndpoint],
) -> None:
    conda = samples / "environment" / "conda.yaml"
    model = ml.models.create_or_update(Model(name=name, path=samples / "model" / PICKLE))
    ml.environments.create_or_update(Environment(name=name, conda_file=conda, image=IMAGE))
    endpoint = open_endpoint(auth_mode="aml_token")
    deploy(
        ml,
        endpoint.name,
        "blue",
        model=f"azureml:{name}:{model.version}",
        environment=f"azureml:{name}@latest",
        code_configuration=code(samples, "regression"),
    )
    endpoint.traffic = {"blue": 100}
    endpoint = ml.begin_create_or_update(endpoint).result()
    request = samples / "regression" / "request.json"
    assert invoke(ml, endpoint.name, request) == ONE
    token = ml.online_endpoints.get_keys(endpoint.name).access_token
    asked = {"data": request.read_bytes(), "timeout": 30}
    uri = endpoint.scoring_uri
    answer = requests.post(uri, headers={"Authorization": f"Bearer {token}"}, **asked)
    assert answer.json() == ONE
    refused = requests.post(uri, headers={"Authorization": "Bearer no"}, **asked)
    assert refused.status_code == 401


def test_an_mlflow_model_needs_no_code(
    ml: MLClient,
    samples: Path,
    open_endpoint: Callable[..., ManagedOnlineEndpoint],
    tmp_path: Path,
) -> None:
    columns = [f"x{n}" for n in range(10)]
    model = joblib.load(samples / "model" / PICKLE)
    mlflow.sklearn.save_model(model, tmp_path / "saved", serialization_format="cloudpickle")
    endpoint = open_endpoint()
    mlflow_model = Model(path=tmp_path / "saved", type="mlflow_model")
    deploy(ml, endpoint.name, "sklearn", model=mlflow_model)
    endpoint.traffic = {"sklearn": 100}
    ml.begin_create_or_update(endpoint).result()
    data = json.loads((samples / "regression" / "request.json").read_text())["data"]
    request = tmp_path / "request.json"
    frame = {"columns": columns, "index": [0, 1], "data": data}
    for given in (frame, data):
        request.write_text(json.dumps({"input_data": given}))
        assert invoke(ml, endpoint.name, request) == ONE


WITH_SIX = """import mlflow, six

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [six.__version__] * len(model_input)

mlflow.models.set_model(Model())
"""


def with_six(folder: Path, version: str) -> Path:
    """Save a model that asks for a version of six; MLflow's small edition is less to fetch."""
    folder.mkdir()
    (folder / "model.py").write_text(WITH_SIX)
    asked = [f"mlflow-skinny=={mlflow.__version__}", f"six=={version}"]
    with warnings.catch_warnings():  # it advises on type hints
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            folder / "saved", python_model=str(folder / "model.py"), pip_requirements=asked
        )
    return folder / "saved"


def test_an_mlflow_model_runs_with_the_packages_that_it_asks_for(
    ml: MLClient, open_endpoint: Callable[..., ManagedOnlineEndpoint], tmp_path: Path
) -> None:
    endpoint = open_endpoint().name
    model = Model(path=with_six(tmp_path / "one", "1.16.0"), type="mlflow_model")
    deploy(ml, endpoint, "blue", model=model)
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"input_data": [1, 2]}))
    assert invoke(ml, endpoint, request, deployment_name="blue") == ["1.16.0"] * 2

    # What cannot be had fails, and says so; what answered goes on.
    never = Model(path=with_six(tmp_path / "two", "0.0.99"), type="mlflow_model")
    with pytest.raises(HttpResponseError, match=r"six==0\.0\.99.*name a curated environment"):
        deploy(ml, endpoint, "blue", model=never)
    assert invoke(ml, endpoint, request, deployment_name="blue") == ["1.16.0"] * 2

    # The way out that it names: our own packages, whatever the model asks for.
    curated = "azureml://registries/azureml/environments/sklearn-1.5/labels/latest"
    deploy(ml, endpoint, "blue", model=never, environment=curated)
    assert invoke(ml, endpoint, request, deployment_name="blue") not in (["1.16.0"] * 2, [])
