"""The Florence-2 guide's scripts, which stand beside each other and not in a package."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

for name, value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(name, value)

GUIDE = Path(__file__).parents[2] / "examples" / "florence2_vqa"
PLACES = (GUIDE, GUIDE / "src_train", GUIDE / "src_serve")


@pytest.fixture(scope="session")
def standin() -> Path:
    """A model of Florence-2's classes that loads in a moment; what it knows does not matter."""
    return Path(__file__).parents[2] / "src" / "finery" / "catalog" / "standins" / "florence2"


@pytest.fixture(scope="session")
def guide() -> Iterator[dict[str, ModuleType]]:
    """The scripts by name; afterwards the names mean again what they meant before."""
    sys.path[:0] = [str(place) for place in PLACES]
    names = ("documents", "florence2", "pages", "scores", "learner", "ranks", "checkpoints")
    names += ("train_mlflow", "score")
    before = {name: sys.modules.pop(name, None) for name in names}
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        del sys.path[: len(PLACES)]
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module:
                sys.modules[name] = module


@pytest.fixture(scope="session")
def data(guide: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few documents of each split, as the guide's first step writes them."""
    folder = tmp_path_factory.mktemp("data") / "dataset"
    guide["documents"].arrow(folder, {"train": 5, "validation": 1, "test": 1}, seed=3)
    return folder
