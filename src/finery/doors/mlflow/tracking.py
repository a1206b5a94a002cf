"""Opens and closes the MLflow run of a job.

The run's id is the job's name, so that whoever knows one knows the other, and
its artifacts are the job's own artifacts folder.  Written straight into
MLflow's store, in this process.  When a run is opened is the supervisor's
business; what a job logs into it, the job's.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from finery.core import ids, workspaces
from finery.core.errors import NotFound
from finery.core.jobs import Command, Job, Pipeline
from finery.core.workspaces import Caller
from finery.doors.http import House
from finery.doors.mlflow import access
from finery.doors.mlflow.embedded import PREFIX, Embedded

TOKEN_SECONDS = 30 * 24 * 3600  # a job that trains longer than this loses its metrics

# Which of its two faces MLflow's page shows: the other one has no place for a run's charts.
TRAINING = "workflowType=machine_learning"

_MOST_VALUES = 100_000  # of a metric of one job

_STATUS = {"completed": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
_RUN_ID = re.compile(r"[A-Za-z0-9][\w-]{0,255}", re.A)
_KEY = re.compile(r"[/\w.\- :]{1,250}", re.A)


class Tracking:
    """Runs for jobs.  The first `open` loads MLflow (seconds); after that it takes milliseconds.

    Whoever must not wait calls `Mlflow.warm` early: at the first submission, say.
    """

    def __init__(
        self, house: House, *, load: Callable[[], Embedded], default: Callable[[], str]
    ) -> None:
        self._house, self._load, self._default = house, load, default

    def open(self, job: Job) -> dict[str, str]:
        """Make sure that the job has a run, and return the environment that joins it."""
        inner = self._load()
        name = self._experiment_name(job)
        found = experiment(inner.runs, job.workspace, name)
        self._run(inner, job, found)
        short = not unlimited(inner)
        return self._environment(job, name, found, short)

    def close(self, job: Job) -> None:
        """End the run as the job ended, with its models and what it did not log of its inputs.

        At the end, because MLflow refuses a second value for a parameter: a
        script that logs its own `lr` as 0.0001 must not fail on our `1e-4`.
        """
        if not job.final:
            return
        inner = self._load()
        if not self._end(inner, job):  # it was never opened
            self._run(inner, job, experiment(inner.runs, job.workspace, self._experiment_name(job)))
            self._end(inner, job)

    def metrics(self, job: Job, name: str) -> list[float]:
        """Return every value of a metric that the job has logged, in the order of time."""
        inner = self._load()
        models = importlib.import_module("mlflow.store.tracking.dbmodels.models")
        row = models.SqlMetric
        with inner.runs.ManagedSessionMaker(read_only=True) as session:
            found = session.query(row.value, row.is_nan).filter(
                row.run_uuid == run_id(job.name, short=not unlimited(inner)), row.key == name
            )
            rows = found.order_by(row.timestamp, row.step).limit(_MOST_VALUES).all()
        return [math.nan if is_nan else value for value, is_nan in rows]

    def _end(self, inner: Embedded, job: Job) -> bool:
        models = importlib.import_module("mlflow.store.tracking.dbmodels.models")
        with inner.runs.ManagedSessionMaker(read_only=False) as session:
            run = session.get(models.SqlRun, run_id(job.name, short=not unlimited(inner)))
            if run is None:
                return False
            run.status = _STATUS[job.status]
            run.end_time = _milliseconds(job.ended_at or ids.now())
            logged = {param.key for param in run.params}
            for key, value in _literals(job).items():
                if key not in logged:
                    run.params.append(models.SqlParam(key=key, value=value))
            for name, place in _model_outputs(job).items():
                _keep_model(session, models, run, name=name, place=place)
        return True

    def page(self, inner: Embedded, job: str) -> str:
        """Return where MLflow's own pages show a job's run.  Raises `NotFound`."""
        models = importlib.import_module("mlflow.store.tracking.dbmodels.models")
        id = run_id(job, short=not unlimited(inner))
        with inner.runs.ManagedSessionMaker(read_only=True) as session:
            run = session.get(models.SqlRun, id)
            experiment = run.experiment_id if run else None
        if experiment is None:  # MLflow would make an error of its own of what is raised in there
            raise NotFound(f"no run of a job named {job!r}", target=job)
        return f"#/experiments/{experiment}/runs/{id}?{TRAINING}"

    def _environment(self, job: Job, name: str, experiment: str, short: bool) -> dict[str, str]:
        caller = Caller(name=job.name, role="job", workspace=job.workspace)
        token = self._house.keys.mint(
            caller, audience="mlflow", seconds=TOKEN_SECONDS, now=ids.now()
        )
        workspace = workspaces.by_id(self._house.store, job.workspace)
        return {
            **_places(job),
            "MLFLOW_TRACKING_URI": self._house.http + PREFIX,
            "MLFLOW_TRACKING_TOKEN": token,
            "MLFLOW_RUN_ID": run_id(job.name, short=short),
            "MLFLOW_EXPERIMENT_ID": experiment,
            "MLFLOW_EXPERIMENT_NAME": name,
            "FINERY_ROOT_RUN_ID": run_id(job.root or job.name, short=short),
            "AZUREML_RUN_ID": job.name,
            "AZUREML_ROOT_RUN_ID": job.root or job.name,
            "AZUREML_EXPERIMENT_ID": experiment,
            "AZUREML_EXPERIMENT_NAME": job.experiment,
            "AZUREML_ARM_SUBSCRIPTION": workspace.subscription,
            "AZUREML_ARM_RESOURCEGROUP": workspace.group,
            "AZUREML_ARM_WORKSPACE_NAME": workspace.name,
            "AZUREML_ARM_PROJECT_NAME": job.experiment,
        }

    def _experiment_name(self, job: Job) -> str:
        """There is one MLflow for all workspaces: others than the default put theirs before it."""
        if job.workspace == self._default():
            return job.experiment
        return f"{workspaces.by_id(self._house.store, job.workspace).name}/{job.experiment}"

    def _run(self, inner: Embedded, job: Job, experiment: str) -> None:
        models = importlib.import_module("mlflow.store.tracking.dbmodels.models")
        short = not unlimited(inner)
        id = run_id(job.name, short=short)
        with inner.runs.ManagedSessionMaker(read_only=False) as session:
            if session.get(models.SqlRun, id) is not None:
                return
            name = (job.display_name or job.name)[:250]
            run = models.SqlRun(
                run_uuid=id,
                name=name,
                experiment_id=int(experiment),
                artifact_uri=_artifacts(job, id, short=short),
                source_type="JOB",
                source_name="",
                entry_point_name="",
                source_version="",
                user_id=job.created_by[:256],
                status="RUNNING",
                start_time=int(time.time() * 1000),
                lifecycle_stage="active",
            )
            tags = _tags(job, name, short=short)
            run.tags = [models.SqlTag(key=key, value=value) for key, value in tags.items()]
            session.add(run)


def experiment(runs: Any, workspace: str, name: str) -> str:
    """Return the id of the experiment of this name, which is made where there is none."""
    found = runs.get_experiment_by_name(name)
    if found is None:
        try:
            return str(runs.create_in(workspace, name))
        except Exception:  # another step was quicker, or it cannot be made at all
            found = runs.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        runs.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def run_id(job: str, *, short: bool = False) -> str:
    """Return the id of a job's run: its name wherever MLflow (and its database) can take it."""
    if _RUN_ID.fullmatch(job) and not (short and len(job) > 32):
        return job
    return hashlib.sha256(job.encode()).hexdigest()[:32]


def logged_model(run: str, output: str) -> str:
    """Return the id under which MLflow knows the model that a job's run has made."""
    return "m-" + hashlib.sha256(f"{run}/{output}".encode()).hexdigest()[:32]


def _places(job: Job) -> dict[str, str]:
    """Return what Azure tells a command beside its words: how many nodes, where its data lies."""
    command = job.spec
    if not isinstance(command, Command):
        return {}
    found = {"AZUREML_NODE_COUNT": str(command.nodes)}
    for name, given in command.inputs.items():
        if given.type != "literal":
            found[f"AZURE_ML_INPUT_{name}"] = f"${{{{inputs.{name}}}}}"
    for name in command.outputs:
        found[f"AZURE_ML_OUTPUT_{name}"] = f"${{{{outputs.{name}}}}}"
    return found


def unlimited(inner: Embedded) -> bool:
    """MLflow declares run ids of 32 characters; SQLite does not mind longer ones."""
    return bool(inner.engine.dialect.name == "sqlite")


def _artifacts(job: Job, id: str, *, short: bool) -> str:
    base = access.artifacts(job.workspace, "ExperimentRun/dcid.")
    return base + (id if short and len(base + job.name) > 200 else job.name)


def _tags(job: Job, name: str, *, short: bool) -> dict[str, str]:
    own = {
        "mlflow.runName": name,
        "mlflow.user": job.created_by,
        "mlflow.source.type": "JOB",
        "mlflow.source.name": job.step or job.name,
        "mlflow.rootRunId": run_id(job.root or job.name, short=short),
        "finery.job": job.name,
    }
    if job.parent:
        own["mlflow.parentRunId"] = run_id(job.parent, short=short)
    if job.description:
        own["mlflow.note.content"] = job.description
    theirs = {key: str(value)[:8000] for key, value in job.tags.items() if _KEY.fullmatch(key)}
    return {**theirs, **own}


def _model_outputs(job: Job) -> dict[str, str]:
    """Return where the MLflow models lie that a job has made; a pipeline in another has none."""
    if job.status != "completed" or (job.parent and isinstance(job.spec, Pipeline)):
        return {}
    return {
        name: f"mlflow-artifacts:/{job.workspace}/{job.outputs[name].removeprefix('file:')}"
        for name, output in job.spec.outputs.items()
        if output.type == "mlflow_model" and job.outputs.get(name, "").startswith("file:")
    }


def _keep_model(session: Any, models: Any, run: Any, *, name: str, place: str) -> None:
    """Show a job's model as one that its run has logged: `runs:/JOB/OUTPUT` finds it."""
    id = logged_model(run.run_uuid, name)
    if session.get(models.SqlLoggedModel, id) is not None:
        return
    status = importlib.import_module("mlflow.entities.logged_model_status").LoggedModelStatus
    session.add(
        models.SqlLoggedModel(
            model_id=id,
            experiment_id=run.experiment_id,
            name=name,
            artifact_location=place,
            creation_timestamp_ms=run.end_time,
            last_updated_timestamp_ms=run.end_time,
            status=status.READY.to_int(),
            lifecycle_stage="active",
            source_run_id=run.run_uuid,
        )
    )


def _literals(job: Job) -> dict[str, str]:
    """Return the inputs that are values and not bindings to someone else's."""
    inputs = job.spec.inputs
    return {
        name: given.value[:6000]
        for name, given in inputs.items()
        if given.type == "literal" and "${{" not in given.value and _KEY.fullmatch(name)
    }


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
