"""Component specs: Azure ML's, as the core's words, and back.

`component_in` reads `componentSpec` as the SDK sends it (and as `catalog.py`
makes it of the registry's files); `node_in` one step of a pipeline, which a
pipeline job has too.  What a value means when the step runs is
`core/pipelines.py`.  The spec as it came is kept in the asset's extras and
echoed: the SDK reads back more than we need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from finery.core import ports as core_ports
from finery.core.assets import Asset
from finery.core.errors import Invalid, NotSupported
from finery.doors.azureml import commands, durations, ports, references, sweeps, wire

# (kind, text) -> the reference that an id or a path spells.
Reader = Callable[[str, str], str]

VALUES = ("string", "integer", "number", "boolean")

_TEXTS = ("$schema", "_source", "name", "version", "display_name", "description", "tags", "type")
_COMMAND = (
    *_TEXTS,
    *("command", "code", "environment", "environment_variables", "inputs", "outputs"),
    *("distribution", "resources", "limits", "is_deterministic", "properties", "sourceJobId"),
)
_PIPELINE = (*_TEXTS, "inputs", "outputs", "jobs", "is_deterministic", "properties", "sourceJobId")
_NODE = (
    *_TEXTS,
    *("componentId", "inputs", "outputs", "computeId", "distribution", "resources", "limits"),
    *("environment_variables", "settings", "properties", "comment", "identity", "sourceJobId"),
)
_SWEEP = ("trial", "search_space", "sampling_algorithm", "objective", "early_termination")
_PORT = ("type", "optional", "default", "enum", "min", "max", "mode", "description", "title")
_TO_PARENT = re.compile(r"\$\{\{\s*parent\.outputs\.([^}\s]+)\s*\}\}")


def component_in(spec: Mapping[str, Any], *, ref: Reader, where: str = "component") -> Spec:
    """Return `componentSpec` in the core's words.  Raises `NotSupported` for what cannot run."""
    kind = str(spec.get("type") or "command").lower()
    if kind == "command":
        return _command_in(spec, ref, where)
    if kind == "pipeline":
        return _pipeline_in(spec, ref, where)
    raise NotSupported(
        f"{where}: components of type {kind!r} are not supported here; command and pipeline are",
        target="type",
    )


def component_out(asset: Asset) -> dict[str, Any]:
    """Return `componentSpec` as it came, with the name and version that it has now."""
    return {**asset.extras["spec"], "name": asset.name, "version": asset.version}


Spec = dict[str, Any]


def _command_in(spec: Mapping[str, Any], ref: Reader, where: str) -> Spec:
    wire.refuse_unknown(spec, _COMMAND, where)
    command = str(spec.get("command") or "").strip()
    if not command:
        raise Invalid(f"{where}: a command component needs a command", target="command")
    environment = spec.get("environment")
    if not isinstance(environment, str) or not environment:
        raise Invalid(f"{where}: a command component needs an environment", target="environment")
    code = wire.text(spec.get("code"), f"{where}: code")
    resources = commands.resources_in(spec.get("resources"), f"{where}: resources")
    distribution, ranks = commands.distribution_in(spec.get("distribution"))
    return {
        "kind": "command",
        "command": command,
        "code": ref("code", code) if code else "",
        "environment": ref("environment", environment),
        "env": wire.texts(spec.get("environment_variables"), "environment_variables"),
        "inputs": ports_in(spec.get("inputs"), f"{where}: inputs"),
        "outputs": outputs_in(spec.get("outputs"), f"{where}: outputs"),
        "distribution": distribution,
        "ranks": ranks,
        "nodes": resources.nodes,
        "shm_size": resources.shm_size,
        "timeout": commands.timeout_in(spec.get("limits"), f"{where}: limits"),
        "deterministic": spec.get("is_deterministic") is not False,
    }


def _pipeline_in(spec: Mapping[str, Any], ref: Reader, where: str) -> Spec:
    wire.refuse_unknown(spec, _PIPELINE, where)
    nodes = wire.mapping(spec.get("jobs"), f"{where}: jobs")
    return {
        "kind": "pipeline",
        "inputs": ports_in(spec.get("inputs"), f"{where}: inputs"),
        "outputs": outputs_in(spec.get("outputs"), f"{where}: outputs"),
        "steps": {
            name: node_in(node, ref=ref, where=f"{where}: jobs.{name}")
            for name, node in nodes.items()
        },
        "deterministic": spec.get("is_deterministic") is not False,
    }


def ports_in(given: Mapping[str, Any] | None, where: str) -> Spec:
    """Return a component's inputs."""
    return {
        name: _port_in(port, f"{where}.{name}") for name, port in wire.mapping(given, where).items()
    }


def _port_in(said: Any, where: str) -> Spec:
    port = wire.mapping(said, where)
    wire.refuse_unknown(port, _PORT, where)
    kind = _type(port.get("type"), where, (*VALUES, *ports.PLACES))
    default = port.get("default")
    return {
        "type": kind,
        "optional": _truth(port.get("optional")),
        "default": None if default is None else _value(default, kind),
        "enum": [_value(item, kind) for item in _listed(port.get("enum"), where)],
        "min": _number(port.get("min"), where),
        "max": _number(port.get("max"), where),
        "mode": ports.not_direct(mode_in(port.get("mode"), where), where),
    }


def outputs_in(given: Mapping[str, Any] | None, where: str) -> Spec:
    """Return a component's outputs."""
    found = {}
    for name, said in wire.mapping(given, where).items():
        here = f"{where}.{name}"
        port = wire.mapping(said, here)
        wire.refuse_unknown(port, ("type", "mode", "description", "is_control"), here)
        kind = _type(port.get("type"), here, (*ports.PLACES, *VALUES))
        if kind in VALUES:
            raise NotSupported(
                f"{here}: an output of type {kind!r} is not supported here; files and folders are",
                target=name,
            )
        found[name] = {"type": kind, "mode": mode_in(port.get("mode"), here)}
    return found


def node_in(node: Mapping[str, Any], *, ref: Reader, where: str) -> Spec:
    """Return one step of a pipeline, in the words of `core.jobs.Step`."""
    node = wire.mapping(node, where)
    kind = str(node.get("type") or "command").lower()
    if kind == "sweep":
        return _sweep_in(node, ref, where)
    if kind not in ("command", "pipeline"):
        raise NotSupported(
            f"{where}: steps of type {kind!r} are not supported here; command, pipeline and sweep "
            "are",
            target="type",
        )
    wire.refuse_unknown(node, _NODE, where)
    component = node.get("componentId")
    if not isinstance(component, str) or not component:
        raise Invalid(f"{where}: the step names no component", target="componentId")
    resources = commands.resources_in(node.get("resources"), f"{where}: resources")
    settings = wire.mapping(node.get("settings"), f"{where}: settings")
    wire.refuse_unknown(settings, ("force_rerun", "_source"), f"{where}: settings")
    outputs, registered = _node_outputs(node.get("outputs"), ref, where)
    return {
        "component": ref("component", component),
        "inputs": {
            name: input_in(value, ref=ref, where=f"{where}: inputs.{name}")
            for name, value in wire.mapping(node.get("inputs"), f"{where}: inputs").items()
            if value is not None
        },
        "outputs": outputs,
        "registered": registered,
        "compute": references.compute_in(str(node.get("computeId") or "")),
        "ranks": commands.distribution_in(node.get("distribution"))[1],
        "nodes": resources.nodes,
        "shm_size": resources.shm_size,
        "timeout": commands.timeout_in(node.get("limits"), f"{where}: limits"),
        "env": wire.texts(node.get("environment_variables"), "environment_variables"),
        "display_name": str(node.get("display_name") or ""),
        "force_rerun": settings.get("force_rerun"),
    }


def _sweep_in(node: Mapping[str, Any], ref: Reader, where: str) -> Spec:
    """Return a step that tries a component with many values: a step, and how it is tried."""
    wire.refuse_unknown(node, (*_NODE, *_SWEEP), where)
    trial, limits = wire.mapping(node.get("trial"), f"{where}: trial"), node.get("limits")
    wire.refuse_unknown(trial, ("componentId",), f"{where}: trial")
    timeout = ports.camels(limits, f"{where}: limits").get("trialTimeout")
    plain = {key: value for key, value in node.items() if key not in (*_SWEEP, "limits")}
    step = node_in({**plain, **trial, "type": "command"}, ref=ref, where=where)
    sweep = sweeps.options_in({key: node.get(key) for key in (*_SWEEP, "limits")})
    stopping = sweep["stopping"]
    return {
        **step,
        "timeout": durations.seconds_in(timeout, field=f"{where}.limits") if timeout else None,
        "sweep": {**sweep, "stopping": asdict(stopping) if stopping else None},
    }


def input_in(given: Any, *, ref: Reader, where: str) -> Spec:
    """Return a value, an id or path, or a binding, in the words of `core.jobs.Input`."""
    if not isinstance(given, Mapping):
        return {"value": core_ports.text(given), "type": "literal", "mode": ""}
    doc = ports.camels(given, where)
    wire.refuse_unknown(doc, ("jobInputType", "value", "uri", "mode", "description"), where)
    kind = str(doc.get("jobInputType") or "literal")
    mode = ports.not_direct(mode_in(doc.get("mode"), where), where)
    if kind.lower() == "literal":
        return {"value": core_ports.text(doc.get("value", "")), "type": "literal", "mode": mode}
    kind = _type(kind, where, ports.PLACES)
    uri = str(doc.get("uri") or doc.get("value") or "")
    if not uri:
        raise Invalid(f"{where}: an input of type {kind!r} needs a path", target="uri")
    value = uri if "${{" in uri else ref("model" if kind in ports.MODELS else "data", uri)
    return {"value": value, "type": kind, "mode": mode}


def _output_in(given: Mapping[str, Any], ref: Reader, where: str) -> Spec:
    """Return where an output goes and what it is kept as, in the words of `core.jobs.Output`."""
    doc = ports.camels(given, where)
    known = ("jobOutputType", "uri", "mode", "assetName", "name", "assetVersion", "version")
    wire.refuse_unknown(doc, (*known, "description"), where)
    uri = str(doc.get("uri") or "")
    return {
        "type": _type(doc.get("jobOutputType") or "uri_folder", where, ports.PLACES),
        "mode": mode_in(doc.get("mode"), where),
        "location": ref("data", uri) if uri else "",
        "asset": str(doc.get("assetName") or doc.get("name") or ""),
        "version": str(doc.get("assetVersion") or doc.get("version") or ""),
    }


def _node_outputs(
    given: Mapping[str, Any] | None, ref: Reader, where: str
) -> tuple[dict[str, str], Spec]:
    """Return which of the parent's outputs a step's outputs are, and which are kept themselves."""
    bound: dict[str, str] = {}
    registered: Spec = {}
    for name, output in wire.mapping(given, f"{where}: outputs").items():
        here = f"{where}: outputs.{name}"
        said = output if isinstance(output, str) else wire.mapping(output, here).get("value")
        text = str(said or "")
        if found := _TO_PARENT.fullmatch(text.strip()):
            bound[name] = found[1]
        elif text:
            raise Invalid(f"{here}: {text!r} is no output of the pipeline", target=name)
        if isinstance(output, Mapping):
            rest = {key: value for key, value in output.items() if key not in ("value", "type")}
            if any(value for key, value in rest.items() if key != "mode"):
                registered[name] = _output_in(rest, ref, here)
    return bound, registered


def mode_in(said: Any, where: str) -> str:
    """Return how data comes in or goes out, in the words of the YAML, which are ours."""
    if not said:
        return ""
    word = str(said).lower()
    return word if word in ports.MODES else wire.word(ports.MODES, word, field=f"{where}: mode")


def _type(said: Any, where: str, known: tuple[str, ...]) -> str:
    word = str(said or "").strip().lower()
    word = {"mltable": "mltable", "urifile": "uri_file", "urifolder": "uri_folder"}.get(word, word)
    if word not in known:
        raise NotSupported(
            f"{where}: the type {said!r} is not supported here; these are: {', '.join(known)}",
            target="type",
        )
    return word


def _value(value: Any, kind: str) -> str:
    """Return a default or a choice as text; YAML's true where a text is meant is `true`."""
    if isinstance(value, bool) and kind == "string":
        return str(value).lower()
    return core_ports.text(value)


def _number(value: Any, where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
        return int(number) if number.is_integer() else number
    except (TypeError, ValueError):
        raise Invalid(f"{where}: {value!r} is not a number", target="min") from None


def _listed(value: Any, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise Invalid(f"{where}: enum must be a list", target="enum")
    return value or []


def _truth(value: Any) -> bool:
    return str(value).lower() == "true"
