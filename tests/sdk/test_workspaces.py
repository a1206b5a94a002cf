"""Workspaces and datastores with the official SDK."""

from __future__ import annotations

import os
import warnings

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.entities import AzureBlobDatastore, Workspace
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential


def test_the_default_workspace_is_there_from_the_start(ml: MLClient) -> None:
    found = ml.workspaces.get(os.environ["AZURE_ML_WORKSPACE"])
    assert found.name == os.environ["AZURE_ML_WORKSPACE"]
    assert found.mlflow_tracking_uri == os.environ["MLFLOW_TRACKING_URI"]
    assert found.name in [item.name for item in ml.workspaces.list()]
    assert found.name in [item.name for item in ml.workspaces.list(scope="subscription")]


def test_a_workspace_is_made_changed_and_deleted(
    ml: MLClient, credential: DefaultAzureCredential, name: str
) -> None:
    wanted = Workspace(name=name, location="local", description="one", tags={"a": "b"})
    made = ml.workspaces.begin_create(wanted).result()
    assert made.description == "one" and made.tags["a"] == "b"
    ml.workspaces.begin_update(Workspace(name=name, description="two")).result()
    assert ml.workspaces.get(name).description == "two"
    inside = MLClient(
        credential,
        os.environ["AZURE_SUBSCRIPTION_ID"],
        os.environ["AZURE_RESOURCE_GROUP"],
        name,
        retry_total=0,
    )
    assert list(inside.models.list()) == []
    ml.workspaces.begin_delete(name, delete_dependent_resources=False).result()
    with pytest.raises(ResourceNotFoundError):
        ml.workspaces.get(name)


def test_the_config_file_leads_to_the_workspace(
    credential: DefaultAzureCredential, tmp_path, monkeypatch
) -> None:
    file = tmp_path / "config.json"
    names = ("subscription_id", "resource_group", "workspace_name")
    variables = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")
    pairs = zip(names, variables, strict=True)
    text = ", ".join(f'"{key}": "{os.environ[value]}"' for key, value in pairs)
    file.write_text("{" + text + "}")
    client = MLClient.from_config(credential, path=str(tmp_path))
    assert client.workspace_name == os.environ["AZURE_ML_WORKSPACE"]
    assert client.workspaces.get().name == client.workspace_name


def test_the_default_datastore_and_the_other_three(ml: MLClient) -> None:
    assert ml.datastores.get_default().name == "workspaceblobstore"
    assert {store.name for store in ml.datastores.list()} == {
        "workspaceblobstore",
        "workspaceartifactstore",
        "workspacefilestore",
        "workspaceworkingdirectory",
    }
    secret = ml.datastores.get("workspaceblobstore", include_secrets=True)
    assert "sig=" in secret.credentials.sas_token


def test_other_people_s_storage_is_refused(ml: MLClient, name: str) -> None:
    store = AzureBlobDatastore(name=name, account_name="account", container_name="container")
    with warnings.catch_warnings(), pytest.raises(HttpResponseError, match=name) as failed:
        ml.datastores.create_or_update(store)
    assert failed.value.status_code == 501
