"""Connect: the first step of the guide, shared by the others.

Nothing here or in the other steps knows of Finery.  `finery run -- python …`
points the official packages at your own server; without it they reach Azure.
"""

import json
import time
from pathlib import Path

from azure.ai.ml import MLClient
from azure.identity import DefaultAzureCredential

HERE = Path(__file__).parent
CONFIG = json.loads((HERE / "config.json").read_text())
STATE = Path("phi3_chat_state.json")  # what one step tells the next: names


def clients() -> tuple[MLClient, MLClient]:
    """Return a client of the workspace and one of the system registry."""
    import os

    credential = DefaultAzureCredential()
    credential.get_token("https://management.azure.com/.default")
    try:
        workspace = MLClient.from_config(credential=credential)
    except Exception:  # no config.json: the environment names the workspace
        workspace = MLClient(
            credential,
            subscription_id=os.environ["AZURE_SUBSCRIPTION_ID"],
            resource_group_name=os.environ["AZURE_RESOURCE_GROUP"],
            workspace_name=os.environ["AZURE_ML_WORKSPACE"],
        )
    return workspace, MLClient(credential, registry_name="azureml")


def remember(**facts: object) -> None:
    STATE.write_text(json.dumps({**recall(), **facts}, indent=2))


def recall() -> dict:
    return json.loads(STATE.read_text()) if STATE.exists() else {}


def timestamp() -> str:
    return str(int(time.time()))
