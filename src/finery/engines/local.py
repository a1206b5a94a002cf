"""The local engine: every process has a keeper, and is known by the files beside it.

Nothing is remembered in memory that matters, so this server may be killed at any
instant: a process that runs goes on, one that ended is noticed, none runs twice.
The files and who writes them are in `keeper.py`; the warm parent, from which our
own programs start in milliseconds, is in `warm.py`.  Leases of processors and
devices are the supervisor's arithmetic; here they are only carried out.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finery.core.compute import Capacity, Process, Report
from finery.core.errors import Invalid, Unavailable
from finery.engines import containers, keeper, leftovers, limits, machine, proc, ranks, warm

PATIENCE = 5.0  # seconds until a keeper that has not begun is given up and another sent
ALLOWED = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|XDG_CACHE_HOME|LD_LIBRARY_PATH"
    "|HTTPS?_PROXY|NO_PROXY|ALL_PROXY|https?_proxy|no_proxy|all_proxy"
    "|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    "|HF_.*|TRANSFORMERS_.*|TORCH_.*|PYTORCH_.*|CUDA.*|NVIDIA_.*|NCCL_.*|OMP_.*|MKL_.*"
    "|TOKENIZERS_PARALLELISM"
)
# Of what a process of this machine is given, what means the same in a container.
INSIDE = re.compile("CUDA_VISIBLE_DEVICES|OMP_.*|(HF|TRANSFORMERS)_(?!.*(HOME|CACHE|PATH)$).*")
LAUNCH = (
    "import sys; sys.path.append(sys.argv.pop(1)); from finery.engines import keeper; keeper.main()"
)

logger = logging.getLogger(__name__)


class LocalEngine:
    """Runs processes on this machine."""

    def __init__(
        self,
        home: Path,
        *,
        surroundings: Mapping[str, str] | None = None,
        grace: float = 10.0,
        idle: float = 600.0,
        stack: str = warm.STACK,
    ) -> None:
        """`surroundings`: the server's environment, of which a process gets the harmless part.

        `grace`: seconds between asking a process to end and killing it.
        `idle`: seconds without work after which the warm parent ends; `stack`: what it imports.
        """
        self.home = home.absolute() / "processes"
        self.grace = grace
        self._surroundings = dict(os.environ if surroundings is None else surroundings)
        self._client: str | None = None  # of a container engine, once one was found
        self._keepers: set[int] = set()  # pids of those that are our children
        self._handed: set[str] = set()  # ids of processes that the warm parent took
        self._lock = threading.Lock()
        self._warm = warm.Parent(
            self.home / "warm.log", base(self._surroundings), idle=idle, stack=stack
        )

    def capacity(self) -> Capacity:
        return self._capacity

    @functools.cached_property
    def _capacity(self) -> Capacity:
        # Read once: it is asked many times a second, and a dozen files tell it.
        return Capacity(cpus=machine.cpus(), memory=machine.memory(), gpus=len(self._devices))

    def start(self, process: Process) -> None:
        directory = self._directory(process.id)
        self._reap()
        if (directory / "started.json").exists():
            return
        if not set(process.gpus) <= set(range(self.capacity().gpus)):
            raise Invalid(f"there are no devices {process.gpus} here", target=process.id)
        try:
            self._write(process, directory)
        except OSError as error:
            raise Unavailable(f"cannot write {directory}: {error}", target=process.id) from error
        if process.warm and warm.can_run(process.command):
            asked = _read(directory / "process.json")
            if self._warm.take(directory, asked["env"]):
                self._handed.add(process.id)
                return
        self._send_keeper(directory)

    def report(self, id: str) -> Report:
        directory = self._directory(id)
        if (end := _read(directory / "exit.json")) is not None:
            self._reap()
            if end["code"] in containers.NOT_STARTED:
                self._client = None  # its engine may be gone: looked for anew
            return _ended(directory, end)
        if not (directory / "process.json").exists():
            return Report(state="unknown")
        begun = (directory / "started.json").exists()  # before the look at the lock, see below
        if _held(directory / "lock"):
            return _living(directory)
        if not begun:
            return self._not_begun(directory)
        # It had begun before the lock was found free: its keeper is dead, with or without a word.
        end = _read(directory / "exit.json") or _read(directory / "lost.json")
        return _ended(directory, end or _bury(directory))

    def stop(self, id: str) -> None:
        directory = self._directory(id)
        if not (directory / "process.json").exists() or (directory / "exit.json").exists():
            return
        try:
            (directory / "stop").touch()
        except OSError as error:
            logger.warning("cannot write %s/stop: %s", directory, error)  # a signal may still do
        # A keeper that has not begun looks for the file once it has; one that has is told.
        begun = _read(directory / "started.json")
        if begun and begun["boot"] == proc.boot():
            leftovers.tell(begun["pid"], begun["start"], signal.SIGTERM)

    def log(self, id: str, offset: int = 0, *, rank: int = 0) -> bytes:
        asked = _read(self._directory(id) / "process.json")
        if asked is None:
            return b""
        try:
            with open(asked["logs"][rank], "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(offset if offset >= 0 else max(0, size + offset))
                return file.read()
        except FileNotFoundError:
            return b""

    def forget(self, id: str) -> None:
        directory = self._directory(id)
        if self.report(id).state in ("starting", "alive"):
            (directory / "forget").touch()  # its keeper will, when it has ended
            if self.report(id).state != "exited":
                return
        # The wish goes first: left without the marks of its end it would be run again.
        (directory / "process.json").unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)

    def warm_up(self) -> None:
        """Have the warm parent ready soon; say so when a process that can use it is near."""
        self._warm.wake()

    def close(self) -> None:
        """End the warm parent.  Processes go on."""
        self._warm.close()

    @functools.cached_property
    def _devices(self) -> list[str]:
        return machine.devices(self._surroundings)

    def _directory(self, id: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", id):
            raise Invalid(f"{id!r} cannot be the id of a process", target=id)
        return self.home / id

    def _write(self, process: Process, directory: Path) -> None:
        """Put down what is asked for, once: the first to ask is the one that is heard."""
        wanted = directory / "process.json"
        if wanted.exists():
            return
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.mkdir(exist_ok=True, mode=0o700)
        keeper.sync(str(self.home))
        process.log.parent.mkdir(parents=True, exist_ok=True)
        env = self._environment(process, directory)
        inside = self._container(process, directory, env)
        asked = {
            "command": inside.command if inside else process.command,
            "after": inside.after if inside else [],
            "cwd": str(process.cwd.absolute()),
            "logs": [str(process.rank_log(rank).absolute()) for rank in range(process.ranks)],
            "env": base(self._surroundings) | inside.env if inside else env,
            "ranks": process.ranks,
            "each": ranks.each(process, self._seen(process)),
            "ports": ranks.ports(process),
            "cpus": process.cpus,
            "memory": process.memory,
            "timeout": process.timeout,
            "grace": self.grace if process.grace is None else process.grace,
            "name": f"finery-{secrets.token_hex(4)}",
        }
        if inside:
            _put(directory / "container.env", inside.file)
        _put(wanted, json.dumps(asked))

    def _container(
        self, process: Process, directory: Path, env: dict[str, str]
    ) -> containers.Container | None:
        """Return how the process runs in its image; None for one of this machine."""
        if not process.image:
            return None
        # A container numbers the devices that it is given anew, and has paths of its own.
        env |= {"CUDA_VISIBLE_DEVICES": ",".join(str(n) for n in range(len(process.gpus)))}
        kept = {name: env[name] for name in env if not ALLOWED.fullmatch(name)}
        kept |= {name: env[name] for name in env if INSIDE.fullmatch(name)} | process.env
        return containers.enclose(
            process,
            program=self._client_of(process),
            home=self.home.parent,
            directory=directory,
            variables={"HOME": "/tmp", **kept},  # which anyone may write
            devices=[self._devices[gpu] for gpu in process.gpus],
            surroundings=self._surroundings,
        )

    def _client_of(self, process: Process) -> str:
        """Return the client of the container engine: asking whether it runs may take seconds."""
        if self._client is None:
            self._client = containers.find(self._surroundings)
        if self._client is None:
            raise Unavailable(
                f"process {process.id} runs in the container image {process.image}, and neither "
                "Docker nor Podman is running: start it",
                target=process.id,
            )
        return self._client

    def _environment(self, process: Process, directory: Path) -> dict[str, str]:
        env = base(self._surroundings)
        if (threads := ranks.threads(process, self.capacity().cpus)) is not None:
            env["OMP_NUM_THREADS"] = str(threads)
        leased = {
            "FINERY_PROCESS_DIR": str(directory),
            "CUDA_VISIBLE_DEVICES": ",".join(self._devices[gpu] for gpu in process.gpus),
        }
        if not ranks.ports(process):
            with socket.socket() as free:  # one that speaks to nobody may still look for it
                free.bind((ranks.HERE, 0))
                leased |= {"MASTER_ADDR": ranks.HERE, "MASTER_PORT": str(free.getsockname()[1])}
        return env | process.env | leased

    def _seen(self, process: Process) -> list[str]:
        """Return the devices as the process sees them: a container numbers its own anew."""
        if process.image:
            return [str(number) for number in range(len(process.gpus))]
        return [self._devices[gpu] for gpu in process.gpus]

    def _send_keeper(self, directory: Path) -> None:
        """Start a keeper.  A second one finds the lock held or the mark set, and leaves."""
        program = Path(keeper.__file__)
        log = str(directory / "keeper.log")
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        # Imported rather than run as a file: an imported file is compiled only once.
        words = [sys.executable, "-I", "-S", "-c", LAUNCH, str(program.parents[2]), str(directory)]
        pid = os.posix_spawn(
            sys.executable,
            words,
            base(self._surroundings),
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=keeper.DEFAULTS,
        )
        with self._lock:
            self._keepers.add(pid)

    def _reap(self) -> None:
        """Take leave of keepers of ours that have ended."""
        with self._lock:
            for pid in list(self._keepers):
                try:
                    if os.waitpid(pid, os.WNOHANG)[0]:
                        self._keepers.discard(pid)
                except ChildProcessError:
                    self._keepers.discard(pid)

    def _not_begun(self, directory: Path) -> Report:
        """No keeper has begun it: one is on its way, or died, or a warm parent is stuck."""
        wanted = directory / "process.json"
        if time.time() - wanted.stat().st_mtime > PATIENCE:
            os.utime(wanted)
            logger.warning("no keeper began %s within %g s: sending another", directory, PATIENCE)
            if directory.name in self._handed:
                self._warm.close()  # stuck: the next one will be better
            self._send_keeper(directory)
        return Report(state="starting")


def base(surroundings: Mapping[str, str]) -> dict[str, str]:
    """The part of the server's environment that a process may see, and what every process gets."""
    env = {name: value for name, value in surroundings.items() if ALLOWED.fullmatch(name)}
    ours = os.path.dirname(sys.executable)  # `python` means our own, unless told otherwise
    env["PATH"] = os.pathsep.join([ours, env.get("PATH", os.defpath)])
    # Threads that spin while they wait cost their neighbours more than they gain.
    return env | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}


def _put(path: Path, text: str) -> None:
    """Write a file whole, once: one that is there stays as it is."""
    part = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink()


def _read(path: Path) -> Any:
    """What a JSON file says; None where it is not there, or not whole."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _held(lock: Path) -> bool:
    """Say whether a keeper lives.  Only asks: taking the lock would turn a keeper away."""
    try:
        file = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        flock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock
        told = fcntl.fcntl(file, fcntl.F_GETLK, flock)
    finally:
        os.close(file)
    return bool(struct.unpack("hhqqi0q", told)[0] != fcntl.F_UNLCK)


def _living(directory: Path) -> Report:
    begun = _read(directory / "started.json")
    if not begun or not (directory / "ranks.json").exists():
        return Report(state="starting")
    try:
        address = (directory / "address").read_text().strip() or None
    except FileNotFoundError:
        address = None
    return Report(state="alive", address=address, started_at=begun["at"])


def _ended(directory: Path, end: dict[str, Any]) -> Report:
    begun = _read(directory / "started.json")
    return Report(
        state="exited",
        exit_code=end["code"],
        timed_out=end["timed_out"],
        lost=end.get("lost", False),
        reason=end["reason"],
        rank=end.get("rank"),
        started_at=begun["at"] if begun else None,
        ended_at=end["at"],
    )


def _bury(directory: Path) -> dict[str, Any]:
    """Its keeper left no word: end what it may have left running, and write that down."""
    begun = _read(directory / "started.json")
    reason = "lost: the machine was restarted"
    if begun and begun["boot"] == proc.boot():
        reason = "lost: its keeper was killed"
        asked = _read(directory / "process.json")
        leftovers.end(directory, asked["name"], ranks=_read(directory / "ranks.json") or [])
        held = _read(directory / "limits.json")
        if held and held["group"]:
            limits.dissolve(held["group"])
    asked = _read(directory / "process.json")
    if asked and asked.get("after"):  # a container outlives its keeper, but not its process
        keeper.run_after(asked["after"], asked["env"])
    end = {"code": None, "timed_out": False, "lost": True, "reason": reason, "at": time.time()}
    try:
        keeper.record(str(directory), "lost.json", end)
    except OSError as error:
        logger.warning("cannot write %s/lost.json: %s", directory, error)  # the next look will
    return end
