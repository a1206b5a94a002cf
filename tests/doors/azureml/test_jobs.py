"""Jobs over the wire: what is submitted, refused and shown.  Nothing runs here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from finery.core import assets, compute, jobs
from finery.core.assets import Asset
from finery.core.compute import Target
from finery.core.errors import Failure
from finery.core.jobs import Command, Job, Pipeline
from finery.doors.azureml import jobs as door
from finery.doors.azureml import wire
from finery.doors.http import House

from .conftest import WS

COMPONENT = f"{WS}/components/tr/versions/1"
COMMAND: dict[str, Any] = {
    "properties": {
        "jobType": "Command",
        "command": "python t.py ${{inputs.data}} ${{inputs.epochs}}",
        "environmentId": "env@latest",
        "computeId": f"{WS}/computes/cpu",
        "experimentName": "exp",
        "tags": {"a": "1"},
        "inputs": {
            "data": {
                "jobInputType": "uri_folder",
                "uri": "azureml://datastores/workspaceblobstore/paths/data",
                "mode": "ReadOnlyMount",
            },
            "epochs": {"jobInputType": "literal", "value": "3"},
        },
        "outputs": {"model": {"jobOutputType": "mlflow_model", "assetName": "kept"}},
        "distribution": {"distributionType": "PyTorch", "processCountPerInstance": 2},
        "resources": {"instanceCount": 1, "shmSize": "4g", "properties": {}},
        "limits": {"jobLimitsType": "Command", "timeout": "PT1H30M"},
        "services": {},
        "isArchived": False,
    }
}
PIPELINE: dict[str, Any] = {
    "properties": {
        "jobType": "Pipeline",
        "displayName": "graph",
        "inputs": {
            "n": {"jobInputType": "literal", "value": "7"},
            "queue": {"jobInputType": "literal", "value": "cpu"},
            "data": {
                "jobInputType": "uri_folder",
                "uri": "azureml://datastores/workspaceblobstore/paths/data/",
            },
        },
        "outputs": {"trained": {"jobOutputType": "uri_folder"}},
        "settings": {
            "_source": "DSL",
            "default_compute": f"{WS}/computes/cpu",
            "force_rerun": True,
            "continue_on_step_failure": False,
        },
        "jobs": {
            "first": {
                "name": "first",
                "type": "command",
                "_source": "DSL",
                "componentId": COMPONENT,
                "computeId": "${{parent.inputs.queue}}",
                "environment_variables": {"A": "b"},
                "inputs": {
                    "data": {"job_input_type": "literal", "value": "${{parent.inputs.data}}"},
                    "n": {"job_input_type": "literal", "value": "${{parent.inputs.n}}"},
                },
            },
            "second": {
                "name": "second",
                "type": "command",
                "componentId": COMPONENT,
                "resources": {"instance_count": 2},
                "distribution": {
                    "distribution_type": "PyTorch",
                    "process_count_per_instance": "${{parent.inputs.n}}",
                },
                "inputs": {
                    "data": {
                        "job_input_type": "literal",
                        "value": "${{parent.jobs.first.outputs.out}}",
                    }
                },
                "outputs": {"out": {"value": "${{parent.outputs.trained}}", "type": "literal"}},
            },
        },
    }
}
Put = Callable[..., Any]


def port(type: str, **more: Any) -> dict[str, Any]:
    usual = {"optional": False, "default": None, "enum": [], "min": None, "max": None, "mode": ""}
    return {"type": type, **usual, **more}


@pytest.fixture
def client(home: House, put_file: Callable[..., str]) -> TestClient:
    """The administrator, in a workspace with a compute, an environment, a component and data."""
    put_file("data/a.jsonl")
    compute.create(home.store, Target(workspace="ws", name="cpu"))
    assets.create(home.store, Asset(scope="ws", kind="environment", name="env", version="1"))
    spec = {
        "kind": "command",
        "command": "train ${{inputs.data}}",
        "code": "",
        "environment": "asset:environment/ws/env/1",
        "env": {},
        "inputs": {
            "data": port("uri_folder"),
            "n": port("integer", optional=True, default="1", min=1, max=9),
            "kind": port("string", optional=True, default="x", enum=["x", "y"]),
        },
        "outputs": {"out": {"type": "uri_folder", "mode": ""}},
        "distribution": "",
        "ranks": "",
        "nodes": "",
        "shm_size": "",
        "timeout": None,
        "deterministic": True,
    }
    assets.create(
        home.store, Asset(scope="ws", kind="component", name="tr", version="1", spec=spec)
    )
    app = FastAPI()
    app.include_router(door.router(home))

    async def failure(request: Request, exc: Exception) -> Response:
        return wire.failure(request, exc)

    app.add_exception_handler(Failure, failure)
    return TestClient(app, headers={"Authorization": f"Bearer {home.keys.admin}"})


@pytest.fixture
def put(client: TestClient) -> Put:
    def put(body: dict[str, Any], name: str = "j", **changed: Any) -> Any:
        body = copy.deepcopy(body)
        for path, value in changed.items():
            *way, last = path.split("__")
            place = body["properties"]
            for step in way:
                place = place[step]
            place[last] = value
        return client.put(f"{WS}/jobs/{name}", json=body)

    return put


def refused(answer: Any, status: int = 400) -> tuple[str, str]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return error["target"], error["message"]


def test_a_command_job_is_written_down_in_our_words(put: Put, home: House):
    assert put(COMMAND).status_code == 201
    job = jobs.get(home.store, "j")
    assert isinstance(job.spec, Command)
    assert (job.compute, job.experiment, job.status) == ("cpu", "exp", "queued")
    assert job.spec.environment == "asset:environment/ws/env/1"
    assert job.spec.inputs["data"].value == "file:workspaceblobstore/data"
    assert job.spec.inputs["data"].mode == "ro_mount"
    assert job.spec.outputs["model"].asset == "kept"
    assert (job.spec.distribution, job.spec.ranks, job.spec.timeout) == ("pytorch", 2, 5400)


def test_a_command_job_is_shown_as_it_was_sent(put: Put):
    shown, sent = put(COMMAND).json()["properties"], COMMAND["properties"]
    for name in ("jobType", "command", "computeId", "experimentName", "tags", "distribution"):
        assert shown[name] == sent[name]
    assert shown["environmentId"] == f"{WS}/environments/env/versions/1"
    assert shown["inputs"]["epochs"] == sent["inputs"]["epochs"]
    assert shown["inputs"]["data"]["uri"].endswith("/datastores/workspaceblobstore/paths/data")
    assert shown["outputs"]["model"]["jobOutputType"] == "mlflow_model"
    assert shown["status"] == "Queued"
    assert shown["services"]["Studio"]["endpoint"].startswith(
        "http://localhost:8480/studio/jobs/j?"
    )


def test_a_pipeline_is_written_down_in_our_words(put: Put, home: House):
    assert put(PIPELINE).status_code == 201
    spec = jobs.get(home.store, "j").spec
    assert isinstance(spec, Pipeline)
    assert (spec.compute, spec.force_rerun, spec.continue_on_step_failure) == ("cpu", True, False)
    first, second = spec.steps["first"], spec.steps["second"]
    assert first.component == "asset:component/ws/tr/1"
    assert (first.compute, first.env) == ("${{parent.inputs.queue}}", {"A": "b"})
    assert (second.nodes, second.ranks) == ("2", "${{parent.inputs.n}}")
    assert second.outputs == {"out": "trained"}


def test_a_pipeline_is_shown_with_its_graph(put: Put):
    shown = put(PIPELINE).json()["properties"]
    first, second = shown["jobs"]["first"], shown["jobs"]["second"]
    sent = PIPELINE["properties"]["jobs"]
    for name in ("componentId", "computeId", "inputs", "environment_variables", "_source"):
        assert first[name] == sent["first"][name]
    assert second["outputs"] == sent["second"]["outputs"]
    assert shown["settings"]["default_compute"] == f"{WS}/computes/cpu"


def test_a_text_given_to_a_port_of_data_is_an_id_or_a_path(put: Put, home: House):
    uri = "azureml://datastores/workspaceblobstore/paths/data"
    given = {"data": {"job_input_type": "literal", "value": uri}}
    assert put(PIPELINE, jobs__first__inputs=given).status_code == 201
    spec = jobs.get(home.store, "j").spec
    assert isinstance(spec, Pipeline)
    assert spec.steps["first"].inputs["data"].type == "uri_folder"
    assert spec.steps["first"].inputs["data"].value == "file:workspaceblobstore/data"


@pytest.mark.parametrize(
    "field, value, target",
    [
        ("computeId", f"{WS}/computes/nope", "compute"),
        ("environmentId", "nope@latest", "environmentId"),
        ("codeId", f"{WS}/codes/nope/versions/1", "codeId"),
        ("command", "", "command"),
        ("command", "echo ${{inputs.nope}}", "inputs.nope"),
        (
            "inputs__data__uri",
            "azureml://datastores/workspaceblobstore/paths/nope",
            "inputs.data",
        ),
        ("inputs__data__uri", "azureml:nope:1", "inputs.data"),
        ("inputs__data__uri", "./local", "inputs.data"),
        ("distribution__processCountPerInstance", 0, "distribution.processCountPerInstance"),
        ("limits__timeout", "soon", "limits.timeout"),
        ("outputs__model__uri", "https://example.com/x", "outputs.model"),
    ],
)
def test_a_command_job_that_cannot_work_is_refused_by_its_field(
    put: Put, home: House, field: str, value: Any, target: str
):
    assert refused(put(COMMAND, **{field: value}))[0] == target
    assert jobs.find(home.store, "j") is None


def test_an_optional_part_of_a_command_may_name_what_is_not_given(put: Put):
    assert put(COMMAND, command="echo $[[--x ${{inputs.nope}}]]").status_code == 201


@pytest.mark.parametrize(
    "field, value, target",
    [
        ("inputs__n__value", "12", "jobs.first.inputs.n"),
        ("inputs__n__value", "many", "jobs.first.inputs.n"),
        ("inputs__queue__value", "nope", "jobs.first.compute"),
        ("jobs__first__inputs__kind", {"job_input_type": "literal", "value": "z"}, "jobs.first.inputs.kind"),
        ("jobs__first__inputs__typo", {"job_input_type": "literal", "value": "z"}, "jobs.first.inputs.typo"),
        ("jobs__first__inputs__data__value", "${{parent.inputs.nope}}", "jobs.first.inputs.data"),
        ("jobs__second__inputs__data__value", "${{parent.jobs.first.outputs.nope}}", "jobs.second.inputs.data"),
        ("jobs__second__inputs__data__value", "${{parent.jobs.third.outputs.out}}", "second"),
        ("jobs__second__outputs", {"nope": {"value": "${{parent.outputs.trained}}"}}, "jobs.second.outputs.nope"),
        ("jobs__first__componentId", f"{WS}/components/tr/versions/9", "jobs.first"),
        ("jobs", {}, "jobs"),
        ("settings__default_compute", f"{WS}/computes/nope", "settings.default_compute"),
    ],
)  # fmt: skip
def test_a_pipeline_that_cannot_work_is_refused_by_its_field(
    put: Put, home: House, field: str, value: Any, target: str
):
    assert refused(put(PIPELINE, **{field: value}))[0] == target
    assert jobs.find(home.store, "j") is None


def test_steps_that_wait_for_one_another_are_refused(put: Put):
    binding = {"job_input_type": "literal", "value": "${{parent.jobs.second.outputs.out}}"}
    assert "wait for one another" in refused(put(PIPELINE, jobs__first__inputs__data=binding))[1]


@pytest.mark.parametrize(
    "body, field, value, named",
    [
        (COMMAND, "jobType", "Spark", "Spark"),
        (COMMAND, "jobType", "AutoML", "AutoML"),
        (COMMAND, "secretsConfiguration", {"a": {}}, "secretsConfiguration"),
        (COMMAND, "computeId", "local", "local"),
        (COMMAND, "inputs__data__mode", "EvalMount", "EvalMount"),
        (COMMAND, "outputs__model__mode", "Direct", "outputs.model.mode"),
        (COMMAND, "distribution", {"distributionType": "Ray"}, "Ray"),
        (COMMAND, "services", {"shell": {"jobServiceType": "SSH"}}, "SSH"),
        (PIPELINE, "settings__on_finalize", "second", "on_finalize"),
        (PIPELINE, "settings__default_datastore", "elsewhere", "elsewhere"),
        (PIPELINE, "jobs__first__type", "parallel", "parallel"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    put: Put, body: dict[str, Any], field: str, value: Any, named: str
):
    assert named in refused(put(body, **{field: value}), 501)[1]


def test_what_this_machine_cannot_keep_is_a_warning_on_the_job(put: Put):
    shown = put(COMMAND, resources__instanceType="Standard_ND40rs_v2").json()["properties"]
    assert "Standard_ND40rs_v2" in shown["properties"]["finery.warnings"]


def test_submitting_again_changes_texts_and_tags_and_never_the_work(put: Put, client: TestClient):
    sent = put(COMMAND).json()
    sent["properties"] |= {"tags": {"b": "2"}, "displayName": "new", "isArchived": True}
    again = client.put(f"{WS}/jobs/j", json=sent)
    assert again.status_code == 200
    assert again.json()["properties"]["displayName"] == "new"
    assert again.json()["properties"]["isArchived"] is True
    target, message = refused(put(COMMAND, command="rm -rf"), 409)
    assert target == "j" and "exists" in message


def test_a_patch_adds_tags(put: Put, client: TestClient):
    put(COMMAND)
    answer = client.patch(f"{WS}/jobs/j", json={"tags": {"b": 2}})
    assert answer.json()["properties"]["tags"] == {"a": "1", "b": "2"}


def test_jobs_are_listed_newest_first_in_pages(put: Put, client: TestClient):
    for number in range(5):
        put(COMMAND, f"j{number}")
    first = client.get(f"{WS}/jobs", params={"$top": 3}).json()
    assert [job["name"] for job in first["value"]] == ["j4", "j3", "j2"]
    rest = client.get(first["nextLink"]).json()
    assert [job["name"] for job in rest["value"]] == ["j1", "j0"]
    assert "nextLink" not in rest


def test_jobs_are_listed_by_kind_by_tag_and_by_archive_mark(put: Put, client: TestClient):
    put(COMMAND, "c")
    put(PIPELINE, "p")
    put(COMMAND, "old", isArchived=True, tags={})

    def names(**asked: str) -> list[str]:
        return [job["name"] for job in client.get(f"{WS}/jobs", params=asked).json()["value"]]

    assert names() == ["p", "c"]
    assert names(jobType="pipeline") == ["p"]
    assert names(tag="a=1") == ["c"]
    assert names(listViewType="ArchivedOnly") == ["old"]
    assert names(listViewType="All") == ["old", "p", "c"]


def test_cancelling_takes_until_the_job_has_ended(put: Put, client: TestClient, home: House):
    put(COMMAND)
    jobs.move(home.store, jobs.get(home.store, "j"), "preparing")
    asked = client.post(f"{WS}/jobs/j/cancel")
    assert asked.status_code == 202
    where = asked.headers["location"]
    assert client.get(where).status_code == 202
    jobs.move(home.store, jobs.get(home.store, "j"), "cancelled")
    assert client.get(where).status_code == 200
    assert client.get(f"{WS}/jobs/j").json()["properties"]["status"] == "Canceled"
    assert refused(client.post(f"{WS}/jobs/j/cancel"), 409)[0] == "j"


def test_a_queued_job_is_cancelled_at_once(put: Put, client: TestClient):
    put(COMMAND)
    assert client.post(f"{WS}/jobs/j/cancel").status_code == 200


def test_a_failed_job_shows_why(put: Put, client: TestClient, home: House):
    put(COMMAND)
    jobs.move(home.store, jobs.get(home.store, "j"), "preparing")
    jobs.move(home.store, jobs.get(home.store, "j"), "failed", error="row 7 is bad", target="data")
    shown = client.get(f"{WS}/jobs/j").json()["properties"]
    assert shown["properties"]["finery.error"] == "row 7 is bad"
    assert shown["properties"]["finery.error_target"] == "data"


def test_a_job_of_another_workspace_is_not_found(client: TestClient, home: House):
    jobs.create(home.store, Job(name="other", workspace="else", spec=Command(command="true")))
    assert refused(client.get(f"{WS}/jobs/other"), 404)[0] == "other"
    assert refused(client.post(f"{WS}/jobs/other/cancel"), 404)[0] == "other"


def test_deleting_is_refused_by_name(put: Put, client: TestClient):
    put(COMMAND)
    assert "archive it" in refused(client.delete(f"{WS}/jobs/j"), 501)[1]


def test_a_job_may_want_the_address_of_its_data_and_no_path(put: Put, home: House):
    assert put(COMMAND, inputs__data__mode="Direct").status_code == 201
    spec = jobs.get(home.store, "j").spec
    assert spec.inputs["data"].address.startswith("azureml://subscriptions/")
    assert spec.inputs["data"].address.endswith("/datastores/workspaceblobstore/paths/data")


def test_workers_that_cannot_be_spread_evenly_are_refused(put: Put):
    three = {"distributionType": "TensorFlow", "workerCount": 3}
    target, _ = refused(put(COMMAND, distribution=three, resources={"instanceCount": 2}))
    assert target == "distribution.workerCount"
