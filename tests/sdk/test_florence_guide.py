"""Every call and idiom of the two Florence-2 notebooks, in their order, with the official clients.

One test, because each call stands on the one before. The scripts and build contexts are those of
`examples/florence2_vqa`; data and steps are few: that it learns is `make quickstart-vqa`'s to show.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pytest
from azure.ai.ml import Input, MLClient, command
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.entities import (
    AmlCompute,
    BuildContext,
    Data,
    Environment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
    ProbeSettings,
)
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)

GUIDE = Path(__file__).parents[2] / "examples" / "florence2_vqa"
FEW = {"train": 8, "validation": 2, "test": 2}


@pytest.fixture
def guide(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The example's own modules: its documents, its requests and its two benchmarks."""
    monkeypatch.syspath_prepend(str(GUIDE))
    names = ("connect", "documents", "prepare_data", "train", "evaluate", "benchmark")
    for name in (*names, "scores"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in names}


def newest_or_new(operations: Any, name: str, asset: Any) -> tuple[Any, bool]:
    """The guide's idiom: it stands on a 404 for no versions, and on versions that are numbers."""
    try:
        latest = max([int(one.version) for one in operations.list(name=name)])
        return operations.get(name=name, version=str(latest)), False
    except ResourceNotFoundError:
        return operations.create_or_update(asset), True


def test_the_florence_guide(
    ml: MLClient,
    registry: MLClient,
    name: str,
    guide: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    # 1.1 data of DocVQA's schema, saved to disk and registered
    guide["documents"].arrow(Path("dataset"), FEW, seed=2)
    tags = {"FineTuningType": "Instruction", "Language": "En"}
    data = Data(name=name, path="dataset", type=AssetTypes.URI_FOLDER, tags=tags)
    made, is_new = newest_or_new(ml.data, name, data)
    assert is_new and made.version == "1"
    found, is_new = newest_or_new(ml.data, name, data)
    assert not is_new and found.id == made.id and found.tags == tags

    # 1.2 an environment from a folder with a Dockerfile
    context = BuildContext(path=str(GUIDE / "cloud" / "train"))
    wanted = Environment(name=name, build=context, description="to train")
    made, is_new = newest_or_new(ml.environments, name, wanted)
    assert is_new and int(made.version) == 1
    found, is_new = newest_or_new(ml.environments, name, wanted)
    assert not is_new and found.build.dockerfile_path == "Dockerfile"

    # 1.3 a cluster, on any exception
    with pytest.raises(ResourceNotFoundError):
        ml.compute.get(name)
    cluster = AmlCompute(
        name=name, size="Standard_NC24ads_A100_v4", tier="LowPriority", max_instances=1
    )
    ml.compute.begin_create_or_update(cluster).wait()

    # 2. the job: two ranks, everything else as the guide has it
    base = registry.models.get("Florence-2-base-ft", label="latest")
    job = command(
        inputs={
            "train_dir": Input(type="uri_folder", path=f"azureml:{name}@latest"),
            "base": Input(type=base.type, path=base.id),
            "epoch": 1,
            "train_batch_size": 4,
            "eval_batch_size": 8,
            "model_dir": "./outputs",
        },
        code=str(GUIDE / "src_train"),
        compute=name,
        command="python train_mlflow.py --train_dir ${{inputs.train_dir}} "
        "--epochs ${{inputs.epoch}} --train_batch_size ${{inputs.train_batch_size}} "
        "--eval_batch_size ${{inputs.eval_batch_size}} --model_dir ${{inputs.model_dir}} "
        "--model_name_or_path ${{inputs.base}} --save_steps 2 --logging_steps 1 --num_beams 1 "
        "--max_new_tokens 4",
        environment=f"{name}@latest",
        distribution={"type": "PyTorch", "process_count_per_instance": 2},
        experiment_name=name,
    )
    job = ml.jobs.create_or_update(job)
    ml.jobs.stream(job.name)
    assert "progress 1" in capfd.readouterr().out
    job = ml.jobs.get(job.name)
    assert job.status == "Completed"
    assert job.name in job.studio_url
    job.display_name, job.tags = "florence", {"guide": "florence"}
    ml.jobs.create_or_update(job)
    assert ml.jobs.get(job.name).tags == {"guide": "florence"}
    _what_it_logged(job.name)

    # 3. the model, from the job's artifacts: `./outputs` in the middle of a path
    path = f"azureml://jobs/{job.name}/outputs/artifacts/paths/./outputs/"

    def from_run() -> Model:
        return Model(name=name, path=path, type=AssetTypes.CUSTOM_MODEL, description="from run")

    model, is_new = newest_or_new(ml.models, name, from_run())
    assert is_new and model.version == "1"
    try:
        latest = max([int(one.version) for one in ml.models.list(name=name)])
        raise ResourceExistsError(f"version {latest} is there; it is updated")
    except (ResourceNotFoundError, ResourceExistsError):
        model = ml.models.create_or_update(from_run())
    assert model.version == "2"
    ml.models.download(name=name, version="2", download_path="kept")
    (config,) = Path("kept").rglob("config.json")
    assert config.parts[:2] == ("kept", name) and config.parent.name == "outputs"

    # 4. an endpoint, a deployment with its own environment and script, traffic
    endpoint = _endpoint(ml, name)
    served = Environment(name=f"{name}-s", build=BuildContext(path=str(GUIDE / "cloud" / "serve")))
    served, _ = newest_or_new(ml.environments, served.name, served)
    patient = ProbeSettings(
        failure_threshold=30, success_threshold=1, period=100, initial_delay=500
    )
    deployment = ManagedOnlineDeployment(
        name="florence2-blue",
        endpoint_name=name,
        model=model,
        environment=served,
        code_path=str(GUIDE / "src_serve"),
        scoring_script="score.py",
        instance_type="Standard_NC24ads_A100_v4",
        instance_count=1,
        request_settings=OnlineRequestSettings(
            max_concurrent_requests_per_instance=3,
            request_timeout_ms=90000,
            max_queue_wait_ms=60000,
        ),
        liveness_probe=patient,
        readiness_probe=patient,
    )
    ml.begin_create_or_update(deployment).wait()
    endpoint.traffic = {"florence2-blue": 100}
    ml.online_endpoints.begin_create_or_update(endpoint).result()
    assert ml.online_endpoints.get(name).traffic == {"florence2-blue": 100}

    # 5. the first call, and what a bad one gets
    monkeypatch.setitem(guide["evaluate"].CONFIG["config"], "DATA_DIR", "dataset")
    request = guide["evaluate"].request_for(guide["evaluate"].held_back(1)[0])
    request["params"]["max_new_tokens"] = 8

    def call(body: Any) -> Any:
        Path("sample-request.json").write_text(json.dumps(body))
        return json.loads(
            ml.online_endpoints.invoke(
                endpoint_name=name,
                deployment_name="florence2-blue",
                request_file="sample-request.json",
            )
        )

    for bad, why in (
        ({**request, "image_input": base64.b64encode(b"no picture").decode()}, "not of a picture"),
        ({**request, "image_input": "%%%"}, "is not base64"),
        ({**request, "text_input": "why? " * 20_000}, "100000 characters"),
    ):
        with pytest.raises(HttpResponseError, match=why) as refused:
            call(bad)
        assert refused.value.status_code == 424
        assert refused.value.response.headers["ms-azureml-model-error-statuscode"] == "400"
    answer = call(request)
    assert answer["result"] == str({"DocVQA": answer["answer"]})
    assert [answer] * 2 == call([request, request])
    assert "Refused" in ml.online_deployments.get_logs("florence2-blue", name, lines=200)

    # 6. the benchmark: one caller, then several
    call(request)
    target = (ml, name, "florence2-blue", "sample-request.json")
    rows = [guide["benchmark"].benchmark_latency(*target, num_warmups=1, num_infers=3)]
    rows.append(
        guide["benchmark"].benchmark_latency_multicore(*target, num_infers=3, num_threads=2)
    )
    for row, threads in zip(rows, (1, 2), strict=True):
        assert row["threads"] == threads
        assert 0 < row["avg_sec"] <= row["p99_sec"] and row["p95_sec"] <= row["p99_sec"]
        assert row["throughput"] == pytest.approx(3 * threads / row["duration"])
    facts = {"job": job.name, "endpoint": name, "deployment": "florence2-blue", "model_version": 2}
    kept = mlflow.get_run(guide["benchmark"].keep(rows, facts))
    assert kept.data.tags["mlflow.parentRunId"] == job.name
    assert kept.data.metrics["throughput"] == pytest.approx(rows[-1]["throughput"])

    # 7. delete
    ml.online_endpoints.begin_delete(name=name).wait()
    with pytest.raises(ResourceNotFoundError):
        ml.online_endpoints.get(name)


def test_other_documents_are_the_next_version_and_the_training_takes_it(
    ml: MLClient,
    name: str,
    guide: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare, train, folder = guide["prepare_data"], guide["train"], Path("dataset")
    monkeypatch.setitem(prepare.SETTINGS, "DOCUMENTS", FEW)
    monkeypatch.setitem(train.SETTINGS, "AZURE_DATA_NAME", name)
    folder.mkdir()

    def version() -> str:
        made = prepare.get_or_create_data(ml, name, folder)
        guide["connect"].remember(data_name=made.name, data_version=made.version)
        return str(made.version)

    assert train.data_asset() == f"azureml:{name}@latest"  # nothing was prepared here
    (folder / "rows.arrow").write_bytes(b"one")
    assert [version(), version()] == ["1", "1"]
    (folder / "rows.arrow").write_bytes(b"two")
    assert [version(), version()] == ["2", "2"]
    assert train.data_asset() == f"azureml:{name}:2"
    assert "version 1 does not hold what is in dataset now" in capsys.readouterr().out

    (folder / prepare.NOTE).write_text(json.dumps(prepare.asked()))
    prepare.look(folder)
    assert "NOT" not in capsys.readouterr().out
    monkeypatch.setitem(prepare.SETTINGS, "SEED", 7)
    prepare.look(folder)
    assert "NOT what config.yml asks for" in capsys.readouterr().out


def _what_it_logged(job: str) -> None:
    """Params, metrics with their steps, and pictures with the model's answers, in the job's run."""
    run, client = mlflow.get_run(job), mlflow.MlflowClient()
    assert {"epochs", "train_batch_size", "seed", "num_training_steps"} <= set(run.data.params)
    assert {"avg_val_loss", "anls", "exact_match", "base_anls"} <= set(run.data.metrics)
    total = int(run.data.params["num_training_steps"])
    for metric in ("train_loss", "learning_rate", "progress"):
        points = client.get_metric_history(job, metric)
        assert [point.step for point in points] == list(range(1, total + 1))
    images = [file.path for file in client.list_artifacts(job, "images")]
    assert any("DocVQA" in path for path in images)


def _endpoint(ml: MLClient, name: str) -> ManagedOnlineEndpoint:
    """Made where a look-up fails, and put again once it is there, as the guide does."""
    for _ in range(2):
        try:
            endpoint = ml.online_endpoints.get(name)
        except ResourceNotFoundError:
            endpoint = ManagedOnlineEndpoint(name=name, description="Questions")
        ml.begin_create_or_update(endpoint).wait()
    return ml.online_endpoints.get(name)
