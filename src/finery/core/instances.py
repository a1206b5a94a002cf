"""The instances of a deployment as processes: what each is started with, and what it leaves.

Each has a folder of its own, `deployments/<id>/<process id>/`: its spec file
while it is wanted, a copy of the code, and its log, which stays for a while
after it has ended.  When one is started or ended is `upkeep.py`'s business.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from finery.core import assets, launch, references
from finery.core.assets import Asset
from finery.core.compute import Process, Runtime
from finery.core.endpoints import Deployment
from finery.core.errors import Conflict, Failure
from finery.core.files import Files
from finery.core.store import Store

GRACE = 30.0  # seconds for an instance that is asked to end; its requests were waited for before

_SPEC = "serve.json"  # in the folder of each process that is wanted
_LOG, _BUILD_LOG = "log.txt", "environment.log"
_LOG_BYTES = 1 << 20  # as much of a log as is looked at for its last lines
_KEPT = 8  # folders of processes that have ended, for their logs
_ID = re.compile(r"deployment-\w+-(\d+)-(\d+)-(\d+)")  # revision, instance, restarts


def folder(home: Path, deployment: Deployment) -> Path:
    return home / "deployments" / deployment.id


def place(home: Path, deployment: Deployment, instance: int) -> Path:
    """Return the folder of the process that is this instance now; it is made."""
    made = folder(home, deployment) / deployment.process(instance)
    made.mkdir(parents=True, exist_ok=True)
    return made


def build_log(place: Path) -> Path:
    """Where the log of its environment's building is to be seen."""
    return place / _BUILD_LOG


def processes(deployment: Deployment) -> list[str]:
    """Return the ids of the processes that there should be, in the order of the instances."""
    return [deployment.process(instance) for instance in range(deployment.count)]


def started(home: Path, deployment: Deployment) -> set[str]:
    """Return the ids of all that was started for it and not cleared yet."""
    return {found.parent.name for found in folder(home, deployment).glob(f"*/{_SPEC}")}


def longest(deployment: Deployment) -> float:
    """Return the seconds that a request may take, from its arrival to its last byte."""
    return (deployment.spec.max_queue_wait_ms + deployment.spec.request_timeout_ms) / 1000


def environment(store: Store, deployment: Deployment) -> Asset | None:
    """Return what says where instances run: the environment that is named, else a model alone.

    Neither where there is code and no environment.
    """
    spec = deployment.spec
    if spec.environment:
        return assets.by_ref(store, spec.environment)
    if spec.script or not spec.model:
        return None
    scope, location = references.location(store, spec.model)
    scope = scope or deployment.workspace
    if not spec.model.startswith("asset:"):
        return Asset(scope=scope, kind="model", name=spec.model, location=location)
    return replace(assets.by_ref(store, spec.model), scope=scope, location=location)


def process(
    deployment: Deployment,
    instance: int,
    *,
    place: Path,
    document: dict[str, Any],
    runtime: Runtime,
    secret: str,
    gpus: int,
) -> Process:
    """Write down what an instance serves and return its process.  `gpus`: of this machine.

    It shares its GPU with whatever else runs there: a lease for as long as it
    answers would leave a machine with one GPU nothing to train on.
    """
    (place / _SPEC).write_text(json.dumps(document, indent=1))
    env = {
        **runtime.variables,
        **deployment.spec.env,
        "FINERY_SERVING_SECRET": secret,
        "FINERY_DEPLOYMENT": deployment.name,
        **runtime.env,
    }
    first = zlib.crc32(deployment.id.encode())
    return Process(
        id=deployment.process(instance),
        command=[runtime.python, "-m", "finery.serving.host", str(place / _SPEC)],
        cwd=place,
        log=place / _LOG,
        env=env,
        gpus=((first + instance) % gpus,) if gpus else (),
        image=runtime.image,
        warm=runtime.own,
        grace=GRACE,
    )


def document(
    store: Store,
    files: Files,
    deployment: Deployment,
    *,
    place: Path,
    kind: Callable[[Path], str],
    over: Callable[[], bool] = bool,
) -> dict[str, Any]:
    """Return the serving process's spec file, see `serving/spec.py`; its code is copied.

    `over` says whether the server ends.  Raises `Conflict` where it does.
    """
    spec = deployment.spec
    document: dict[str, Any] = {
        "max_concurrent_requests": spec.max_concurrent_requests,
        "max_queue_wait_ms": spec.max_queue_wait_ms,
        "request_timeout_ms": spec.request_timeout_ms,
    }
    model: Path | None = None
    if spec.model:
        model = references.path(store, files, deployment.workspace, spec.model)
        document["model"] = str(model)
    if spec.model.startswith("asset:"):
        asset = assets.by_ref(store, spec.model)
        document |= {"model_name": asset.name, "model_version": asset.version}
    if spec.script:
        code = references.path(store, files, deployment.workspace, spec.code)
        strays, copy = files.strays(code), partial(launch.copy, go_on=partial(_go_on, over))
        shutil.copytree(code, place / "code", ignore=strays, dirs_exist_ok=True, copy_function=copy)
        return {
            **document,
            "kind": "script",
            "code": str(place / "code"),
            "script": spec.script,
        }
    if model is None:
        raise Failure("a deployment needs a model, or code with a scoring script")
    found = kind(model)
    if found == "chat":  # it answers in batches: one at a time would only make callers wait
        del document["max_concurrent_requests"]
    return {**document, "kind": found}


def _go_on(over: Callable[[], bool]) -> None:
    if over():
        raise Conflict("the server ends")


def failure(deployment: Deployment) -> str:
    """Say why a deployment failed, and what goes on answering; empty where it did not."""
    if not deployment.error:
        return ""
    why, earlier = str(deployment.error["message"]), deployment.earlier
    if earlier is None or not any(id in deployment.addresses for id in processes(earlier)):
        return why
    same = earlier.revision == deployment.revision  # only their number was to change
    there = "what was there" if same else f"revision {earlier.revision}"
    return f"{why}; {there} goes on answering"


def clear(home: Path, deployment: Deployment, id: str) -> None:
    """Drop what an ended process was started with; its log stays, and those of a few others."""
    gone = folder(home, deployment) / id
    shutil.rmtree(gone / "code", ignore_errors=True)
    (gone / _SPEC).unlink(missing_ok=True)
    ended = [one for one in folder(home, deployment).iterdir() if not (one / _SPEC).exists()]
    for old in sorted(ended, key=lambda one: _order(one.name))[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def logs(home: Path, deployment: Deployment, *, lines: int) -> str:
    """Return the last lines of each instance, of the one that it replaced, and of the rest
    that answers; where one has none yet, those of its environment's building."""
    there = folder(home, deployment)
    known = {one.name for one in there.iterdir()} if there.is_dir() else set()
    shown = _shown(deployment, known) or sorted(known, key=_order)[-1:]
    parts = []
    for id in sorted(shown, key=_order):
        title, found = _title(deployment, id), _last(there / id / _LOG, lines)
        if not found and (built := _last(there / id / _BUILD_LOG, lines)):
            title, found = f"{title}, its environment", built
        parts += [f"{title}:", *found] if len(shown) > 1 else found
    if deployment.error:
        parts.append(f"The deployment failed: {deployment.error['message']}")
    return "\n".join(parts) + "\n"


def _shown(deployment: Deployment, known: Collection[str]) -> set[str]:
    shown = {*deployment.addresses}
    for instance in range(deployment.count):
        shown.add(now := deployment.process(instance))
        stem, _, restarts = now.rpartition("-")
        if int(restarts):
            shown.add(f"{stem}-{int(restarts) - 1}")
    return shown & {*known}


def _title(deployment: Deployment, id: str) -> str:
    revision, instance, restarts = _order(id)
    title = f"Instance {instance}"
    if revision != deployment.revision:
        return f"{title} of revision {revision}"
    if restarts < deployment.restarts.get(str(instance), 0):
        return f"{title}, before it was replaced"
    return title


def _order(id: str) -> tuple[int, ...]:
    found = _ID.fullmatch(id)
    return tuple(int(part) for part in found.groups()) if found else (0, 0, 0)


def _last(path: Path, lines: int) -> list[str]:
    """Return the last lines of a file; none where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []
