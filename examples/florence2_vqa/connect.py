"""Connect, and what the steps share: the settings, and the names that one step tells the next.

Nothing here or in the other steps knows of Finery. `finery run -- python …` points the official
packages at your own server; without it they reach Azure.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

import yaml
from azure.ai.ml import MLClient
from azure.ai.ml.entities import BuildContext, Environment
from azure.core.exceptions import ResourceNotFoundError
from azure.identity import DefaultAzureCredential

HERE = Path(__file__).parent
SETTINGS = Path(os.environ.get("FLORENCE2_VQA_CONFIG", HERE / "config.yml"))
CONFIG: dict[str, Any] = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
# The SDK warns of its own classes, whoever uses them.
logging.getLogger("azure.ai.ml._utils._experimental").setLevel(logging.ERROR)
STATE = Path("florence2_vqa_state.json")
REGISTRY = "azureml://registries/"


def client() -> MLClient:
    """The workspace that config.yml names, or config.json, or the environment."""
    credential = DefaultAzureCredential()
    credential.get_token("https://management.azure.com/.default")
    given = CONFIG["config"]
    if given["AZURE_SUBSCRIPTION_ID"]:
        return MLClient(
            credential,
            given["AZURE_SUBSCRIPTION_ID"],
            given["AZURE_RESOURCE_GROUP"],
            given["AZURE_WORKSPACE"],
        )
    try:
        return MLClient.from_config(credential=credential)
    except Exception:  # there is no config.json
        return MLClient(
            credential,
            os.environ["AZURE_SUBSCRIPTION_ID"],
            os.environ["AZURE_RESOURCE_GROUP"],
            os.environ["AZURE_ML_WORKSPACE"],
        )


def registered(ml_client: MLClient, reference: str) -> Any:
    """The model that a reference names: `azureml://registries/…` or `azureml:NAME:VERSION`."""
    if reference.startswith(REGISTRY):
        registry, _, name, kind, version = reference.removeprefix(REGISTRY).split("/")
        ml_client = MLClient(DefaultAzureCredential(), registry_name=registry)
    else:
        name, kind, version = *reference.removeprefix("azureml:").split(":"), ""
        kind = "versions"
    which = {"label": version} if kind == "labels" else {"version": version}
    return ml_client.models.get(name, **which)


def get_or_create_environment(ml_client: MLClient, name: str, context: Path) -> Environment:
    """The newest version of an environment, or a first one made from a folder with a Dockerfile."""
    try:
        version = max(int(one.version) for one in ml_client.environments.list(name=name))
        environment = ml_client.environments.get(name=name, version=str(version))
        print(f"Environment: {name}, version {version}, was there already")
    except ResourceNotFoundError:
        environment = ml_client.environments.create_or_update(
            Environment(name=name, build=BuildContext(path=context), description="Florence-2, VQA")
        )
        print(f"Environment: {name}, made from {context.name}/Dockerfile")
    return environment


def remember(**facts: Any) -> None:
    STATE.write_text(json.dumps({**recall(), **facts}, indent=2))


def recall() -> dict[str, Any]:
    return json.loads(STATE.read_text()) if STATE.exists() else {}
