"""What is kept of a benchmark: a picture, and a run in MLflow beside the model it measured.

The run lies below the run that made the model, in the same experiment; where
no run did, in an experiment of benchmarks.  What MLflow lists as a logged
model gets the figures on its own page too.  matplotlib and the MLflow client
are imported here only, when they are used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finery.cli import measuring
from finery.cli.measuring import Measured

if TYPE_CHECKING:
    from finery.core.endpoints import Endpoint
    from finery.core.store import Store

FORMATS = (".png", ".svg")
EXPERIMENT = "benchmarks"
_FIGURES = ("throughput", "duration", "avg_sec", "std_sec", "p95_sec", "p99_sec", "errors")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was measured.  `run`: the MLflow run that made the model; empty where none did."""

    endpoint: str
    deployments: list[str]
    model: str = ""
    version: str = ""
    run: str = ""
    logged: str = ""  # the id of MLflow's logged model, where it is known

    @property
    def title(self) -> str:
        by = f" / {', '.join(self.deployments)}" if self.deployments else ""
        return f"{self.endpoint}{by}" + (f", {self.model}:{self.version}" if self.model else "")


def subject(
    store: Store, endpoint: Endpoint, *, deployments: list[str], model: str = ""
) -> Subject:
    """Find out about the model (a reference; empty: there is not just one)."""
    from finery.core import assets, references
    from finery.core.errors import NotFound

    bare = Subject(endpoint=endpoint.name, deployments=deployments)
    if not model.startswith("asset:"):
        return bare
    try:
        asset = assets.by_ref(store, model)
    except NotFound:
        return bare
    ours = asset.extras.get("mlflow", {})
    return Subject(
        endpoint=endpoint.name,
        deployments=deployments,
        model=asset.name,
        version=asset.version,
        run=ours.get("run_id") or references.maker(asset),
        logged=ours.get("model_id") or "",
    )


def place(home: Path, endpoint: str) -> Path:
    """Return where a picture is kept when nobody says."""
    return home / "benchmarks" / f"{endpoint}-{datetime.now():%Y%m%d-%H%M%S}.png"


def draw(path: Path, subject: Subject, measured: Sequence[Measured]) -> None:
    """Draw latency and throughput by threads."""
    from matplotlib.figure import Figure  # MLflow brings it; without pyplot it needs no display

    rows = [one for one in measured if one.times]
    threads = [str(one.row.threads) for one in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for percent, colour in ((50, "#4c9f70"), (95, "#d98e04"), (99, "#b3392f")):
        times = [1000 * measuring.percentile(one.times, percent) for one in rows]
        left.plot(threads, times, marker="o", color=colour, label=f"p{percent}")
    means = [1000 * (one.row.avg_sec or 0) for one in rows]
    left.plot(threads, means, marker="x", linestyle="--", color="#555555", label="average")
    left.set(title="Latency", xlabel="threads", ylabel="milliseconds", ylim=(0, None))
    left.legend()
    answers = [one.row.throughput for one in rows]
    bars = right.bar(threads, answers, color="#3b6ea5", width=0.5)
    right.bar_label(bars, [f"{n:,.0f}" if n >= 100 else f"{n:.3g}" for n in answers])
    right.set(title="Throughput", xlabel="threads", ylabel="answers per second")
    right.margins(y=0.15)
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(subject.title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def log(
    home: Path,
    subject: Subject,
    measured: Sequence[Measured],
    *,
    picture: Path,
    setting: Mapping[str, Any],
) -> str:
    """Keep it all as a run in MLflow.  Returns a sentence that says where, or why not."""
    from finery import cli

    found = cli.environment(home)
    ours = {name: found[name] for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN")}
    # The MLflow client takes its token, and whether it may print, from nowhere else.
    os.environ.update(ours, MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(ours["MLFLOW_TRACKING_URI"])
    rows = [asdict(one.row) for one in measured]
    try:
        made, beside = _begin(client, subject, setting)
        model = subject.logged or _logged_model(client, beside)
        client.log_batch(made.info.run_id, metrics=_metrics(measured, model))
        client.log_artifact(made.info.run_id, str(picture))
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        client.log_table(made.info.run_id, columns, "benchmark.json")
        client.set_tag(made.info.run_id, "mlflow.note.content", _markdown(subject, rows))
        client.set_terminated(made.info.run_id)
    except MlflowException as exc:
        return f"not logged: MLflow said: {str(exc).splitlines()[0]}"
    where = f"experiments/{made.info.experiment_id}/runs/{made.info.run_id}"
    below = f" (below the model's run, {beside.info.run_name})" if beside else ""
    page = f"{ours['MLFLOW_TRACKING_URI']}/#/{where}?workflowType=machine_learning"
    return f"logged: {page}{below}"


def _begin(client: Any, subject: Subject, setting: Mapping[str, Any]) -> tuple[Any, Any]:
    """Begin the run; return it and the run that made the model, if there is one."""
    from mlflow.entities import Param

    beside = _run(client, subject.run)
    experiment = beside.info.experiment_id if beside else _experiment(client)
    names = {
        "endpoint": subject.endpoint,
        "deployment": ",".join(subject.deployments),
        "model": subject.model,
        "model_version": subject.version,
    }
    tags = {f"finery.{name}": value for name, value in names.items() if value}
    tags |= {"finery.benchmark": "endpoint", "mlflow.source.name": "finery bench endpoint"}
    if beside:
        tags["mlflow.parentRunId"] = beside.info.run_id
    name = f"benchmark {subject.endpoint}"
    made = client.create_run(experiment, tags=tags, run_name=name)
    told = {**names, **setting}
    params = [Param(name, str(value)) for name, value in told.items() if value != ""]
    client.log_batch(made.info.run_id, params=params)
    return made, beside


def _run(client: Any, name: str) -> Any:
    """Return a job's run: by the job's name, or by what stands for a name too long to be an id."""
    from mlflow.exceptions import MlflowException

    from finery.doors.mlflow import tracking

    for id in dict.fromkeys((tracking.run_id(name), tracking.run_id(name, short=True))):
        try:
            return client.get_run(id) if name else None
        except MlflowException:
            continue
    return None


def _experiment(client: Any) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    return str(found.experiment_id if found else client.create_experiment(EXPERIMENT))


def _logged_model(client: Any, run: Any) -> str:
    """Return the one model that a run has logged; with several nobody knows which it was."""
    if run is None:
        return ""
    found = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
    )
    return str(found[0].model_id) if len(found) == 1 else ""


def _metrics(measured: Sequence[Measured], model: str) -> list[Any]:
    """Return each figure as a curve over threads, and by itself for the model's page."""
    from mlflow.entities import Metric

    now, made = int(datetime.now().timestamp() * 1000), []
    for one in measured:
        threads = one.row.threads
        for name in _FIGURES:
            value = getattr(one.row, name)
            if value is None:
                continue
            made.append(Metric(name, value, now, threads))
            if model:
                key = f"threads_{threads}/{name}"
                made.append(Metric(key, value, now, threads, model_id=model))
    return made


def _markdown(subject: Subject, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"**{subject.title}**",
        "",
        "| " + " | ".join(rows[0]) + " |",
        "|---" * len(rows[0]) + "|",
    ]
    for row in rows:
        cells = ["" if value is None else f"{value:.4g}" for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
