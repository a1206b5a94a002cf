"""A job made of jobs: the graph, what is ready, how outputs bind to inputs.

Pure but for looking up components: it makes the children of a pipeline and
says what became of the whole.  The supervisor creates them and moves statuses.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from finery.core import assets, ids, jobs, ports, references, sweeps, work
from finery.core.assets import Asset
from finery.core.errors import Invalid
from finery.core.files import Files
from finery.core.jobs import Command, Input, Job, Output, Pipeline, Step, Sweep
from finery.core.store import Store

_BINDING = re.compile(r"\$\{\{\s*parent\.(inputs|jobs)\.([^}\s]+?)\s*\}\}")
_OWN = re.compile(r"\$\{\{\s*inputs\.([^}\s]+?)\s*\}\}")


def dependencies(step: Step) -> set[str]:
    """Return the names of the steps whose outputs this step reads."""
    found = set()
    for value in step.inputs.values():
        for kind, rest in _BINDING.findall(value.value):
            if kind == "jobs":
                found.add(rest.split(".outputs.")[0])
    return found


def check(pipeline: Pipeline) -> None:
    """Raise `Invalid` for a graph that refers to itself or to what is not there."""
    for name, step in pipeline.steps.items():
        for other in dependencies(step) - set(pipeline.steps):
            raise Invalid(f"step {name!r} reads from {other!r}, which is no step", target=name)
    left = dict(pipeline.steps)
    while left:
        free = [name for name, step in left.items() if not dependencies(step) & set(left)]
        if not free:
            raise Invalid(f"the steps {', '.join(left)} wait for one another", target="jobs")
        for name in free:
            del left[name]


def ready(pipeline: Pipeline, children: Mapping[str, Job]) -> list[str]:
    """Return the steps that can start now: not yet made, all they read from completed."""
    done = {name for name, child in children.items() if child.status == "completed"}
    return [
        name
        for name, step in pipeline.steps.items()
        if name not in children and dependencies(step) <= done
    ]


def outcome(pipeline: Pipeline, children: Mapping[str, Job]) -> str:
    """Return running, completed, failed or cancelled: what the pipeline is by its steps."""
    statuses = [child.status for child in children.values()]
    broken = any(status in ("failed", "cancelled") for status in statuses)
    if broken and not pipeline.continue_on_step_failure:
        return "failed"
    if any(not child.final for child in children.values()) or ready(pipeline, children):
        return "running"
    return "failed" if broken else "completed"


def failure(children: Mapping[str, Job]) -> str:
    """Say in one line which step failed and why; a step that is a pipeline names its own."""
    for child in children.values():
        if child.status == "failed":
            why = child.error["message"] if child.error else "no reason is known"
            whole = isinstance(child.spec, Pipeline) and why.startswith("step ")
            return f"step {child.step!r}: {why}" if whole else f"step {child.step!r} failed: {why}"
    gone = [child for child in children.values() if child.status == "cancelled"]
    first = min(gone, key=lambda child: child.ended_at or ids.now())  # the rest went for it
    return f"step {first.step!r} was cancelled"


def outputs(pipeline: Pipeline, children: Mapping[str, Job]) -> dict[str, str]:
    """Return where the pipeline's own outputs lie: where its steps' outputs lie."""
    found = {}
    for name, step in pipeline.steps.items():
        child = children.get(name)
        for ours, theirs in step.outputs.items():
            if child is not None and ours in child.outputs:
                found[theirs] = child.outputs[ours]
    return found


def child(store: Store, files: Files, parent: Job, name: str) -> Job:
    """Return the job that step `name` of `parent` is; the same one whenever it is asked."""
    pipeline = parent.spec
    assert isinstance(pipeline, Pipeline)
    step = _settled(parent, pipeline.steps[name])
    component = assets.by_ref(store, step.component)
    bound = _bound(store, parent, step, component)
    made: Command | Pipeline | Sweep
    if step.sweep is not None:
        made = work.sweep_of(step.sweep, _command(pipeline, step, component, bound))
        sweeps.check(made, ids.derived(parent.name, name))
    elif component.spec["kind"] == "pipeline":
        made = _pipeline(pipeline, step, component, bound)
    else:
        made = _command(pipeline, step, component, bound)
    job = Job(
        name=ids.derived(parent.name, name),
        workspace=parent.workspace,
        spec=made,
        compute=step.compute or pipeline.compute,
        experiment=parent.experiment,
        display_name=step.display_name or name,
        parent=parent.name,
        root=parent.root,
        step=name,
        created_by=parent.created_by,
    )
    rerun = pipeline.force_rerun if step.force_rerun is None else step.force_rerun
    if isinstance(made, Command) and made.deterministic and not rerun:
        job = replace(job, fingerprint=_fingerprint(store, files, job, component))
    return job


def _settled(parent: Job, step: Step) -> Step:
    """Return the step with what it takes from the pipeline's inputs written out."""
    return replace(
        step,
        compute=_text(parent, step.compute),
        ranks=_text(parent, step.ranks),
        nodes=_text(parent, step.nodes),
        shm_size=_text(parent, step.shm_size),
        env={name: _text(parent, value) for name, value in step.env.items()},
    )


def _bound(store: Store, parent: Job, step: Step, component: Asset) -> dict[str, Input]:
    """Return the component's inputs with their bindings followed and defaults filled in."""
    given = {}
    for name, value in step.inputs.items():
        found = _follow(store, parent, value)
        if found is not None:
            given[name] = found
    return ports.check(untried(step, component), given, f"component {component.name!r}")


def untried(step: Step, component: Asset) -> dict[str, Any]:
    """Return the inputs of a step's component that have one value: what a sweep tries has many."""
    tried = (step.sweep or {}).get("space", {})
    for name in tried:
        if name not in component.spec["inputs"]:
            known = ", ".join(component.spec["inputs"]) or "none"
            raise Invalid(
                f"component {component.name!r} has no input {name!r} to try (it has: {known})",
                target=f"search_space.{name}",
            )
    return {name: port for name, port in component.spec["inputs"].items() if name not in tried}


def _follow(store: Store, parent: Job, value: Input) -> Input | None:
    """Return what a binding leads to; None for an optional input that is unset."""
    whole = _BINDING.fullmatch(value.value.strip())
    if not whole:
        return replace(value, value=_text(parent, value.value))
    kind, rest = whole.groups()
    if kind == "inputs":
        return parent.spec.inputs.get(rest)
    step, _, output = rest.partition(".outputs.")
    type = value.type if value.type != "literal" else "uri_folder"
    return Input(value=f"job:{ids.derived(parent.name, step)}/{output}", type=type)


def _text(parent: Job, text: str) -> str:
    """Replace `${{parent.inputs.x}}` in a text; an unset input leaves nothing."""

    def value(match: re.Match[str]) -> str:
        kind, rest = match.groups()
        if kind == "jobs":
            raise Invalid(f"{text!r} needs a value, not an output", target=rest)
        given = parent.spec.inputs.get(rest)
        return given.value if given else ""

    return _BINDING.sub(value, text)


def _own(text: str, bound: Mapping[str, Input], default: int) -> int:
    """Read a number that may be written as `${{inputs.x}}` of the component itself."""

    def value(match: re.Match[str]) -> str:
        given = bound.get(match.group(1))
        return given.value if given else ""

    found = _OWN.sub(value, text).strip()
    return ids.whole(found, target="resources") if found else default


def _command(pipeline: Pipeline, step: Step, component: Asset, bound: dict[str, Input]) -> Command:
    spec = component.spec
    optional = tuple(name for name, port in spec["inputs"].items() if port["optional"])
    return Command(
        command=spec["command"],
        code=spec["code"],
        environment=spec["environment"],
        env={**spec["env"], **step.env},
        inputs=bound,
        outputs=_outputs(pipeline, step, spec["outputs"]),
        distribution=spec["distribution"],
        ranks=_own(step.ranks or spec["ranks"], bound, 1),
        nodes=_own(step.nodes or spec["nodes"], bound, 1),
        shm_size=step.shm_size or spec["shm_size"],
        timeout=step.timeout or spec["timeout"],
        deterministic=spec["deterministic"],
        optional=optional,
    )


def _pipeline(
    pipeline: Pipeline, step: Step, component: Asset, bound: dict[str, Input]
) -> Pipeline:
    spec = component.spec
    return Pipeline(
        steps={name: step_from(doc) for name, doc in spec["steps"].items()},
        inputs=bound,
        outputs=_outputs(pipeline, step, spec["outputs"]),
        compute=step.compute or pipeline.compute,
        continue_on_step_failure=pipeline.continue_on_step_failure,
        force_rerun=pipeline.force_rerun if step.force_rerun is None else step.force_rerun,
    )


def step_from(doc: Mapping[str, Any]) -> Step:
    """Read a step as a component's spec keeps it."""
    inputs = {name: Input(**value) for name, value in doc["inputs"].items()}
    kept = {name: Output(**value) for name, value in doc["registered"].items()}
    return Step(**{**doc, "inputs": inputs, "registered": kept})


def _outputs(pipeline: Pipeline, step: Step, declared: Mapping[str, Any]) -> dict[str, Output]:
    found = {}
    for name, port in declared.items():
        chosen = step.registered.get(name)
        theirs = pipeline.outputs.get(step.outputs.get(name, ""))
        if chosen is None and theirs is not None and theirs.location:
            chosen = replace(theirs, asset="", version="")  # the pipeline itself registers it
        found[name] = replace(chosen or Output(), type=port["type"])
    return found


def _fingerprint(store: Store, files: Files, job: Job, component: Asset) -> str:
    """Return a digest of the work: the component's meaning and what its inputs hold."""
    assert isinstance(job.spec, Command)
    inputs = {
        name: value.value if value.type == "literal" else _content(store, files, job, value.value)
        for name, value in job.spec.inputs.items()
    }
    spec = {**asdict(job.spec), "inputs": inputs}
    del spec["services"]  # they change nothing of the work
    work = json.dumps([component.hash, spec, job.compute], sort_keys=True)
    return hashlib.sha256(work.encode()).hexdigest()


def _content(store: Store, files: Files, job: Job, ref: str) -> str:
    """Return a text that changes when what a reference leads to changes."""
    if ref.startswith("job:"):
        maker = jobs.get(store, ref.removeprefix("job:").split("/")[0])
        return f"{maker.fingerprint or maker.name}/{ref.split('/', 1)[1]}"
    scope, location = references.location(store, ref)
    if location.startswith("https:"):
        return location
    found = files.locate(scope or job.workspace, location)
    inside = sorted(found.rglob("*")) if found.is_dir() else [found]
    marks = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in inside]
    return hashlib.sha256(repr(marks).encode()).hexdigest()
