"""Data, models, environments, components and code of a workspace."""

from __future__ import annotations

from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from finery.core import assets, jobs
from finery.core.jobs import Command, Job, Output
from finery.doors.http import House

from .conftest import WS

# A few lines that take for ever where one mapping is merged into another.
MERGES = "a: &a {x: y}\n" + "".join(
    f"{after}: &{after} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, after in zip("abcdefghijklmnopq", "bcdefghijklmnopqr", strict=True)
)
# A few lines that name a list of a hundred thousand million letters, and one that has itself.
REPEATS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)
ITSELF = "j: &j [" + "x, " * 100_000 + "*j]\n"
CONDA = "name: e\ndependencies: [python=3.10]\n"


def put(client: TestClient, path: str, status: int = 201, **properties):
    answer = client.put(f"{WS}/{path}", json={"properties": properties})
    assert answer.status_code == status, answer.text
    return answer.json()


def versions(client: TestClient, path: str, **query: str) -> list[str]:
    return [
        item["name"] for item in client.get(f"{WS}/{path}/versions", params=query).json()["value"]
    ]


def message(answer) -> str:
    return answer.json()["error"]["message"]


def test_data_is_registered_by_its_path_and_shown_by_a_long_one(client, put_file):
    path = put_file("a/rows.jsonl")
    made = put(client, "data/d/versions/1", dataType="uri_file", dataUri=path, tags={"n": 3})
    assert made["id"] == f"{WS}/data/d/versions/1" and made["name"] == "1"
    assert made["properties"]["tags"] == {"n": "3"}
    assert made["properties"]["dataUri"] == (
        "azureml://subscriptions/s/resourcegroups/g/workspaces/w"
        "/datastores/workspaceblobstore/paths/a/rows.jsonl"
    )
    assert made["systemData"]["createdAt"] and made["systemData"]["lastModifiedAt"]


def test_versions_count_up_and_the_newest_is_latest(client, put_file):
    path = put_file("a/rows.jsonl")
    for version in ("1", "2", "v-x"):
        put(client, f"data/d/versions/{version}", dataType="uri_file", dataUri=path)
    name = client.get(f"{WS}/data/d").json()["properties"]
    assert (name["latestVersion"], name["nextVersion"]) == ("v-x", "3")
    assert versions(client, "data/d", **{"$top": "1", "$orderBy": "createdtime desc"}) == ["v-x"]
    assert client.get(f"{WS}/data/d/versions", params={"$orderBy": "name"}).status_code == 501


def test_versions_of_what_is_not_there_are_not_found(client):
    for plural in ("data", "models", "environments", "components"):
        assert client.get(f"{WS}/{plural}/none/versions").status_code == 404
        assert client.get(f"{WS}/{plural}/none").status_code == 404
        assert client.get(f"{WS}/{plural}/none/versions/1").status_code == 404


def test_a_version_never_changes_but_its_texts_may(client, put_file):
    one, other = put_file("a/one"), put_file("a/other")
    put(client, "data/d/versions/1", dataType="uri_file", dataUri=one, description="old")
    again = put(client, "data/d/versions/1", dataType="uri_file", dataUri=one, description="new")
    assert again["properties"]["description"] == "new"
    body = {"properties": {"dataType": "uri_file", "dataUri": other}}
    refused = client.put(f"{WS}/data/d/versions/1", json=body)
    assert refused.status_code == 409 and "register a new version" in message(refused)


@pytest.mark.parametrize(
    "properties, says",
    [
        (
            {"dataType": "uri_file", "dataUri": "azureml://datastores/workspaceblobstore/paths/no"},
            "nothing is at 'no' in the datastore 'workspaceblobstore'",
        ),
        (
            {"dataType": "uri_file", "dataUri": "azureml://datastores/workspaceblobstore/paths/a"},
            "cannot be a folder",
        ),
        (
            {
                "dataType": "uri_folder",
                "dataUri": "azureml://datastores/workspaceblobstore/paths/a/x",
            },
            "cannot be a file",
        ),
        ({"dataType": "uri_folder"}, "no dataUri"),
        ({"dataType": "uri_folder", "dataUri": "azureml://jobs/none/outputs/o"}, "no job"),
    ],
)
def test_data_that_is_not_there_is_refused_at_once(client, put_file, properties, says):
    put_file("a/x")
    answer = client.put(f"{WS}/data/d/versions/1", json={"properties": properties})
    assert answer.status_code == 400 and says in message(answer)
    assert client.get(f"{WS}/data/d").status_code == 404


def test_a_field_that_would_change_what_happens_is_refused_by_name(client, put_file):
    path = put_file("a/x")
    setting = {"condition": "createdGreaterThan", "value": "1d"}
    body = {"dataType": "uri_file", "dataUri": path, "autoDeleteSetting": setting}
    answer = client.put(f"{WS}/data/d/versions/1", json={"properties": body})
    assert answer.status_code == 501 and "autoDeleteSetting" in message(answer)


def test_archived_is_out_of_sight_until_restored(client, put_file):
    path = put_file("a/x")
    for version in ("1", "2"):
        put(client, f"data/d/versions/{version}", dataType="uri_file", dataUri=path)
    body = client.get(f"{WS}/data/d/versions/2").json()
    body["properties"]["isArchived"] = True
    assert client.put(f"{WS}/data/d/versions/2", json=body).status_code == 201
    assert versions(client, "data/d") == ["1"]
    assert versions(client, "data/d", listViewType="ArchivedOnly") == ["2"]
    assert versions(client, "data/d", listViewType="All") == ["2", "1"]
    assert client.get(f"{WS}/data/d").json()["properties"]["latestVersion"] == "1"
    name = client.get(f"{WS}/data/d").json()
    name["properties"]["isArchived"] = True
    client.put(f"{WS}/data/d", json=name)
    assert client.get(f"{WS}/data").json()["value"] == []
    name["properties"]["isArchived"] = False
    client.put(f"{WS}/data/d", json=name)
    assert versions(client, "data/d") == ["2", "1"]


def test_a_model_comes_from_what_a_job_made(client, home: House):
    outputs = {"trained_model": Output(type="custom_model")}
    spec = Command(command="true", outputs=outputs)
    job = jobs.create(home.store, Job(name="j", workspace="ws", spec=spec))
    uri = "azureml://jobs/j/outputs/trained_model"
    early = client.put(f"{WS}/models/m/versions/1", json={"properties": {"modelUri": uri}})
    assert early.status_code == 400 and "has not made its output" in message(early)
    location = "file:workspaceblobstore/azureml/j/trained_model"
    home.files.path("ws", "workspaceblobstore", "azureml/j/trained_model").mkdir(parents=True)
    jobs.update(home.store, job.name, outputs={"trained_model": location})
    made = put(client, "models/m/versions/1700000000", modelUri=uri, modelType="custom_model")
    assert made["properties"]["modelUri"].endswith("/paths/azureml/j/trained_model")
    assert made["properties"]["jobName"] == "j" and made["properties"]["flavors"] == {}
    kept = assets.get(home.store, "ws", "model", "m")
    assert kept.location == location
    assets.create(home.store, replace(kept, name="own", extras={}, made_by="j/trained_model"))
    own = client.get(f"{WS}/models/own/versions/1700000000").json()
    assert own["properties"]["jobName"] == "j"


def test_a_model_comes_from_what_a_job_left_in_its_folder(client, home: House, put_file):
    jobs.create(home.store, Job(name="j", workspace="ws", spec=Command(command="true")))
    put_file("ExperimentRun/dcid.j/outputs/w.bin", store="workspaceartifactstore")
    uri = "azureml://jobs/j/outputs/artifacts/paths/./outputs/"
    put(client, "models/m/versions/1", modelUri=uri, modelType="custom_model")
    made = assets.get(home.store, "ws", "model", "m")
    assert made.location == "file:workspaceartifactstore/ExperimentRun/dcid.j/outputs"


def test_an_mlflow_model_says_what_it_can_be_loaded_as(client, put_file):
    put_file("m/MLmodel", b"flavors:\n  python_function:\n    loader_module: x\n    n: 1\n")
    uri = "azureml://datastores/workspaceblobstore/paths/m"
    made = put(client, "models/m/versions/1", modelUri=uri, modelType="mlflow_model")
    assert made["properties"]["flavors"] == {
        "python_function": {"data": {"loader_module": "x", "n": "1"}}
    }
    put_file("n/w.bin")
    body = {"modelUri": uri.replace("paths/m", "paths/n"), "modelType": "mlflow_model"}
    refused = client.put(f"{WS}/models/n/versions/1", json={"properties": body})
    assert refused.status_code == 400 and "MLmodel" in message(refused)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (REPEATS + "flavors: {python_function: {n: *j}}\n", "repeats itself"),
        (REPEATS + "metadata: {stand_in_for: *j}\n", "repeats itself"),
        (ITSELF, "repeats itself"),
        ("flavors: {python_function: {n: 0x" + "f" * 100_000 + "}}\n", "no MLmodel"),
        ("flavors: [", "no MLmodel"),
    ],
)
def test_a_model_s_manifest_that_makes_no_sense_is_refused(client, put_file, manifest, said):
    put_file("m/MLmodel", manifest.encode())
    uri = "azureml://datastores/workspaceblobstore/paths/m"
    body = {"modelUri": uri, "modelType": "mlflow_model"}
    answer = client.put(f"{WS}/models/m/versions/1", json={"properties": body})
    assert answer.status_code == 400 and said in message(answer)


def test_a_model_that_stands_in_for_another_is_tagged_so(client, put_file):
    put_file("m/MLmodel", b"flavors: {}\nmetadata: {stand_in: true, stand_in_for: some/model}\n")
    uri = "azureml://datastores/workspaceblobstore/paths/m"
    made = put(client, "models/m/versions/1", modelUri=uri, modelType="mlflow_model")
    assert made["properties"]["tags"] == {"stand_in": "true", "stand_in_for": "some/model"}


def test_a_model_s_stage_may_change_and_is_a_way_to_choose(client, put_file):
    path = put_file("m/w.bin")
    put(client, "models/m/versions/1", modelUri=path, stage="Staging")
    put(client, "models/m/versions/2", modelUri=path)
    assert versions(client, "models/m", stage="Staging") == ["1"]
    put(client, "models/m/versions/1", modelUri=path, stage="Production")
    shown = client.get(f"{WS}/models/m/versions/1").json()["properties"]
    assert shown["stage"] == "Production"
    assert versions(client, "models/m", stage="Staging") == []


def test_models_of_other_kinds_are_refused(client, put_file):
    body = {"modelUri": put_file("m/w.bin"), "modelType": "triton_model"}
    answer = client.put(f"{WS}/models/m/versions/1", json={"properties": body})
    assert answer.status_code == 501 and "triton_model" in message(answer)


def test_an_environment_is_an_image_a_conda_file_or_a_build(client, home: House, put_file):
    put(client, "environments/i/versions/1", image="img")
    put(client, "environments/c/versions/1", image="img", condaFile=CONDA)
    put_file("LocalUpload/h/env/Dockerfile")
    context = "https://testserver/blob/workspaceblobstore/LocalUpload/h/env/"
    build = {"contextUri": context, "dockerfilePath": "Dockerfile"}
    made = put(client, "environments/b/versions/1", build=build)
    assert made["properties"]["build"]["contextUri"].startswith("https://testserver/blob/ws.blob.")
    kept = {name: assets.get(home.store, "ws", "environment", name) for name in "icb"}
    assert kept["i"].spec == {"kind": "image", "image": "img"}
    assert kept["c"].spec == {"kind": "conda", "conda": CONDA, "image": "img"}
    assert kept["b"].spec == {"kind": "build", "dockerfile": "Dockerfile"}
    assert kept["b"].location == "file:workspaceblobstore/LocalUpload/h/env"


def test_another_image_is_another_version(client):
    put(client, "environments/e/versions/1", image="one")
    put(client, "environments/e/versions/1", image="one")
    answer = client.put(f"{WS}/environments/e/versions/1", json={"properties": {"image": "two"}})
    assert answer.status_code == 409


@pytest.mark.parametrize(
    "properties, status",
    [
        ({}, 400),
        ({"image": "i", "condaFile": "- just\n- a list"}, 400),
        ({"image": "i", "condaFile": "a: ["}, 400),
        ({"image": "i", "condaFile": "[" * 100_000}, 400),
        ({"image": "i", "condaFile": MERGES}, 400),
        ({"image": "i", "osType": "Windows"}, 501),
        ({"image": "i", "autoRebuild": "OnBaseImageUpdate"}, 501),
        ({"build": {"contextUri": "https://testserver/blob/ws/workspaceblobstore/none"}}, 400),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(client, properties, status):
    answer = client.put(f"{WS}/environments/e/versions/1", json={"properties": properties})
    assert answer.status_code == status


def test_code_is_uploaded_to_a_fresh_folder_and_found_again_by_its_bytes(client, home, put_file):
    asked = {"pendingUploadType": "TemporaryBlobReference"}
    upload = client.post(f"{WS}/codes/c/versions/1/startPendingUpload", json=asked).json()
    other = client.post(f"{WS}/codes/c/versions/1/startPendingUpload", json=asked).json()
    reference = upload["blobReferenceForConsumption"]
    assert reference["blobUri"] != other["blobReferenceForConsumption"]["blobUri"]
    assert reference["credential"]["sasUri"].startswith(f"{reference['blobUri']}?sv=")
    folder = reference["blobUri"].partition("/workspaceblobstore/")[2]
    put_file(f"{folder}/src/train.py")
    hashed = {"hash_sha256": "abc", "hash_version": "202208"}
    assert versions(client, "codes/c", hash="abc", hashVersion="202208") == []
    uri = f"{reference['blobUri']}/src"
    made = put(client, "codes/c/versions/1", codeUri=uri, properties=hashed, isAnonymous=True)
    assert made["properties"]["codeUri"] == uri
    assert versions(client, "codes/other", hash="abc", hashVersion="202208") == ["1"]
    assert assets.get(home.store, "ws", "code", "c").location.endswith("/src")


def test_what_has_no_name_of_its_own_is_not_listed(client, put_file):
    put(client, "environments/named/versions/1", image="one")
    put(client, "environments/CliV2Anonymous/versions/1", image="one", isAnonymous=True)
    names = [item["name"] for item in client.get(f"{WS}/environments").json()["value"]]
    assert names == ["named"]


def test_a_deleted_version_is_gone(client):
    put(client, "environments/e/versions/1", image="one")
    assert client.delete(f"{WS}/environments/e/versions/1").status_code == 204
    assert client.get(f"{WS}/environments/e/versions/1").status_code == 404
    assert client.delete(f"{WS}/environments/e").status_code == 204
    assert client.get(f"{WS}/environments").json()["value"] == []


def test_what_other_doors_keep_with_a_name_is_kept(client, home: House):
    put(client, "environments/e/versions/1", image="one")
    name = assets.find_name(home.store, "ws", "environment", "e")
    assets.update_name(home.store, replace(name, extras={"mlflow": {"aliases": {"a": "1"}}}))
    body = client.get(f"{WS}/environments/e").json()
    body["properties"]["description"] = "new"
    assert client.put(f"{WS}/environments/e", json=body).status_code == 200
    kept = assets.find_name(home.store, "ws", "environment", "e")
    assert kept.extras["mlflow"] == {"aliases": {"a": "1"}} and kept.description == "new"
