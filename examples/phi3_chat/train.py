"""Pick a foundation model, fine-tune it with `chat_completion_pipeline`, compare, register."""

import ast
import textwrap

import mlflow
from azure.ai.ml import Input
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import AmlCompute, Model
from connect import CONFIG, HERE, clients, remember, timestamp

workspace, registry = clients()

# -- a foundation model of the system registry ---------------------------------------------
base = registry.models.get(CONFIG["model"], label="latest")
print(f"Base model: {base.name}, version {base.version}")
print(textwrap.fill(base.description, 90, initial_indent="  ", subsequent_indent="  ", max_lines=4))

# -- a compute that the model allows -------------------------------------------------------
allowed = [size.lower() for size in ast.literal_eval(base.tags["finetune_compute_allow_list"])]
if CONFIG["compute_size"].lower() not in allowed:
    raise SystemExit(f"{CONFIG['compute_size']} is not among the sizes for {base.name}: {allowed}")
try:
    compute = workspace.compute.get(CONFIG["compute"])
except Exception:
    wanted = AmlCompute(name=CONFIG["compute"], size=CONFIG["compute_size"], max_instances=2)
    compute = workspace.compute.begin_create_or_update(wanted).result()
sizes = {size.name.lower(): size for size in workspace.compute.list_sizes()}
gpus = sizes[compute.size.lower()].gpus
print(f"Compute: {compute.name}, {compute.size}, {gpus} GPUs, {compute.provisioning_state}")

# -- parameters: ours, then what the model's card says -------------------------------------
parameters = dict(CONFIG["finetune_parameters"])
if "model_specific_defaults" in base.tags:
    parameters.update(ast.literal_eval(base.tags["model_specific_defaults"]))
print(f"Parameters: {parameters}")

# -- the pipeline --------------------------------------------------------------------------
component = registry.components.get("chat_completion_pipeline", label="latest")


@pipeline(name=f"{base.name}-{CONFIG['name']}-{timestamp()}")
def tune():
    tuned = component(
        mlflow_model_path=base.id,
        compute_model_import=compute.name,
        compute_preprocess=compute.name,
        compute_finetune=compute.name,
        compute_model_evaluation=compute.name,
        train_file_path=Input(type=AssetTypes.URI_FILE, path=str(HERE / "data/train_sft.jsonl")),
        test_file_path=Input(type=AssetTypes.URI_FILE, path=str(HERE / "data/test_sft.jsonl")),
        number_of_gpu_to_use_finetuning=max(gpus, 1),
        **parameters,
    )
    return {"trained_model": tuned.outputs.mlflow_model_folder}


job = tune()
job.settings.force_rerun = True
job.settings.continue_on_step_failure = False
job = workspace.jobs.create_or_update(job, experiment_name=CONFIG["experiment"])
workspace.jobs.stream(job.name)

# -- was it worth it? The evaluation step logged both models' scores -----------------------
metrics = mlflow.get_run(job.name).data.metrics
remember(job=job.name, metrics=metrics, base=base.id)

# -- register the result -------------------------------------------------------------------
model = workspace.models.create_or_update(
    Model(
        path=f"azureml://jobs/{job.name}/outputs/trained_model",
        name=CONFIG["registered_model"],
        type=AssetTypes.MLFLOW_MODEL,
        version=timestamp(),
        description=f"{base.name}, fine-tuned on {CONFIG['name']}",
    )
)
remember(model=model.id, model_name=model.name, model_version=model.version)
print(f"Registered: {model.name}, version {model.version}")
