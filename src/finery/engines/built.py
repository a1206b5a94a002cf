"""The environments that lie built in a home: what each is, how large, whether it is used.

Disk is what they cost: this is how to look and to take away.  They are built by
`building.py` when they are asked for (`environments.py`), and again after that.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finery.engines import building, keeper

_LONGEST = 100  # characters of what is said of a wish
_ASIDE = ".gone-"
_MOST_NAMES = 20  # of those that asked for one

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Built:
    key: str
    asks: str  # what it was made from, in short
    python: str
    image: str
    bytes: int  # of files that nothing else has: what its removal frees
    shared: int  # bytes of files that it has in common with others or with a cache
    used: bool  # by a process that has not ended
    names: tuple[str, ...] = ()  # of those that asked for it, the first of them
    last_used: float = 0.0  # the time, an hour more or less; 0: it is not whole


def all(home: Path) -> list[Built]:
    """Return what is built, and what is left of builds that failed."""
    used = _in_use(home)
    found = (home / "environments").glob("*/")
    return [_look(place, used) for place in sorted(found) if not place.name.startswith(".")]


def remove(home: Path, key: str) -> None:
    """Take an environment away.  Whoever uses it has to have ended; gone already is fine."""
    place = home / "environments" / key
    ready = _read(place / building.READY)
    (place / building.READY).unlink(missing_ok=True)  # first: without it it is nothing
    shutil.rmtree(place, ignore_errors=True)
    for left in (home / "environments").glob(f"{key}.*"):
        left.unlink(missing_ok=True)
    _remove_image(ready)


def name(home: Path, key: str, asked: str) -> None:
    """Write down, once, who asked for an environment.  A full disk is no reason to have none."""
    path = home / "environments" / f"{key}.names.json"
    known = _read(path).get("names", [])
    if asked not in known and len(known) < _MOST_NAMES:
        with suppress(OSError):
            keeper.record(str(path.parent), path.name, {"names": [*known, asked]})


def sweep(home: Path, *, before: float = math.inf) -> None:
    """Take away what builds that failed have left beside no folder, written before a time."""
    folder = home / "environments"
    for left in folder.glob("*.*"):
        key = left.name.partition(".")[0]
        if _being_built(home, key) or not key or not left.is_file() or (folder / key).exists():
            continue
        if when(left) < before:
            left.unlink(missing_ok=True)


def expired(home: Path, *, before: float, half: float) -> list[str]:
    """Return what nothing uses and was last used before a time, or is half since before another.

    `environments.py` writes down on `ready.json`'s date when each was used.
    """
    used = _in_use(home)
    keys = [place.name for place in (home / "environments").glob("*/") if place.name[:1] != "."]
    return [key for key in keys if key not in used and _old(home, key, before, half)]


def put_aside(home: Path, key: str, *, before: float, half: float) -> bool:
    """Make what has `expired` be gone at once; `discard` takes the time to remove it.

    Its date is looked at again: who was given it since has had it used.
    """
    if not _old(home, key, before, half):
        return False
    place = home / "environments" / key
    try:
        place.rename(place.with_name(f"{_ASIDE}{key}"))
    except OSError:  # gone already, or what was put aside before is not discarded yet
        return False
    return True


def discard(home: Path) -> None:
    """Remove what was put aside, images too."""
    for place in (home / "environments").glob(f"{_ASIDE}*/"):
        key = place.name.removeprefix(_ASIDE)
        anew = _being_built(home, key) or place.with_name(key).exists()
        if not anew:
            _remove_image(_read(place / building.READY))
            for left in place.parent.glob(f"{key}.*"):
                left.unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)


def when(path: Path) -> float:
    """Return when a file was last written; what is gone has just been."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf


def _being_built(home: Path, key: str) -> bool:
    return (home / "processes" / f"{building.PROCESS}{key}").exists()


def _old(home: Path, key: str, before: float, half: float) -> bool:
    place = home / "environments" / key
    if _being_built(home, key):
        return False
    ready = place / building.READY
    return when(ready) < before if ready.exists() else when(place) < half


def _remove_image(ready: dict[str, Any]) -> None:
    if str(ready.get("image", "")).startswith("finery-environment:"):
        words = [ready["client"], "image", "rm", ready["image"]]
        try:
            subprocess.run(words, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as exc:
            logger.warning("the image %s stays: %s", ready["image"], exc)


def _look(place: Path, used: set[str]) -> Built:
    ready = _read(place / building.READY)
    own = shared = 0
    for file in place.rglob("*"):
        told = file.lstat()
        if told.st_nlink == 1:
            own += told.st_blocks * 512
        else:
            shared += told.st_blocks * 512
    return Built(
        key=place.name,
        asks=_asks(_read(place.with_name(f"{place.name}.json"))),
        python=ready.get("version", ready.get("python", "")),
        image=ready.get("image", ""),
        bytes=own,
        shared=shared,
        used=place.name in used,
        names=tuple(_read(place.with_name(f"{place.name}.names.json")).get("names", ())),
        last_used=when(place / building.READY) if ready else 0.0,
    )


def _asks(wish: dict[str, Any]) -> str:
    said = [wish.get("image") or "", wish.get("dockerfile") or ""]
    said += ["Finery's own and"] if wish.get("on_ours") else []
    said += [line for step in wish.get("steps", ()) for line in step if line[:1] != "-"]
    text = " ".join(filter(None, said)) or "nothing"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _in_use(home: Path) -> set[str]:
    """The keys that processes name which have not ended; those being built too."""
    found: set[str] = set()
    known = [place.name for place in (home / "environments").glob("*/")]
    for asked in (home / "processes").glob("*/process.json"):
        if any((asked.parent / end).exists() for end in ("exit.json", "lost.json")):
            continue
        try:
            text = asked.read_text(errors="replace")
        except OSError:  # forgotten just now
            continue
        found |= {key for key in known if key in text and not _only_built(home, key, asked.parent)}
    return found


def _only_built(home: Path, key: str, process: Path) -> bool:
    """Whether this is the process that built it, and has: it is about to end."""
    ready = (home / "environments" / key / building.READY).exists()
    return ready and process.name == f"{building.PROCESS}{key}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
