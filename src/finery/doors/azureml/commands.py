"""Command jobs, as Azure writes them and as we do: `command_in`, `command_out`.

What is the same for every kind of job (names, tags, status) is in `jobs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finery.core import ids
from finery.core.errors import Failure, Invalid, NotSupported
from finery.core.jobs import Command, Job
from finery.core.workspaces import Workspace
from finery.doors.azureml import durations, ports, references, services, wire
from finery.doors.http import House

FIELDS = (
    "command",
    "codeId",
    "environmentId",
    "environmentVariables",
    "inputs",
    "outputs",
    "distribution",
    "resources",
    "limits",
    "parameters",  # only ever answered
)
_RESOURCES = ("instanceCount", "instanceType", "shmSize", "dockerArgs", "locations", "properties")
_DISTRIBUTION = {"pytorch": "PyTorch", "mpi": "Mpi", "tensorflow": "TensorFlow"}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job or step asks for, as texts: in a step they may be bindings."""

    nodes: str = ""
    shm_size: str = ""
    extras: dict[str, Any]
    warnings: list[str]


def command_in(
    house: House, workspace: Workspace, name: str, props: Mapping[str, Any]
) -> tuple[Command, dict[str, Any], list[str]]:
    """Return the command, what is only echoed, and what the user should be warned of."""
    resources = resources_in(props.get("resources"), "resources")
    nodes = _count(resources.nodes or "1", "resources.instanceCount")
    distribution, ranks = distribution_in(props.get("distribution"), nodes=nodes)
    command = Command(
        command=wire.text(props.get("command"), "command"),
        code=_asset(house, workspace, props.get("codeId"), "code", "codeId"),
        environment=_asset(
            house, workspace, props.get("environmentId"), "environment", "environmentId"
        ),
        env=wire.texts(props.get("environmentVariables"), "environmentVariables"),
        inputs=ports.inputs_in(house, workspace, props.get("inputs")),
        outputs=ports.outputs_in(house, workspace, props.get("outputs"), job=name),
        distribution=distribution,
        ranks=_count(ranks or "1", "distribution.processCountPerInstance"),
        nodes=nodes,
        shm_size=resources.shm_size,
        timeout=timeout_in(props.get("limits"), "limits"),
        services=services.services_in(props.get("services")),
    )
    return command, resources.extras, resources.warnings


def command_out(workspace: Workspace, job: Job) -> dict[str, Any]:
    """Return what only command jobs have."""
    command = job.spec
    assert isinstance(command, Command)
    return {
        **command_parts_out(workspace, command, job.extras),
        "limits": (
            {"jobLimitsType": "Command", "timeout": durations.seconds_out(command.timeout)}
            if command.timeout
            else None
        ),
        "parameters": {
            name: value.value for name, value in command.inputs.items() if value.type == "literal"
        },
    }


def command_parts_out(
    workspace: Workspace, command: Command, extras: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a command has wherever it is: in a job of its own, or tried by a sweep."""
    resources = {
        **extras.get("resources", {}),
        "instanceCount": command.nodes,
        "shmSize": command.shm_size or "2g",
    }
    return {
        "command": command.command,
        "codeId": references.asset_id(workspace, command.code) if command.code else None,
        "environmentId": (
            references.asset_id(workspace, command.environment) if command.environment else None
        ),
        "environmentVariables": command.env,
        "distribution": distribution_out(command),
        "resources": resources,
    }


def distribution_in(doc: Mapping[str, Any] | None, *, nodes: int = 1) -> tuple[str, str]:
    """Return the kind of distribution and how many ranks a node has: a text, maybe a binding."""
    doc = ports.camels(doc, "distribution")
    if not doc:
        return "", ""
    said = str(doc.get("distributionType") or doc.get("type") or "")
    kind = next((ours for ours in _DISTRIBUTION if ours == said.lower()), None)
    if kind is None:
        raise NotSupported(
            f"a distribution of type {said!r} is not supported here", target="distribution"
        )
    if kind != "tensorflow":
        return kind, _text(doc.get("processCountPerInstance"))
    if doc.get("parameterServerCount"):
        raise NotSupported(
            "parameter servers are not supported here", target="distribution.parameterServerCount"
        )
    workers = _count(_text(doc.get("workerCount")) or str(nodes), "distribution.workerCount")
    if workers % nodes:
        raise Invalid(
            f"{workers} workers cannot be spread evenly over {nodes} instances",
            target="distribution.workerCount",
        )
    return kind, str(workers // nodes)


def distribution_out(command: Command) -> dict[str, Any] | None:
    if not command.distribution:
        return None
    said = {"distributionType": _DISTRIBUTION[command.distribution]}
    if command.distribution == "tensorflow":
        return {**said, "workerCount": command.ranks * command.nodes, "parameterServerCount": 0}
    return {**said, "processCountPerInstance": command.ranks}


def resources_in(doc: Mapping[str, Any] | None, where: str) -> Resources:
    doc = ports.camels(doc, where)
    wire.refuse_unknown(doc, _RESOURCES, where)
    warnings = []
    if doc.get("dockerArgs"):
        warnings.append(f"{where}.dockerArgs is not used: jobs run as processes of this machine")
    if doc.get("instanceType"):
        warnings.append(
            f"{where}.instanceType is {doc['instanceType']!r}: the job runs on what is here"
        )
    return Resources(
        nodes=_text(doc.get("instanceCount")),
        shm_size=_text(doc.get("shmSize")),
        extras=wire.keep(doc, ("instanceType", "dockerArgs", "locations", "properties")),
        warnings=warnings,
    )


def timeout_in(doc: Mapping[str, Any] | None, where: str) -> float | None:
    """Return the time limit in seconds; none when there is no limit."""
    doc = ports.camels(doc, where)
    wire.refuse_unknown(doc, ("jobLimitsType", "type", "timeout"), where)
    if not doc.get("timeout"):
        return None
    return durations.seconds_in(doc["timeout"], field=f"{where}.timeout")


def _asset(house: House, workspace: Workspace, text: Any, kind: str, field: str) -> str:
    if not text:
        return ""
    try:
        return references.asset_in(house, workspace, wire.text(text, field), kind=kind)
    except NotSupported:
        raise
    except Failure as exc:
        raise Invalid(f"{field}: {exc}", target=field) from exc


def _count(text: str, field: str) -> int:
    found = ids.whole(text, target=field)
    if found < 1:
        raise Invalid(f"{field} is {text!r}; it must be a whole number from 1 up", target=field)
    return found


def _text(value: object) -> str:
    return "" if value is None else str(value)
