"""Step 2: the environment, the compute and the job; then the result becomes a registered model."""

from pathlib import Path
from typing import Any

import mlflow
from azure.ai.ml import Input, MLClient, command
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.entities import AmlCompute, Model
from azure.ai.ml.exceptions import JobException
from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from connect import CONFIG, HERE, client, get_or_create_environment, recall, registered, remember

SETTINGS, TRAIN = CONFIG["config"], CONFIG["train"]


def base_model(ml_client: MLClient, given: str) -> tuple[Any, dict[str, Any]]:
    """The job's input for the model that config.yml names, and what it changes in the settings."""
    if given.startswith("azureml:"):
        model = registered(ml_client, given)
        stands_in = "stand-in" in (model.description or "").lower()
        print(f"Base model: {model.name}, version {model.version}" + " (a stand-in)" * stands_in)
        return Input(type=model.type, path=model.id), CONFIG["stand_in"] if stands_in else {}
    print(f"Base model: {given}")
    if Path(given).is_dir():
        return Input(type=AssetTypes.CUSTOM_MODEL, path=given), {}
    return given, {}  # a name of the hub: the job fetches it


def data_asset() -> str:
    """The version that prepare_data.py told of, or the newest if it told of none of this name."""
    name, facts = SETTINGS["AZURE_DATA_NAME"], recall()
    if facts.get("data_name") == name:
        print(f"Data: {name}, version {facts['data_version']}")
        return f"azureml:{name}:{facts['data_version']}"
    print(f"Data: {name}, the newest version")
    return f"azureml:{name}@latest"


def get_or_create_compute(ml_client: MLClient, name: str, size: str) -> AmlCompute:
    try:
        compute = ml_client.compute.get(name)
        print(f"Compute: {name} was there already")
    except Exception:
        tier = "LowPriority" if SETTINGS["USE_LOWPRIORITY_VM"] else "Dedicated"
        wanted = AmlCompute(name=name, size=size, tier=tier, max_instances=1)
        compute = ml_client.compute.begin_create_or_update(wanted).result()
        print(f"Compute: {name}, {size}, {tier}")
    return compute


def training(ml_client: MLClient, environment: Any, compute: AmlCompute) -> Any:
    """The job: our script, its arguments from config.yml, on the data asset's version."""
    model, changed = base_model(ml_client, SETTINGS["HF_MODEL_NAME_OR_PATH"])
    settings = {**TRAIN, **changed}
    processes = settings.pop("processes")
    inputs = {
        name: Input(type=AssetTypes.URI_FOLDER, path=value)
        if str(value).startswith("azureml://")  # what another job left, say
        else value
        for name, value in settings.items()
        if not name.startswith("azure_")
    }
    flags = {"epoch": "epochs"}
    line = " ".join(f"--{flags.get(name, name)} ${{{{inputs.{name}}}}}" for name in inputs)
    return command(
        inputs={
            "train_dir": Input(type=AssetTypes.URI_FOLDER, path=data_asset()),
            "model": model,
            **inputs,
        },
        code=str(HERE / "src_train"),
        command="python train_mlflow.py --train_dir ${{inputs.train_dir}} "
        f"--model_name_or_path ${{{{inputs.model}}}} {line}",
        environment=f"{environment.name}@latest",
        compute=compute.name,
        distribution={"type": "PyTorch", "process_count_per_instance": processes},
        display_name="florence2-vqa",
        experiment_name="florence2-vqa",
    )


def get_or_create_model_asset(
    ml_client: MLClient,
    model_name: str,
    job_name: str,
    model_dir: str = "outputs",
    model_type: str = AssetTypes.CUSTOM_MODEL,
    update: bool = False,
) -> Model:
    """The newest version of the model; a new one from the job if there is none, or for `update`."""
    try:
        latest = max(int(one.version) for one in ml_client.models.list(name=model_name))
        if update:
            raise ResourceExistsError(f"version {latest} is there; a new one is made")
        model = ml_client.models.get(name=model_name, version=str(latest))
        print(f"Model: {model_name}, version {latest}, was there already")
    except (ResourceNotFoundError, ResourceExistsError):
        model = ml_client.models.create_or_update(
            Model(
                name=model_name,
                path=f"azureml://jobs/{job_name}/outputs/artifacts/paths/{model_dir}/",
                type=model_type,
                description="Florence-2, fine-tuned on questions about documents",
            )
        )
        print(f"Model: {model.name}, version {model.version}, from the job {job_name}")
    return model


if __name__ == "__main__":
    ml_client = client()
    environment = get_or_create_environment(
        ml_client, TRAIN["azure_env_name"], HERE / SETTINGS["CLOUD_DIR"] / "train"
    )
    compute = get_or_create_compute(
        ml_client, TRAIN["azure_compute_cluster_name"], TRAIN["azure_compute_cluster_size"]
    )
    job = ml_client.jobs.create_or_update(training(ml_client, environment, compute))
    print(f"Job: {job.name}\n  {job.studio_url}")
    remember(job=job.name)
    try:
        ml_client.jobs.stream(job.name)
    except JobException as error:  # its log, just shown, says why; ours would add nothing
        raise SystemExit(f"The job {job.name} did not complete. {error}") from None
    job = ml_client.jobs.get(job.name)
    remember(job_status=job.status, metrics=dict(mlflow.get_run(job.name).data.metrics))
    model = get_or_create_model_asset(
        ml_client,
        CONFIG["serve"]["azure_model_name"],
        recall()["job"],
        TRAIN["model_dir"],
        update=True,
    )
    remember(model_name=model.name, model_version=model.version)
