"""What bad input gets, as the official SDK shows it: what is wrong, where, and at once.

Jobs run here because the error of a job is known only when one has failed;
they end in validation, before a model is touched.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pytest
from azure.ai.ml import Input, MLClient, command
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import (
    AmlCompute,
    Data,
    Job,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
)
from azure.ai.ml.exceptions import JobException, MlException
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

ENVIRONMENT = "azureml://registries/azureml/environments/python-sdk-v2/labels/latest"
GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
EMPTY = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": " "}]}
ROBOT = {"messages": [GOOD["messages"][0], {"role": "robot", "content": "a"}]}


@pytest.fixture(scope="module")
def compute(ml: MLClient) -> str:
    wanted = AmlCompute(name="forbadinput", size="Standard_DS3_v2", max_instances=2)
    return str(ml.compute.begin_create_or_update(wanted).result().name)


@pytest.fixture
def tune(ml: MLClient, registry: MLClient, compute: str):
    """Submit the chat-completion pipeline for a file of rows."""
    component = registry.components.get("chat_completion_pipeline", label="latest")
    base = registry.models.get("Phi-3-mini-4k-instruct", label="latest")

    def submit(rows: Path | str, **parameters: object) -> Job:
        parameters = {"mlflow_model_path": base.id, **parameters}

        @pipeline(name=f"bad-{uuid.uuid4().hex[:8]}", default_compute=compute)
        def tuned():
            component(train_file_path=Input(type="uri_file", path=str(rows)), **parameters)

        job = tuned()
        job.settings.force_rerun = True
        job.settings.continue_on_step_failure = False
        return ml.jobs.create_or_update(job, experiment_name="bad-input")

    return submit


def rows_file(folder: Path, seventh: object, name: str = "train.jsonl") -> Path:
    """Ten rows, the seventh of which is another."""
    lines = [json.dumps(GOOD)] * 10
    lines[6] = seventh if isinstance(seventh, str) else json.dumps(seventh)
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def steps(ml: MLClient, name: str) -> list[Job]:
    found = []
    for child in ml.jobs.list(parent_job_name=name):
        found += [ml.jobs.get(child.name), *steps(ml, child.name)]
    return found


@pytest.mark.parametrize(
    ("seventh", "said"),
    [
        ("not JSON", "line 7: is not a JSON object"),
        ({"text": "a"}, "line 7, messages: there is no messages (the row has: text)"),
        (ROBOT, "line 7, messages[1].role: 'robot' is not one of system, user, assistant"),
        (EMPTY, "line 7, messages[1].content: an assistant message is empty"),
    ],
)
def test_a_bad_row_fails_the_job_in_validation_with_file_line_and_field(
    ml, tune, tmp_path, capfd, seventh, said
):
    job = tune(rows_file(tmp_path, seventh, "my train.jsonl"))
    with pytest.raises(JobException) as raised:
        ml.jobs.stream(job.name)
    assert f"my train.jsonl, {said}" in str(raised.value)
    assert said in capfd.readouterr().out
    failed = ml.jobs.get(job.name)
    assert failed.status == "Failed"
    assert f"my train.jsonl, {said}" in failed.properties["finery.error"]
    assert "ft_nlp_common_validation" in failed.properties["finery.error"]
    made = {step.display_name: step for step in steps(ml, job.name)}
    validation = made.pop("ft_nlp_common_validation")
    assert said in validation.properties["finery.error"]
    assert [step.type for step in made.values()] == ["pipeline"], "a later step was started"


def test_a_learning_rate_of_0_is_named_by_the_job(ml, tune, tmp_path):
    # Azure's schema of a component can say "0 or more", not "more than 0": validation says it.
    with pytest.raises((JobException, HttpResponseError), match="learning_rate"):
        ml.jobs.stream(tune(rows_file(tmp_path, GOOD), learning_rate=0).name)


def test_an_empty_file_is_said_to_be_empty(ml, tune, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(JobException, match=r"none\.jsonl: no usable rows \(the file is empty\)"):
        ml.jobs.stream(tune(tmp_path / "none.jsonl").name)


def test_a_model_without_weights_is_named_before_anything_is_imported(ml, tune, tmp_path, name):
    folder = tmp_path / "empty_model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "phi3"}')
    (folder / "MLmodel").write_text("flavors:\n  hftransformersv2: {}\n")
    model = Model(name=name, path=str(folder), type="mlflow_model")
    model = ml.models.create_or_update(model)
    job = tune(
        rows_file(tmp_path, GOOD),
        mlflow_model_path=Input(type="mlflow_model", path=f"azureml:{model.name}:{model.version}"),
    )
    with pytest.raises(JobException, match=r"mlflow_model_path: .*there are no weights"):
        ml.jobs.stream(job.name)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"lr_scheduler_type": "wobbly"}, "'lr_scheduler_type' is 'wobbly', and must be one of"),
        ({"num_train_epochs": "many"}, "'num_train_epochs' must be a whole number"),
        ({"num_train_epochs": -1}, "'num_train_epochs' is -1, and must be 1 or more"),
    ],
)
def test_a_value_that_no_step_takes_is_refused_when_the_job_is_sent(
    tune, tmp_path, parameters, said
):
    with pytest.raises(HttpResponseError) as raised:
        tune(rows_file(tmp_path, GOOD), **parameters)
    assert said in raised.value.message
    assert raised.value.error.target.endswith(f"inputs.{next(iter(parameters))}")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("azureml://datastores/workspaceblobstore/paths/no/such.jsonl", "no/such.jsonl"),
        ("azureml://datastores/nostore/paths/x.jsonl", "no datastore 'nostore'"),
        ("azureml://datastores/workspaceblobstore/paths/../../../../x.jsonl", "leaves its folder"),
        ("azureml:nodata:1", "no data 'nodata' version '1'"),
    ],
)
def test_a_missing_file_is_refused_when_the_job_is_sent(tune, path, said):
    with pytest.raises(HttpResponseError, match=said) as raised:
        tune(path)
    assert raised.value.status_code == 400


def test_an_input_that_the_component_does_not_have_is_refused_and_leaves_no_job(ml, tune, tmp_path):
    before = len(list(ml.jobs.list()))
    with pytest.raises(Exception, match="nosuch"):  # the SDK looks by itself
        tune(rows_file(tmp_path, GOOD), nosuch=1)
    assert len(list(ml.jobs.list())) == before


def test_an_unknown_compute_is_refused_and_leaves_no_job(ml, name):
    job = command(name=name, command="echo", environment=ENVIRONMENT, compute="nowhere")
    with pytest.raises(HttpResponseError, match="no compute named 'nowhere'") as raised:
        ml.jobs.create_or_update(job)
    assert raised.value.error.target == "compute"
    with pytest.raises(ResourceNotFoundError):
        ml.jobs.get(name)


def test_what_is_not_there_is_not_found_by_its_name(ml, registry, name):
    for get in (
        lambda: ml.jobs.get(name),
        lambda: ml.jobs.stream(name),
        lambda: ml.jobs.download(name),
        lambda: ml.jobs.begin_cancel(name).result(),
        lambda: ml.models.get(name, version="1"),
        lambda: ml.data.get(name, version="1"),
        lambda: ml.environments.get(name, version="1"),
        lambda: ml.compute.get(name),
        lambda: ml.online_endpoints.get(name),
        lambda: ml.datastores.get(name),
        lambda: registry.components.get(name, version="1"),
    ):
        with pytest.raises(ResourceNotFoundError, match=name):
            get()


def test_nothing_that_was_uploaded_is_lost_when_a_registration_is_refused(ml, tmp_path, name):
    path = rows_file(tmp_path, GOOD)
    kept = ml.data.create_or_update(Data(name=name, version="1", path=str(path), type="uri_file"))
    other = rows_file(tmp_path, ROBOT, "other.jsonl")
    with pytest.raises(HttpResponseError, match="never changes"):
        ml.data.create_or_update(Data(name=name, version="1", path=str(other), type="uri_file"))
    assert ml.data.get(name, version="1").path == kept.path
    again = Data(name=name, version="2", path=kept.path, type="uri_file")
    assert ml.data.create_or_update(again).path == kept.path


def test_a_model_of_pickles_is_never_read(ml, tmp_path, name):
    """A deployment starts a process: only it could be tricked into unpickling."""
    folder, mark = tmp_path / "pickled", tmp_path / "ran"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors:\n  hftransformersv2: {}\n")
    (folder / "config.json").write_text('{"model_type": "phi3"}')
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (folder / "pytorch_model.bin").write_bytes(
        b"cposix\nsystem\n(V" + f"touch {mark}".encode() + b"\ntR."
    )
    model = ml.models.create_or_update(Model(name=name, path=str(folder), type="mlflow_model"))
    ml.begin_create_or_update(ManagedOnlineEndpoint(name=name, auth_mode="key")).result()
    deployment = ManagedOnlineDeployment(
        name="blue",
        endpoint_name=name,
        model=model.id,
        instance_type="Standard_DS3_v2",
        instance_count=1,
    )
    try:
        with pytest.raises(HttpResponseError, match="pickles"):
            ml.online_deployments.begin_create_or_update(deployment).result()
        assert "pickles" in ml.online_deployments.get_logs("blue", endpoint_name=name, lines=50)
        assert not mark.exists()
    finally:
        ml.online_endpoints.begin_delete(name).result()


def test_values_with_quotes_and_commands_in_them_come_as_they_are(ml, compute, name, ended):
    hostile = "a'b\"c $(touch pwned) `id` ; é \U0001f4a5"
    job = command(
        name=name,
        command="printf '%s' \"$VALUE\" && ls",
        environment=ENVIRONMENT,
        environment_variables={"VALUE": hostile},
        compute=compute,
        tags={"said": hostile, **{f"t{number}": "x" for number in range(1000)}},
    )
    made = ml.jobs.create_or_update(job)
    assert made.tags["said"] == hostile and len(made.tags) == 1001
    assert ended(ml, name).status == "Completed"


def test_a_name_that_wants_to_be_a_path_is_none(ml, tmp_path):
    path = str(rows_file(tmp_path, GOOD))
    for bad in ("../up", "a/b", "x" * 300, "-rf", "."):
        with pytest.raises((HttpResponseError, MlException)):
            ml.data.create_or_update(Data(name=bad, version="1", path=path, type="uri_file"))
    assert os.path.exists(path)
