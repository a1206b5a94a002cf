"""The processes of a training, one for each GPU.  A single process is a rank too."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Which of the training's processes this is, and how they talk."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """The sums over all ranks."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def told(self, value: Any) -> Any:
        """What the first rank has."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def order(self, count: int, seed: int) -> list[int]:
        """This rank's rows of an epoch, as many as every other's: some come twice if need be."""
        rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        rows += rows[: -count % self.world]
        return rows[self.rank :: self.world]


def join() -> Ranks:
    """RANK, WORLD_SIZE and the others are set by torchrun, or by the job's `distribution`."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(rank, world, device)


def leave() -> None:
    """What `join` opened, if it did."""
    if dist.is_initialized():
        dist.destroy_process_group()
