"""`finery endpoint rollback`: the last change of an endpoint or of a deployment, undone.

A traffic's shares are back at once.  What a deployment runs has to come up
first: the server does it, and this waits and tells how far it is.  What going
back means is in `core/rollback.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finery import config
from finery.cli.refused import Refused

if TYPE_CHECKING:
    from finery.core.endpoints import Deployment
    from finery.core.store import Store

_LOOK = 0.2  # seconds between two looks
_SERVER = 25  # looks between two at whether the server is still there


def rollback(args: argparse.Namespace) -> None:
    """Give an endpoint's traffic, or what a deployment runs, back what it was before."""
    from finery.cli import lookups
    from finery.core import endpoints
    from finery.core import rollback as core_rollback

    store, _, _ = lookups.open_home(args)
    if not args.deployment:  # a running server notices within a second
        with store.transaction():
            was = endpoints.find(store, args.name)
            back = core_rollback.traffic(store, args.name)
        found: dict[str, Any] = {
            "endpoint": back.name,
            "from_traffic": was.traffic if was else {},
            "from_mirror": was.mirror if was else {},
            "traffic": back.traffic,
            "mirror": back.mirror,
        }
        return lookups.table(args, [found], tuple(found))
    home = config.home(args.home)
    if args.wait:
        _running(home, "; or give --no-wait: the next server brings it up")
    with store.transaction():
        old = endpoints.find_deployment(store, args.name, args.deployment)
        made = core_rollback.deployment(store, args.name, args.deployment)
    assert old is not None  # or going back had been refused
    change = _change(old, made)
    print(f"{made.name}: {_told(change)}", file=sys.stderr, flush=True)
    if args.wait:
        made = _back(store, home, made)
    found = {"deployment": made.name, "status": made.status, **change}
    if args.json:
        return lookups.table(args, [found], tuple(found))
    return lookups.table(args, [{**found, "differs": ", ".join(change["differs"])}], tuple(found))


def _change(old: Deployment, made: Deployment) -> dict[str, Any]:
    """Return which revision gives way, whose doing is asked for, and what differs."""
    from finery.core import rollback as core_rollback

    return {
        "from_revision": old.revision,
        "to_revision": old.before["revision"],
        "as_revision": made.revision,
        "differs": core_rollback.differs(old.spec, made.spec),
    }


def _told(change: dict[str, Any]) -> str:
    names = ", ".join(change["differs"]) or "nothing"
    return (
        f"from revision {change['from_revision']} back to what revision {change['to_revision']} "
        f"ran, as revision {change['as_revision']}; what differs: {names}"
    )


def _back(store: Store, home: Path, wanted: Deployment) -> Deployment:
    """Wait until it serves what was asked for; `Refused` says why it does not."""
    from finery.core import instances

    looks, said = 0, ""
    try:
        while True:
            now = _now(store, wanted)
            if now.status in ("ready", "failed", "unhealthy"):
                break
            if (progress := _progress(home, now)) != said:
                said = progress
                print(f"{now.name}: {said}", file=sys.stderr, flush=True)
            if looks and looks % _SERVER == 0:
                _running(home, ", and it goes on from here")
            looks += 1
            time.sleep(_LOOK)
    except KeyboardInterrupt:
        print(f"finery: {wanted.name} goes on coming up without being waited for", file=sys.stderr)
        raise
    if now.status == "ready":
        return now
    why = instances.failure(now) or "its instances are up, and none is well"
    raise Refused(
        f"deployment {now.name!r} does not serve its former version: {why}."
        f" More: `finery endpoint logs {now.endpoint} -d {now.name}`"
    )


def _now(store: Store, wanted: Deployment) -> Deployment:
    """Read it again.  Raises `Refused` where something else was asked of it since."""
    from finery.core import endpoints

    now = endpoints.find_deployment(store, wanted.endpoint, wanted.name)
    if now is None or now.id != wanted.id or now.status == "deleting":
        raise Refused(f"deployment {wanted.name!r} was deleted before it was back")
    if (now.revision, now.spec) != (wanted.revision, wanted.spec):
        raise Refused(f"deployment {wanted.name!r} was changed again before it was back")
    return now


def _progress(home: Path, now: Deployment) -> str:
    from finery.core import instances

    ready = sum(id in now.addresses for id in instances.processes(now))
    first = instances.folder(home, now) / now.process(0)
    if not ready and instances.build_log(first).exists() and not (first / "log.txt").exists():
        doing = "its environment is being built"
    else:
        doing = f"{ready} of {now.count} instances answer"
    meanwhile = "; what answered until now still does" if now.before.get("answers") else ""
    return f"going back to its former version: {doing}{meanwhile}"


def _running(home: Path, else_: str) -> None:
    from finery import cli

    try:
        cli.server(home)
    except Refused as exc:
        raise Refused(f"{exc}{else_}") from None
