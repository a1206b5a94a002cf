"""Folders of model files: filled all or not at all, large files by links where the disk allows.

A model folder is written into `.part` beside its place and moved in, its
`config.json` (or `adapter_config.json`) last: a folder that has one is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Written last: a folder is taken for a model by these.
LAST = ("adapter_config.json", "config.json", "MLmodel")
_LARGE = 64 * 2**20  # bytes from which a link is worth that two names lead to one file


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A `.part` folder to write into; at the end its files move into `folder`."""
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for path in sorted(part.iterdir(), key=lambda path: path.name in LAST):
        target = folder / path.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(path, target)
        # Two links to one file: the system counts that as moved, and leaves both.
        path.unlink(missing_ok=True)
    part.rmdir()


def link(source: Path, target: Path) -> None:
    """`target` becomes a copy of `source`, or the same file where that saves much disk.

    Whoever writes into a linked file changes both, so small ones are copied.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    if real.stat().st_size >= _LARGE:
        try:
            os.link(real, target)
            return
        except OSError:
            pass  # another file system
    shutil.copyfile(real, target)


def link_tree(source: Path, target: Path, *, skip: tuple[str, ...] = ()) -> None:
    """Every file under `source` into `target`; top-level names in `skip` are left out."""
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if inside.parts[0] in skip or inside.parts[0].startswith("."):
            continue
        if path.is_file():
            link(path, target / inside)


def write_json(path: Path, value: Any) -> None:
    """The value as JSON, replacing the file in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file; {} when there is no such file."""
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8-sig"))
    return value if isinstance(value, dict) else {}
