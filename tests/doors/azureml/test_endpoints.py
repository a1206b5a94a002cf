"""Endpoints and deployments over the wire.  Nothing runs here: the test is the supervisor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from finery.core import assets, endpoints, ids, tickets
from finery.core.assets import Asset
from finery.core.errors import Failure
from finery.core.scaling import Scaling
from finery.doors.azureml import endpoints as door
from finery.doors.azureml import wire
from finery.doors.http import House

from .conftest import WS

ENDPOINT = f"{WS}/onlineEndpoints/ep"
BLUE = f"{ENDPOINT}/deployments/blue"
MADE: dict[str, Any] = {
    "location": "here",
    "identity": {"type": "SystemAssigned"},
    "tags": {"a": "1"},
    "properties": {"authMode": "Key", "properties": {}, "traffic": {}, "mirrorTraffic": {}},
}
DEPLOYED: dict[str, Any] = {
    "location": "here",
    "tags": {},
    "sku": {"name": "Default", "capacity": 2},
    "properties": {
        "endpointComputeType": "Managed",
        "model": f"{WS}/models/chat/versions/1",
        "instanceType": "Standard_DS3_v2",
        "environmentVariables": {"A": "b"},
        "appInsightsEnabled": True,
        "egressPublicNetworkAccess": "enabled",
        "requestSettings": {
            "maxConcurrentRequestsPerInstance": 3,
            "requestTimeout": "PT1M30S",
            "maxQueueWait": "PT0.25S",
        },
        "livenessProbe": {"initialDelay": "PT10M", "failureThreshold": 5},
        "readinessProbe": {"period": "PT1M40S", "timeout": "PT10S"},
        "properties": {},
    },
}
SCRIPT = {
    "model": f"{WS}/models/plain/versions/1",
    "environmentId": f"{WS}/environments/env/versions/1",
    "codeConfiguration": {"codeId": f"{WS}/codes/code/versions/1", "scoringScript": "score.py"},
}
Put = Callable[..., Any]


@pytest.fixture
def client(home: House, put_file: Callable[..., str]) -> TestClient:
    """The administrator, in a workspace with two models, code and an environment."""
    put_file("chat/MLmodel")
    put_file("plain/model.pkl")
    put_file("code/score.py")
    for kind, name, type in (
        ("model", "chat", "mlflow_model"),
        ("model", "plain", "custom_model"),
        ("code", "code", ""),
        ("environment", "env", ""),
    ):
        location = f"file:workspaceblobstore/{name}" if kind != "environment" else ""
        asset = Asset(scope="ws", kind=kind, name=name, version="1", type=type, location=location)
        assets.create(home.store, asset)
    logged = replace(home, instance_logs=lambda made, lines: f"{lines} lines of {made.name}\n")
    app = FastAPI()
    app.include_router(door.router(logged))

    async def failure(request: Request, exc: Exception) -> Response:
        return wire.failure(request, exc)

    app.add_exception_handler(Failure, failure)
    return TestClient(app, headers={"Authorization": f"Bearer {home.keys.admin}"})


@pytest.fixture
def put(client: TestClient) -> Put:
    """Deploy `blue` at endpoint `ep`; what is named is changed in its properties."""
    client.put(ENDPOINT, json=MADE)

    def put(**changed: Any) -> Any:
        body = copy.deepcopy(DEPLOYED)
        body["properties"] |= changed
        return client.put(BLUE, json=body)

    return put


def ready(home: House) -> None:
    blue = endpoints.get_deployment(home.store, "ep", "blue")
    endpoints.move(home.store, blue, "ready", addresses={"p": "http://127.0.0.1:1"})


def error(answer: Any, status: int = 400) -> tuple[str, str]:
    assert answer.status_code == status, answer.text
    said = answer.json()["error"]
    return said["target"], said["message"]


def test_an_endpoint_is_there_at_once_with_its_addresses(client: TestClient):
    made = client.put(ENDPOINT, json=MADE)
    assert made.status_code == 201
    shown = client.get(ENDPOINT).json()
    assert shown == made.json()
    assert shown["properties"]["provisioningState"] == "Succeeded"
    assert shown["properties"]["scoringUri"] == "http://localhost:8480/endpoints/ep/score"
    assert shown["properties"]["swaggerUri"] == "http://localhost:8480/endpoints/ep/swagger.json"
    assert [one["name"] for one in client.get(f"{WS}/onlineEndpoints").json()["value"]] == ["ep"]


def test_an_endpoint_may_be_put_again_and_keeps_its_keys(client: TestClient):
    client.put(ENDPOINT, json=MADE)
    keys = client.post(f"{ENDPOINT}/listKeys").json()
    again = client.put(ENDPOINT, json={**MADE, "tags": {"b": "2"}})
    assert (again.status_code, again.json()["tags"]) == (200, {"b": "2"})
    assert client.post(f"{ENDPOINT}/listKeys").json() == keys


@pytest.mark.parametrize(
    "changed, status, named",
    [
        ({"authMode": "Password"}, 400, "authMode"),
        ({"traffic": {"nope": 100}}, 400, "nope"),
        ({"traffic": {"nope": 1.5}}, 400, "whole number"),
        ({"compute": "k8s"}, 501, "Kubernetes"),
        ({"autoscale": {"a": 1}}, 501, "autoscale"),
    ],
)
def test_an_endpoint_that_makes_no_sense_is_refused(
    client: TestClient, changed: dict[str, Any], status: int, named: str
):
    body = {**MADE, "properties": {**MADE["properties"], **changed}}
    assert named in error(client.put(ENDPOINT, json=body), status)[1]
    assert client.get(ENDPOINT).status_code == 404


def test_a_key_is_made_anew_even_when_the_old_one_is_sent_along(client: TestClient):
    client.put(ENDPOINT, json=MADE)
    old = client.post(f"{ENDPOINT}/listKeys").json()
    asked = {"keyType": "Primary", "keyValue": old["primaryKey"]}
    assert client.post(f"{ENDPOINT}/regenerateKeys", json=asked).status_code == 200
    new = client.post(f"{ENDPOINT}/listKeys").json()
    assert new["primaryKey"] != old["primaryKey"]
    assert new["secondaryKey"] == old["secondaryKey"]


def test_a_change_takes_back_nothing_that_changes_at_the_same_time(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    client.put(ENDPOINT, json=MADE)
    read, within = endpoints.get, []

    def get(store: Any, name: str) -> endpoints.Endpoint:
        within.append(store._current.get())
        return read(store, name)

    monkeypatch.setattr(endpoints, "get", get)
    assert client.patch(ENDPOINT, json={"tags": {"a": "b"}}).json()["tags"] == {"a": "b"}
    assert within and None not in within, "it is read in the transaction that writes it"


def test_an_endpoint_with_tokens_has_no_keys(client: TestClient, home: House):
    client.put(ENDPOINT, json={**MADE, "properties": {"authMode": "AMLToken"}})
    assert error(client.post(f"{ENDPOINT}/listKeys"), 409)[0] == "authMode"
    token = client.post(f"{ENDPOINT}/token").json()
    endpoint = endpoints.get(home.store, "ep")
    assert tickets.valid(home.keys, endpoint, token["accessToken"], now=ids.now())
    assert token["expiryTimeUtc"] > token["refreshAfterTimeUtc"] > ids.now().timestamp()


def test_a_deployment_is_written_down_in_our_words(put: Put, home: House):
    assert put().status_code == 201
    spec = endpoints.get_deployment(home.store, "ep", "blue").spec
    assert spec.model == "asset:model/ws/chat/1"
    assert (spec.instances, spec.size, spec.env) == (2, "Standard_DS3_v2", {"A": "b"})
    assert spec.max_concurrent_requests == 3
    assert (spec.request_timeout_ms, spec.max_queue_wait_ms) == (90_000, 250)
    assert (spec.liveness.initial_delay, spec.liveness.failure_threshold) == (600, 5)
    assert (spec.readiness.period, spec.readiness.timeout) == (100, 10)


def test_a_deployment_is_shown_as_it_was_sent(put: Put, client: TestClient):
    put(**SCRIPT)
    shown, sent = client.get(BLUE).json(), DEPLOYED["properties"] | SCRIPT
    for name in ("model", "environmentId", "codeConfiguration", "instanceType"):
        assert shown["properties"][name] == sent[name]
    assert shown["properties"]["appInsightsEnabled"] is True
    assert shown["properties"]["requestSettings"]["requestTimeout"] == "PT90S"
    assert shown["properties"]["requestSettings"]["maxQueueWait"] == "PT0.25S"
    assert shown["sku"]["capacity"] == 2
    assert [one["name"] for one in client.get(f"{ENDPOINT}/deployments").json()["value"]] == [
        "blue"
    ]


def test_a_deployment_of_a_stand_in_says_so_and_nothing_of_before(put: Put, home: House):
    chat = assets.get(home.store, "ws", "model", "chat", "1")
    assets.update(home.store, replace(chat, tags={"stand_in_for": "some/model"}))
    told = {"mine": "1", "finery.error": "of the time before"}
    made = put(properties=told).json()
    assert made["properties"]["properties"] == {
        "mine": "1",
        "finery.warnings": "the model is a stand-in for some/model, to try things out",
    }
    ready(home)
    assert "finery.warnings" not in put(**SCRIPT).json()["properties"]["properties"]


def test_a_network_that_is_not_closed_is_told_of(put: Put, client: TestClient):
    told = put(egressPublicNetworkAccess="Disabled").json()["properties"]
    assert "egress_public_network_access is not honoured" in told["properties"]["finery.warnings"]
    shut = {**MADE, "properties": {**MADE["properties"], "publicNetworkAccess": "Disabled"}}
    told = client.put(ENDPOINT, json=shut).json()["properties"]
    assert "public_network_access is not honoured" in told["properties"]["finery.warnings"]
    again = {**MADE, "properties": {key: told[key] for key in ("authMode", "properties")}}
    assert client.put(ENDPOINT, json=again).json()["properties"]["properties"] == {}


def test_the_operation_of_a_deployment_ends_when_it_is_ready(
    put: Put, client: TestClient, home: House
):
    operation = put().headers["azure-asyncoperation"]
    assert client.get(operation).json()["status"] == "InProgress"
    ready(home)
    assert client.get(operation).json()["status"] == "Succeeded"
    assert client.get(BLUE).json()["properties"]["provisioningState"] == "Succeeded"


def test_the_operation_of_a_deployment_that_fails_says_why(
    put: Put, client: TestClient, home: House
):
    operation = put().headers["azure-asyncoperation"]
    blue = endpoints.get_deployment(home.store, "ep", "blue")
    endpoints.move(home.store, blue, "failed", error={"message": "no weights", "target": "blue"})
    told = client.get(operation).json()
    assert told["status"] == "Failed"
    assert "no weights" in told["error"]["message"] and "get_logs" in told["error"]["message"]
    assert client.get(BLUE).json()["properties"]["properties"]["finery.error"] == "no weights"
    assert put().status_code == 200
    assert client.get(operation).json()["status"] == "InProgress"


@pytest.mark.parametrize(
    "changed, target",
    [
        ({"model": f"{WS}/models/nope/versions/1"}, "model"),
        ({"model": None}, "model"),
        ({"model": f"{WS}/models/plain/versions/1"}, "codeConfiguration"),
        ({**SCRIPT, "codeConfiguration": {"codeId": f"{WS}/codes/code/versions/1"}}, "codeConfiguration.scoringScript"),
        (
            {**SCRIPT, "codeConfiguration": {**SCRIPT["codeConfiguration"], "scoringScript": "nope.py"}},
            "codeConfiguration.scoringScript",
        ),
        ({"environmentId": "nope@latest"}, "environmentId"),
        ({"requestSettings": {"requestTimeout": "soon"}}, "requestTimeout"),
        ({"requestSettings": {"maxConcurrentRequestsPerInstance": 0}}, "maxConcurrentRequestsPerInstance"),
        ({"livenessProbe": {"period": "often"}}, "livenessProbe.period"),
        ({"livenessProbe": {"timeout": "PT0S"}}, "livenessProbe.timeout"),
        ({"readinessProbe": {"period": "PT0S"}}, "readinessProbe.period"),
    ],
)  # fmt: skip
def test_a_deployment_that_cannot_work_is_refused_by_its_field(
    put: Put, home: House, changed: dict[str, Any], target: str
):
    assert error(put(**changed))[0] == target
    assert endpoints.deployments(home.store, "ep") == []


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"scaleSettings": {"scaleType": "Weekly"}}, "Weekly"),
        ({"endpointComputeType": "Batch"}, "Batch"),
        ({"containerResourceRequirements": {"x": 1}}, "containerResourceRequirements"),
        ({"modelMountPath": "/x"}, "modelMountPath"),
        ({"dataCollector": {"collections": {}, "rollingRate": "Hour"}}, "dataCollector"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(put: Put, changed: dict[str, Any], named: str):
    assert named in error(put(**changed), 501)[1]


def test_a_deployment_needs_its_endpoint(client: TestClient):
    assert error(client.put(BLUE, json=DEPLOYED), 404)[0] == "ep"


def test_a_patch_changes_the_number_of_instances_and_nothing_else(
    put: Put, client: TestClient, home: House
):
    put(**SCRIPT)
    ready(home)
    before = endpoints.get_deployment(home.store, "ep", "blue").spec
    assert client.patch(BLUE, json={"sku": {"capacity": 3}}).status_code == 200
    after = endpoints.get_deployment(home.store, "ep", "blue").spec
    assert after == replace(before, instances=3)


def test_traffic_goes_where_a_deployment_is(put: Put, client: TestClient):
    put()
    body = {**MADE, "properties": {"authMode": "Key", "traffic": {"blue": 100}}}
    assert client.put(ENDPOINT, json=body).json()["properties"]["traffic"] == {"blue": 100}
    assert (
        error(client.patch(ENDPOINT, json={"properties": {"traffic": {"blue": 60}}}))[0]
        == "traffic"
    )
    assert error(client.delete(BLUE), 409)[0] == "blue"
    assert client.patch(ENDPOINT, json={"properties": {"traffic": {}}}).status_code == 200
    assert client.delete(BLUE).status_code == 202


def test_deleting_an_endpoint_takes_until_its_deployments_are_gone(
    put: Put, client: TestClient, home: House
):
    put()
    client.patch(ENDPOINT, json={"properties": {"traffic": {"blue": 100}}})
    asked = client.delete(ENDPOINT)
    assert asked.status_code == 202
    where = asked.headers["location"]
    assert client.get(where).status_code == 202
    assert client.get(ENDPOINT).json()["properties"]["provisioningState"] == "Deleting"
    blue = endpoints.get_deployment(home.store, "ep", "blue")
    endpoints.move(home.store, blue, "gone")
    assert client.get(where).status_code == 200
    assert client.get(ENDPOINT).status_code == 404
    assert client.delete(ENDPOINT).status_code == 204


def test_logs_are_the_last_lines_of_the_instances(put: Put, client: TestClient):
    put()
    said = client.post(f"{BLUE}/getLogs", json={"tail": 2}).json()["content"]
    assert said == "2 lines of blue\n"
    initializer = {"tail": 2, "containerType": "StorageInitializer"}
    assert (
        "No storage initializer"
        in client.post(f"{BLUE}/getLogs", json=initializer).json()["content"]
    )


RULE = {
    "scaleType": "TargetUtilization",
    "minInstances": 0,
    "maxInstances": 3,
    "pollingInterval": "PT5S",
    "targetUtilizationPercentage": 60,
}


def test_a_rule_by_which_it_scales_comes_back_as_it_was_given(put: Put, home: House):
    made = put(endpointComputeType="Kubernetes", scaleSettings=RULE).json()
    assert made["properties"]["scaleSettings"] == RULE
    assert made["properties"]["endpointComputeType"] == made["kind"] == "Kubernetes"
    assert "processes of this server" in made["properties"]["properties"]["finery.warnings"]
    blue = endpoints.get_deployment(home.store, "ep", "blue")
    assert blue.spec.scaling == Scaling(least=0, most=3, target=60, polling=5)


@pytest.mark.parametrize(
    "changed, target",
    [
        ({"minInstances": -1}, "minInstances"),
        ({"minInstances": 4}, "maxInstances"),
        ({"maxInstances": 0}, "maxInstances"),
        ({"maxInstances": 10**9}, "maxInstances"),
        ({"targetUtilizationPercentage": 101}, "targetUtilizationPercentage"),
        ({"pollingInterval": "PT0S"}, "pollingInterval"),
        ({"pollingInterval": "often"}, "pollingInterval"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_its_field(
    put: Put, changed: dict[str, Any], target: str
):
    assert error(put(scaleSettings=RULE | changed))[0] == f"scaleSettings.{target}"


def test_traffic_goes_back_in_one_call_to_what_it_was(put: Put, client: TestClient, home: House):
    put()
    for traffic in ({"blue": 100}, {"blue": 0}):
        client.patch(ENDPOINT, json={"properties": {"traffic": traffic}})
    back = client.post(f"{ENDPOINT}/rollback")
    assert (back.status_code, back.json()["properties"]["traffic"]) == (200, {"blue": 100})
    assert client.post(f"{ENDPOINT}/rollback").json()["properties"]["traffic"] == {"blue": 0}


def test_a_deployment_goes_back_in_one_call_to_what_it_ran(
    put: Put, client: TestClient, home: House
):
    put()
    assert "nothing to go back to" in error(client.post(f"{BLUE}/rollback"), 409)[1]
    ready(home)
    put(environmentVariables={"A": "new"})
    ready(home)
    back = client.post(f"{BLUE}/rollback")
    assert back.json()["properties"]["environmentVariables"] == {"A": "b"}
    assert back.json()["properties"]["provisioningState"] == "Updating"
    assert "azure-asyncoperation" in back.headers


def test_a_deployment_says_how_it_may_be_scaled(put: Put, client: TestClient):
    put()
    [sku] = client.get(f"{BLUE}/skus").json()["value"]
    assert sku["capacity"]["scaleType"] == "Manual"
