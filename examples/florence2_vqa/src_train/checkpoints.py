"""Checkpoints: folders `steps_N`, each a model that can be loaded and what its training needs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

STATE = "training_state.pt"


def write(folder: Path, state: dict[str, Any], *, save: Callable[[Path], None], keep: int) -> None:
    """One more, whole or not at all; the newest `keep` stay.  `save` writes the model."""
    part = folder / f".steps_{state['step']}.part"
    shutil.rmtree(part, ignore_errors=True)
    save(part)
    torch.save(state, part / STATE)
    part.rename(folder / f"steps_{state['step']}")
    for old in whole(folder)[:-keep]:
        shutil.rmtree(old)


def newest(folders: Iterable[str]) -> Path | None:
    """The newest of the first folder that has any."""
    found = [path for folder in folders if folder for path in whole(Path(folder))[-1:]]
    return found[0] if found else None


def read(folder: Path, *, total: int) -> dict[str, Any]:
    """What `write` was given, if it is of a training of as many steps."""
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    if state["total"] != total:
        raise SystemExit(
            f"{folder} is of a training of {state['total']} steps and this one has "
            f"{total}: the data, the batches or the epochs are not the same"
        )
    return state


def remove(folder: Path) -> None:
    """All of them, and the folder if nothing else is in it."""
    for path in whole(folder):
        shutil.rmtree(path)
    with contextlib.suppress(OSError):  # it is not empty, or not there
        folder.rmdir()


def whole(folder: Path) -> list[Path]:
    """The folders `steps_N`, the newest last."""
    found = [path for path in folder.glob("steps_*") if (path / STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("steps_")))
