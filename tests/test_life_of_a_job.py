"""One training job, from the request to the served answer, through every layer.

A real server, real processes and the stand-in model: the smallest thing that
passes through all of it.  What each layer does with odd requests is in its own
tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

FINERY = Path(sys.executable).with_name("finery")
ROWS = [
    {
        "prompt": f"What is {name} made of?",
        "prompt_id": str(number),
        "messages": [
            {"role": "user", "content": f"What is {name} made of?"},
            {"role": "assistant", "content": f"{name} is made of {stuff}."},
        ],
    }
    for number, (name, stuff) in enumerate(
        [("the door", "oak"), ("the bell", "brass"), ("the roof", "slate"), ("the cup", "clay")] * 5
    )
]
STEPS = {
    "ft_nlp_common_validation",
    "chat_completion_model_import",
    "chat_completion_datapreprocess",
    "chat_completion_finetune",
    "ft_nlp_model_converter",
    "chat_completion_model_evaluation",
}


class Client:
    """What any HTTP client would do with the environment that `finery env` gives."""

    def __init__(self, home: Path) -> None:
        said = subprocess.run(
            [FINERY, "env", "--home", home, "--json"], capture_output=True, check=True
        )
        self.env = json.loads(said.stdout)
        self.base = self.env["IDENTITY_ENDPOINT"].removesuffix("/msi/token")
        self.workspace = (
            f"/subscriptions/{self.env['AZURE_SUBSCRIPTION_ID']}/resourceGroups/"
            f"{self.env['AZURE_RESOURCE_GROUP']}/providers/Microsoft.MachineLearningServices/"
            f"workspaces/{self.env['AZURE_ML_WORKSPACE']}"
        )

    def ask(self, method: str, path: str, body: object = None, *, key: str = "") -> dict:
        request = urllib.request.Request(
            self.base + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={
                "Authorization": f"Bearer {key or self.env['OPENAI_API_KEY']}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=240) as answer:
            text = answer.read()
        return json.loads(text) if text else {}


@pytest.fixture
def client(tmp_path):
    home = tmp_path / "home"
    command = [FINERY, "up", "--home", home, "--port", "0", "--tls-port", "0", "--models", "tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline().startswith("ready:")
        yield Client(home)
        subprocess.run([FINERY, "down", "--home", home], check=True, capture_output=True)


def pipeline(rows: Path, client: Client) -> dict:
    registry = "azureml://registries/azureml"
    values = {
        "num_train_epochs": 1,
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.001,
        "apply_lora": "true",
        "precision": 32,
    }
    files = dict.fromkeys(("train_file_path", "validation_file_path", "test_file_path"), str(rows))
    literals = {
        name: {"job_input_type": "literal", "value": str(value)} for name, value in values.items()
    }
    paths = {
        name: {
            "job_input_type": "uri_file",
            "uri": "azureml://datastores/workspaceblobstore/paths/rows.jsonl",
        }
        for name in files
    }
    model = {
        "job_input_type": "mlflow_model",
        "uri": f"{registry}/models/Phi-3-mini-4k-instruct/labels/latest",
    }
    return {
        "properties": {
            "jobType": "Pipeline",
            "experimentName": "life",
            "jobs": {
                "tuned": {
                    "type": "pipeline",
                    "componentId": f"{registry}/components/chat_completion_pipeline/labels/latest",
                    "inputs": {**literals, **paths, "mlflow_model_path": model},
                    "outputs": {
                        "mlflow_model_folder": {
                            "type": "literal",
                            "value": "${{parent.outputs.trained_model}}",
                        }
                    },
                }
            },
            "outputs": {"trained_model": {"jobOutputType": "mlflow_model"}},
        }
    }


def test_the_life_of_a_job(client, tmp_path, until):
    workspace = client.workspace
    store = client.ask("GET", f"{workspace}/datastores/workspaceblobstore")["properties"]
    folder = tmp_path / "home" / "files" / store["accountName"].rsplit("/", 1)[-1]
    rows = folder / "workspaceblobstore" / "rows.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    # 1 to 2: a request is translated, the wish is written down.
    sent = client.ask("PUT", f"{workspace}/jobs/life", pipeline(rows, client))
    assert sent["properties"]["status"] in ("Queued", "Preparing", "Running")

    # 3 to 6: processes start, train, log and save; their ends are noticed.
    def finished():
        now = client.ask("GET", f"{workspace}/jobs/life")["properties"]
        return now if now["status"] in ("Completed", "Failed", "Canceled") else None

    done = until(finished, seconds=3000)
    assert done["status"] == "Completed", done
    shown = subprocess.run(
        [FINERY, "job", "show", "life", "--json", "--home", tmp_path / "home"], capture_output=True
    )
    (inner,) = json.loads(shown.stdout)["steps"]
    shown = subprocess.run(
        [FINERY, "job", "show", inner["name"], "--json", "--home", tmp_path / "home"],
        capture_output=True,
    )
    assert {step["display_name"] for step in json.loads(shown.stdout)["steps"]} == STEPS

    # What the steps logged is on the pipeline's own run, under the job's name.
    run = client.ask("GET", "/mlflow/api/2.0/mlflow/runs/get?run_id=life")["run"]
    metrics = {metric["key"] for metric in run["data"]["metrics"]}
    assert {"loss", "base_loss", "tuned_loss", "base_exact_match", "tuned_exact_match"} <= metrics
    assert run["info"]["status"] == "FINISHED"

    # 7: the result is registered and served, and answers in both dialects.
    model = {
        "properties": {
            "modelType": "mlflow_model",
            "modelUri": "azureml://jobs/life/outputs/trained_model",
        }
    }
    client.ask("PUT", f"{workspace}/models/tuned/versions/1", model)
    client.ask(
        "PUT",
        f"{workspace}/onlineEndpoints/chat",
        {"location": "x", "properties": {"authMode": "Key"}},
    )
    deployment = {
        "location": "x",
        "sku": {"name": "Default", "capacity": 1},
        "properties": {
            "endpointComputeType": "Managed",
            "model": f"{workspace}/models/tuned/versions/1",
            "instanceType": "Standard_DS3_v2",
            "requestSettings": {"requestTimeout": "PT1M30S", "maxQueueWait": "PT1M30S"},
        },
    }
    client.ask("PUT", f"{workspace}/onlineEndpoints/chat/deployments/blue", deployment)

    def provisioned():
        path = f"{workspace}/onlineEndpoints/chat/deployments/blue"
        state = client.ask("GET", path)["properties"]["provisioningState"]
        return state if state in ("Succeeded", "Failed") else None

    assert until(provisioned, seconds=300) == "Succeeded"
    traffic = {"location": "x", "properties": {"authMode": "Key", "traffic": {"blue": 100}}}
    client.ask("PUT", f"{workspace}/onlineEndpoints/chat", traffic)

    key = client.ask("POST", f"{workspace}/onlineEndpoints/chat/listKeys")["primaryKey"]
    messages = [{"role": "user", "content": "What is the door made of?"}]
    greedy = {"temperature": 0.0, "do_sample": False, "max_new_tokens": 12}
    asked = {"input_data": {"input_string": [messages], "parameters": greedy}}
    scored = client.ask("POST", "/endpoints/chat/score", asked, key=key)["output"]
    chat = {"model": "chat", "messages": messages, "temperature": 0, "max_tokens": 12}
    said = client.ask("POST", "/openai/v1/chat/completions", chat)["choices"][0]["message"]
    assert scored and scored == said["content"]
