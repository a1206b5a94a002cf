"""MLflow's registered models and ours are one list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from sqlalchemy import event

from finery.core import assets, jobs
from finery.core.assets import Asset, Name
from finery.core.jobs import Output
from finery.doors.azureml import versions as azureml_versions

API = "/mlflow/api/2.0/mlflow"


def _ours(door, name: str, version: str = "", **fields: object) -> Asset:
    made = Asset(
        scope=door.workspace.id,
        kind="model",
        name=name,
        version=version,
        **{"type": "custom_model", "location": f"file:workspaceblobstore/{name}", **fields},
    )
    return assets.create(door.house.store, made)


def _folder(door, path: str, *files: str):
    folder = door.house.files.path(door.workspace.id, "workspaceartifactstore", path)
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).write_text(file)
    return f"mlflow-artifacts:/{door.workspace.id}/workspaceartifactstore/{path}"


def _made(door, name: str, times: int = 1) -> list[dict]:
    client = door.client()
    door.mlflow.tracking.open(door.job(f"makes-{name}"))
    client.post(f"{API}/registered-models/create", json={"name": name})
    source = _folder(door, f"ExperimentRun/dcid.makes-{name}/model", "MLmodel")
    body = {"name": name, "source": source, "run_id": f"makes-{name}"}
    answers = [client.post(f"{API}/model-versions/create", json=body) for _ in range(times)]
    return [answer.json()["model_version"] for answer in answers]


def _search(door, filter: str = "", **more: object) -> dict:
    params = {"filter": filter, **more}
    return door.client().get(f"{API}/model-versions/search", params=params).json()


def _versions(door, filter: str, **more: object) -> list[str]:
    found = _search(door, filter, **more).get("model_versions", [])
    return [version["version"] for version in found]


def test_what_another_door_registered_is_listed_and_says_where_it_lies(door) -> None:
    _ours(
        door, "from-elsewhere", description="made elsewhere", tags={"a": "b"}, made_by="job-1/out"
    )
    [found] = _search(door, "name = 'from-elsewhere'")["model_versions"]
    assert found["version"] == "1"
    assert (
        found["source"]
        == f"mlflow-artifacts:/{door.workspace.id}/workspaceblobstore/from-elsewhere"
    )
    assert found["run_id"] == "job-1"
    assert found["description"] == "made elsewhere"
    assert found["tags"] == [{"key": "a", "value": "b"}]
    listed = door.client().get(f"{API}/registered-models/search?max_results=1000").json()
    assert "from-elsewhere" in [model["name"] for model in listed["registered_models"]]


def test_what_mlflow_registers_is_ours(door) -> None:
    [version] = _made(door, "from-mlflow")
    asset = assets.get(door.house.store, door.workspace.id, "model", "from-mlflow", "1")
    assert (
        asset.location == "file:workspaceartifactstore/ExperimentRun/dcid.makes-from-mlflow/model"
    )
    assert asset.type == "mlflow_model"
    assert (version["version"], version["run_id"]) == ("1", "makes-from-mlflow")
    assert door.house.files.locate(door.workspace.id, asset.location).is_dir()


def test_a_folder_that_is_no_mlflow_model_is_a_custom_one(door) -> None:
    client = door.client()
    client.post(f"{API}/registered-models/create", json={"name": "plain-files"})
    door.mlflow.tracking.open(door.job("plain-run"))
    source = _folder(door, "ExperimentRun/dcid.plain-run/weights", "weights.bin")
    body = {"name": "plain-files", "source": source, "run_id": "plain-run"}
    assert client.post(f"{API}/model-versions/create", json=body).status_code == 200
    found = assets.get(door.house.store, door.workspace.id, "model", "plain-files")
    assert found.type == "custom_model"


@pytest.mark.parametrize(
    "source",
    ["s3://bucket/model", "file:///etc", "mlflow-artifacts:/another/workspaceartifactstore/model"],
)
def test_a_source_that_is_not_on_this_server_is_refused(door, source: str) -> None:
    client = door.client()
    client.post(f"{API}/registered-models/create", json={"name": "bad-source"})
    body = {"name": "bad-source", "source": source}
    answer = client.post(f"{API}/model-versions/create", json=body)
    assert answer.status_code == 400
    assert "source" in answer.json()["message"]
    assert _versions(door, "name = 'bad-source'") == []


def test_versions_that_are_no_numbers_are_shown_as_they_are(door) -> None:
    for version in ("v1.beta", "9", "10"):
        _ours(door, "texts", version, location=f"file:workspaceblobstore/texts-{version}")
    assert _versions(door, "name = 'texts'", order_by="version_number DESC") == [
        "10",
        "9",
        "v1.beta",
    ]
    assert _versions(door, "name = 'texts' and version_number > 9") == ["10"]
    assert _versions(door, "name = 'texts' and version_number = 9") == ["9"]
    got = door.client().get(f"{API}/model-versions/get?name=texts&version=v1.beta").json()
    assert got["model_version"]["version"] == "v1.beta"
    by_alias = f"{API}/registered-models/alias?name=texts&alias="
    for alias, expected in (("v1.beta", "v1.beta"), ("latest", "10")):
        found = door.client().get(by_alias + alias).json()
        assert found["model_version"]["version"] == expected


def test_a_search_comes_in_pages(door) -> None:
    _made(door, "in-pages", times=5)
    first = _search(door, "name = 'in-pages'", max_results=3)
    rest = _search(door, "name = 'in-pages'", max_results=3, page_token=first["next_page_token"])
    found = [v["version"] for v in (*first["model_versions"], *rest["model_versions"])]
    assert sorted(found) == ["1", "2", "3", "4", "5"]
    assert "next_page_token" not in rest
    assert door.client().get(f"{API}/model-versions/search?max_results=0").status_code == 400


def test_aliases_tags_and_texts_are_kept(door) -> None:
    _made(door, "kept-words", times=2)
    client = door.client()
    alias = {"name": "kept-words", "alias": "champion", "version": "1"}
    assert client.post(f"{API}/registered-models/alias", json=alias).status_code == 200
    found = client.get(f"{API}/registered-models/alias?name=kept-words&alias=champion").json()
    assert found["model_version"]["aliases"] == ["champion"]
    for noun, more in (("registered-models", {}), ("model-versions", {"version": "2"})):
        body = {"name": "kept-words", "key": "k", "value": "v", **more}
        assert client.post(f"{API}/{noun}/set-tag", json=body).status_code == 200
        body = {"name": "kept-words", "description": "d", **more}
        assert client.patch(f"{API}/{noun}/update", json=body).status_code == 200
    model = client.get(f"{API}/registered-models/get?name=kept-words").json()["registered_model"]
    assert (model["description"], model["tags"]) == ("d", [{"key": "k", "value": "v"}])
    assert model["aliases"] == [{"alias": "champion", "version": "1"}]
    ours = assets.get(door.house.store, door.workspace.id, "model", "kept-words", "2")
    assert (ours.description, ours.tags) == ("d", {"k": "v"})
    assert _versions(door, "name = 'kept-words' and tags.k = 'v'") == ["2"]
    body = {"name": "kept-words", "version": "2", "key": "k"}
    assert (
        client.request("DELETE", f"{API}/model-versions/delete-tag", json=body).status_code == 200
    )
    assert _versions(door, "name = 'kept-words' and tags.k = 'v'") == []
    body = {"name": "kept-words", "alias": "champion"}
    assert client.request("DELETE", f"{API}/registered-models/alias", json=body).status_code == 200
    gone = client.get(f"{API}/registered-models/alias?name=kept-words&alias=champion")
    assert gone.status_code == 404


def test_an_alias_of_a_version_that_is_not_there_is_refused(door) -> None:
    _made(door, "alias-of-none")
    alias = {"name": "alias-of-none", "alias": "champion", "version": "7"}
    assert door.client().post(f"{API}/registered-models/alias", json=alias).status_code == 404


def test_stages_are_kept_and_archived_is_archived_for_every_door(door) -> None:
    _made(door, "in-stages", times=2)
    client = door.client()

    def move(version: str, stage: str) -> None:
        body = {
            "name": "in-stages",
            "version": version,
            "stage": stage,
            "archive_existing_versions": stage.lower() == "production",
        }
        answer = client.post(f"{API}/model-versions/transition-stage", json=body)
        assert answer.status_code == 200, answer.text

    def latest(*stages: str) -> dict[str, str]:
        body = {"name": "in-stages", "stages": stages}
        found = client.post(f"{API}/registered-models/get-latest-versions", json=body).json()
        return {v["current_stage"]: v["version"] for v in found["model_versions"]}

    move("1", "Production")
    assert latest("Production") == {"Production": "1"}
    move("2", "production")
    assert latest() == {"Production": "2", "Archived": "1"}
    first = assets.get(door.house.store, door.workspace.id, "model", "in-stages", "1")
    assert first.archived
    assets.update(door.house.store, replace(first, archived=False))
    assert latest() == {"Production": "2", "None": "1"}
    body = {"name": "in-stages", "version": "1", "stage": "Somewhere"}
    assert client.post(f"{API}/model-versions/transition-stage", json=body).status_code == 400


def test_a_stage_is_the_same_whichever_door_set_it(door) -> None:
    _ours(door, "staged-there", stage="Staging")
    [found] = _search(door, "name = 'staged-there'")["model_versions"]
    assert found["current_stage"] == "Staging"
    for stage, kept in (("Production", "Production"), ("None", "")):
        body = {"name": "staged-there", "version": "1", "stage": stage}
        assert door.client().post(f"{API}/model-versions/transition-stage", json=body).is_success
        asset = assets.get(door.house.store, door.workspace.id, "model", "staged-there", "1")
        assert asset.stage == kept
        shown = azureml_versions.version_out(door.house, door.workspace, asset)["properties"]
        assert shown["stage"] == (kept or None)


def test_a_search_for_no_name_asks_no_more_questions_for_more_names(door) -> None:
    asked: list[str] = []

    def count(connection, cursor, statement, *rest: object) -> None:
        asked.append(statement)

    _ours(door, "counted-0")
    event.listen(door.house.store._engine, "before_cursor_execute", count)
    try:
        _search(door, max_results=1000)
        few = len(asked)
        asked.clear()
        for number in range(1, 20):
            _ours(door, f"counted-{number}")
        asked.clear()
        found = {version["name"] for version in _search(door, max_results=1000)["model_versions"]}
        assert {f"counted-{number}" for number in range(20)} <= found
        assert len(asked) <= few
    finally:
        event.remove(door.house.store._engine, "before_cursor_execute", count)


def test_deleting_deletes_for_every_door_and_renaming_is_refused(door) -> None:
    _made(door, "goes-away", times=2)
    client = door.client()
    alias = {"name": "goes-away", "alias": "a", "version": "1"}
    client.post(f"{API}/registered-models/alias", json=alias)
    body = {"name": "goes-away", "version": "1"}
    assert client.request("DELETE", f"{API}/model-versions/delete", json=body).status_code == 200
    assert assets.find(door.house.store, door.workspace.id, "model", "goes-away", "1") is None
    name = assets.find_name(door.house.store, door.workspace.id, "model", "goes-away")
    assert name is not None and name.extras["mlflow"]["aliases"] == {}
    body = {"name": "goes-away", "new_name": "other"}
    refused = client.post(f"{API}/registered-models/rename", json=body)
    assert refused.status_code == 400 and "cannot be renamed" in refused.json()["message"]
    body = {"name": "goes-away"}
    assert client.request("DELETE", f"{API}/registered-models/delete", json=body).status_code == 200
    assert assets.find_name(door.house.store, door.workspace.id, "model", "goes-away") is None
    assert client.get(f"{API}/registered-models/get?name=goes-away").status_code == 404


def test_the_same_name_again_is_refused_as_mlflow_says_it(door) -> None:
    body = {"name": "made-once"}
    assert door.client().post(f"{API}/registered-models/create", json=body).status_code == 200
    answer = door.client().post(f"{API}/registered-models/create", json=body)
    assert answer.json()["error_code"] == "RESOURCE_ALREADY_EXISTS"
    answer = door.client().post(f"{API}/registered-models/create", json={"name": "no/slash"})
    assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"


def test_versions_registered_at_once_get_numbers_of_their_own(door) -> None:
    _made(door, "at-once")
    source = _folder(door, "ExperimentRun/dcid.makes-at-once/model", "MLmodel")
    body = {"name": "at-once", "source": source, "run_id": "makes-at-once"}
    client = door.client()
    threads = [
        threading.Thread(
            target=client.post, args=(f"{API}/model-versions/create",), kwargs={"json": body}
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, _versions(door, "name = 'at-once'"))) == [1, 2, 3, 4, 5, 6, 7]


def test_each_workspace_has_its_own_models(door) -> None:
    _made(door, "only-here")
    client = door.client(door.job_token(door.other))
    assert client.get(f"{API}/registered-models/get?name=only-here").status_code == 404
    assert client.get(f"{API}/model-versions/search?max_results=100").json() == {}
    made = client.post(f"{API}/registered-models/create", json={"name": "only-there"})
    assert made.status_code == 200
    assert assets.find_name(door.house.store, door.other.id, "model", "only-there") is not None


def test_a_model_that_is_a_jobs_output_is_fetched_from_where_the_job_put_it(door) -> None:
    job = door.job("has-output")
    spec = replace(job.spec, outputs={"model": Output(type="mlflow_model")})
    with door.house.store.transaction():
        jobs.update(
            door.house.store,
            job.name,
            spec=spec,
            outputs={"model": "file:workspaceblobstore/azureml/has-output/model"},
        )
    _ours(door, "from-output", location="job:has-output/model/inner")
    _ours(door, "from-nothing", location="job:not-there/model")
    uri = f"{API}/model-versions/get-download-uri?version=1&name="
    found = door.client().get(f"{uri}from-output").json()["artifact_uri"]
    base = f"mlflow-artifacts:/{door.workspace.id}/workspaceblobstore"
    assert found == f"{base}/azureml/has-output/model/inner"
    assert door.client().get(f"{uri}from-nothing").status_code == 404
    assert _versions(door, "name = 'from-nothing'") == ["1"]  # still a line in the list


def test_prompts_are_mlflows_own_and_no_models(door) -> None:
    body = {"name": "a-prompt", "tags": [{"key": "mlflow.prompt.is_prompt", "value": "true"}]}
    client = door.client()
    assert client.post(f"{API}/registered-models/create", json=body).status_code == 200
    assert assets.find_name(door.house.store, door.workspace.id, "model", "a-prompt") is None
    listed = client.get(f"{API}/registered-models/search?max_results=1000").json()
    assert "a-prompt" not in [model["name"] for model in listed["registered_models"]]
    params = {"max_results": 10, "filter": "tags.`mlflow.prompt.is_prompt` = 'true'"}
    listed = client.get(f"{API}/registered-models/search", params=params).json()
    assert [model["name"] for model in listed["registered_models"]] == ["a-prompt"]


def test_an_archived_name_is_listed_as_archived(door) -> None:
    _ours(door, "put-away")
    name = assets.find_name(door.house.store, door.workspace.id, "model", "put-away")
    assert isinstance(name, Name)
    assets.update_name(door.house.store, replace(name, archived=True))
    [found] = _search(door, "name = 'put-away'")["model_versions"]
    assert found["current_stage"] == "Archived"


def test_the_official_client_loads_what_it_and_others_registered(door, served, tmp_path) -> None:
    # The official client in a process of its own, over HTTP: only it follows `models:/` addresses.
    script = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mlflow
from mlflow import MlflowClient
mlflow.pyfunc.save_model(sys.argv[1], python_model="model.py", pip_requirements=[])
with mlflow.start_run() as run:
    logged = mlflow.pyfunc.log_model(name="m", python_model="model.py", pip_requirements=[])
mlflow.register_model(logged.model_uri, "by-client")
mlflow.register_model(f"runs:/{run.info.run_id}/m", "by-client")
client = MlflowClient()
client.copy_model_version("models:/by-client/1", "copied")
said = {}
for uri in ("by-client/2", "by-client/latest", "copied/1", "by-other@v1.beta"):
    said[uri] = mlflow.pyfunc.load_model("models:/" + uri).predict(["x"])
said["listed"] = sorted(f"{v.name}:{v.version}" for v in client.search_model_versions()
                        if v.name in ("by-client", "copied", "by-other"))
said["logged"] = [m.name for m in client.search_logged_models([run.info.experiment_id])]
print(json.dumps(said))
"""
    (tmp_path / "model.py").write_text(
        "import mlflow\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return ['said ' + str(x) for x in model_input]\n"
        "mlflow.models.set_model(Model())\n"
    )
    place = door.house.files.path(door.workspace.id, "workspaceblobstore", "by-other")
    place.parent.mkdir(parents=True, exist_ok=True)
    _ours(door, "by-other", "v1.beta", type="mlflow_model")
    env = door.mlflow.tracking.open(door.job("client-loads", experiment="client-loads"))
    plain = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    done = subprocess.run(
        [sys.executable, "-c", script, str(place)],
        env={**plain, **env},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said.pop("listed") == ["by-client:1", "by-client:2", "by-other:v1.beta", "copied:1"]
    assert said.pop("logged") == ["m"]
    assert set(map(tuple, said.values())) == {("said x",)}
