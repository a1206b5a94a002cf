"""Pipelines: the graph of a pipeline job or component, as Azure writes it and as we do.

Azure sends steps as dictionaries in snake_case, with bindings such as
`${{parent.jobs.STEP.outputs.NAME}}`; those stay as they are, the core follows
them.  Whether the graph makes sense is `core/submission.py`'s question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finery.core import assets, ids, pipelines
from finery.core import ports as core_ports
from finery.core.errors import Failure, Invalid, NotSupported
from finery.core.jobs import Input, Job, Output, Pipeline, Step
from finery.core.workspaces import Workspace
from finery.doors.azureml import components, ports, references, services, sweeps, wire
from finery.doors.http import House

FIELDS = ("jobs", "inputs", "outputs", "settings", "sourceJobId", "componentId")
_SETTINGS = {
    "default_compute",
    "default_datastore",
    "continue_on_step_failure",
    "continue_run_on_failed_optional_input",
    "force_rerun",
    "_source",
}
_DEFAULT_STORE = "workspaceblobstore"
_HARMLESS = (
    "comment",
    "description",
    "tags",
    "properties",
    "_source",
    "$schema",
    "services",
    "identity",
    "queue_settings",
)


def pipeline_in(
    house: House, workspace: Workspace, name: str, props: Mapping[str, Any]
) -> tuple[Pipeline, dict[str, Any], list[str]]:
    """Return the pipeline, what is only echoed, and what the user should be warned of."""
    settings = _settings_in(wire.mapping(props.get("settings"), "settings"))
    compute = settings.get("default_compute") or props.get("computeId")
    pipeline = Pipeline(
        inputs=ports.inputs_in(house, workspace, props.get("inputs")),
        outputs=ports.outputs_in(house, workspace, props.get("outputs"), job=name),
        compute=references.compute_in(wire.text(compute, "settings.default_compute")),
        continue_on_step_failure=_flag(settings.get("continue_on_step_failure"), True),
        force_rerun=_flag(settings.get("force_rerun"), False),
    )
    if props.get("componentId") and not props.get("jobs"):
        component = wire.text(props["componentId"], "componentId")
        return _of_component(house, workspace, pipeline, component), {}, []
    nodes = {
        step: wire.mapping(node, f"jobs.{step}")
        for step, node in wire.mapping(props.get("jobs"), "jobs").items()
    }
    steps = {step: _step_in(house, workspace, step, node, name) for step, node in nodes.items()}
    kept = {step: wire.keep(node, ("type", *_HARMLESS)) for step, node in nodes.items()}
    return replace(pipeline, steps=steps), {"nodes": kept, "settings": settings}, []


def pipeline_out(workspace: Workspace, job: Job) -> dict[str, Any]:
    """Return what only pipeline jobs have."""
    pipeline = job.spec
    assert isinstance(pipeline, Pipeline)
    settings = {
        **job.extras.get("settings", {}),
        "continue_on_step_failure": pipeline.continue_on_step_failure,
        "force_rerun": pipeline.force_rerun,
    }
    if pipeline.compute:
        settings["default_compute"] = compute_out(workspace, pipeline.compute)
    kept = job.extras.get("nodes", {})
    nodes = {
        name: {"type": "command", **kept.get(name, {}), **_step_out(workspace, name, step)}
        for name, step in pipeline.steps.items()
    }
    return {"jobs": nodes, "settings": settings}


def compute_out(workspace: Workspace, name: str) -> str | None:
    """Return a compute's id; bindings and `serverless` stay as they are."""
    if not name or name == "serverless" or references.is_binding(name):
        return name or None
    return references.arm_id(workspace, "computes", name)


def _of_component(house: House, workspace: Workspace, pipeline: Pipeline, text: str) -> Pipeline:
    """Return a pipeline job that is one registered pipeline component."""
    ref = references.asset_in(house, workspace, text, kind="component")
    component = assets.by_ref(house.store, ref)
    if component.spec["kind"] != "pipeline":
        raise Invalid(f"component {component.name!r} is not a pipeline", target="componentId")
    outputs = {name: Output(type=port["type"]) for name, port in component.spec["outputs"].items()}
    given = core_ports.check(
        component.spec["inputs"], pipeline.inputs, f"component {component.name!r}"
    )
    steps = {name: pipelines.step_from(doc) for name, doc in component.spec["steps"].items()}
    return replace(pipeline, steps=steps, inputs=given, outputs={**outputs, **pipeline.outputs})


def _step_in(
    house: House, workspace: Workspace, name: str, node: Mapping[str, Any], job: str
) -> Step:
    here = f"jobs.{name}"
    services.refuse(node.get("services"), here)
    known = {key: value for key, value in node.items() if key not in _HARMLESS}
    step = pipelines.step_from(
        components.node_in(known, ref=_reader(house, workspace, here), where=here)
    )
    component = assets.by_ref(house.store, step.component)
    typed = {
        key: _typed(house, workspace, value, component.spec["inputs"].get(key), f"{here}.{key}")
        for key, value in step.inputs.items()
    }
    own = ids.derived(job, name)  # the name that the core gives to the step's job
    kept = {
        key: replace(output, location=output.location.replace("${{name}}", own))
        for key, output in step.registered.items()
    }
    return replace(step, inputs=typed, registered=kept)


def _typed(
    house: House, workspace: Workspace, value: Input, port: Mapping[str, Any] | None, field: str
) -> Input:
    """Read a plain text given to a port of data or a model as the id or path that it is."""
    place = port is not None and port["type"] in ports.PLACES
    if not place or value.type != "literal" or references.is_binding(value.value):
        return value
    assert port is not None
    ref = ports.place_in(house, workspace, value.value, port["type"], field)
    return replace(value, type=port["type"], value=ref)


def _reader(house: House, workspace: Workspace, here: str) -> components.Reader:
    """Return how the ids and paths in a step are read."""

    def ref(kind: str, text: str) -> str:
        try:
            if kind == "component":
                return references.asset_in(house, workspace, text, kind=kind)
            return references.ref_in(house, workspace, text, kind=kind)
        except NotSupported:
            raise
        except Failure as exc:
            raise Invalid(f"{here}: {exc}", target=here) from exc

    return ref


def _step_out(workspace: Workspace, name: str, step: Step) -> dict[str, Any]:
    # The SDK reads snake_case here, but for the two ids.
    node: dict[str, Any] = {
        "name": name,
        "componentId": references.asset_id(workspace, step.component),
        "computeId": compute_out(workspace, step.compute),
        "display_name": step.display_name or None,
        "inputs": _step_inputs_out(workspace, step),
        "outputs": _step_outputs_out(workspace, step),
        "environment_variables": step.env,
    }
    resources = {"instance_count": step.nodes, "shm_size": step.shm_size}
    node["resources"] = {key: value for key, value in resources.items() if value}
    if step.sweep is not None:
        node |= sweeps.step_out(node.pop("componentId"), step.sweep, step.timeout)
    return {key: value for key, value in node.items() if value not in (None, {}, "")}


def _step_inputs_out(workspace: Workspace, step: Step) -> dict[str, Any]:
    found = {key: _snake(doc) for key, doc in ports.inputs_out(workspace, step.inputs).items()}
    for doc in found.values():
        if "uri" in doc:  # in a step the SDK takes the bare id only: it resolves it once more
            bare = doc["uri"].removeprefix("azureml:")
            doc["uri"] = bare if bare.startswith("/subscriptions/") else doc["uri"]
    return found


def _step_outputs_out(workspace: Workspace, step: Step) -> dict[str, Any]:
    found = {}
    for name, output in step.registered.items():
        doc = _snake(ports.output_out(workspace, output, output.location))
        for theirs, ours in (("asset_name", "name"), ("asset_version", "version")):
            if theirs in doc:
                doc[ours] = doc.pop(theirs)
        found[name] = doc
    for name, theirs in step.outputs.items():
        bound = {"value": f"${{{{parent.outputs.{theirs}}}}}", "type": "literal"}
        found[name] = {**found.get(name, {}), **bound}
    return found


def _settings_in(given: Mapping[str, Any]) -> dict[str, Any]:
    settings = {_underscored(name): value for name, value in given.items()}
    for name in ("on_init", "on_finalize"):
        if settings.get(name):
            raise NotSupported(f"settings.{name} is not supported here", target=f"settings.{name}")
    wire.refuse_unknown(settings, (*_SETTINGS, "on_init", "on_finalize"), "settings")
    store = str(settings.get("default_datastore") or _DEFAULT_STORE).rstrip("/").split("/")[-1]
    if store.removeprefix("azureml:") != _DEFAULT_STORE:
        raise NotSupported(
            f"settings.default_datastore: outputs go to {_DEFAULT_STORE!r} here, not to {store!r}",
            target="settings.default_datastore",
        )
    return settings


def _flag(value: Any, default: bool) -> bool:
    if value is None:
        return default
    return value if isinstance(value, bool) else str(value).lower() == "true"


def _underscored(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda m: "_" + m.group(1).lower(), name).removeprefix(
        "__"
    )


def _snake(doc: Mapping[str, Any]) -> dict[str, Any]:
    return {_underscored(name): value for name, value in doc.items()}
