"""What status a thing may have, and which status may follow which.

Read this file to know every life-cycle here.  `move` alone decides whether a
change is legal; only the module that owns the thing (`jobs.py`,
`endpoints.py`) writes one down, together with its event.
"""

from __future__ import annotations

from finery.core.errors import Conflict

Machine = dict[str, frozenset[str]]  # status -> statuses that may follow; none means final


def _machine(**edges: str) -> Machine:
    return {status: frozenset(after.split()) for status, after in edges.items()}


JOB = _machine(
    queued="preparing cancelled completed failed",  # straight to completed: a step's kept result
    preparing="running cancelling failed",
    running="finalizing cancelling failed",
    finalizing="completed failed",
    cancelling="cancelled",
    completed="",
    failed="",
    cancelled="",
)

DEPLOYMENT = _machine(
    creating="ready failed deleting",
    ready="unhealthy updating deleting",
    unhealthy="ready failed updating deleting",
    updating="ready failed deleting",
    failed="updating deleting",
    deleting="gone",
    gone="",
)

ENDPOINT = _machine(
    ready="deleting",
    deleting="gone",
    gone="",
)


def is_final(machine: Machine, status: str) -> bool:
    return not machine[status]


def final(machine: Machine) -> list[str]:
    return [status for status, after in machine.items() if not after]


def move(machine: Machine, old: str, new: str) -> str:
    """Return `new`, or raise `Conflict` where the machine does not allow the change."""
    if new not in machine[old]:
        raise Conflict(f"cannot go from {old!r} to {new!r}")
    return new
