"""Which queued jobs may start now, and what of the machine each of them gets.

A queue is what waits for one compute target; jobs are let in, in the order in
which they were submitted, as far as their target and the machine have room.
Only commands take room: a job that is made of others is let in at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from finery.core import compute, jobs
from finery.core.compute import Capacity
from finery.core.errors import Conflict
from finery.core.jobs import Command, Job, Queue
from finery.core.store import Store

_MEMORY_SHARE = 0.9  # of the machine's memory: a job that takes more is ended, not the machine
_HEADS = 8  # jobs of a queue that are looked at in a tick


def admit(store: Store, active: list[Job], capacity: Capacity) -> bool:
    """Let queued jobs in, as far as there is room; say whether any was.

    Those let in join `active`.  Of a queue whose place is taken nothing is read.
    """
    queues = jobs.queues(store)
    open_ones = [queue for queue in queues if _has_room(store, queue, active, capacity)]
    heads = [job for queue in open_ones for job in jobs.waiting(store, queue, _HEADS)]
    kept, some = False, False  # kept: GPUs, for a job that waits for more of them than are free
    for job in sorted(heads, key=lambda job: job.created_at):
        lease = _lease(store, job, active, capacity)
        if lease is None:
            kept = kept or _has_room(store, job, active, capacity)
            continue
        if kept and lease.get("gpus"):
            continue
        try:
            active.append(jobs.move(store, job, "preparing", lease=lease))
            some = True
        except Conflict:
            continue  # cancelled since we looked
    return some


def _has_room(store: Store, place: Queue | Job, active: Sequence[Job], capacity: Capacity) -> bool:
    """Say whether a place may have one more job: its compute's limit, and the machine's."""
    if place.kind != "command":
        return True
    running = [other for other in active if isinstance(other.spec, Command)]
    if len(running) >= max(capacity.cpus, 1):
        return False
    at = (place.workspace, place.compute)
    target = compute.find(store, *at) if place.compute else None
    most = target.max_instances if target else capacity.cpus
    return sum((other.workspace, other.compute) == at for other in running) < most


def _lease(
    store: Store, job: Job, active: Sequence[Job], capacity: Capacity
) -> dict[str, object] | None:
    """Return what of the machine the job gets, or None while it has to wait."""
    if not isinstance(job.spec, Command):
        return {}
    if not _has_room(store, job, active, capacity):
        return None
    target = compute.find(store, job.workspace, job.compute) if job.compute else None
    memory = int(capacity.memory * _MEMORY_SHARE)
    running = [other for other in active if isinstance(other.spec, Command)]
    wanted = job.spec.ranks * job.spec.nodes
    if not capacity.gpus:
        with_gpus = target is not None and target.gpus > 0
        ranks = 1 if with_gpus else min(wanted, capacity.cpus)
        return {"gpus": [], "ranks": max(ranks, 1), "memory": memory}
    if target is not None and target.gpus == 0:
        return {"gpus": [], "ranks": min(wanted, capacity.cpus), "memory": memory}
    taken = {gpu for other in running for gpu in other.lease.get("gpus", ())}
    free = [gpu for gpu in range(capacity.gpus) if gpu not in taken]
    need = min(max(wanted, 1), capacity.gpus)
    if len(free) < need:
        return None
    return {"gpus": free[:need], "ranks": need, "memory": memory}
