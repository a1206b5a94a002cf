"""The services of a job, as Azure writes them and as we do.

The two that every job has, Studio and Tracking, are only addresses; they are in
`jobs.py`.  What becomes of the others is in `core/services.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finery.core import ids
from finery.core import services as core_services
from finery.core.errors import Invalid, NotSupported
from finery.core.jobs import Command, Job
from finery.core.services import State
from finery.core.work import Service
from finery.doors.azureml import ports, wire
from finery.doors.http import House

ADDRESSES = ("Studio", "Tracking")
_TYPES = {"TensorBoard": "tensorboard", "JupyterLab": "jupyterlab", "VSCode": "vscode"}
_STATUS = {"waiting": "Unknown", "running": "Running", "failed": "Failed", "ended": "Stopped"}
_FOLDER = "logDir"
_FIELDS = (
    "jobServiceType",
    "type",
    "port",
    "nodes",
    "properties",
    "endpoint",  # these three only ever answered
    "status",
    "errorMessage",
)


def services_in(doc: Any, where: str = "services") -> dict[str, Service]:
    """Return the services that a command job asks for.  Raises `NotSupported` by name."""
    found = {}
    for name, (kind, said) in _asked(doc, where).items():
        here = f"{where}.{name}"
        if kind not in _TYPES:
            raise NotSupported(f"the service {name!r}: {_instead(kind)}", target=here)
        if name in ADDRESSES:
            raise Invalid(f"{here}: every job has one of that name already", target=here)
        wire.refuse_unknown(said, _FIELDS, here)
        properties = wire.texts(said.get("properties"), f"{here}.properties")
        port = said.get("port")
        found[name] = Service(
            kind=_TYPES[kind],
            folder=properties.pop(_FOLDER, "") if kind == "TensorBoard" else "",
            port=0 if port is None else ids.whole(str(port), target=f"{here}.port"),
            nodes="all" if said.get("nodes") else "",
            properties=properties,
        )
    core_services.check(found)
    return found


def refuse(doc: Any, where: str) -> None:
    """Refuse services of what has none."""
    for name, (kind, _) in _asked(doc, f"{where}.services").items():
        raise NotSupported(
            f"{where}: the service {name!r} ({kind}) is not supported here: only command jobs of "
            "their own have services; logs, metrics and ./outputs are there while a job runs",
            target=f"services.{name}",
        )


def services_out(house: House, job: Job) -> dict[str, Any]:
    """Return a job's services as the job itself tells of them."""
    if not isinstance(job.spec, Command) or not job.spec.services:
        return {}
    states = house.services(job)
    return {
        name: {
            **_told(states.get(name)),
            "jobServiceType": _type(service),
            "nodes": {"nodesValueType": "All"} if service.nodes else None,
            "port": service.port or None,  # as it was asked for
            "properties": _properties(service),
        }
        for name, service in job.spec.services.items()
    }


def instances_out(house: House, job: Job, node: str) -> dict[str, Any]:
    """Return the services that run on one node.  All nodes are this machine."""
    if not isinstance(job.spec, Command) or not job.spec.services:
        return {}
    states, first = house.services(job), ids.whole(node, target="node") == 0
    found = {}
    for name, service in job.spec.services.items():
        if not first and not service.nodes:
            continue
        state = states.get(name)
        told = _told(state)
        error = told.pop("errorMessage")
        properties = _properties(service)
        if state and state.password:
            properties["password"] = state.password
        found[name] = {
            **told,
            "type": _type(service),
            "port": (state.port if state else None) or service.port or None,
            "error": {"error": {"code": "UserError", "message": error}} if error else None,
            "properties": properties,
        }
    return found


def _asked(doc: Any, where: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return each service's type and what is said of it, without the two that are addresses."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for name, service in wire.mapping(doc, where).items():
        said = ports.camels(service, f"{where}.{name}")
        kind = str(said.get("jobServiceType") or said.get("type") or name)
        if kind not in ADDRESSES:
            found[name] = (kind, said)
    return found


def _instead(kind: str) -> str:
    if kind == "SSH":
        return (
            "SSH is not supported here: a job is a process of this machine. Log in to the machine "
            "itself, or ask for a service of type jupyter_lab or vs_code, which have a terminal"
        )
    return f"type {kind!r} is not supported here; tensor_board, jupyter_lab and vs_code are"


def _type(service: Service) -> str:
    return next(theirs for theirs, ours in _TYPES.items() if ours == service.kind)


def _told(state: State | None) -> dict[str, Any]:
    state = state or State(status="waiting")
    return {
        "endpoint": state.endpoint or None,
        "status": _STATUS[state.status],
        "errorMessage": state.error or None,
    }


def _properties(service: Service) -> dict[str, str]:
    return {**service.properties, **({_FOLDER: service.folder} if service.folder else {})}
