"""Packages of our own environment in another one: the same files under a second name.

A hard link costs no room and no time.  It is safe because pip and uv put a new
file in the place of an old one and never write into it; where the file system
differs, the files are copied.  What is shared is found by each package's own
list of its files.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

OWN = Path(sysconfig.get_paths()["purelib"])
# They come with torch where it is one for GPUs, in versions that fit no other.
WITH_TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
_LONGEST_SHEBANG = 120
_NOT_SHARED = {"finery"}


def name(text: str) -> str:
    """A package's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", text).lower()


def packages(site: Path | None = None) -> dict[str, Distribution]:
    """Return what is installed in a folder, by name; ours, read once, where none is said."""
    return _ours() if site is None else _in(site)


@functools.cache
def _ours() -> dict[str, Distribution]:
    return _in(OWN)


def satisfied(lines: Iterable[str]) -> bool:
    """Say whether our own packages are all that the lines of a requirements file ask for."""
    ours = packages()
    for line in lines:
        if line.startswith("-"):
            continue
        try:
            asked = Requirement(line.partition(" --")[0])
            needed = asked.marker is None or asked.marker.evaluate()
        except (InvalidRequirement, ValueError, RecursionError):
            return False  # what it is, the installer will say
        one = ours.get(name(asked.name))
        if not needed:
            continue
        if asked.url or asked.extras or one is None:
            return False
        if not asked.specifier.contains(one.version, prereleases=True):
            return False
    return True


def _in(site: Path) -> dict[str, Distribution]:
    found = {}
    for one in importlib.metadata.distributions(path=[str(site)]):
        if (named := name(one.name or "")) and named not in _NOT_SHARED and one.files:
            found[named] = one
    return found


def site(environment: Path) -> Path:
    """Return where the packages of a virtual environment are."""
    return next(iter(sorted(environment.glob("lib/python*/site-packages"))))


def share(environment: Path, which: Iterable[str], *, python: str) -> list[str]:
    """Have our packages of these names in an environment of that Python; say which."""
    ours, target = packages(), site(environment)
    shared = []
    for wanted in which:
        one = ours.get(wanted)
        if one is None or one.read_text("direct_url.json"):
            continue
        if python not in SpecifierSet(one.metadata["Requires-Python"] or ""):
            continue
        for file in one.files or ():
            if file.parts[0] != "..":
                _link(OWN / file, target / file)
                _bytecode(OWN / file, target / file)
        shared.append(wanted)
    _programs(environment, [ours[wanted] for wanted in shared])
    return shared


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        if not source.exists():
            return  # listed, and not there: caches come and go
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(source, target)
    except FileExistsError:
        pass
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _bytecode(source: Path, target: Path) -> None:
    """The compiled file too, which not every installer lists: or it is compiled once more."""
    if source.suffix == ".py":
        cached = f"__pycache__/{source.stem}.{sys.implementation.cache_tag}.pyc"
        if (source.parent / cached).exists():
            _link(source.parent / cached, target.parent / cached)


def _programs(environment: Path, shared: list[Distribution]) -> None:
    """The commands that these packages bring, for the environment's own interpreter."""
    python = environment / "bin" / "python"
    for one in shared:
        for entry in one.entry_points:
            if entry.group != "console_scripts" or not re.fullmatch(r"[\w.-]+", entry.name):
                continue
            program = environment / "bin" / entry.name
            program.write_text(
                f"{_shebang(python)}\nimport sys\nfrom {entry.module} import "
                f"{(entry.attr or 'main').partition('.')[0]}\n"
                f"sys.exit({entry.attr or 'main'}())\n"
            )
            program.chmod(0o755)


def _shebang(python: Path) -> str:
    """The first line of a program: the system reads only so much of it."""
    if len(str(python)) < _LONGEST_SHEBANG and " " not in str(python):
        return f"#!{python}"
    return f"#!/bin/sh\n'''exec' {shlex.quote(str(python))} \"$0\" \"$@\"\n' '''"


def closure(names: Iterable[str], there: dict[str, Distribution]) -> set[str]:
    """Return the packages among those there that these need, themselves included.

    A name may come with extras, as in `transformers[torch]`.
    """
    reached: set[tuple[str, str]] = set()
    queue = [(name(one.partition("[")[0]), extra) for one in names for extra in _extras(one)]
    while queue:
        one, extra = queue.pop()
        if (one, extra) in reached or one not in there:
            continue
        reached.add((one, extra))
        for line in there[one].requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                queue += [(name(needed.name), more) for more in ("", *needed.extras)]
    return {one for one, _ in reached}


def _extras(text: str) -> list[str]:
    inside = re.search(r"\[([^\]]*)\]", text)
    return ["", *(one.strip() for one in inside.group(1).split(","))] if inside else [""]
