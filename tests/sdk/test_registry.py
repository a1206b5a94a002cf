"""The system registry with the official SDK, as the guide's first steps use it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from azure.ai.ml import Input, MLClient
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import Environment, Model
from azure.ai.ml.exceptions import UnexpectedKeywordError
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

PHI = "Phi-3-mini-4k-instruct"


def test_the_foundation_model_has_what_the_guide_reads(registry: MLClient) -> None:
    model = registry.models.get(PHI, label="latest")
    assert model.name == PHI and int(model.version)
    assert model.id == f"azureml://registries/azureml/models/{PHI}/versions/{model.version}"
    assert "Standard_ND40rs_v2" in ast.literal_eval(model.tags["finetune_compute_allow_list"])
    assert ast.literal_eval(model.tags["model_specific_defaults"])
    assert registry.models.get(PHI, version=model.version).id == model.id
    assert model.version in [item.version for item in registry.models.list(name=PHI)]
    assert PHI in [item.name for item in registry.models.list()]


def test_a_stand_in_says_that_it_is_one(registry: MLClient) -> None:
    model = registry.models.get(PHI, label="latest")
    assert "stand-in" in model.description.lower() and model.tags["stand_in"] == "true"


def test_the_pipeline_component_takes_what_the_model_says(registry: MLClient) -> None:
    component = registry.components.get(name="chat_completion_pipeline", label="latest")
    assert len(component.inputs) == 69
    assert set(component.outputs) == {"pytorch_model_folder", "mlflow_model_folder"}
    model = registry.models.get(PHI, label="latest")
    defaults = ast.literal_eval(model.tags["model_specific_defaults"])
    assert set(defaults) <= set(component.inputs)

    @pipeline(name="a pipeline")
    def made():
        step = component(
            mlflow_model_path=model.id,
            train_file_path=Input(type="uri_file", path="./train.jsonl"),
            number_of_gpu_to_use_finetuning=1,
            **defaults,
        )
        return {"trained_model": step.outputs.mlflow_model_folder}

    assert list(made().jobs)
    with pytest.raises(UnexpectedKeywordError):
        component(learning_rate_min=1)


def test_components_and_environments_by_version_label_and_list(registry: MLClient) -> None:
    names = [item.name for item in registry.components.list()]
    assert "chat_completion_finetune" in names
    newest = registry.components.get(name="chat_completion_finetune")
    assert registry.components.get(newest.name, version=newest.version).id == newest.id
    environment = registry.environments.get("acft-hf-nlp-gpu", label="latest")
    assert environment.image and environment.id.startswith("azureml://registries/azureml/")
    assert "acft-hf-nlp-gpu" in [item.name for item in registry.environments.list()]


def test_what_the_registry_has_not_is_not_found(registry: MLClient) -> None:
    with pytest.raises(ResourceNotFoundError):
        registry.models.get("none", version="1")
    with pytest.raises(Exception, match="does not exist in registry"):
        registry.models.get("none", label="latest")


def test_another_registry_is_not_there(credential) -> None:
    with pytest.raises(ResourceNotFoundError, match="HuggingFace"):
        MLClient(credential, registry_name="HuggingFace", retry_total=0)


def test_nobody_writes_to_the_registry(
    ml: MLClient, registry: MLClient, name: str, folder: Path
) -> None:
    with pytest.raises(HttpResponseError, match="read-only"):
        registry.environments.create_or_update(Environment(name=name, version="1", image="i"))
    ml.models.create_or_update(Model(name=name, version="1", path=str(folder)))
    with pytest.raises(HttpResponseError, match="read-only"):
        ml.models.share(
            name, "1", share_with_name=name, share_with_version="1", registry_name="azureml"
        )


def test_the_registry_itself_is_listed(ml: MLClient) -> None:
    assert [item.name for item in ml.registries.list()] == ["azureml"]
    assert ml.registries.get("azureml").name == "azureml"
