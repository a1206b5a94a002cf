"""Compute targets, as Azure's clusters and instances."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from finery.core import compute, jobs
from finery.core.jobs import Command, Job
from finery.doors.http import House

from .conftest import WS

LOCATION = "/subscriptions/s/providers/Microsoft.MachineLearningServices/locations/local"


def cluster(size: str = "Standard_NC24ads_A100_v4", **more):
    scale = {"minNodeCount": 0, "maxNodeCount": 2, "nodeIdleTimeBeforeScaleDown": "PT180S"}
    inner = {"vmSize": size, "vmPriority": "Dedicated", "scaleSettings": scale, **more}
    return {"location": "local", "properties": {"computeType": "AmlCompute", "properties": inner}}


def test_a_cluster_is_made_at_once_and_shown_as_it_was_asked_for(client: TestClient, home: House):
    made = client.put(f"{WS}/computes/gpu", json=cluster())
    assert made.status_code == 201
    assert made.json()["properties"]["provisioningState"] == "Succeeded"
    shown = client.get(f"{WS}/computes/gpu").json()["properties"]["properties"]
    assert shown["vmSize"] == "Standard_NC24ads_A100_v4" and shown["vmPriority"] == "Dedicated"
    assert shown["scaleSettings"]["maxNodeCount"] == 2
    assert shown["scaleSettings"]["nodeIdleTimeBeforeScaleDown"] == "PT180S"
    target = compute.get(home.store, "ws", "gpu")
    assert (target.gpus, target.cpus, target.tier) == (1, 24, "dedicated")


def test_a_size_is_known_in_any_case(client: TestClient, home: House):
    client.put(f"{WS}/computes/big", json=cluster("standard_nd40rs_V2", vmPriority="LowPriority"))
    target = compute.get(home.store, "ws", "big")
    assert target.gpus == 8 and target.tier == "low_priority"
    assert target.size == "standard_nd40rs_V2"


def test_an_unknown_size_is_refused_with_the_nearest(client: TestClient):
    answer = client.put(f"{WS}/computes/gpu", json=cluster("Standard_NC24ads_A100v4"))
    assert answer.status_code == 400
    assert "Standard_NC24ads_A100_v4" in answer.json()["error"]["message"]
    assert client.get(f"{WS}/computes/gpu").status_code == 404


@pytest.mark.parametrize(
    "more, status",
    [
        ({"userAccountCredentials": {"adminUserName": "me"}}, 501),
        ({"subnet": {"id": "x"}}, 501),
        ({"osType": "Windows"}, 501),
        ({"vmPriority": "Spot"}, 400),
        ({"scaleSettings": {"minNodeCount": 3, "maxNodeCount": 2}}, 400),
        ({"scaleSettings": {"maxNodeCount": 0}}, 400),
        ({"scaleSettings": {"maxNodeCount": "many"}}, 400),
    ],
)
def test_what_is_not_honoured_is_refused(client: TestClient, more, status):
    assert client.put(f"{WS}/computes/gpu", json=cluster(**more)).status_code == status


def test_a_kind_that_is_not_known_is_refused(client: TestClient):
    body = {"properties": {"computeType": "Kubernetes", "properties": {}}}
    answer = client.put(f"{WS}/computes/k", json=body)
    assert answer.status_code == 501 and "AmlCompute" in answer.json()["error"]["message"]


def test_a_cluster_s_limits_change(client: TestClient, home: House):
    client.put(f"{WS}/computes/gpu", json=cluster())
    body = {"properties": {"properties": {"scaleSettings": {"maxNodeCount": 5}}}}
    assert client.patch(f"{WS}/computes/gpu", json=body).status_code == 200
    assert compute.get(home.store, "ws", "gpu").max_instances == 5
    again = client.put(f"{WS}/computes/gpu", json=cluster())
    assert again.status_code == 200 and compute.get(home.store, "ws", "gpu").max_instances == 2


def test_an_instance_is_a_queue_for_one(client: TestClient):
    inner = {"vmSize": "Standard_DS3_v2", "enableSSO": True}
    body = {"properties": {"computeType": "ComputeInstance", "properties": inner}}
    made = client.put(f"{WS}/computes/mine", json=body).json()
    assert made["properties"]["computeType"] == "ComputeInstance"
    assert client.post(f"{WS}/computes/mine/stop").status_code == 501
    assert [item["name"] for item in client.get(f"{WS}/computes").json()["value"]] == ["mine"]


def test_a_compute_with_unfinished_jobs_stays(client: TestClient, home: House):
    client.put(f"{WS}/computes/gpu", json=cluster())
    spec = Command(command="true")
    jobs.create(home.store, Job(name="j", workspace="ws", spec=spec, compute="gpu"))
    answer = client.delete(f"{WS}/computes/gpu")
    assert answer.status_code == 409 and "'j'" in answer.json()["error"]["message"]
    jobs.cancel(home.store, "j")
    assert client.delete(f"{WS}/computes/gpu").status_code == 200
    assert client.delete(f"{WS}/computes/gpu").status_code == 404


def test_sizes_say_how_many_gpus_they_have(client: TestClient):
    sizes = {item["name"]: item for item in client.get(f"{LOCATION}/vmSizes").json()["value"]}
    assert sizes["Standard_ND40rs_v2"]["gpus"] == 8
    assert sizes["Standard_NC24ads_A100_v4"]["gpus"] == 1
    assert sizes["Standard_DS3_v2"]["gpus"] == 0 and sizes["Standard_DS3_v2"]["vCPUs"] == 4
