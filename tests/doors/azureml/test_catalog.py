"""The system registry: read from files, brought up to date, shown, and not to be written."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from finery.core import assets
from finery.core.errors import Failure, Invalid
from finery.doors.azureml import catalog
from finery.doors.http import House

REGISTRY = (
    "/mferp/managementfrontend/subscriptions/s/resourceGroups/g/providers"
    "/Microsoft.MachineLearningServices/registries/azureml"
)
MODEL = """
name: m
version: {version}
type: mlflow_model
path: ./weights
description: the real one
tags: {{size: 'big', count: 3}}
x-tiny:
  path: ../standins/m
  description: a stand-in
  tags: {{stand_in: 'true'}}
"""
COMMAND = """
name: step
version: {version}
type: command
code: ../code
environment: azureml:e@latest
command: python a.py ${{{{inputs.flag}}}}
inputs:
  flag: {{type: string, default: true, enum: [true, false]}}
  rate: {{type: number, default: 1e-8, optional: true}}
outputs:
  o: {{type: uri_folder}}
"""
PIPELINE = """
name: pipe
version: 1
type: pipeline
inputs:
  n: {type: integer, default: 1}
outputs:
  out: {type: uri_folder}
jobs:
  first:
    component: azureml://registries/azureml/components/step/versions/0.0.9
    compute: ${{parent.inputs.n}}
    resources: {instance_count: '${{parent.inputs.n}}'}
    distribution: {type: pytorch, process_count_per_instance: '${{parent.inputs.n}}'}
    inputs: {flag: 'true', rate: 2}
    outputs: {o: '${{parent.outputs.out}}'}
  second:
    component: azureml:step@latest
    inputs:
      flag: ${{parent.jobs.first.outputs.o}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small catalog."""
    made = tmp_path / "catalog"
    write(made, "environments/e.yaml", "name: e\nversion: 1\nimage: i\n")
    write(made, "models/m.yaml", MODEL.format(version=3))
    for version in ("0.0.9", "0.0.10"):
        write(made, f"components/step-{version}.yaml", COMMAND.format(version=version))
    write(made, "components/pipe.yaml", PIPELINE)
    return made


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def get(home: House, kind: str, name: str, version: str = "latest") -> assets.Asset:
    return assets.get(home.store, "azureml", kind, name, version)


def test_files_become_assets_of_the_registry(home: House, folder: Path):
    assert catalog.load(home.store, tiny=False, folder=folder)
    model = get(home, "model", "m")
    assert (model.version, model.location) == ("3", "package:models/weights")
    assert model.tags == {"size": "big", "count": "3"}
    assert get(home, "environment", "e").spec["kind"] == "curated"
    step = get(home, "component", "step")
    assert step.version == "0.0.10" and step.spec["code"] == "package:code"
    assert step.spec["environment"] == "asset:environment/azureml/e/1"
    assert step.spec["inputs"]["flag"]["default"] == "true"
    assert step.spec["inputs"]["flag"]["enum"] == ["true", "false"]
    steps = get(home, "component", "pipe").spec["steps"]
    assert steps["first"]["component"] == "asset:component/azureml/step/0.0.9"
    assert steps["second"]["component"] == "asset:component/azureml/step/0.0.10"
    assert steps["first"]["outputs"] == {"o": "out"}
    assert steps["first"]["ranks"] == steps["first"]["nodes"] == "${{parent.inputs.n}}"
    assert steps["first"]["inputs"]["rate"] == {"value": "2", "type": "literal", "mode": ""}


def test_a_stand_in_is_laid_over_the_model(home: House, folder: Path):
    catalog.load(home.store, tiny=True, folder=folder)
    model = get(home, "model", "m")
    assert model.location == "package:standins/m" and model.tags == {"stand_in": "true"}
    assert model.description == "a stand-in" and model.type == "mlflow_model"
    assert catalog.load(home.store, tiny=False, folder=folder)
    assert get(home, "model", "m").location == "package:models/weights"


def test_nothing_is_read_again_until_a_file_changes(home: House, folder: Path):
    assert catalog.load(home.store, tiny=False, folder=folder)
    assert not catalog.load(home.store, tiny=False, folder=folder)
    created = get(home, "model", "m").created_at
    write(folder, "models/m.yaml", MODEL.format(version=3).replace("real", "changed"))
    assert catalog.load(home.store, tiny=False, folder=folder)
    model = get(home, "model", "m")
    assert model.description == "the changed one" and model.created_at == created


def test_a_version_that_left_the_catalog_stays_for_those_who_use_it(home: House, folder: Path):
    catalog.load(home.store, tiny=False, folder=folder)
    write(folder, "models/m.yaml", MODEL.format(version=2))
    catalog.load(home.store, tiny=False, folder=folder)
    assert get(home, "model", "m").version == "2"
    assert get(home, "model", "m", "3").version == "3"


@pytest.mark.parametrize(
    "text, says",
    [
        ("name: [", "x.yaml"),
        ("version: 1", "name"),
        ("- a", "x.yaml"),
        (COMMAND.format(version=1).replace("@latest", ":7"), "azureml:e:7"),
        (COMMAND.format(version=1).replace("type: number", "type: date"), "rate"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(home: House, folder: Path, text: str, says: str):
    write(folder, "components/x.yaml", text)
    with pytest.raises(Failure, match=says):
        catalog.load(home.store, tiny=False, folder=folder)
    assert assets.names(home.store, "azureml", "model").items == []


def test_the_files_that_ship_are_read_fast_when_they_are_known(home: House):
    assert catalog.load(home.store, tiny=True)
    start = time.process_time()
    assert not catalog.load(home.store, tiny=True)
    assert time.process_time() - start < 0.15


@pytest.fixture
def shipped(home: House, client: TestClient) -> TestClient:
    catalog.load(home.store, tiny=True)
    return client


def test_the_registry_is_read_by_version_by_label_and_in_lists(shipped: TestClient):
    one = "models/Phi-3-mini-4k-instruct"
    versions = shipped.get(f"{REGISTRY}/{one}/versions").json()["value"]
    newest = versions[0]["name"]
    assert shipped.get(f"{REGISTRY}/{one}/versions/{newest}").json()["name"] == newest
    assert shipped.get(f"{REGISTRY}/{one}/labels/latest").json()["name"] == newest
    named = shipped.get(f"{REGISTRY}/{one}").json()["properties"]
    assert named["latestVersion"] == newest
    address = f"azureml://registries/azureml/{one}/versions/{newest}"
    assert versions[0]["id"] == versions[0]["properties"]["modelUri"] == address
    assert {item["name"] for item in shipped.get(f"{REGISTRY}/models").json()["value"]} >= {
        "Phi-3-mini-4k-instruct"
    }
    query = {"listViewType": "ListViewType.ACTIVE_ONLY"}
    assert shipped.get(f"{REGISTRY}/models", params=query).status_code == 200


def test_the_pipeline_component_has_all_its_inputs(shipped: TestClient):
    found = shipped.get(f"{REGISTRY}/components/chat_completion_pipeline/labels/latest").json()
    spec = found["properties"]["componentSpec"]
    assert len(spec["inputs"]) == 69 and len(spec["outputs"]) == 2
    assert all(isinstance(port.get("default", ""), str) for port in spec["inputs"].values())
    for node in spec["jobs"].values():
        assert node["componentId"].startswith("azureml://registries/azureml/components/")


def test_what_the_registry_has_not_is_not_there(shipped: TestClient):
    assert shipped.get(f"{REGISTRY}/models/none").status_code == 404
    assert shipped.get(f"{REGISTRY}/models/none/versions/1").status_code == 404
    assert shipped.get(f"{REGISTRY}/models/none/versions").json()["value"] == []
    other = REGISTRY.replace("azureml", "huggingface")
    assert shipped.get(f"{other}/models").status_code == 404


@pytest.mark.parametrize(
    "method, path",
    [
        ("PUT", "models/m/versions/1"),
        ("PUT", "tempdatarefs/m/versions/1"),
        ("POST", "datarefs/m/versions/1"),
        ("POST", "import"),
        ("DELETE", "models/m"),
    ],
)
def test_nobody_writes_to_the_registry(shipped: TestClient, method: str, path: str):
    answer = shipped.request(method, f"{REGISTRY}/{path}", json={})
    assert answer.status_code == 501 and "read-only" in answer.json()["error"]["message"]


def test_a_failure_names_the_registry_s_own_file(home: House, folder: Path):
    write(folder, "models/m.yaml", "name: m\nversion: 1\n")
    with pytest.raises(Invalid, match="m.yaml"):
        catalog.load(home.store, tiny=False, folder=folder)
