"""A vision tower that does not learn: what it makes of each picture, computed once.

`freeze` takes the tower out of training.  `compute` fills one file with its
output for every picture (by all ranks, each its share), bounded by the disk;
`attach` lets the model take that output in the place of pixels, so that many
questions about a picture, epochs and evaluations pay for it once.  The projector
after the tower stays in the model: it may learn.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

FILE = "features.part"


def tower(model: Any) -> Any:
    """The vision tower, below adapters too."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    return base.model.vision_tower


def freeze(model: Any) -> None:
    """The tower learns nothing, drops nothing, and keeps nothing for a gradient."""
    part = tower(model)
    part.requires_grad_(False)
    inner = part.forward

    def forward(hidden_states: Any, **named: Any) -> Any:
        part.eval()
        with torch.no_grad():
            return inner(hidden_states, **named)

    part.forward = forward


def attach(model: Any) -> None:
    """The model takes the tower's output where it takes pixels."""
    part = tower(model)
    kind = part.convs[0].conv.weight.dtype

    def forward(hidden_states: Any, **_: Any) -> Any:
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states.to(kind))

    part.forward = forward


def detach(model: Any) -> None:
    """The tower as its class has it."""
    vars(tower(model)).pop("forward", None)


class Features:
    """The tower's output for some pictures, by their numbers, mapped from a file."""

    def __init__(self, path: Path, numbers: Iterable[int], *, size: Any, dtype: Any) -> None:
        """`size` is the shape of one output; the file is made where it is not there."""
        self.places = {number: place for place, number in enumerate(sorted(set(numbers)))}
        whole = (len(self.places), *size)
        count = int(torch.Size(whole).numel())
        self.path = path
        self.tensor = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(whole)

    def __getitem__(self, number: int) -> Any:
        """One picture's output."""
        return self.tensor[self.places[number]]


def compute(
    model: Any,
    pixels: Callable[[list[int]], Any],
    numbers: Iterable[int],
    *,
    folder: Path,
    half: str,
    accelerator: Any,
    batch: int,
) -> Features | None:
    """All of them; None, with a line, where the disk has no room for them.

    `pixels` gives the scaled pictures of some numbers, where the model is; `half`
    is the 16-bit kind to compute and keep them in, "" for none.
    """
    wanted = sorted(set(numbers))
    dtype = getattr(torch, half) if half else torch.float32
    one = _run(model, pixels(wanted[:1]), dtype)[0]
    need = one.numel() * one.element_size() * len(wanted)
    if need > shutil.disk_usage(folder).free // 2:
        if accelerator.is_main_process:
            print(
                f"vision features of {len(wanted)} pictures would take {need / 1e9:.1f} GB, more"
                " than half of what is free on the disk; they are computed at each step instead"
            )
        return None
    if accelerator.is_main_process:
        (folder / FILE).unlink(missing_ok=True)
        Features(folder / FILE, wanted, size=one.shape, dtype=dtype)
    accelerator.wait_for_everyone()
    found = Features(folder / FILE, wanted, size=one.shape, dtype=dtype)
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = wanted[rank::world]
    for start in range(0, len(mine), batch):
        some = mine[start : start + batch]
        made = _run(model, pixels(some), dtype)
        found.tensor[[found.places[number] for number in some]] = made.to("cpu", dtype)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(f"vision features of {len(wanted)} pictures: {need / 1e6:.1f} MB", flush=True)
    return found


def _run(model: Any, pixels: Any, dtype: Any) -> Any:
    part = tower(model)
    with torch.no_grad(), torch.autocast(pixels.device.type, dtype, dtype != torch.float32):
        return part.eval()(pixels).last_hidden_state.to(dtype)
