"""Inputs and outputs of jobs and of pipeline steps, as Azure writes them and as we do.

Jobs write camelCase (`jobInputType`), the steps of a pipeline snake_case
(`job_input_type`); both are read here.  Whether a value fits is the core's
question (`core/ports.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finery.core import ports as core_ports
from finery.core import references as core_references
from finery.core.errors import Failure, Invalid, NotSupported
from finery.core.jobs import Input, Output
from finery.core.workspaces import Workspace
from finery.doors.azureml import references, wire
from finery.doors.http import House

MODES = {
    "ro_mount": "ReadOnlyMount",
    "rw_mount": "ReadWriteMount",
    "download": "Download",
    "upload": "Upload",
    "direct": "Direct",
}
MODELS = ("mlflow_model", "custom_model", "triton_model")
PLACES = ("uri_file", "uri_folder", "mltable", *MODELS)
_INPUT = ("jobInputType", "type", "value", "uri", "path", "mode", "description")
_OUTPUT = ("jobOutputType", "type", "value", "uri", "path", "mode", "description")
_KEPT_AS = ("assetName", "assetVersion", "name", "version")


def inputs_in(
    house: House,
    workspace: Workspace,
    body: Mapping[str, Any] | None,
    *,
    declared: Mapping[str, Any] | None = None,
    where: str = "inputs",
) -> dict[str, Input]:
    """Return a job's or step's inputs; `declared` are the ports of the step's component."""
    found = {}
    for name, given in wire.mapping(body, where).items():
        field = f"{where}.{name}"
        value = _input_in(house, workspace, given, (declared or {}).get(name), field)
        if value is not None:
            found[name] = value
    return found


def _input_in(
    house: House, workspace: Workspace, given: Any, port: Mapping[str, Any] | None, field: str
) -> Input | None:
    doc = camels(given, field) if isinstance(given, dict) else {"value": given}
    wire.refuse_unknown(doc, _INPUT, field)
    type = str(doc.get("jobInputType") or doc.get("type") or "literal").lower()
    text = doc.get("uri") or doc.get("path") or doc.get("value")
    if text is None:
        return None
    mode = _mode_in(doc.get("mode"), field)
    text = core_ports.text(text)
    if references.is_binding(text):
        return Input(value=text, mode=not_direct(mode, field))
    declared = str(port["type"]) if port else ""
    if type == "literal" and declared in PLACES:
        type = declared  # an id given as a plain text to a port that takes a model or data
    if type == "literal" or type in core_ports.VALUES:
        return Input(value=text)
    if type not in PLACES:
        raise NotSupported(f"{field}: inputs of type {type!r} are not supported here", target=field)
    ref = place_in(house, workspace, text, type, field)
    address = _address(house, workspace, ref) if mode == "direct" else ""
    return Input(value=ref, type=type, mode=mode, address=address)


def place_in(house: House, workspace: Workspace, text: str, type: str, field: str) -> str:
    """Return the reference of the data or model that a text spells."""
    try:
        kind = "model" if type in MODELS else "data"
        return references.ref_in(house, workspace, text, kind=kind)
    except NotSupported as exc:
        raise NotSupported(f"{field}: {exc}", target=field) from exc
    except Failure as exc:
        raise Invalid(f"{field}: {exc}", target=field) from exc


def _address(house: House, workspace: Workspace, ref: str) -> str:
    """Return what a job gets that wants an address and no path: where the bytes are, if known."""
    try:
        scope, location = core_references.location(house.store, ref)
    except Failure:
        return references.uri_out(workspace, ref)  # a job has yet to make it
    ours = scope in ("", workspace.id) and not location.startswith("package:")
    return references.uri_out(workspace, location if ours else ref)


def inputs_out(workspace: Workspace, inputs: Mapping[str, Input]) -> dict[str, Any]:
    return {name: _input_out(workspace, value) for name, value in inputs.items()}


def _input_out(workspace: Workspace, value: Input) -> dict[str, Any]:
    if value.type == "literal":
        return {"jobInputType": "literal", "value": value.value}
    doc = {"jobInputType": value.type, "uri": _uri_out(workspace, value.value)}
    if value.mode:
        doc["mode"] = MODES[value.mode]
    return doc


def _uri_out(workspace: Workspace, ref: str) -> str:
    if ref.startswith("asset:"):
        return references.data_id(workspace, ref)
    return references.uri_out(workspace, ref)


def outputs_in(
    house: House,
    workspace: Workspace,
    body: Mapping[str, Any] | None,
    *,
    job: str,
    where: str = "outputs",
) -> dict[str, Output]:
    """Return the outputs of the job named `job`; `${{name}}` in a path is that name."""
    return {
        name: output_in(house, workspace, doc, job=job, field=f"{where}.{name}")
        for name, doc in wire.mapping(body, where).items()
        if name != "default"  # what the job leaves in its own folder: always there
    }


def output_in(
    house: House, workspace: Workspace, body: Mapping[str, Any], *, job: str, field: str
) -> Output:
    doc = camels(body, field)
    wire.refuse_unknown(doc, (*_OUTPUT, *_KEPT_AS), field)
    type = str(doc.get("jobOutputType") or doc.get("type") or "uri_folder").lower()
    if type not in PLACES:
        raise NotSupported(f"{field}: outputs of type {type!r} are not supported", target=field)
    text = str(doc.get("uri") or doc.get("path") or "").replace("${{name}}", job)
    location = place_in(house, workspace, text, type, field) if text else ""
    if location and not location.startswith("file:"):
        raise Invalid(f"{field}: an output lies in a datastore, not at {text!r}", target=field)
    mode = _mode_in(doc.get("mode"), field)
    if mode in ("direct", "ro_mount", "download"):
        raise NotSupported(
            f"{field}.mode: an output is written as rw_mount or upload here, not as {mode!r}",
            target=f"{field}.mode",
        )
    return Output(
        type=type,
        mode=mode,
        location=location,
        asset=str(doc.get("assetName") or doc.get("name") or ""),
        version=str(doc.get("assetVersion") or doc.get("version") or ""),
    )


def output_out(workspace: Workspace, output: Output, location: str) -> dict[str, Any]:
    """Return an output; `location` is where it lies or will lie, if that is known."""
    doc: dict[str, Any] = {"jobOutputType": output.type}
    if output.mode:
        doc["mode"] = MODES[output.mode]
    if location:
        doc["uri"] = references.uri_out(workspace, location)
    if output.asset:
        doc["assetName"] = output.asset
    if output.version:
        doc["assetVersion"] = output.version
    return doc


def _mode_in(said: Any, field: str) -> str:
    text = wire.text(said, f"{field}.mode")
    if not text:
        return ""
    short = text.lower()
    if short in MODES:
        return short
    if short == "mount":
        return "ro_mount"
    if short.startswith("eval"):
        raise NotSupported(f"{field}: the mode {text!r} is not supported here", target=field)
    return wire.word(MODES, text, field=f"{field}.mode")


def not_direct(mode: str, field: str) -> str:
    """Return an input's mode.  Raises `NotSupported` for the one that gives no path."""
    if mode == "direct":
        raise NotSupported(
            f"{field}.mode: 'direct' is not supported for a step: it gets its inputs as paths, not "
            "as addresses; use ro_mount or download",
            target=f"{field}.mode",
        )
    return mode


def camel(name: str) -> str:
    """Return `job_input_type` as `jobInputType`."""
    if "_" not in name.strip("_"):
        return name
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def camels(doc: Any, where: str) -> dict[str, Any]:
    """Return the object that a field holds, with its names as Azure's own."""
    return {camel(name): value for name, value in wire.mapping(doc, where).items()}
