"""`finery environment list|remove`: what was built for jobs and deployments, and its disk."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finery import config
from finery.cli import lookups
from finery.cli.refused import Refused

if TYPE_CHECKING:
    from finery.engines.built import Built


def add(words: Any) -> None:
    """Add the words to the command line."""
    group = lookups.group(words, "environment", "Built environments: list, remove.")
    lookups.word(group, "list", show)
    gone = lookups.word(group, "remove", remove)
    gone.add_argument("key", nargs="*", help="as `finery environment list` has it")
    gone.add_argument("--unused", action="store_true", help="all that no process uses")


def show(args: argparse.Namespace) -> None:
    """List the environments that are built, for whom, and the disk that each takes."""
    headings = ("key", "python", "own_mib", "shared_mib", "used", "last_used", "names", "asks")
    found = [_said(one) for one in _all(args)]
    if args.json:
        return lookups.table(args, found, headings)
    if not found:
        print("nothing was built")
        return None
    return lookups.show([{**one, "names": ", ".join(one["names"])} for one in found], headings)


def remove(args: argparse.Namespace) -> None:
    """Take built environments away; who asks for one again has it built again."""
    from finery.engines import built

    there = {one.key: one for one in _all(args)}
    if bool(args.key) == args.unused:
        raise Refused("name the environments to remove, or give --unused")
    if missing := [key for key in args.key if key not in there]:
        raise Refused(f"no environment {missing[0]!r} is built here: `finery environment list`")
    if used := [key for key in args.key if there[key].used]:
        raise Refused(f"{used[0]} is used by a process that runs: end it first")
    gone = args.key or [key for key, one in there.items() if not one.used]
    for key in gone:
        built.remove(_home(args), key)
    built.sweep(_home(args))
    lookups.table(args, [_said(there[key]) for key in gone], ("key", "own_mib", "asks"))


def _all(args: argparse.Namespace) -> list[Built]:
    from finery.engines import built

    return built.all(_home(args))


def _home(args: argparse.Namespace) -> Path:
    home = config.home(args.home)
    if not home.exists():
        raise Refused(f"{home} is no home of Finery yet: start one with `finery up --home {home}`")
    return home


def _at(moment: float) -> str:
    if not moment:
        return ""
    return datetime.fromtimestamp(moment).astimezone().isoformat(sep=" ", timespec="minutes")


def _said(one: Built) -> dict[str, Any]:
    return {
        "key": one.key,
        "python": one.python,
        "image": one.image,
        "own_mib": round(one.bytes / 2**20, 1),
        "shared_mib": round(one.shared / 2**20, 1),
        "used": one.used,
        "last_used": _at(one.last_used),
        "names": list(one.names),
        "asks": one.asks,
    }
