"""What a job refers to must be there when it is submitted, and its values must fit.

Called by every door before `jobs.create`, so that a job that cannot work is
refused with the field named instead of failing later.  It changes nothing.
What only a running job can know (rows of data, imports) is not asked here.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from finery.core import (
    assets,
    compute,
    ids,
    launch,
    pipelines,
    ports,
    references,
    services,
    sweeps,
    work,
)
from finery.core.assets import Asset
from finery.core.errors import Invalid, NotFound
from finery.core.files import Files
from finery.core.jobs import Command, Input, Job, Output, Pipeline, Step, Sweep
from finery.core.store import Store

SERVERLESS = ("", "serverless")  # no queue of a name: this machine as it is
_OWN = re.compile(r"\$\{\{\s*inputs\.([^}\s]+)\s*\}\}")
_DROPS_OUT = re.compile(r"\$\[\[.*?\]\]", re.DOTALL)
_BINDING = re.compile(r"\$\{\{\s*(?:parent\.)?(inputs|jobs)\.([^}\s]+)\s*\}\}")


@dataclass(frozen=True)
class _Place:
    """Where the things of one job are looked for."""

    store: Store
    files: Files
    workspace: str


def check(store: Store, files: Files, job: Job) -> None:
    """Raise `Invalid`, its target the field, for a job that could not work."""
    place = _Place(store, files, job.workspace)
    _names(job.spec.inputs, "inputs")
    _names(job.spec.outputs, "outputs")
    _compute(place, job.compute, "compute")
    for name, value in job.spec.inputs.items():
        _data(place, value, f"inputs.{name}")
    match job.spec:
        case Command():
            _command(place, job.spec)
        case Sweep():
            sweeps.check(job.spec, job.name)
            _command(place, job.spec.trial, given=job.spec.space)
        case Pipeline():
            _pipeline(place, job.spec)


def _command(place: _Place, command: Command, *, given: Container[str] = ()) -> None:
    if not command.command.strip():
        raise Invalid("the job has no command", target="command")
    launch.size(command.shm_size)
    services.check(command.services)
    for target, ref in (("environment", command.environment), ("code", command.code)):
        with _naming(target):
            if ref.startswith("asset:"):
                assets.by_ref(place.store, ref)
    for name in _OWN.findall(_DROPS_OUT.sub("", command.command)):
        if name not in command.inputs and name not in command.optional and name not in given:
            raise Invalid(
                f"the command reads the input {name!r}, which the job does not have",
                target=f"inputs.{name}",
            )


def _pipeline(place: _Place, pipeline: Pipeline) -> None:
    if not pipeline.steps:
        raise Invalid("the pipeline has no steps", target="jobs")
    pipelines.check(pipeline)
    _compute(place, pipeline.compute, "settings.default_compute")
    _steps(place, pipeline, "jobs")


def _steps(place: _Place, pipeline: Pipeline, where: str) -> None:
    components = {}
    _names(pipeline.steps, where)
    for name, step in pipeline.steps.items():
        with _naming(f"{where}.{name}.component"):
            components[name] = assets.by_ref(place.store, step.component)
        _names(components[name].spec["inputs"], f"{where}.{name}.inputs")
        _names(components[name].spec["outputs"], f"{where}.{name}.outputs")
    for name, step in pipeline.steps.items():
        here = f"{where}.{name}"
        _outputs(pipeline, step, components[name], here)
        _sources(step, components, here)
        given = _values(pipeline, step, components[name], here)
        for key, value in step.inputs.items():
            _data(place, value, f"{here}.inputs.{key}")
        _compute(place, _follow(step.compute, pipeline.inputs), f"{here}.compute")
        if components[name].spec["kind"] == "pipeline":
            _steps(place, _inner(components[name], given), f"{here}.jobs")


def _inner(component: Asset, given: Mapping[str, Input]) -> Pipeline:
    steps = {name: pipelines.step_from(doc) for name, doc in component.spec["steps"].items()}
    outputs = {name: Output() for name in component.spec["outputs"]}
    return Pipeline(steps=steps, inputs=dict(given), outputs=outputs)


def _values(pipeline: Pipeline, step: Step, component: Asset, here: str) -> dict[str, Input]:
    """Check a step's inputs against its component's ports, bindings followed as far as known."""
    given = {}
    for name, value in step.inputs.items():
        whole = _BINDING.fullmatch(value.value.strip())
        if whole and whole.group(1) == "inputs":
            found = pipeline.inputs.get(whole.group(2))
            if found is not None:
                given[name] = found
        else:
            given[name] = replace(value, value=_follow(value.value, pipeline.inputs))
    named = f"step {here.removeprefix('jobs.')!r}"
    try:
        if step.sweep is not None:
            trial = Command(command=component.spec["command"])
            sweeps.check(work.sweep_of(step.sweep, trial), ids.derived(here))
        return ports.check(pipelines.untried(step, component), given, named)
    except Invalid as exc:
        raise Invalid(str(exc), target=f"{here}.{exc.target}") from None


def _outputs(pipeline: Pipeline, step: Step, component: Asset, here: str) -> None:
    for name in {**step.outputs, **step.registered}:
        if name not in component.spec["outputs"]:
            known = ", ".join(component.spec["outputs"]) or "none"
            raise Invalid(
                f"component {component.name!r} has no output {name!r} (it has: {known})",
                target=f"{here}.outputs.{name}",
            )
    for name, theirs in step.outputs.items():
        if theirs not in pipeline.outputs:
            raise Invalid(f"the pipeline has no output {theirs!r}", target=f"{here}.outputs.{name}")


def _sources(step: Step, components: Mapping[str, Asset], here: str) -> None:
    """Check that the outputs of other steps that a step reads exist."""
    for name, value in step.inputs.items():
        for kind, rest in _BINDING.findall(value.value):
            other, _, output = rest.partition(".outputs.")
            if kind == "jobs" and output not in components[other].spec["outputs"]:
                raise Invalid(
                    f"step {other!r} has no output {output!r}", target=f"{here}.inputs.{name}"
                )


def _follow(text: str, inputs: Mapping[str, Input]) -> str:
    """Put the values of a pipeline's inputs where a text names them."""

    def value(match: re.Match[str]) -> str:
        if match.group(1) == "jobs":
            return match.group(0)
        given = inputs.get(match.group(2))
        return given.value if given else ""

    return _BINDING.sub(value, text)


def _names(named: Iterable[str], target: str) -> None:
    for name in named:
        ids.port(name, target=target)


def _compute(place: _Place, name: str, target: str) -> None:
    if name in SERVERLESS or "${{" in name:
        return
    if compute.find(place.store, place.workspace, name) is None:
        raise Invalid(f"no compute named {name!r}: create it first", target=target)


def _data(place: _Place, value: Input, target: str) -> None:
    """Check that what an input points to is there."""
    if value.type == "literal" or "${{" in value.value:
        return
    with _naming(target):
        scope, location = references.location(place.store, value.value)
        if not location.startswith(("https:", "http:")) and location:
            place.files.locate(scope or place.workspace, location)


@contextmanager
def _naming(target: str) -> Iterator[None]:
    """Say of a thing that is not there which field named it."""
    try:
        yield
    except NotFound as exc:
        raise Invalid(str(exc), target=target) from exc
