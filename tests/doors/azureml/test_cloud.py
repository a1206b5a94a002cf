"""The cloud's metadata, tokens for who shows the key, and where things are."""

from __future__ import annotations

import base64
import json

from starlette.testclient import TestClient

from finery.doors.http import House

from .conftest import WS

AUDIENCE = "https://ml.azure.local"


def claims(token: str) -> dict[str, object]:
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


def test_the_sdk_takes_us_for_its_default_cloud(anyone: TestClient, home: House):
    (cloud,) = anyone.get("/metadata/endpoints").json()
    assert cloud["resourceManager"] in f"{home.https}/metadata/endpoints"
    assert cloud["name"] not in ("AzureCloud", "AzureChinaCloud", "AzureUSGovernment")
    suffix = ".".join(cloud["portal"].split(".")[2:])
    assert f"https://ml.azure.{suffix}" == AUDIENCE
    assert cloud["suffixes"]["storage"] and cloud["authentication"]["loginEndpoint"]


def test_a_token_is_for_who_shows_the_key(anyone: TestClient, home: House):
    asked = {"resource": AUDIENCE, "api-version": "2019-08-01"}
    for shown in ({}, {"X-IDENTITY-HEADER": ""}, {"X-IDENTITY-HEADER": "wrong"}):
        assert anyone.get("/msi/token", params=asked, headers=shown).status_code == 401
    key = {"X-IDENTITY-HEADER": home.keys.admin}
    answer = anyone.get("/msi/token", params=asked, headers=key).json()
    assert claims(answer["access_token"])["aud"] == AUDIENCE
    assert int(answer["expires_on"]) == claims(answer["access_token"])["exp"]
    bearer = {"Authorization": f"Bearer {answer['access_token']}"}
    assert anyone.get(WS, headers=bearer).status_code == 200


def test_a_token_is_for_something_and_for_nobody_else(anyone: TestClient, home: House):
    key = {"X-IDENTITY-HEADER": home.keys.admin}
    assert anyone.get("/msi/token", headers=key).status_code == 400
    other = {"resource": AUDIENCE, "client_id": "somebody"}
    assert anyone.get("/msi/token", params=other, headers=key).status_code == 501


def test_a_token_that_was_changed_is_refused(anyone: TestClient, home: House):
    key = {"X-IDENTITY-HEADER": home.keys.admin}
    asked = {"resource": AUDIENCE}
    token = anyone.get("/msi/token", params=asked, headers=key).json()["access_token"]
    head, body, signature = token.split(".")
    forged = json.dumps({**claims(token), "exp": 2**33}).encode()
    body = base64.urlsafe_b64encode(forged).rstrip(b"=").decode()
    bearer = {"Authorization": f"Bearer {head}.{body}.{signature}"}
    assert anyone.get(WS, headers=bearer).status_code == 401


def test_the_registry_is_found_and_no_other(client: TestClient, home: House):
    found = client.get("/registrymanagement/v1.0/registries/azureml/discovery").json()
    assert found["primaryRegionResourceProviderUri"] == f"{home.https}/"
    assert found["subscriptionId"] == "s" and found["resourceGroup"] == "g"
    other = client.get("/registrymanagement/v1.0/registries/huggingface/discovery")
    assert other.status_code == 404


def test_a_workspace_says_where_its_history_is(client: TestClient, home: House):
    url = client.get(WS).json()["properties"]["discoveryUrl"]
    assert client.get(url).json()["history"] == home.https


def test_a_resource_group_has_a_place(client: TestClient):
    group = client.get("/subscriptions/s/resourcegroups/g").json()
    assert group["name"] == "g" and group["location"] == "local"
