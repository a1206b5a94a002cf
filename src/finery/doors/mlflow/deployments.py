"""The MLflow run of a deployment: how it was called and how it answered, as metrics.

One run for each deployment, in the experiment of its endpoint
(`endpoints/NAME`), begun with its first figures and ended when it is deleted.
Written straight into MLflow's store, as the runs of jobs are (`tracking.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

from finery.core import assets, ids, workspaces
from finery.core.assets import Asset
from finery.core.endpoints import Deployment
from finery.core.errors import NotFound
from finery.doors.http import House
from finery.doors.mlflow import access, metrics, tracking
from finery.doors.mlflow.embedded import Embedded

_MARK = "finery.deployment_id"


class Deployments:
    """Runs for deployments.  The first figures load MLflow, if nothing has before."""

    def __init__(
        self,
        house: House,
        *,
        load: Callable[[], Embedded],
        loaded: Callable[[], bool],
        default: Callable[[], str],
    ) -> None:
        self._house, self._load, self._loaded = house, load, loaded
        self._default = default

    def log(self, deployment: Deployment, figures: dict[str, float], *, at: datetime) -> None:
        """Write the figures down as metrics; their step is the deployment's age in seconds."""
        inner = self._load()
        moment = int(at.timestamp() * 1000)
        step = max(int((at - deployment.created_at).total_seconds()), 0)
        common = {"run": deployment.id, "timestamp": moment, "step": step, "nan": False}
        rows = [{**common, "key": key, "value": value} for key, value in figures.items()]
        if not metrics.write(inner, rows):
            self._begin(inner, deployment)
            metrics.write(inner, rows)

    def close(self, kept: set[str]) -> bool:
        """End the runs of deployments that are no more.  `kept`: the ids of those that are.

        False while MLflow is not loaded: it is not worth it for that alone.
        """
        if not self._loaded():
            return False
        models = _models()
        with self._load().runs.ManagedSessionMaker(read_only=False) as session:
            open_ones = (
                session.query(models.SqlRun)
                .join(models.SqlTag)
                .filter(models.SqlTag.key == _MARK, models.SqlRun.status == "RUNNING")
            )
            for run in open_ones:
                if run.run_uuid not in kept:
                    run.status, run.end_time = "FINISHED", int(ids.now().timestamp() * 1000)
        return True

    def _begin(self, inner: Embedded, deployment: Deployment) -> None:
        models = _models()
        name = f"endpoints/{deployment.endpoint}"
        if deployment.workspace != self._default():
            room = workspaces.by_id(self._house.store, deployment.workspace)
            name = f"{room.name}/{name}"
        experiment = tracking.experiment(inner.runs, deployment.workspace, name)
        model = self._model(deployment)
        with inner.runs.ManagedSessionMaker(read_only=False) as session:
            if session.get(models.SqlRun, deployment.id) is not None:
                return
            run = models.SqlRun(
                run_uuid=deployment.id,
                name=deployment.name,
                experiment_id=int(experiment),
                artifact_uri=access.artifacts(
                    deployment.workspace, f"ExperimentRun/dcid.{deployment.id}"
                ),
                source_type="JOB",
                source_name="",
                entry_point_name="",
                source_version="",
                user_id=deployment.created_by[:256],
                status="RUNNING",
                start_time=int(deployment.created_at.timestamp() * 1000),
                lifecycle_stage="active",
            )
            tags = _tags(deployment, model)
            run.tags = [models.SqlTag(key=key, value=value) for key, value in tags.items()]
            session.add(run)
        if model is not None:
            _link(inner, deployment, model)

    def _model(self, deployment: Deployment) -> Asset | None:
        if not deployment.spec.model.startswith("asset:"):
            return None
        try:
            return assets.by_ref(self._house.store, deployment.spec.model)
        except NotFound:
            return None


def _link(inner: Embedded, deployment: Deployment, model: Asset) -> None:
    """Make the model that a job has logged an input of the run, so that its page shows it."""
    job, _, output = model.made_by.partition("/")
    entities = importlib.import_module("mlflow.entities")
    run = tracking.run_id(job, short=not tracking.unlimited(inner))
    id = tracking.logged_model(run, output)
    models = _models()
    with inner.runs.ManagedSessionMaker(read_only=True) as session:
        if not output or session.get(models.SqlLoggedModel, id) is None:
            return
    inner.runs.log_inputs(deployment.id, models=[entities.LoggedModelInput(model_id=id)])


def _tags(deployment: Deployment, model: Asset | None) -> dict[str, str]:
    found = {
        "mlflow.runName": deployment.name,
        "mlflow.user": deployment.created_by,
        "mlflow.source.type": "JOB",
        "mlflow.source.name": f"{deployment.endpoint}/{deployment.name}",
        "finery.endpoint": deployment.endpoint,
        "finery.deployment": deployment.name,
        _MARK: deployment.id,
    }
    if model is not None:
        found |= {"finery.model": model.name, "finery.model_version": model.version}
    return found


def _models() -> Any:
    return importlib.import_module("mlflow.store.tracking.dbmodels.models")
