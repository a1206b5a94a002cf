"""The catalog's files are in Azure ML's own schema: the official SDK's loaders say so.

No server: what the SDK gets from one is in the other files of this folder.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from azure.ai.ml import load_component, load_environment, load_model
from azure.ai.ml.entities import CommandComponent, PipelineComponent

CATALOG = Path(__file__).parents[2] / "src" / "finery" / "catalog"
COMPONENTS = sorted((CATALOG / "components").glob("*.yaml"))
ENVIRONMENTS = sorted((CATALOG / "environments").glob("*.yaml"))
MODELS = sorted((CATALOG / "models").glob("*.yaml"))


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
def test_the_sdk_loads_every_component(path: Path) -> None:
    component = load_component(str(path))
    assert component.name == path.stem
    document = yaml.safe_load(path.read_text())
    assert isinstance(component, PipelineComponent if "jobs" in document else CommandComponent)
    assert set(component.inputs) == set(document["inputs"])
    assert component._validate().passed


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_the_sdk_loads_every_environment(path: Path) -> None:
    environment = load_environment(str(path))
    assert environment.name == path.stem and environment.image


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("tiny", [False, True], ids=["full", "tiny"])
def test_the_sdk_loads_every_model(path: Path, tiny: bool, tmp_path: Path) -> None:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    laid_over = document.pop("x-tiny")  # ours: what the name means with `--models tiny`
    document.update(laid_over if tiny else {})
    document["path"] = str((path.parent / document["path"]).resolve())
    copy = tmp_path / path.name
    copy.write_text(yaml.safe_dump(document))
    model = load_model(str(copy))
    assert (model.name, model.type) == (path.stem, "mlflow_model")
    assert (Path(model.path) / "MLmodel").is_file()
    # As the guide does it.
    assert ast.literal_eval(model.tags["finetune_compute_allow_list"])
    pipeline = load_component(str(CATALOG / "components" / "chat_completion_pipeline.yaml"))
    pipeline(**ast.literal_eval(model.tags["model_specific_defaults"]))
