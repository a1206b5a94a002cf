"""Every call of the chat-completion guide, in its order, with the official clients.

One test, because each call stands on the one before.  The training is cut to a
few steps: that it learns is `make quickstart`'s to show.
"""

from __future__ import annotations

import ast
import json
import os
import time
from pathlib import Path

import mlflow
import pytest
from azure.ai.ml import Input, MLClient
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import (
    AmlCompute,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
    ProbeSettings,
)
from azure.core.exceptions import ResourceNotFoundError
from azure.identity import DefaultAzureCredential
from openai import AzureOpenAI, OpenAI

DATA = Path(__file__).parents[2] / "examples" / "phi3_chat" / "data"
STEPS = [
    "ft_nlp_common_validation",
    "chat_completion_model_import",
    "chat_completion_datapreprocess",
    "chat_completion_finetune",
    "ft_nlp_model_converter",
    "chat_completion_model_evaluation",
]


def rows(name: str, to: Path, count: int) -> str:
    lines = (DATA / name).read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    (to / name).write_text("".join(lines), encoding="utf-8")
    return str(to / name)


def test_the_guide(
    credential: DefaultAzureCredential, registry: MLClient, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    stamp = str(int(time.time()))

    # 1. connect
    assert credential.get_token("https://management.azure.com/.default").token
    Path("config.json").write_text(
        json.dumps(
            {
                "subscription_id": os.environ["AZURE_SUBSCRIPTION_ID"],
                "resource_group": os.environ["AZURE_RESOURCE_GROUP"],
                "workspace_name": os.environ["AZURE_ML_WORKSPACE"],
            }
        )
    )
    ml = MLClient.from_config(credential=credential, retry_total=0)

    # 2. a foundation model
    base = registry.models.get("Phi-3-mini-4k-instruct", label="latest")
    assert base.id.startswith(
        "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/"
    )
    assert "stand-in" in base.description.lower()
    allowed = [size.lower() for size in ast.literal_eval(base.tags["finetune_compute_allow_list"])]
    assert ast.literal_eval(base.tags["inference_compute_allow_list"])
    defaults = ast.literal_eval(base.tags["model_specific_defaults"])

    # 3. a compute
    cluster = f"gpu-{stamp}"
    with pytest.raises(ResourceNotFoundError):
        ml.compute.get(cluster)
    size = "Standard_ND40rs_v2"
    ml.compute.begin_create_or_update(
        AmlCompute(name=cluster, size=size, tier="Dedicated", max_instances=2)
    ).wait()
    compute = ml.compute.get(cluster)
    assert compute.provisioning_state.lower() == "succeeded"
    assert compute.size.lower() in allowed
    (gpus,) = {s.gpus for s in ml.compute.list_sizes() if s.name.lower() == compute.size.lower()}
    assert gpus == 8

    # 5. the pipeline
    component = registry.components.get(name="chat_completion_pipeline", label="latest")
    parameters = {**defaults, "deepspeed_stage": 2, "apply_deepspeed": "true", "max_steps": 3}
    train, test = rows("train_sft.jsonl", tmp_path, 64), rows("test_sft.jsonl", tmp_path, 8)

    @pipeline(name=f"guide-{stamp}")
    def create_pipeline():
        tuned = component(
            mlflow_model_path=base.id,
            compute_model_import=cluster,
            compute_preprocess=cluster,
            compute_finetune=cluster,
            compute_model_evaluation=cluster,
            train_file_path=Input(type="uri_file", path=train),
            test_file_path=Input(type="uri_file", path=test),
            number_of_gpu_to_use_finetuning=gpus,
            **parameters,
        )
        return {"trained_model": tuned.outputs.mlflow_model_folder}

    wanted = create_pipeline()
    wanted.settings.force_rerun = True
    wanted.settings.continue_on_step_failure = False
    job = ml.jobs.create_or_update(wanted, experiment_name="guide")
    ml.jobs.stream(job.name)
    streamed = capfd.readouterr().out
    assert job.name in streamed
    job = ml.jobs.get(job.name)
    assert job.status == "Completed"
    assert set(job.outputs) == {"trained_model"}

    # what the steps did
    (inner,) = ml.jobs.list(parent_job_name=job.name)
    steps = {step.display_name: step for step in ml.jobs.list(parent_job_name=inner.name)}
    assert sorted(steps) == sorted(STEPS)
    run = mlflow.get_run(job.name)
    assert {"train_loss", "base_loss", "tuned_loss", "tuned_rougeL"} <= set(run.data.metrics)
    ml.jobs.download(steps["chat_completion_model_evaluation"].name, download_path="d", all=True)
    assert list(Path("d").rglob("metrics.json"))

    # 6. register
    model = ml.models.create_or_update(
        Model(
            path=f"azureml://jobs/{job.name}/outputs/trained_model",
            type=AssetTypes.MLFLOW_MODEL,
            name="guide-model",
            version=stamp,
            description="from the guide",
        )
    )
    assert model.version == stamp
    assert stamp in [
        v.version for v in mlflow.MlflowClient().search_model_versions("name='guide-model'")
    ]

    # 7. an endpoint, a deployment with no code, traffic
    endpoint = ManagedOnlineEndpoint(name=f"guide-{stamp}", auth_mode="key")
    ml.begin_create_or_update(endpoint).wait()
    deployment = ManagedOnlineDeployment(
        name="demo",
        endpoint_name=endpoint.name,
        model=model.id,
        instance_type="Standard_NC6s_v3",
        instance_count=1,
        liveness_probe=ProbeSettings(initial_delay=600),
        request_settings=OnlineRequestSettings(request_timeout_ms=90000),
    )
    ml.online_deployments.begin_create_or_update(deployment).wait()
    endpoint.traffic = {"demo": 100}
    ml.begin_create_or_update(endpoint).result()
    assert "identical" in ml.online_deployments.get_logs("demo", endpoint.name, lines=100)

    # 8. call it, in Azure's shape (both nestings) and in OpenAI's, whole and streamed
    messages = [{"role": "user", "content": "Who is the director of Harrow Mill?"}]
    greedy = {"temperature": 0.0, "do_sample": False, "max_new_tokens": 20}
    answers = []
    for nested in ([messages], messages):
        body = {"input_data": {"input_string": nested, "parameters": greedy}, "params": {}}
        Path("request.json").write_text(json.dumps(body))
        said = ml.online_endpoints.invoke(
            endpoint_name=endpoint.name, deployment_name="demo", request_file="request.json"
        )
        answers.append(json.loads(said)["output"])
    for client in (OpenAI(max_retries=0), AzureOpenAI(max_retries=0)):
        chat = {"model": endpoint.name, "messages": messages, "temperature": 0, "max_tokens": 20}
        answers.append(client.chat.completions.create(**chat).choices[0].message.content)
        parts = client.chat.completions.create(**chat, stream=True)
        answers.append("".join(p.choices[0].delta.content or "" for p in parts if p.choices))
        client.close()
    assert answers[0].strip()
    assert len(set(answers)) == 1, answers

    # 9. delete
    ml.online_endpoints.begin_delete(name=endpoint.name).wait()
    with pytest.raises(ResourceNotFoundError):
        ml.online_endpoints.get(endpoint.name)
