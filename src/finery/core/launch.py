"""From a job to the process that does it: its folder, its inputs, its command line.

Everything here may be done again after an interruption and gives the same
result.  When it is done, and what follows, is `supervisor.py`.
"""

from __future__ import annotations

import fcntl
import http.client
import posixpath
import re
import shlex
import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finery.core import assets, jobs, references
from finery.core.assets import Asset
from finery.core.compute import Capacity, Process, Runtime
from finery.core.errors import Conflict, Invalid, NotFound, Unavailable
from finery.core.files import Files
from finery.core.jobs import Command, Input, Job
from finery.core.store import Store

LITERAL = "literal"
_OPTIONAL = re.compile(r"\$\[\[(.*?)\]\]", re.DOTALL)
_PLACE = re.compile(r"\$\{\{\s*(inputs|outputs)\.([A-Za-z0-9_.\-]+?)(?:\.path)?\s*\}\}")
_PLAIN = re.compile(r"[\w\s'\"./:=,@%+\-\[\]{}]*")  # no shell has anything to do in such a line
_CLONE = 0x40049409  # FICLONE (linux/fs.h): two files of the same bytes, kept once
_PIECE = 1 << 20  # bytes at a time
_LARGEST = 64 << 30  # bytes of a file that is fetched; more is uploaded as data first
_PATIENCE = 3600  # seconds for all of it
_LOOK = 0.5  # seconds between looks at whether it is still wanted
_SIZE = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*([bkmgt]?)i?b?")
_SHARED = Path("/dev/shm")
_INSTALLS = re.compile(r"\bpip[\d.]*\s+(?:-\S+\s+)*(?:un)?install\b")
_RECIPES = "finery.recipes."


@dataclass(frozen=True)
class Folder:
    """Where a job works, and where what it leaves is kept."""

    work: Path
    artifacts: Path

    @property
    def inputs(self) -> Path:
        """Where inputs lie that are copies: they go with the job's end."""
        return self.work.with_name(f"{self.work.name}.inputs")

    @property
    def std_log(self) -> Path:
        return self.artifacts / "user_logs" / "std_log.txt"

    @property
    def system_log(self) -> Path:
        return self.artifacts / "system_logs" / "finery.log"

    @property
    def build_log(self) -> Path:
        return self.artifacts / "system_logs" / "environment.log"


def folder(home: Path, files: Files, job: Job) -> Folder:
    kept = references.artifacts(job.name).removeprefix(f"file:{references.ARTIFACTS}/")
    return Folder(home / "jobs" / job.name, files.path(job.workspace, references.ARTIFACTS, kept))


def layer(place: Folder) -> Path:
    """Return where what a job's command installs is put: beside its folder."""
    return place.work.with_name(f"{place.work.name}.python")


def process_id(job: Job) -> str:
    return f"job-{job.name}"


def prepare(
    store: Store, files: Files, home: Path, job: Job, *, over: Callable[[], bool] = bool
) -> Folder:
    """Make the job's folder with its code; what it writes to ./outputs and ./logs is kept.

    `over` says whether the server ends.  Raises `Conflict` where it is not to go on.
    """
    assert isinstance(job.spec, Command)
    place = folder(home, files, job)
    for name in ("outputs", "logs", "user_logs", "system_logs"):
        (place.artifacts / name).mkdir(parents=True, exist_ok=True)
    place.work.mkdir(parents=True, exist_ok=True)
    if job.spec.code:
        code = references.path(store, files, job.workspace, job.spec.code)
        watched = partial(copy, go_on=_going(store, job, over))
        shutil.copytree(code, place.work, dirs_exist_ok=True, symlinks=True, copy_function=watched)
    for name in ("outputs", "logs"):
        _link(place.work / name, place.artifacts / name)
    return place


def outputs(files: Files, job: Job) -> tuple[dict[str, str], dict[str, Path]]:
    """Return the location and the path of every named output, the folders made."""
    locations, paths = {}, {}
    for name, output in job.spec.outputs.items():
        location = output.location or references.output(job.name, name)
        datastore, _, path = location.removeprefix("file:").partition("/")
        found = files.path(job.workspace, datastore, path)
        (found.parent if output.type == "uri_file" else found).mkdir(parents=True, exist_ok=True)
        locations[name], paths[name] = location, found
    return locations, paths


def inputs(
    store: Store, files: Files, place: Folder, job: Job, *, over: Callable[[], bool] = bool
) -> dict[str, str]:
    """Return what stands for each input in the command: its text, or its path.

    `over` says whether the server ends.  Raises `Conflict` where it is not to go on.
    """
    found, go_on = {}, _going(store, job, over)
    for name, value in job.spec.inputs.items():
        try:
            found[name] = _input(store, files, place, job, name, value, go_on=go_on)
        except NotFound as exc:
            raise NotFound(f"input {name!r}: {exc}", target=f"inputs.{name}") from exc
    return found


def render(command: Command, values: Mapping[str, str], places: Mapping[str, Path]) -> str:
    """Return the command line with inputs and outputs filled in.

    `$[[ … ]]` drops out where an input in it is unset.  Raises `Invalid` for a
    name that the job does not have.
    """

    def optional(match: re.Match[str]) -> str:
        used = [name for kind, name in _PLACE.findall(match.group(1)) if kind == "inputs"]
        return match.group(1) if all(name in values for name in used) else ""

    def value(match: re.Match[str]) -> str:
        kind, name = match.groups()
        if kind == "outputs" and name in places:
            return _word(match, str(places[name]))
        if kind == "inputs" and name in values:
            place = name in command.inputs and command.inputs[name].type != LITERAL
            return _word(match, values[name]) if place else values[name]
        if kind == "inputs" and name in command.optional:
            return ""
        raise Invalid(f"the command names {kind}.{name}, which the job does not have", target=name)

    return _PLACE.sub(value, _OPTIONAL.sub(optional, command.command)).strip()


def variables(
    env: Mapping[str, str], values: Mapping[str, str], places: Mapping[str, Path]
) -> dict[str, str]:
    """Return variables with their inputs and outputs filled in; those that are unset are left out.

    A variable that stands for one is nothing but its place: `${{inputs.x}}`.
    """
    known = {f"inputs.{name}": value for name, value in values.items()}
    known |= {f"outputs.{name}": str(path) for name, path in places.items()}
    found = {}
    for name, text in env.items():
        place = _PLACE.fullmatch(text)
        value = known.get(".".join(place.groups())) if place else text
        if value is not None:
            found[name] = value
    return found


def copy(source: str, target: str, *, go_on: Callable[[], None]) -> None:
    """Copy a file; where the file system can, the bytes are shared until one is written to.

    `go_on` is called often, and raises what ends it.
    """
    go_on()
    if not Path(source).is_file():  # a pipe would never say anything
        raise shutil.SpecialFileError(f"{source} is no file")
    with open(source, "rb") as old, open(target, "wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _CLONE, old.fileno())
        except OSError:
            while piece := old.read(_PIECE):
                new.write(piece)
                go_on()
    shutil.copystat(source, target)


def clear(place: Folder) -> None:
    """Take away what was copied for the job, and what its command has installed."""
    for left in (place.inputs, layer(place)):
        shutil.rmtree(left, ignore_errors=True)


def _word(match: re.Match[str], path: str) -> str:
    """Return a path as one word of the shell, unless the command has quoted its place already."""
    mark, escaped = "", False
    for letter in match.string[: match.start()]:
        if escaped:
            escaped = False
        elif letter == "\\" and mark != "'":
            escaped = True
        elif letter in "'\"" and mark in ("", letter):
            mark = "" if mark else letter
    return path if mark else shlex.quote(path)


def process(
    job: Job, place: Folder, line: str, *, runtime: Runtime, env: Mapping[str, str]
) -> Process:
    """Return the process that runs `line`, where `python` is the runtime's."""
    assert isinstance(job.spec, Command)
    recipe, ranks = _recipe(line, runtime), job.lease.get("ranks", 1)
    return Process(
        id=process_id(job),
        command=recipe or ["bash", "-c", line],
        cwd=place.work,
        log=place.std_log,
        env={**env, **runtime.env},
        image=runtime.image,
        ranks=ranks,
        nodes=nodes(job.spec, ranks),
        distribution=job.spec.distribution,
        shm_size=size(job.spec.shm_size),
        memory=job.lease.get("memory"),
        gpus=tuple(job.lease.get("gpus", ())),
        warm=bool(recipe),
        timeout=job.spec.timeout,
    )


def nodes(command: Command, ranks: int) -> int:
    """Return over how many nodes the ranks that there are can be spread evenly."""
    return command.nodes if ranks % command.nodes == 0 else 1


def size(text: str) -> int | None:
    """Return the bytes in `2g` or `512m`; None where nothing is said.  Raises `Invalid`."""
    if not text:
        return None
    found = _SIZE.fullmatch(text.strip().lower())
    if not found:
        raise Invalid(f"{text!r} is no size; write it as 2g or 512m", target="resources.shm_size")
    return int(float(found[1]) * 1024 ** "bkmgt".index(found[2] or "b"))


def shared_memory(machine: Capacity) -> int:
    """Return the bytes that processes of this machine may share, as they do outside containers."""
    try:
        return shutil.disk_usage(_SHARED).total
    except OSError:  # a system without such a place, and so without its limit
        return machine.memory


def installs(line: str) -> bool:
    """Say whether a command line installs packages: it must not do so for everyone."""
    return bool(_INSTALLS.search(line))


def environment(store: Store, job: Job) -> Asset | None:
    assert isinstance(job.spec, Command)
    return assets.by_ref(store, job.spec.environment) if job.spec.environment else None


def _recipe(line: str, runtime: Runtime) -> list[str] | None:
    """Return a recipe's own command as an argument vector: it needs no shell between."""
    if not runtime.own or not _PLAIN.fullmatch(line):
        return None
    try:
        words = shlex.split(line)
    except ValueError:
        return None  # a quote without its other half: the shell says so in the job's log
    if words[:2] == ["python", "-m"] and words[2:3] and words[2].startswith(_RECIPES):
        return [runtime.python, *words[1:]]
    return None


def _going(store: Store, job: Job, over: Callable[[], bool]) -> Callable[[], None]:
    """Return what raises `Conflict` where a job's start is not to go on; it is called often."""
    looked = time.monotonic()

    def go_on() -> None:
        nonlocal looked
        if over():
            raise Conflict("the server ends")
        if time.monotonic() - looked < _LOOK:
            return
        found = jobs.find(store, job.name)
        if found is not None and found.status != job.status:
            raise Conflict(f"job {job.name!r} is not to go on")
        looked = time.monotonic()

    return go_on


def _input(
    store: Store,
    files: Files,
    place: Folder,
    job: Job,
    name: str,
    value: Input,
    *,
    go_on: Callable[[], None],
) -> str:
    if value.mode == "direct":
        if not value.address:
            raise Invalid(f"input {name!r}: its address is not known: use ro_mount or download")
        return value.address
    if value.type == LITERAL or ":" not in value.value:
        return value.value
    scope, location = references.location(store, value.value)
    if location.startswith(("https://", "http://")):
        return str(_fetched(place, name, location, go_on=go_on))
    found = files.locate(scope or job.workspace, location)
    if value.mode != "download":
        return str(found)
    return str(_copied(files, place, name, found, go_on=go_on))


def _copied(
    files: Files, place: Folder, name: str, source: Path, *, go_on: Callable[[], None]
) -> Path:
    """Copy an input beside the job, whole or not at all: the job may do with it what it likes."""
    target = place.inputs / name / source.name
    if not target.exists():
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            watched = partial(copy, go_on=go_on)
            shutil.copytree(source, part, copy_function=watched, ignore=files.strays(source))
        else:
            copy(str(source), str(part), go_on=go_on)
        part.rename(target)
    return target


def _fetched(place: Folder, name: str, address: str, *, go_on: Callable[[], None]) -> Path:
    """Download an address beside the job, once."""
    last = posixpath.basename(urllib.parse.urlsplit(address).path).strip(".") or "file"
    target = place.inputs / name / last
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        given_up, fetch = threading.Event(), Future[None]()

        def run() -> None:
            try:
                _fetch(address, part, given_up=given_up)
                fetch.set_result(None)
            except BaseException as exc:
                fetch.set_exception(exc)

        try:
            # In a thread of its own, which nobody waits for: what says nothing can hold it up.
            threading.Thread(target=run, daemon=True, name="fetch").start()
            while not wait([fetch], _LOOK).done:
                go_on()
            fetch.result()
            part.rename(target)
        except (OSError, http.client.HTTPException) as exc:
            raise Unavailable(f"input {name!r}: {address} cannot be fetched: {exc}") from exc
        finally:
            given_up.set()
            part.unlink(missing_ok=True)
    return target


def _fetch(address: str, target: Path, *, given_up: threading.Event) -> None:
    """Write what an address holds.  Raises `OSError`, also for what is too large or too slow."""
    begun = time.monotonic()
    with urllib.request.urlopen(address, timeout=60) as answer:
        if given_up.is_set():
            return
        with target.open("wb") as file:
            while piece := answer.read1(_PIECE):  # what is there: a whole piece may never come
                if given_up.is_set():
                    return
                file.write(piece)
                if file.tell() > _LARGEST:
                    raise OSError(f"it is larger than {_LARGEST >> 30} GiB")
                if time.monotonic() - begun > _PATIENCE:
                    raise OSError(f"it took longer than {_PATIENCE // 60} minutes")
        if answer.length:  # which `read1` leaves unsaid
            raise OSError(f"it broke off {answer.length} bytes before its end")


def _link(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, keeping what the code brought under that name."""
    if link.is_symlink():
        return
    if link.is_dir():
        shutil.copytree(link, target, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(link)
    link.symlink_to(target)
