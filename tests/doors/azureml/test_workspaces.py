"""Workspaces and their datastores, as the resource manager shows them."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from finery.core import endpoints, ids, jobs
from finery.core.endpoints import Endpoint
from finery.core.errors import Forbidden
from finery.core.jobs import Command, Job
from finery.core.workspaces import Caller
from finery.doors.azureml import sas
from finery.doors.http import House

from .conftest import WS

GROUP = "/subscriptions/s/resourceGroups/g"
ALL = f"{GROUP}/providers/Microsoft.MachineLearningServices/workspaces"
DEPLOYMENT = f"{GROUP}/providers/Microsoft.Resources/deployments/d"


def put(client: TestClient, name: str, **properties: str):
    return client.put(f"{ALL}/{name}", json={"tags": {"a": "b"}, "properties": properties})


def test_a_workspace_is_made_listed_changed_and_deleted(client: TestClient):
    made = put(client, "new", description="one", friendlyName="New").json()
    assert made["properties"]["provisioningState"] == "Succeeded" and made["tags"] == {"a": "b"}
    assert [item["name"] for item in client.get(ALL).json()["value"]] == ["w", "new"]
    changed = client.patch(f"{ALL}/new", json={"properties": {"description": "two"}}).json()
    assert changed["properties"]["description"] == "two"
    assert changed["properties"]["friendlyName"] == "New"
    assert client.delete(f"{ALL}/new").status_code == 200
    assert client.get(f"{ALL}/new").status_code == 404


def test_a_second_put_is_the_same_workspace(client: TestClient):
    first = put(client, "new", description="one").json()
    again = put(client, "NEW", description="two").json()
    assert again["properties"]["workspaceId"] == first["properties"]["workspaceId"]
    assert again["properties"]["description"] == "two"


def test_workspaces_of_a_subscription_are_listed(client: TestClient):
    client.put(f"{ALL.replace('/g/', '/g2/')}/far", json={"properties": {}})
    path = "/subscriptions/s/providers/Microsoft.MachineLearningServices/workspaces"
    assert [item["name"] for item in client.get(path).json()["value"]] == ["w", "far"]
    assert [item["name"] for item in client.get(ALL).json()["value"]] == ["w"]


def test_a_template_makes_its_workspace(client: TestClient):
    values = {"workspaceName": "t", "description": "from a template", "tagValues": {"x": "y"}}
    parameters = {name: {"value": value} for name, value in values.items()}
    body = {"properties": {"template": {}, "parameters": parameters, "mode": "incremental"}}
    answer = client.put(DEPLOYMENT, json=body)
    assert answer.json()["properties"]["provisioningState"] == "Succeeded"
    made = client.get(f"{ALL}/t").json()
    assert made["properties"]["description"] == "from a template" and made["tags"] == {"x": "y"}


@pytest.mark.parametrize("values", [{}, {"workspaceName": "t", "kind": "hub"}])
def test_other_templates_are_refused(client: TestClient, values: dict[str, str]):
    parameters = {name: {"value": value} for name, value in values.items()}
    body = {"properties": {"parameters": parameters}}
    assert client.put(DEPLOYMENT, json=body).status_code == 501


def test_the_default_workspace_stays(client: TestClient):
    assert client.delete(WS).status_code == 400 and client.get(WS).status_code == 200


def test_a_workspace_with_a_running_job_stays(client: TestClient, home: House):
    workspace = put(client, "new").json()["properties"]["workspaceId"]
    jobs.create(home.store, Job(name="j", workspace=workspace, spec=Command(command="true")))
    assert client.delete(f"{ALL}/new").status_code == 409


def test_a_workspace_with_an_endpoint_stays(client: TestClient, home: House):
    workspace = put(client, "new").json()["properties"]["workspaceId"]
    endpoints.create(home.store, Endpoint(name="e", workspace=workspace))
    assert client.delete(f"{ALL}/new").status_code == 409


def test_rules_for_addresses_are_refused_where_there_are_any(client: TestClient):
    none, some = {"defaultAction": "Deny", "ipRules": []}, {"ipRules": [{"value": "10.0.0.0/8"}]}
    assert client.patch(WS, json={"properties": {"networkAcls": none}}).status_code == 200
    assert client.patch(WS, json={"properties": {"networkAcls": some}}).status_code == 501


@pytest.mark.parametrize("field", ["managedNetwork", "encryption", "imageBuildCompute"])
def test_what_a_workspace_cannot_have_here_is_refused_by_name(client: TestClient, field: str):
    answer = client.patch(WS, json={"properties": {field: {"a": "b"}}})
    assert answer.status_code == 501 and field in answer.json()["error"]["message"]


def test_a_job_s_token_opens_nothing_here(anyone: TestClient, home: House):
    caller = Caller(name="job", role="job", workspace="ws")
    token = home.keys.mint(caller, audience="x", seconds=60, now=ids.now())
    headers = {"Authorization": f"Bearer {token}"}
    assert anyone.get(WS, headers=headers).status_code == 403
    assert anyone.put(f"{ALL}/new", json={}, headers=headers).status_code == 403


def test_a_workspace_has_four_datastores_and_one_is_the_default(client: TestClient):
    found = client.get(f"{WS}/datastores").json()["value"]
    assert len(found) == 4
    (default,) = client.get(f"{WS}/datastores", params={"isDefault": "true"}).json()["value"]
    assert default["name"] == "workspaceblobstore"
    assert default["properties"]["containerName"] == "workspaceblobstore"
    one = client.get(f"{WS}/datastores/workspaceartifactstore").json()
    assert one["properties"]["isDefault"] is False
    assert client.get(f"{WS}/datastores/none").status_code == 404


def test_a_datastore_s_secret_opens_its_container_only(client: TestClient, home: House):
    secret = client.post(f"{WS}/datastores/workspaceblobstore/listSecrets", json={}).json()
    query = dict(part.split("=", 1) for part in secret["sasToken"].split("&"))
    query = {
        name: value.replace("%3A", ":").replace("%2F", "/").replace("%3D", "=").replace("%2B", "+")
        for name, value in query.items()
    }
    now = ids.now()
    asked = {"path": "a/b", "verbs": "r", "now": now}
    assert sas.check(home.keys, query, "ws", container="workspaceblobstore", **asked)
    with pytest.raises(Forbidden, match="signature"):
        sas.check(home.keys, query, "ws", container="workspaceartifactstore", **asked)


def test_other_people_s_storage_cannot_be_attached(client: TestClient):
    answer = client.put(f"{WS}/datastores/mine", json={"properties": {}})
    assert answer.status_code == 501 and "mine" in answer.json()["error"]["message"]
    assert client.delete(f"{WS}/datastores/workspaceblobstore").status_code == 501
