"""What each rank of a process is told about the others, as its framework expects it.

The ports by which they find each other are not known yet: `@port0@`, `@port1@`, …
stand for ports that the keeper reserves when it starts the ranks, and holds until
they have ended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from finery.core.compute import Process

HERE = "127.0.0.1"  # nodes are told apart by number, and are all this machine


def ports(process: Process) -> int:
    """Return how many ports the ranks need; none where there is one that speaks to nobody."""
    if process.ranks == 1 and not process.distribution:
        return 0
    return 1 + (process.ranks if process.distribution == "tensorflow" else 0)


def each(process: Process, devices: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return the variables of each rank.  `devices` are those of the whole process, by name."""
    return [_told(process, rank, devices) for rank in range(process.ranks)]


def threads(process: Process, cpus: int) -> int | None:
    """Return how many threads a rank may use, where several share the processors."""
    if process.cpus is not None:
        return max(1, int(process.cpus / process.ranks))
    return max(1, cpus // process.ranks) if process.ranks > 1 else None


def _told(process: Process, rank: int, devices: Sequence[str]) -> dict[str, str]:
    share = max(process.ranks // process.nodes, 1)  # of a node
    node, local = divmod(rank, share)
    found = {
        "RANK": rank,
        "LOCAL_RANK": local,
        "WORLD_SIZE": process.ranks,
        "LOCAL_WORLD_SIZE": share,
        "NODE_RANK": node,
        "GROUP_RANK": node,
    }
    match process.distribution:
        case "mpi":
            found |= {
                "OMPI_COMM_WORLD_RANK": rank,
                "OMPI_COMM_WORLD_SIZE": process.ranks,
                "OMPI_COMM_WORLD_LOCAL_RANK": local,
                "OMPI_COMM_WORLD_LOCAL_SIZE": share,
                "OMPI_COMM_WORLD_NODE_RANK": local,  # Open MPI's own: the rank on its node
            }
    told = {name: str(value) for name, value in found.items()}
    if process.distribution == "tensorflow":
        workers = [f"{HERE}:@port{1 + other}@" for other in range(process.ranks)]
        task = {"type": "worker", "index": rank}
        told["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    if ports(process):
        told |= {"MASTER_ADDR": HERE, "MASTER_PORT": "@port0@"}
    if process.nodes > 1 and len(devices) == process.ranks:
        told["CUDA_VISIBLE_DEVICES"] = ",".join(devices[node * share : (node + 1) * share])
    return told
