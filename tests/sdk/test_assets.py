"""Data, models, environments, components and code with the official SDK."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from azure.ai.ml import MLClient, load_component
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.entities import BuildContext, Data, Environment, Model
from azure.ai.ml.entities._assets import Code
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError

STEP = """
$schema: https://azuremlschemas.azureedge.net/latest/commandComponent.schema.json
name: {name}
type: command
inputs:
  rows: {{type: uri_folder}}
  rate: {{type: number, default: 1e-3, min: 0, max: 1}}
  often: {{type: integer, optional: true}}
  sure: {{type: boolean, default: true}}
  how: {{type: string, enum: [this, that], default: this}}
outputs:
  made: {{type: mlflow_model, mode: rw_mount}}
code: ./folder
environment: azureml:{environment}@latest
distribution: {{type: pytorch, process_count_per_instance: 2}}
resources: {{instance_count: 1, shm_size: 4g}}
command: >-
  python a.py --rows ${{{{inputs.rows}}}} $[[--often ${{{{inputs.often}}}}]]
  --rate ${{{{inputs.rate}}}} --made ${{{{outputs.made}}}}
"""
GRAPH = """
$schema: https://azuremlschemas.azureedge.net/latest/pipelineComponent.schema.json
name: {name}
type: pipeline
inputs:
  rows: {{type: uri_folder}}
  where: {{type: string, default: serverless}}
outputs:
  last: {{type: mlflow_model}}
jobs:
  first:
    type: command
    component: azureml:{step}@latest
    compute: ${{{{parent.inputs.where}}}}
    inputs: {{rows: "${{{{parent.inputs.rows}}}}", rate: 0.5}}
    outputs: {{made: "${{{{parent.outputs.last}}}}"}}
"""


def test_listing_versions_of_nothing_is_not_found(ml: MLClient, name: str) -> None:
    for operations in (ml.data, ml.models, ml.environments):
        with pytest.raises(ResourceNotFoundError):
            list(operations.list(name=name))


def test_data_is_uploaded_and_its_versions_count_up(ml: MLClient, name: str, folder: Path) -> None:
    wanted = {"name": name, "type": AssetTypes.URI_FOLDER, "path": str(folder)}
    one = ml.data.create_or_update(Data(**wanted, description="d", tags={"a": "b"}))
    two = ml.data.create_or_update(Data(**wanted))
    assert (one.version, two.version) == ("1", "2")
    found = ml.data.get(name, version="1")
    assert found.path == one.path and found.tags == {"a": "b"} and found.description == "d"
    assert ml.data.get(name, label="latest").version == "2"
    assert max(int(item.version) for item in ml.data.list(name=name)) == 2
    ml.data.create_or_update(Data(**wanted, version="spring"))
    assert ml.data.get(name, version="spring").path == one.path


def test_the_same_version_with_other_bytes_is_refused(
    ml: MLClient, name: str, folder: Path, tmp_path: Path
) -> None:
    ml.data.create_or_update(Data(name=name, version="1", path=str(folder)))
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.txt").write_text(name)
    with pytest.raises(ResourceExistsError, match="register a new version"):
        ml.data.create_or_update(Data(name=name, version="1", path=str(other)))


def test_data_that_is_not_there_is_refused(ml: MLClient, name: str) -> None:
    path = f"azureml://datastores/workspaceblobstore/paths/{name}/"
    with pytest.raises(HttpResponseError, match="nothing is at"):
        ml.data.create_or_update(Data(name=name, type=AssetTypes.URI_FOLDER, path=path))


def test_archived_data_is_out_of_sight_until_restored(
    ml: MLClient, name: str, folder: Path
) -> None:
    wanted = {"name": name, "path": str(folder)}
    for version in ("1", "2"):
        ml.data.create_or_update(Data(**wanted, version=version))
    ml.data.archive(name, version="2")
    assert [item.version for item in ml.data.list(name=name)] == ["1"]
    assert ml.data.get(name, label="latest").version == "1"
    ml.data.archive(name)
    assert name not in [item.name for item in ml.data.list()]
    assert name in [item.name for item in ml.data.list(list_view_type="ArchivedOnly")]
    ml.data.restore(name)
    assert [item.version for item in ml.data.list(name=name)] == ["2", "1"]


def test_an_environment_from_conda_keeps_its_version_until_it_changes(
    ml: MLClient, name: str, tmp_path: Path
) -> None:
    conda = tmp_path / "conda.yml"
    conda.write_text("name: e\ndependencies: [python=3.11]\n")
    wanted = {"name": name, "conda_file": str(conda)}
    first = ml.environments.create_or_update(Environment(**wanted, image="one"))
    again = ml.environments.create_or_update(Environment(**wanted, image="one"))
    other = ml.environments.create_or_update(Environment(**wanted, image="two"))
    assert (first.version, again.version, other.version) == ("1", "1", "2")
    found = ml.environments.get(name, label="latest")
    assert found.image == "two" and found.conda_file["dependencies"] == ["python=3.11"]
    ml.environments.archive(name, version="2")
    assert [item.version for item in ml.environments.list(name=name)] == ["1"]


def test_an_environment_from_a_docker_context(ml: MLClient, name: str, folder: Path) -> None:
    (folder / "Dockerfile").write_text(f"FROM x\n# {name}\n")
    build = BuildContext(path=str(folder))
    made = ml.environments.create_or_update(Environment(name=name, build=build))
    assert max(int(item.version) for item in ml.environments.list(name=name)) == 1
    found = ml.environments.get(name, made.version)
    assert found.build.dockerfile_path == "Dockerfile" and found.build.path == made.build.path


def test_a_model_folder_comes_back_as_it_went(
    ml: MLClient, name: str, folder: Path, tmp_path: Path
) -> None:
    wanted = Model(
        name=name,
        path=str(folder),
        type=AssetTypes.CUSTOM_MODEL,
        description="d",
        tags={"a": "b"},
        properties={"c": "d"},
        stage="Production",
    )
    made = ml.models.create_or_update(wanted)
    found = ml.models.get(name, made.version)
    assert (found.stage, found.tags, found.properties) == ("Production", {"a": "b"}, {"c": "d"})
    assert [item.version for item in ml.models.list(name=name, stage="Production")] == ["1"]
    ml.models.download(name, version="1", download_path=str(tmp_path / "down"))
    copy = tmp_path / "down" / name / "folder" / "a.jsonl"
    assert copy.read_bytes() == (folder / "a.jsonl").read_bytes()


def test_a_model_file_and_a_version_by_the_clock(
    ml: MLClient, name: str, folder: Path, tmp_path: Path
) -> None:
    version = str(int(time.time()))
    path = str(folder / "a.jsonl")
    made = ml.models.create_or_update(Model(name=name, version=version, path=path))
    assert made.version == version and ml.models.get(name, label="latest").version == version
    ml.models.download(name, version=version, download_path=str(tmp_path / "down"))
    assert (tmp_path / "down" / name / "a.jsonl").is_file()


def test_an_mlflow_model_tells_its_flavors(ml: MLClient, name: str, folder: Path) -> None:
    (folder / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: x\n")
    made = ml.models.create_or_update(
        Model(name=name, path=str(folder), type=AssetTypes.MLFLOW_MODEL)
    )
    assert made.flavors == {"python_function": {"loader_module": "x"}}
    ml.models.archive(name, version=made.version)
    ml.models.restore(name, version=made.version)
    assert ml.models.get(name, made.version).flavors == made.flavors


def test_the_same_code_is_uploaded_once(ml: MLClient, name: str, folder: Path) -> None:
    one = ml._code.create_or_update(Code(path=str(folder), name=name, version="1"))
    two = ml._code.create_or_update(Code(path=str(folder), name=f"{name}-2", version="7"))
    assert one.id == two.id


def test_a_command_component_comes_back_as_it_went(ml: MLClient, name: str, folder: Path) -> None:
    ml.environments.create_or_update(Environment(name=name, image="i"))
    file = folder.parent / "step.yml"
    file.write_text(STEP.format(name=name, environment=name))
    made = ml.components.create_or_update(load_component(str(file)))
    assert made.version == "1"
    found = ml.components.get(name, version="1")
    assert found.command == made.command and "$[[--often ${{inputs.often}}]]" in found.command
    assert found.environment.endswith(f"/environments/{name}/versions/1")
    assert found.inputs["rate"]["max"] == 1 and found.inputs["often"]["optional"] is True
    assert found.inputs["sure"]["default"] is True and found.inputs["how"]["enum"]
    assert found.distribution.process_count_per_instance == 2
    assert found.resources["shm_size"] == "4g"
    assert ml.components.get(name).version == ml.components.get(name, label="latest").version
    ml.components.archive(name, version="1")
    assert list(ml.components.list(name=name)) == []
    ml.components.restore(name, version="1")
    assert [item.version for item in ml.components.list(name=name)] == ["1"]


def test_a_pipeline_component_comes_back_with_its_steps(
    ml: MLClient, name: str, folder: Path
) -> None:
    ml.environments.create_or_update(Environment(name=name, image="i"))
    step = folder.parent / "step.yml"
    step.write_text(STEP.format(name=name, environment=name))
    ml.components.create_or_update(load_component(str(step)))
    graph = folder.parent / "graph.yml"
    graph.write_text(GRAPH.format(name=f"{name}_graph", step=name))
    ml.components.create_or_update(load_component(str(graph)))
    found = ml.components.get(f"{name}_graph")
    assert list(found.jobs) == ["first"] and set(found.inputs) == {"rows", "where"}
    assert found.jobs["first"].component == f"{name}:1"


def test_a_component_that_cannot_run_is_refused_by_name(
    ml: MLClient, name: str, folder: Path
) -> None:
    ml.environments.create_or_update(Environment(name=name, image="i"))
    file = folder.parent / "step.yml"
    text = STEP.format(name=name, environment=name).replace("uri_folder", "triton_model")
    file.write_text(text.replace("type: pytorch, process_count_per_instance: 2", "type: ray"))
    with pytest.raises(HttpResponseError, match="ray"):
        ml.components.create_or_update(load_component(str(file)))


def test_a_component_is_downloaded_with_its_code(ml: MLClient, name: str, folder: Path) -> None:
    ml.environments.create_or_update(Environment(name=name, image="i"))
    file = folder.parent / "step.yml"
    file.write_text(STEP.format(name=name, environment=name))
    ml.components.create_or_update(load_component(str(file)))
    down = folder.parent / "down"
    ml.components.download(name, version="1", download_path=str(down))
    assert (down / "code" / "a.jsonl").read_bytes() == (folder / "a.jsonl").read_bytes()
    assert "component_spec.yaml" in [item.name for item in down.iterdir()]
