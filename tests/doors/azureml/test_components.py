"""Component specs: what the SDK sends, and the core's words for it."""

from __future__ import annotations

import copy

import pytest

from finery.core import assets
from finery.core.errors import Failure, Invalid, NotSupported
from finery.doors.azureml import components

from .conftest import WS

COMMAND = {
    "$schema": "https://azuremlschemas.azureedge.net/latest/commandComponent.schema.json",
    "_source": "YAML.COMPONENT",
    "name": "train",
    "version": "3",
    "type": "command",
    "display_name": "Train",
    "is_deterministic": True,
    "tags": {"a": "b"},
    "command": "python a.py $[[--x ${{inputs.x}}]] --o ${{outputs.o}}",
    "code": "CODE",
    "environment": "ENV",
    "environment_variables": {"K": 1},
    "distribution": {"type": "pytorch", "process_count_per_instance": 2},
    "resources": {"instance_count": 1, "shm_size": "5g"},
    "limits": {"timeout": 100},
    "inputs": {
        "x": {"type": "integer", "default": "3", "min": "1", "max": "9", "optional": True},
        "b": {"type": "boolean", "default": "True"},
        "e": {"type": "string", "default": "a", "enum": ["a", "b"]},
        "d": {"type": "uri_folder", "mode": "ro_mount"},
    },
    "outputs": {"o": {"type": "mlflow_model", "mode": "rw_mount"}},
}

NODE = {
    "name": "one",
    "type": "command",
    "_source": "REMOTE.WORKSPACE.COMPONENT",
    "componentId": "train:3",
    "computeId": "${{parent.inputs.compute}}",
    "resources": {
        "instance_count": "${{parent.inputs.n}}",
        "instance_type": "${{parent.inputs.size}}",
        "shm_size": "${{parent.inputs.shm}}",
    },
    "distribution": {
        "distribution_type": "PyTorch",
        "process_count_per_instance": "${{parent.inputs.n}}",
    },
    "environment_variables": {"A": "B"},
    "inputs": {
        "x": {"job_input_type": "literal", "value": "${{parent.inputs.x}}"},
        "e": {"job_input_type": "literal", "value": "a"},
        "m": {"job_input_type": "mlflow_model", "uri": "mod:1", "mode": "ReadOnlyMount"},
        "d": {"job_input_type": "literal", "value": "${{parent.jobs.zero.outputs.o}}"},
    },
    "outputs": {
        "o": {"type": "literal", "value": "${{parent.outputs.out}}"},
        "p": {"job_output_type": "uri_folder", "mode": "Upload", "uri": "PATH", "asset_name": "n"},
    },
}
PIPELINE = {
    "type": "pipeline",
    "name": "pipe",
    "version": "1",
    "inputs": {"x": {"type": "integer"}},
    "outputs": {"out": {"type": "mlflow_model"}},
    "jobs": {"one": NODE},
    "sourceJobId": None,
}


def read(spec, **changed):
    return components.component_in({**spec, **changed}, ref=lambda kind, text: f"{kind}={text}")


def test_a_command_is_read_into_the_core_s_words():
    spec = read(COMMAND)
    assert spec["kind"] == "command" and spec["command"] == COMMAND["command"]
    assert (spec["code"], spec["environment"]) == ("code=CODE", "environment=ENV")
    assert spec["env"] == {"K": "1"}
    assert (spec["distribution"], spec["ranks"], spec["nodes"]) == ("pytorch", "2", "1")
    assert (spec["shm_size"], spec["timeout"], spec["deterministic"]) == ("5g", 100, True)
    assert spec["inputs"]["x"] == {
        "type": "integer",
        "optional": True,
        "default": "3",
        "enum": [],
        "min": 1,
        "max": 9,
        "mode": "",
    }
    assert spec["inputs"]["e"]["enum"] == ["a", "b"] and spec["inputs"]["d"]["optional"] is False
    assert spec["outputs"] == {"o": {"type": "mlflow_model", "mode": "rw_mount"}}


def test_a_pipeline_is_read_with_its_steps():
    spec = read(PIPELINE)
    step = spec["steps"]["one"]
    assert step["component"] == "component=train:3"
    assert step["inputs"]["x"]["value"] == "${{parent.inputs.x}}"
    assert step["inputs"]["m"] == {
        "value": "model=mod:1",
        "type": "mlflow_model",
        "mode": "ro_mount",
    }
    assert step["outputs"] == {"o": "out"}
    assert step["registered"] == {
        "p": {
            "type": "uri_folder",
            "mode": "upload",
            "location": "data=PATH",
            "asset": "n",
            "version": "",
        }
    }
    assert step["compute"] == "${{parent.inputs.compute}}"
    assert step["ranks"] == step["nodes"] == "${{parent.inputs.n}}"
    assert step["shm_size"] == "${{parent.inputs.shm}}" and step["env"] == {"A": "B"}


@pytest.mark.parametrize("timeout, seconds", [(90, 90), ("PT1M30S", 90), ("P1DT1H", 90000)])
def test_a_limit_is_seconds_or_a_duration(timeout, seconds):
    assert read(COMMAND, limits={"timeout": timeout})["timeout"] == seconds


@pytest.mark.parametrize(
    "changed, kind, says",
    [
        ({"type": "sweep"}, NotSupported, "sweep"),
        ({"type": "parallel"}, NotSupported, "parallel"),
        ({"command": ""}, Invalid, "needs a command"),
        ({"environment": None}, Invalid, "needs an environment"),
        ({"identity": {"type": "managed"}}, NotSupported, "identity"),
        ({"distribution": {"type": "ray"}}, NotSupported, "ray"),
        ({"limits": {"timeout": "soon"}}, Invalid, "soon"),
        ({"limits": {"retries": 2}}, NotSupported, "retries"),
        ({"inputs": {"x": {"type": "datetime"}}}, NotSupported, "inputs.x"),
        ({"inputs": {"x": {"type": "uri_file", "mode": "direct"}}}, NotSupported, "inputs.x.mode"),
        ({"inputs": {"x": {"type": "string", "pattern": "a*"}}}, NotSupported, "pattern"),
        ({"inputs": {"x": {"type": "integer", "min": "low"}}}, Invalid, "low"),
        ({"outputs": {"o": {"type": "string"}}}, NotSupported, "outputs.o"),
        ({"outputs": {"o": {"type": "uri_file", "early_available": True}}}, NotSupported, "early"),
    ],
)
def test_what_cannot_run_is_refused_by_name(changed, kind, says):
    with pytest.raises(kind, match=says):
        read(COMMAND, **changed)


@pytest.mark.parametrize(
    "changed, kind, says",
    [
        ({"type": "spark"}, NotSupported, "jobs.one.*spark"),
        ({"type": "automl"}, NotSupported, "automl"),
        ({"type": "if_else"}, NotSupported, "if_else"),
        ({"componentId": ""}, Invalid, "names no component"),
        ({"queue_settings": {"job_tier": "spot"}}, NotSupported, "queue_settings"),
        ({"outputs": {"o": {"value": "${{parent.inputs.x}}"}}}, Invalid, "no output"),
        ({"inputs": {"d": {"job_input_type": "uri_folder"}}}, Invalid, "needs a path"),
    ],
)
def test_a_step_that_cannot_run_is_refused_by_name(changed, kind, says):
    pipeline = copy.deepcopy(PIPELINE)
    pipeline["jobs"]["one"].update(changed)
    with pytest.raises(kind, match=says):
        read(pipeline)


def test_a_component_is_kept_and_echoed_as_it_came(client, home, put_file):
    put_file("code/src/a.py")
    code = "https://testserver/blob/ws/workspaceblobstore/code/src"
    client.put(f"{WS}/codes/c/versions/1", json={"properties": {"codeUri": code}})
    client.put(f"{WS}/environments/e/versions/1", json={"properties": {"image": "i"}})
    ids = {
        "code": f"{WS}/codes/c/versions/1",
        "environment": f"azureml:{WS}/environments/e/versions/1",
    }
    body = {"properties": {"componentSpec": {**COMMAND, **ids}, "description": "d"}}
    made = client.put(f"{WS}/components/train/versions/3", json=body)
    assert made.status_code == 201, made.text
    shown = client.get(f"{WS}/components/train/versions/azureml_default").json()
    assert shown["properties"]["componentSpec"] == {**COMMAND, **ids}
    kept = assets.get(home.store, "ws", "component", "train", "3")
    assert kept.type == "command" and kept.spec["environment"] == "asset:environment/ws/e/1"
    assert kept.spec["code"] == "asset:code/ws/c/1"
    again = client.put(f"{WS}/components/train/versions/3", json=shown)
    assert again.status_code == 201, again.text
    body["properties"]["componentSpec"]["command"] = "other"
    assert client.put(f"{WS}/components/train/versions/3", json=body).status_code == 409


def test_a_component_of_something_that_is_not_there_is_refused(client):
    body = {"properties": {"componentSpec": {**COMMAND, "environment": "azureml:none:1"}}}
    answer = client.put(f"{WS}/components/train/versions/3", json=body)
    assert answer.status_code in (400, 404)


def test_every_refusal_is_one_of_the_core_s():
    with pytest.raises(Failure):
        read({"type": "command"})


STEP = {**COMMAND, "environment": f"{WS}/environments/e/versions/1", "code": None}


def with_step(client, **node):
    """Put a pipeline component whose one step is `train`, with `node` laid over it."""
    client.put(f"{WS}/environments/e/versions/1", json={"properties": {"image": "i"}})
    body = {"properties": {"componentSpec": STEP}}
    client.put(f"{WS}/components/train/versions/3", json=body)
    step = {"type": "command", "componentId": f"{WS}/components/train/versions/3", **node}
    spec = {"type": "pipeline", "name": "pipe", "inputs": {}, "outputs": {}, "jobs": {"one": step}}
    return client.put(
        f"{WS}/components/pipe/versions/1", json={"properties": {"componentSpec": spec}}
    )


def test_an_id_given_as_a_plain_text_is_read_as_what_it_is(client, home, put_file):
    uri = put_file("a/x").removesuffix("/x")
    data = {"dataType": "uri_folder", "dataUri": uri}
    client.put(f"{WS}/data/d/versions/1", json={"properties": data})
    given = {"d": {"job_input_type": "literal", "value": "azureml:d:1"}}
    assert with_step(client, inputs=given).status_code == 201
    step = assets.get(home.store, "ws", "component", "pipe").spec["steps"]["one"]
    assert step["inputs"]["d"] == {"value": "asset:data/ws/d/1", "type": "uri_folder", "mode": ""}


@pytest.mark.parametrize(
    "node, says",
    [
        ({"inputs": {"none": {"job_input_type": "literal", "value": "1"}}}, "no input 'none'"),
        ({"outputs": {"none": {"job_output_type": "uri_folder", "asset_name": "n"}}}, "no output"),
    ],
)
def test_a_step_s_ports_are_those_of_its_component(client, node, says):
    answer = with_step(client, **node)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]
