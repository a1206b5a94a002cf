"""The system registry as files: what scripts written for Azure ML read from it, and what runs it.

That the official SDK's own loaders take the files is tests/sdk/; how they become assets is
tests/doors/.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import finery
from finery import checkpoint

ROOT = Path(__file__).parent.parent
CATALOG = Path(finery.__file__).parent / "catalog"
COMPONENTS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((CATALOG / "components").glob("*.yaml"))
}
MODELS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((CATALOG / "models").glob("*.yaml"))
}
ENVIRONMENTS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((CATALOG / "environments").glob("*.yaml"))
}
SIZES = yaml.safe_load((CATALOG / "sizes.yaml").read_text())["sizes"]
PIPELINE = COMPONENTS["chat_completion_pipeline"]
SEEING = COMPONENTS["visual_question_answering_pipeline"]
PIPELINES = {"chat-completion": PIPELINE, "visual-question-answering": SEEING}
STEPS = [name for name, one in COMPONENTS.items() if one["type"] == "command"]
PHI = MODELS["Phi-3-mini-4k-instruct"]
TINY = {**PHI, **PHI["x-tiny"]}
CARDS = {
    f"{name} {kind}": card
    for name, full in MODELS.items()
    for kind, card in (("full", full), ("tiny", {**full, **full["x-tiny"]}))
}
YES = ["true", "false"]

# name, type, default, and the limit (enum as a list, min as a number, mode as a word), for all of
# chat_completion_pipeline 0.0.82 as Azure ML publishes it.
UPSTREAM: list[tuple[str, str, Any, Any]] = [
    ("instance_type_model_import", "string", "Standard_d12_v2", None),
    ("instance_type_preprocess", "string", "Standard_d12_v2", None),
    ("instance_type_finetune", "string", "Standard_nc24rs_v3", None),
    ("instance_type_model_evaluation", "string", "Standard_nc24rs_v3", None),
    ("shm_size_finetune", "string", "5g", None),
    ("num_nodes_finetune", "integer", 1, 1),
    ("number_of_gpu_to_use_finetuning", "integer", 1, 1),
    ("huggingface_id", "string", None, None),
    ("pytorch_model_path", "custom_model", None, "rw_mount"),
    ("mlflow_model_path", "mlflow_model", None, "rw_mount"),
    ("finetune_config_path", "uri_file", None, "ro_mount"),
    ("trust_remote_code", "string", "false", YES),
    ("task_name", "string", "ChatCompletion", ["ChatCompletion"]),
    ("batch_size", "integer", 1000, 1),
    ("pad_to_max_length", "string", "false", YES),
    ("max_seq_length", "integer", -1, None),
    ("train_file_path", "uri_file", None, "rw_mount"),
    ("validation_file_path", "uri_file", None, "rw_mount"),
    ("test_file_path", "uri_file", None, "rw_mount"),
    ("train_mltable_path", "mltable", None, None),
    ("validation_mltable_path", "mltable", None, None),
    ("test_mltable_path", "mltable", None, None),
    ("apply_lora", "string", "false", YES),
    ("merge_lora_weights", "string", "true", YES),
    ("lora_alpha", "integer", 128, None),
    ("lora_r", "integer", 8, None),
    ("lora_dropout", "number", 0.0, None),
    ("num_train_epochs", "integer", 1, 1),
    ("max_steps", "integer", -1, None),
    ("per_device_train_batch_size", "integer", 1, 1),
    ("per_device_eval_batch_size", "integer", 1, 1),
    ("auto_find_batch_size", "string", "false", YES),
    ("optim", "string", "adamw_torch", ["adamw_torch", "adafactor"]),
    ("learning_rate", "number", 2e-05, None),
    ("warmup_steps", "integer", 0, None),
    ("weight_decay", "number", 0.0, None),
    ("adam_beta1", "number", 0.9, None),
    ("adam_beta2", "number", 0.999, None),
    ("adam_epsilon", "number", "1e-8", None),
    ("gradient_accumulation_steps", "integer", 1, None),
    ("eval_accumulation_steps", "integer", -1, None),
    (
        "lr_scheduler_type",
        "string",
        "linear",
        [
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "constant",
            "constant_with_warmup",
        ],
    ),
    ("precision", "string", "32", ["32", "16"]),
    ("seed", "integer", 42, None),
    ("enable_full_determinism", "string", "false", YES),
    ("dataloader_num_workers", "integer", 0, None),
    ("ignore_mismatched_sizes", "string", "false", YES),
    ("max_grad_norm", "number", 1.0, None),
    ("evaluation_strategy", "string", "epoch", ["epoch", "steps", "disable"]),
    ("evaluation_steps_interval", "number", 0.0, None),
    ("eval_steps", "integer", 500, None),
    ("logging_strategy", "string", "steps", ["epoch", "steps"]),
    ("logging_steps", "integer", 10, None),
    ("metric_for_best_model", "string", "loss", ["loss", "f1", "exact"]),
    ("resume_from_checkpoint", "string", "false", YES),
    ("save_total_limit", "integer", -1, None),
    ("apply_early_stopping", "string", "false", YES),
    ("early_stopping_patience", "integer", 1, None),
    ("early_stopping_threshold", "number", 0.0, None),
    ("apply_deepspeed", "string", "false", YES),
    ("deepspeed", "uri_file", None, "rw_mount"),
    ("deepspeed_stage", "string", "2", ["2", "3"]),
    ("apply_ort", "string", "false", YES),
    ("evaluation_config", "uri_file", None, None),
    ("evaluation_config_params", "string", None, None),
    ("compute_model_import", "string", "serverless", None),
    ("compute_preprocess", "string", "serverless", None),
    ("compute_finetune", "string", "serverless", None),
    ("compute_model_evaluation", "string", "serverless", None),
]


def test_the_pipeline_has_the_69_inputs_of_upstream_with_their_types_defaults_and_limits() -> None:
    assert len(UPSTREAM) == 69
    found = [
        (
            name,
            port["type"],
            port.get("default"),
            port.get("enum", port.get("min", port.get("mode"))),
        )
        for name, port in PIPELINE["inputs"].items()
    ]
    assert found == UPSTREAM
    required = [name for name, port in PIPELINE["inputs"].items() if not port.get("optional")]
    assert required == ["task_name"]


def test_the_pipeline_has_both_outputs_and_the_steps_of_upstream_in_order() -> None:
    assert {name: port["type"] for name, port in PIPELINE["outputs"].items()} == {
        "pytorch_model_folder": "uri_folder",
        "mlflow_model_folder": "mlflow_model",
    }
    assert list(PIPELINE["jobs"]) == [
        "ft_nlp_common_validation",
        "chat_completion_model_import",
        "chat_completion_datapreprocess",
        "chat_completion_finetune",
        "ft_nlp_model_converter",
        "chat_completion_model_evaluation",
    ]


def test_the_picture_pipeline_has_the_inputs_of_the_chat_one_where_they_mean_something() -> None:
    own = {
        *("data_folder_path", "image_key", "question_key", "answers_key", "task_prompt"),
        *("max_answer_length", "freeze_vision_tower", "warmup_ratio", "num_beams"),
        *("max_eval_rows", "max_test_rows"),
    }
    gone = {
        *("finetune_config_path", "trust_remote_code", "pad_to_max_length", "max_seq_length"),
        *("eval_accumulation_steps", "apply_ort", "evaluation_config", "evaluation_config_params"),
    }
    assert set(SEEING["inputs"]) - set(PIPELINE["inputs"]) == own
    assert set(PIPELINE["inputs"]) - set(SEEING["inputs"]) == gone
    for name in set(SEEING["inputs"]) & set(PIPELINE["inputs"]):
        for word in ("type", "default", "min"):
            if name != "task_name":
                assert SEEING["inputs"][name].get(word) == PIPELINE["inputs"][name].get(word), name
    assert SEEING["outputs"].keys() - PIPELINE["outputs"].keys() == {"evaluation_result"}
    assert [step.removeprefix("visual_question_answering_") for step in SEEING["jobs"]] == [
        *("model_import", "datapreprocess", "finetune", "model_converter", "model_evaluation")
    ]


@pytest.mark.parametrize("task", PIPELINES)
def test_every_binding_of_a_pipeline_leads_to_something_of_the_same_kind(task: str) -> None:
    pipeline = PIPELINES[task]
    for step, node in pipeline["jobs"].items():
        component = _component(node)
        for name, value in node["inputs"].items():
            assert name in component["inputs"], f"{step} has no input {name}"
            here = component["inputs"][name]
            if parent := re.fullmatch(r"\$\{\{parent\.inputs\.(\w+)}}", str(value)):
                there = pipeline["inputs"][parent[1]]
                assert there["type"] == here["type"], f"{step}.{name}"
                # What the pipeline leaves out, the step must be able to do without.
                assert here.get("optional") or not there.get("optional"), f"{step}.{name}"
            elif other := re.fullmatch(r"\$\{\{parent\.jobs\.(\w+)\.outputs\.(\w+)}}", str(value)):
                made = _component(pipeline["jobs"][other[1]])["outputs"][other[2]]
                assert made["type"] == here["type"], f"{step}.{name}"
            else:
                assert "enum" not in here or value in here["enum"], f"{step}.{name}"
        for name, port in component["inputs"].items():
            needed = not port.get("optional") and "default" not in port
            assert not needed or name in node["inputs"], f"{step} is not given {name}"
        assert set(node["outputs"]) <= set(component["outputs"])


@pytest.mark.parametrize("task", PIPELINES)
def test_every_input_of_a_pipeline_reaches_a_step(task: str) -> None:
    text = yaml.safe_dump(PIPELINES[task]["jobs"])
    unused = [name for name in PIPELINES[task]["inputs"] if f"parent.inputs.{name}}}}}" not in text]
    assert unused == []


@pytest.mark.parametrize("task", PIPELINES)
def test_the_finetune_step_is_distributed_as_the_pipeline_was_told(task: str) -> None:
    (node,) = (node for step, node in PIPELINES[task]["jobs"].items() if "_finetune" in step)
    gpus = "${{parent.inputs.number_of_gpu_to_use_finetuning}}"
    assert node["distribution"] == {"type": "pytorch", "process_count_per_instance": gpus}
    assert node["resources"]["instance_count"] == "${{parent.inputs.num_nodes_finetune}}"
    assert node["resources"]["shm_size"] == "${{parent.inputs.shm_size_finetune}}"


@pytest.mark.parametrize("name", STEPS)
def test_every_flag_of_a_step_is_a_field_of_its_recipe_and_no_required_field_is_missing(
    name: str,
) -> None:
    component = COMPONENTS[name]
    module = re.match(r"python -m (finery\.recipes\.\w+)", component["command"])
    assert module
    fields = {
        field.name: field for field in dataclasses.fields(importlib.import_module(module[1]).Spec)
    }
    flags = re.findall(r"--(\w+) '\$\{\{(inputs|outputs)\.(\w+)}}'", component["command"])
    assert {flag for flag, _, _ in flags} <= set(fields)
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    assert needed <= {flag for flag, _, _ in flags}
    for flag, side, port in flags:
        assert flag == port and port in component[side]
    # Nothing that can be given is dropped on the way.
    assert {flag for flag, _, _ in flags} == set(component["inputs"]) | set(component["outputs"])


@pytest.mark.parametrize("name", STEPS)
def test_exactly_the_optional_flags_of_a_step_drop_out_when_unset(name: str) -> None:
    component = COMPONENTS[name]
    dropping = set(re.findall(r"\$\[\[--\w+ '\$\{\{inputs\.(\w+)}}']]", component["command"]))
    assert dropping == {name for name, port in component["inputs"].items() if port.get("optional")}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_the_defaults_of_its_recipe_or_of_the_pipeline(name: str) -> None:
    component = COMPONENTS[name]
    module = re.match(r"python -m (finery\.recipes\.\w+)", component["command"])
    assert module
    recipe = importlib.import_module(module[1])
    for field in dataclasses.fields(recipe.Spec):
        port = component["inputs"].get(field.name, {})
        if "default" in port and field.default not in (None, dataclasses.MISSING):
            given = port["default"]
            same = str(field.default).lower() == str(given).lower() or _number(
                field.default
            ) == _number(given)
            assert same, f"{field.name}: {given!r} is not {field.default!r}"


def test_steps_are_found_again_when_nothing_changed_and_name_the_curated_environment() -> None:
    for name in STEPS:
        assert COMPONENTS[name]["is_deterministic"] is True
        place = re.fullmatch(
            r"azureml://registries/azureml/environments/([\w.-]+)/labels/latest",
            COMPONENTS[name]["environment"],
        )
        assert place and place[1] in ENVIRONMENTS


@pytest.mark.parametrize("model", CARDS.values(), ids=CARDS)
def test_a_model_s_tags_are_text_that_python_reads_back(model: dict[str, Any]) -> None:
    assert all(
        isinstance(value, str) for value in {**model["tags"], **model["properties"]}.values()
    )
    names = {size["name"].lower() for size in SIZES}
    for tag in ("finetune_compute_allow_list", "inference_compute_allow_list"):
        allowed = ast.literal_eval(model["tags"][tag])
        assert {
            "Standard_ND40rs_v2",
            "Standard_NC6s_v3",
            "Standard_DS3_v2",
            "Standard_D12_v2",
            "Standard_E4s_v3",
            "Standard_F8s_v2",
            "Standard_NC4as_T4_v3",
        } <= set(allowed)
        assert {size.lower() for size in allowed} <= names


@pytest.mark.parametrize("model", CARDS.values(), ids=CARDS)
def test_a_model_s_defaults_are_inputs_of_the_pipeline_that_it_would_take(
    model: dict[str, Any],
) -> None:
    defaults = ast.literal_eval(model["tags"]["model_specific_defaults"])
    for name, value in defaults.items():
        port = PIPELINES[model["tags"]["task"]]["inputs"][name]
        if "enum" in port:
            assert str(value) in port["enum"]
        elif port["type"] in ("integer", "number"):
            assert float(value) >= port.get("min", float("-inf"))


def test_the_tiny_model_says_that_it_is_a_stand_in_and_the_full_one_does_not() -> None:
    assert "stand-in, not Phi-3" in TINY["description"]
    assert TINY["tags"]["stand_in"] == "true"
    assert TINY["tags"]["stand_in_for"] == "microsoft/Phi-3-mini-4k-instruct"
    assert "stand_in" not in PHI["tags"] and "stand-in" not in PHI["description"]


def test_the_full_model_is_fetched_by_its_name_on_the_hub() -> None:
    folder = (CATALOG / "models" / PHI["path"]).resolve()
    assert checkpoint.hub_id(folder) == "microsoft/Phi-3-mini-4k-instruct"
    with pytest.raises(checkpoint.NoModel):
        checkpoint.find(folder)  # no weights ship with the package


def test_the_tiny_model_s_weights_lie_where_the_catalog_says() -> None:
    folder = (CATALOG / "models" / TINY["path"]).resolve()
    assert (folder / "MLmodel").is_file()
    assert checkpoint.weights(folder)
    assert (
        checkpoint.hub_id(folder) == ""
    )  # nothing to fetch: it is never mistaken for the real one


def test_every_file_of_the_catalog_is_named_as_what_it_holds() -> None:
    for kind in (COMPONENTS, MODELS, ENVIRONMENTS):
        for stem, document in kind.items():
            assert document["name"] == stem
            assert document["version"] and document["$schema"].startswith("https://azuremlschemas")


def test_an_environment_says_that_it_is_our_own_interpreter() -> None:
    for document in ENVIRONMENTS.values():
        assert "own interpreter" in " ".join(document["description"].split())
        assert document["image"] == "finery/own-interpreter:latest"
        assert document["tags"]["curated"] == "true"


def test_sizes_are_known_once_with_their_gpus() -> None:
    names = [size["name"].lower() for size in SIZES]
    assert len(names) == len(set(names))
    gpus = {size["name"]: size["gpus"] for size in SIZES}
    expected = {
        "Standard_ND40rs_v2": 8,
        "Standard_NC24ads_A100_v4": 1,
        "Standard_NC48ads_A100_v4": 2,
        "Standard_NC96ads_A100_v4": 4,
        "Standard_ND96asr_v4": 8,
        "Standard_NC6s_v3": 1,
        "Standard_NC24rs_v3": 4,
        "Standard_NC4as_T4_v3": 1,
        "Standard_DS3_v2": 0,
    }
    assert expected.items() <= gpus.items()
    for size in SIZES:
        assert set(size) == {"name", "family", "vcpus", "gpus", "memory_gb", "disk_mb"}


def test_the_example_asks_for_what_the_catalog_has() -> None:
    config = json.loads((ROOT / "examples" / "phi3_chat" / "config.json").read_text())
    assert config["model"] in MODELS
    assert config["compute_size"] in ast.literal_eval(PHI["tags"]["finetune_compute_allow_list"])
    assert config["serving_size"] in ast.literal_eval(PHI["tags"]["inference_compute_allow_list"])
    # The guide lets the model's card win over its own parameters: they must say the same.
    defaults = ast.literal_eval(TINY["tags"]["model_specific_defaults"])
    assert defaults == config["finetune_parameters"]


def _component(node: dict[str, Any]) -> dict[str, Any]:
    place = re.fullmatch(
        r"azureml://registries/azureml/components/(\w+)/versions/(.+)", node["component"]
    )
    assert place and str(COMPONENTS[place[1]]["version"]) == place[2]
    return COMPONENTS[place[1]]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
