"""What an environment becomes: an interpreter, built once and kept by the hash of what is asked.

A build is a process that ends, run by the engine like a job's (`building.py` is
its program): it outlives the server, its keeper sees to it that nothing is built
twice, and a job that waits sees its log.  Folders: `environments/HASH/` is whole
once `ready.json` is in it; beside it are `HASH.json`, the wish, `HASH.log`, and
`HASH.failed.json` after a failure, which is told to those who waited for that
build and to no one else: who asks later has it tried again.
What is asked for is read by `wanted.py`; what nobody waits for or uses goes by `minding.py`.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finery.core.assets import Asset
from finery.core.compute import Engine, Process, Report, Runtime
from finery.core.errors import Failure, Invalid, NotSupported, Unavailable
from finery.engines import (
    aside,
    building,
    built,
    containers,
    images,
    interpreters,
    minding,
    overlay,
    sharing,
    wanted,
)
from finery.engines.wanted import Locate, Wanted

OWN = Runtime(python=sys.executable, own=True)
MOST_BUILDS = 2  # at once
MOST_KNOWN = 2000  # wishes that are remembered
MOST_TRIES = 3  # of a build whose builder is killed each time
LONGEST = 3600.0  # seconds that a build may take
LOOK_AGAIN = 30.0  # seconds after which a container engine, or an image, is looked for anew
USED_AGAIN = 3600.0  # seconds after which it is written down anew that one is used
_BUILDER = 1  # of what is built, when that changes
# What of the server's environment tells a builder where packages and engines are.
_TOLD = re.compile(
    r"UV_.*|PIP_(INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|CERT)|PYENV_ROOT|MAMBA_.*|CONDA_.*|"
    + containers.CLIENT.pattern
)
_AS_UV = {
    "PIP_INDEX_URL": "UV_INDEX_URL",
    "PIP_EXTRA_INDEX_URL": "UV_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_NO_INDEX": "UV_NO_INDEX",
}

logger = logging.getLogger(__name__)


class Environments:
    """The environments of one home.  The contract is `core.compute.Environments`."""

    def __init__(
        self,
        home: Path,
        *,
        engine: Engine,
        locate: Locate,
        kind: Callable[[Path], str] = lambda model: "pyfunc",
        strict: bool = False,
        own_packages: bool = False,
        surroundings: Mapping[str, str] | None = None,
        ignored: float = 30.0,
        patience: float = 0.3,
    ) -> None:
        """`kind`: how a model that comes without code is served: only "pyfunc" is its own business.

        `strict`: what cannot be honoured is an error, instead of a warning.
        `own_packages`: models run with ours, whatever they ask for, and are warned of it.
        `ignored`: seconds after which a build that nobody asks for is stopped.
        `patience`: seconds that one waits for what is read or looked for the first time.
        """
        self.home = home.absolute() / "environments"
        self.engine, self.locate, self.kind = engine, locate, kind
        self.strict, self.own_packages = strict, own_packages
        self._surroundings = dict(os.environ if surroundings is None else surroundings)
        self._wishes: dict[tuple[str, ...], tuple[Wanted, str]] = {}
        self._aside = aside.Aside(patience)
        self._engine_client: str | None = None  # not looked for yet
        self._look_at = 0.0  # when to look for a container engine again
        self._ready: dict[str, Runtime] = {}
        self._named: set[tuple[str, str]] = set()  # what is built, and who asked: written down
        self._looked: dict[str, float] = {}  # images -> when they were last seen here
        self._begun: dict[str, int] = {}  # builds -> how often, since they last ended by themselves
        self._lock = threading.RLock()
        self.minding = minding.Minding(
            home.absolute(), engine=engine, lock=self._lock, ignored=ignored
        )

    def runtime(
        self, environment: Asset | None, *, serving: bool, log: Path | None = None
    ) -> Runtime | None:
        if environment is None or environment.spec.get("kind") == "curated":
            return OWN
        self.minding.look()
        # What takes long is read and looked for outside of the lock: nobody else waits for it.
        client = self._client(environment)
        read = None if client is None else self._wish(environment, serving, client)
        if read is None:
            return None
        wish, key = read
        if not key:
            return replace(OWN, warnings=wish.warnings, variables=wish.variables)
        with self._lock:
            found = self._found(key)
        if found and self._gone(key, found):
            return None
        if found:
            self._name(key, environment)
            self._check_whole(environment, found.warnings)
            return found
        with self._lock:
            return self._step(environment, wish, key, log)

    def apart(self, runtime: Runtime, folder: Path) -> Runtime:
        if runtime.image:
            return runtime  # a container is thrown away with what was installed in it
        python = overlay.make(Path(runtime.python), folder)
        # That it is used is told by its name in what the process is given (`built.py`).
        variables = {**runtime.variables, "FINERY_ENVIRONMENT": runtime.python}
        return replace(runtime, python=str(python), own=False, variables=variables)

    def lacking(self, environment: Asset) -> Sequence[str] | None:
        """Return, as warnings, what a server of it asks for and our own Python lacks.

        None where it does not run with that as it is, or while that is not known.
        """
        try:
            client = self._client(environment)
            read = None if client is None else self._wish(environment, True, client)
        except Failure:
            return None
        return None if read is None or read[1] else read[0].warnings

    def _client(self, environment: Asset) -> str | None:
        """The same where it matters; later looks go by what is known until they are over."""
        if not environment.spec.get("image") and environment.spec.get("kind") != "build":
            return ""
        return self.client()

    def client(self) -> str | None:
        """Return the client of a container engine that runs, empty for none; None while sought."""
        if time.monotonic() > self._look_at:
            found = self._aside.answer(
                "client",
                lambda: containers.find(self._surroundings) or "",
                wait_for=self._engine_client is None,
            )
            if found is not None:
                self._engine_client, self._look_at = found, time.monotonic() + LOOK_AGAIN
        return self._engine_client

    def _wish(self, environment: Asset, serving: bool, client: str) -> tuple[Wanted, str] | None:
        """Return what is asked for, read once: a version of an environment never changes.

        None while it is being read: a whole build context may be.
        """
        known = (environment.ref, environment.location, str(serving), client)
        with self._lock:
            if known in self._wishes:
                return self._wishes[known]
        found = self._aside.answer(known, lambda: self._read(environment, serving, client))
        if found is not None and environment.version:
            with self._lock:
                if len(self._wishes) >= MOST_KNOWN:
                    self._wishes.clear()
                self._wishes[known] = found
        return found

    def _read(self, environment: Asset, serving: bool, client: str) -> tuple[Wanted, str]:
        try:
            here = bool(interpreters.conda(self._surroundings.get("PATH")))
            if environment.kind == "model":
                wish = self._of_model(environment, serving, here)
            else:
                wish = wanted.of(
                    environment, self.locate, serving=serving, client=client, conda_here=here
                )
        except Failure as exc:
            said = f"{_called(environment)}: {exc}{_way_out(environment)}"
            raise type(exc)(said, target="environment") from exc
        self._check_whole(environment, wish.warnings)
        return wish, "" if wish.ours else wish.key(*_about(wish))

    def _of_model(self, model: Asset, serving: bool, conda_here: bool) -> Wanted:
        """Return what an MLflow model asks for; ours, for any other: its start says what it is."""
        try:
            folder = self.locate(model.scope, model.location)
            if self.kind(folder) != "pyfunc":
                return Wanted(on_ours=True)
        except Failure:
            return Wanted(on_ours=True)
        own = self.own_packages
        return wanted.of_model(folder, serving=serving, conda_here=conda_here, own=own)

    def _check_whole(self, environment: Asset, warnings: Sequence[str]) -> None:
        """Raise `NotSupported` where something is not honoured and this server is strict."""
        if self.strict and warnings:
            raise NotSupported(
                f"{_called(environment)} cannot be honoured whole, and this server is strict "
                f"about that: {'; '.join(warnings)}",
                target="environment",
            )

    def _gone(self, key: str, runtime: Runtime) -> bool:
        """Whether an image that is ready has been removed since, or that is not known yet."""
        seen = self._looked.get(key)
        if not runtime.image or (seen is not None and time.monotonic() - seen < LOOK_AGAIN):
            return False
        client = _read(self.home / key / building.READY)["client"]
        look = functools.partial(images.gone, client, runtime.image, self._surroundings)
        gone = self._aside.answer(("image", key), look)
        if gone is False:
            self._looked[key] = time.monotonic()
        elif gone:
            logger.info("the image %s is not here any more: built again", runtime.image)
            (self.home / key / building.READY).unlink(missing_ok=True)
        return gone is not False

    def _found(self, key: str) -> Runtime | None:
        """Return what is ready.  Asked often: one look at a file's date when nothing changed."""
        folder = self.home / key
        try:
            used = (folder / building.READY).stat().st_mtime
        except OSError:
            self._ready.pop(key, None)
            self._looked.pop(key, None)
            return None
        if time.time() - used > USED_AGAIN:
            os.utime(folder / building.READY)  # so that it is not swept away
        if key not in self._ready:
            said = _read(folder / building.READY)
            image = said.get("image", "")
            self._ready[key] = Runtime(
                python=said["python"] if image else str(folder / said["python"]),
                image=image,
                warnings=tuple(said["warnings"]),
                variables=said["variables"],
            )
            self.engine.forget(f"{building.PROCESS}{key}")
            if self._begun.pop(key, None):
                self._looked[key] = time.monotonic()  # it was built just now
        return self._ready[key]

    def _name(self, key: str, environment: Asset) -> None:
        """Have who asked for what is built written down, for `built.py`: once, if it stays."""
        named = f"{environment.name}:{environment.version}"
        if environment.anonymous or not environment.version:
            named = "without a name"
        asked = f"the model {named}" if environment.kind == "model" else named
        with self._lock:
            if (key, asked) in self._named and (self.home / f"{key}.names.json").exists():
                return
            built.name(self.home.parent, key, asked)
            if len(self._named) >= MOST_KNOWN:
                self._named.clear()
            self._named.add((key, asked))

    def _step(self, environment: Asset, wish: Wanted, key: str, log: Path | None) -> Runtime | None:
        """Take the next step of a build; raise its failure to those who waited for it."""
        id = f"{building.PROCESS}{key}"
        report = self.engine.report(id)
        if report.state == "exited" and (found := self._found(key)):
            self._name(key, environment)
            return found  # it became ready since we looked
        if report.state == "exited":
            cause = self._cause(key, report)
            waited = log is None or _same(log, self._log(key))
            if log is None or not waited or cause is None:
                self.engine.forget(id)  # whoever asks next has it tried again
                report = self.engine.report(id)
            if waited and cause is not None:
                raise _failure(environment, *cause)
        if report.state == "unknown":
            if len(self._building()) >= MOST_BUILDS:
                return None
            self._start(wish, key, id)
        self.minding.asked(key)
        if log is not None:
            _show(self._log(key), log)
        return None

    def _start(self, wish: Wanted, key: str, id: str) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self.home / key, ignore_errors=True)  # of a builder that was killed
        for name in (f"{key}.failed.json", f"{key}.log"):
            (self.home / name).unlink(missing_ok=True)
        self._log(key).touch(mode=0o644)
        self._begun[key] = self._begun.get(key, 0) + 1
        given = self.home / f"{key}.json"
        given.write_text(json.dumps(asdict(wish)))
        self.engine.start(
            Process(
                id=id,
                command=[sys.executable, "-m", building.__name__, str(given), str(self.home / key)],
                cwd=self.home,
                log=self._log(key),
                env=_told(self._surroundings),
                timeout=LONGEST,
            )
        )

    def _building(self) -> list[str]:
        """Return the builds that run; those of an earlier server's life too."""
        found = []
        for place in self.home.parent.glob(f"processes/{building.PROCESS}*"):
            if self.engine.report(place.name).state in ("starting", "alive"):
                found.append(place.name.removeprefix(building.PROCESS))
        return found

    def _cause(self, key: str, report: Report) -> tuple[str, bool] | None:
        """Return why a build failed, and whether what was asked for is to blame.

        None where it did not: it was stopped or killed, and is simply begun again.
        """
        self.minding.clear(key)
        said = _read(self.home / f"{key}.failed.json")
        if said:
            self._begun.pop(key, None)
            return said["cause"], said["invalid"]
        if report.timed_out:
            return f"it took more than {LONGEST:g} s", False
        if self._begun.get(key, 0) < MOST_TRIES:
            return None
        self._begun.pop(key, None)
        return report.reason or "its builder ended without a word", False

    def _log(self, key: str) -> Path:
        return self.home / f"{key}.log"


def _failure(environment: Asset, cause: str, invalid: bool) -> Failure:
    return (Invalid if invalid else Unavailable)(
        f"{_called(environment)} could not be built: {cause} (the whole log: environment.log)"
        f"{_way_out(environment)}",
        target="environment",
    )


def _called(environment: Asset) -> str:
    if environment.kind != "model":
        return f"the environment {environment.name!r}"
    named = "of its model" if environment.anonymous else f"of the model {environment.name!r}"
    return f"the environment {named}"


def _way_out(environment: Asset) -> str:
    """Say what to do where a model's own wishes cannot be met, as on a machine that is offline."""
    if environment.kind != "model":
        return ""
    return (
        "; to have it run with Finery's own packages, name a curated environment in the "
        "deployment, or start the server with FINERY_MODEL_PACKAGES=own"
    )


def _about(wish: Wanted) -> list[str]:
    """What of this machine the result depends on."""
    about = [str(_BUILDER), sys.executable, sys.version]
    if wish.on_ours:
        about += [f"{name} {one.version}" for name, one in sorted(sharing.packages().items())]
    return about


def _told(surroundings: Mapping[str, str]) -> dict[str, str]:
    """Return what tells uv where packages come from: its own words, and pip's as its own."""
    found = {name: value for name, value in surroundings.items() if _TOLD.fullmatch(name)}
    for name, same in _AS_UV.items():
        if name in found:
            found.setdefault(same, found[name].replace(" ", "," if "FIND" in name else " "))
    defaults = {"UV_SYSTEM_CERTS": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    return {**defaults, **found, "UV_NO_PROGRESS": "1", "UV_NO_CONFIG": "1"}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except FileNotFoundError:
        return False


def _show(source: Path, log: Path) -> None:
    """Have a build's log at another place as well: the same file, so that it is seen to grow."""
    if _same(log, source) or not source.exists():
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    try:
        os.link(source, log)
    except FileNotFoundError:
        pass  # it was removed just now, with what it tells of
    except OSError:  # another file system
        log.symlink_to(source)
