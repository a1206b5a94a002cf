"""Operations of the official SDK that no guide calls and that answer all the same."""

# No postponed annotations: the pipeline decorator reads them.
from pathlib import Path

from azure.ai.ml import Input, MLClient, command
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import CommandComponent, Environment, ManagedOnlineEndpoint, Model

ENVIRONMENT = "azureml://registries/azureml/environments/acft-hf-nlp-gpu/labels/latest"


def test_a_finished_job_gets_another_name_and_tags(ml: MLClient) -> None:
    job = ml.create_or_update(command(command="true", environment=ENVIRONMENT))
    changed = ml.jobs.update(job.name, display_name="renamed", tags={"a": "b"})
    assert (changed.display_name, changed.tags["a"]) == ("renamed", "b")
    assert ml.jobs.get(job.name).display_name == "renamed"
    assert not ml.jobs.show_services(job.name)


def test_a_job_is_validated_before_it_is_sent(ml: MLClient) -> None:
    assert ml.jobs.validate(command(command="true", environment=ENVIRONMENT)).passed


def test_a_registered_model_is_a_step_s_input_by_name_by_id_and_by_path(
    ml: MLClient, name: str, folder: Path
) -> None:
    made = ml.models.create_or_update(Model(name=name, version="1", path=str(folder)))
    step = command(
        name=name,
        command="ls ${{inputs.model}}",
        environment=ENVIRONMENT,
        inputs={"model": Input(type="custom_model")},
    ).component

    @pipeline(default_compute="serverless")
    def looks(inside):
        step(model=Input(type="custom_model", path=f"azureml:{name}:1"))
        step(model=Input(type="custom_model", path=made.id))
        step(model=Input(type="custom_model", path=made.path))
        step(model=inside)

    given = looks(Input(type="custom_model", path=f"azureml:{name}:1"))
    job = ml.jobs.create_or_update(given)
    ml.jobs.stream(job.name)
    assert ml.jobs.get(job.name).status == "Completed"


def test_a_component_is_validated_and_signed_for(ml: MLClient, name: str, folder: Path) -> None:
    wanted = CommandComponent(
        name=name, version="1", command="true", environment=ENVIRONMENT, code=str(folder)
    )
    assert ml.components.validate(wanted).passed
    ml.components.prepare_for_sign(wanted)
    assert "a.jsonl" in (folder / "catalog.json").read_text()


def test_an_environment_is_archived_and_restored(ml: MLClient, name: str) -> None:
    ml.environments.create_or_update(Environment(name=name, version="1", image="image"))
    ml.environments.archive(name, version="1")
    ml.environments.restore(name, version="1")
    assert [found.version for found in ml.environments.list(name=name)] == ["1"]


def test_endpoints_are_listed(ml: MLClient, name: str) -> None:
    ml.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name=name)).result()
    assert name in [found.name for found in ml.online_endpoints.list()]
    ml.online_endpoints.begin_delete(name).wait()
    assert name not in [found.name for found in ml.online_endpoints.list()]


def test_an_evaluator_is_kept_as_a_model(
    ml: MLClient, name: str, folder: Path, tmp_path: Path
) -> None:
    ml.evaluators.create_or_update(Model(name=name, version="1", path=str(folder)))
    assert ml.evaluators.get(name, version="1").name == name
    ml.evaluators.download(name, "1", download_path=tmp_path / "got")
    assert list((tmp_path / "got").rglob("a.jsonl"))
