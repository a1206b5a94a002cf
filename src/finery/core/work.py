"""What a job asks for: one command, a graph of steps, or a command tried with many values.

Only the shapes, and how they are read back from a row.  What a graph means is in
`pipelines.py`, what a sweep means in `sweeps.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Input:
    """A value, or something that becomes a path (or an address) in the job.

    `value` is a literal's text, or a reference: see `files.py`.  In a step of
    a pipeline it may be a binding: `${{parent.inputs.x}}` or
    `${{parent.jobs.step.outputs.y}}`.
    """

    value: str
    type: str = "literal"  # literal, uri_file, uri_folder, mltable, custom_model, mlflow_model, …
    mode: str = ""
    address: str = ""  # in the caller's own words: what a job gets that wants no path (`direct`)


@dataclass(frozen=True, kw_only=True)
class Output:
    """A place that the job may write to; `asset` is the name it is registered under."""

    type: str = "uri_folder"
    mode: str = ""
    location: str = ""  # a reference chosen by the caller; empty: ours to choose
    asset: str = ""
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A program beside a job while it runs, to look at it or to work in it (`services.py`)."""

    kind: str  # tensorboard, jupyterlab, vscode
    folder: str = ""  # that TensorBoard looks at; empty: the job's own
    port: int = 0  # 0: a free one
    nodes: str = ""  # as it was asked for: all nodes are this machine
    properties: dict[str, str] = field(default_factory=dict)  # the caller's own, only kept


@dataclass(frozen=True, kw_only=True)
class Command:
    """One process (or one per rank) that ends."""

    command: str
    code: str = ""  # a reference to a folder, copied into the working directory
    environment: str = ""  # a reference to an environment
    env: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    distribution: str = ""  # pytorch, mpi, tensorflow
    ranks: int = 1  # per node
    nodes: int = 1
    shm_size: str = ""
    timeout: float | None = None  # seconds
    deterministic: bool = False
    optional: tuple[str, ...] = ()  # inputs that may be unset: `$[[…]]` around them drops out
    point: dict[str, float] = field(default_factory=dict)  # of a trial: where in its sweep's space
    services: dict[str, Service] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node of a pipeline: a component with its inputs bound."""

    component: str  # a reference to a component
    inputs: dict[str, Input] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)  # ours -> the pipeline's
    registered: dict[str, Output] = field(default_factory=dict)  # ours -> how it is kept
    compute: str = ""  # a name or a binding
    ranks: str = ""  # a number or a binding; empty: the component's own
    nodes: str = ""
    shm_size: str = ""
    timeout: float | None = None
    env: dict[str, str] = field(default_factory=dict)
    display_name: str = ""
    force_rerun: bool | None = None
    sweep: dict[str, Any] | None = None  # a `Sweep` without its trial: the step is one of these


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A job made of jobs."""

    steps: dict[str, Step] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    compute: str = ""  # for steps that name none
    continue_on_step_failure: bool = True
    force_rerun: bool = False


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """Which trials are ended early, by what they have logged so far (`sweeps.py`)."""

    rule: str  # bandit, median, truncation
    interval: int = 1  # looked at each time so many values have been logged,
    delay: int = 0  # from so many on
    factor: float = 0  # of a bandit: how far behind the best a trial may be, as a share of it
    amount: float = 0  # or as a difference
    percent: int = 0  # of a truncation: so many of the worst


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A command run many times, each time with other values; the best run's outputs are its own.

    `space` says for each input which values it takes: `[kind, numbers]`, or
    `["choice", values]` (`sweeps.py` lists the kinds).
    """

    trial: Command
    space: dict[str, list[Any]]
    metric: str
    goal: str = "maximize"  # or minimize
    rule: str = "random"  # random, sobol, grid, bayesian
    seed: int | None = None
    logbase: float = math.e  # of the kinds that are drawn from a logarithm
    most: int = 100  # trials
    at_once: int = 100
    timeout: float | None = None  # seconds, of it all; a trial's own is in `trial`
    stopping: Stopping | None = None

    @property
    def inputs(self) -> dict[str, Input]:
        return self.trial.inputs

    @property
    def outputs(self) -> dict[str, Output]:
        return self.trial.outputs


Work = Command | Pipeline | Sweep


def kind(work: Work) -> str:
    match work:
        case Command():
            return "command"
        case Pipeline():
            return "pipeline"
        case Sweep():
            return "sweep"


def read(kind: str, doc: dict[str, Any]) -> Work:
    """Return what a row keeps as a document."""
    match kind:
        case "command":
            return _command(doc)
        case "sweep":
            return _sweep(doc)
        case _:
            return _pipeline(doc)


def _command(doc: dict[str, Any]) -> Command:
    services = {name: Service(**value) for name, value in doc.get("services", {}).items()}
    optional = tuple(doc["optional"])
    return Command(**{**doc, **_ports(doc), "optional": optional, "services": services})


def sweep_of(options: Mapping[str, Any], trial: Command) -> Sweep:
    """Return a sweep from all of it but its trial, as a document."""
    stopping = Stopping(**options["stopping"]) if options["stopping"] else None
    return Sweep(**{**options, "trial": trial, "stopping": stopping})


def _sweep(doc: dict[str, Any]) -> Sweep:
    return sweep_of(doc, _command(doc["trial"]))


def _pipeline(doc: dict[str, Any]) -> Pipeline:
    steps = {name: _step(step) for name, step in doc["steps"].items()}
    return Pipeline(**{**doc, **_ports(doc), "steps": steps})


def _step(doc: dict[str, Any]) -> Step:
    inputs = {name: Input(**value) for name, value in doc["inputs"].items()}
    registered = {name: Output(**value) for name, value in doc["registered"].items()}
    return Step(**{**doc, "inputs": inputs, "registered": registered})


def _ports(doc: dict[str, Any]) -> dict[str, Any]:
    return {
        "inputs": {name: Input(**value) for name, value in doc["inputs"].items()},
        "outputs": {name: Output(**value) for name, value in doc["outputs"].items()},
    }
