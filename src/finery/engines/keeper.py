"""The keeper: one small program beside each process, which starts it and writes down its end.

`python -I -S keeper.py DIRECTORY` holds DIRECTORY/lock, starts what
DIRECTORY/process.json asks for (one copy per rank, each the leader of a session
of its own), and writes DIRECTORY/exit.json when all have ended.  It depends on
no server: it enforces the timeout, the grace period and the memory limit alone.

Files, each written whole or not at all:
`process.json` (by the engine) what is asked for; `stop` (by the engine) asks for the end;
`forget` (by the engine) has all of these taken away after it;
`started.json` before anything runs: from here on it is never started again;
`ranks.json` the ranks' pids and start times, before any of them runs a line;
`limits.json` which limits hold, and by what means; `exit.json` how it ended.

Standard library only, as little of it as will do, and of our own only `limits.py`
and `proc.py`: its start is on the path of every job.  `warm.py` runs `keep` too,
with a `launch` of its own.  What the files mean to a server is in `local.py`.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time

if not __package__:  # run as a file, by an interpreter that knows of no packages
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from finery.engines import limits, proc

TYPE_CHECKING = False  # importing `typing` would cost as much as the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Launch = Callable[[dict[str, Any], dict[str, str]], NoReturn]

HEEDED = {signal.SIGCHLD, signal.SIGTERM}
BLOCKED = HEEDED | {signal.SIGINT, signal.SIGHUP}
# What a server may have set otherwise, and a process expects as it was.
DEFAULTS = [signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD]
FILES = 65536  # more than anyone has open
LEAST_ROOM = 1 << 16  # bytes free: with less the disk counts as full
RESERVED = 4096  # bytes kept for exit.json, so that a full disk does not swallow the end
GUARD = 'read -r word || kill -s KILL -- "$@"'  # end of file: the keeper is dead


def main() -> None:
    directory = os.path.abspath(sys.argv[1])
    os.closerange(3, FILES)  # what the server left open is none of ours
    keep(directory)


def keep(directory: str, launch: Launch | None = None) -> None:
    """Run what `directory` asks for and write down its end.

    Returns at once where another keeper has it, or had it.  `launch` is called
    in each rank's process and does not return; it executes the command unless
    said otherwise.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, BLOCKED)
    os.chdir("/")
    lock = claim(directory)
    if lock is None:
        return
    keeper = Keeper(directory, launch or execute, lock)
    try:
        keeper.begin()
        keeper.watch()
    except OSError as error:
        keeper.fail(f"could not be started: {error}")
    keeper.finish()
    if os.path.exists(f"{directory}/forget"):
        remove(directory)
    os.close(lock)


def claim(directory: str) -> int | None:
    """Take the lock and say so in started.json; None where that was done before.

    A record lock, because a child does not inherit it: the lock is held exactly
    as long as the keeper lives.
    """
    try:
        lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None  # forgotten meanwhile
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    if os.path.exists(f"{directory}/started.json"):
        return None
    reserve = os.open(f"{directory}/exit.part", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(reserve, b" " * RESERVED)
    os.close(reserve)
    me = {
        "boot": proc.boot(),
        "pid": os.getpid(),
        "start": proc.started(os.getpid()),
        "at": time.time(),
    }
    record(directory, "started.json", me, durable=True)  # or it might run twice
    return lock


class Keeper:
    """The ranks of one process, from their start to their end."""

    def __init__(self, directory: str, launch: Launch, lock: int) -> None:
        self.directory = directory
        self.launch = launch
        self.lock = lock
        with open(f"{directory}/process.json") as file:
            self.asked: dict[str, Any] = json.load(file)
        self.ranks: dict[int, int] = {}  # pid -> rank, of those that run
        self.code: int | None = None
        self.reason = ""
        self.failed: int | None = None  # the first rank of several that did
        self.held: list[Any] = []  # sockets that keep the ranks' ports from everyone else
        self.ports: list[int] = []
        self.timed_out = False
        self.ending = False
        self.kill_at: float | None = None
        self.deadline: float | None = None
        self.group: str | None = None
        self.guard: tuple[int, int] | None = None  # its pid, and the pipe that holds it back

    def begin(self) -> None:
        """Start every rank, unless the stop came first."""
        if os.path.exists(f"{self.directory}/stop"):
            self.code, self.reason = -signal.SIGTERM, "stopped before it began"
            return
        proc.control(proc.SUBREAPER, 1)  # what a rank leaves behind comes to us
        self.group = limits.enclose(self.asked)
        record(self.directory, "limits.json", limits.told(self.asked, self.group))
        if self.asked["timeout"] is not None:
            self.deadline = time.monotonic() + self.asked["timeout"]
        self.held = proc.hold(self.asked.get("ports", 0))
        self.ports = [held.getsockname()[1] for held in self.held]
        held, go = os.pipe()
        for rank in range(self.asked["ranks"]):
            self.ranks[self.fork(rank, held, go)] = rank
        os.close(held)
        ranks = [
            {"rank": n, "pid": pid, "start": proc.started(pid)} for pid, n in self.ranks.items()
        ]
        record(self.directory, "ranks.json", ranks)
        self.post_guard()
        os.write(go, b"g" * len(ranks))
        os.close(go)

    def told(self, rank: int) -> dict[str, str]:
        """What this rank is told, with the ports that there are now."""
        env: dict[str, str] = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        for name, value in self.asked.get("each", [{}] * (rank + 1))[rank].items():
            for number, port in enumerate(self.ports):
                value = value.replace(f"@port{number}@", str(port))
            env[name] = value
        return env

    def fork(self, rank: int, held: int, go: int) -> int:
        """Start one rank, up to the point where it waits for the word to go."""
        keeper = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            os.close(go)
            os.setsid()
            proc.control(proc.DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != keeper or not os.read(held, 1):
                os._exit(125)  # the keeper died first, so nobody knows of us
            os.close(held)
            self.settle(rank)
        except BaseException as error:
            # Whatever happens, this copy of the keeper must not go on as a keeper.
            os.write(2, f"finery: cannot run {self.asked['command'][0]}: {error}\n".encode())
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)

    def settle(self, rank: int) -> NoReturn:
        """In the child: take its place, then become the program."""
        asked = self.asked
        log = os.open(asked["logs"][rank], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, file in enumerate((nothing, log, log)):
            os.dup2(file, target)
        for file in (log, nothing, self.lock):
            os.close(file)  # one that is forked warm does not execute, which would close them
        if self.group:
            limits.write(f"{self.group}/cgroup.procs", "0")
        limits.write(
            "/proc/self/oom_score_adj", "500", missing_ok=True
        )  # rather us than the server
        os.chdir(asked["cwd"])
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for held in self.held:
            held.close()
        self.launch(asked, asked["env"] | self.told(rank))

    def watch(self) -> None:
        """Until the last rank ends: reap, and enforce what was asked."""
        while self.ranks:
            came = signal.sigtimedwait(HEEDED, self.patience())
            if came is not None and came.si_signo == signal.SIGTERM:
                self.end("stopped")
            self.reap()
            now = time.monotonic()
            if self.deadline is not None and now >= self.deadline and not self.ending:
                self.timed_out = True
                self.end(f"ran past its {self.asked['timeout']:g} s")
            if self.asked["memory"] and not self.group and not self.ending:
                self.weigh(self.asked["memory"])
            if self.kill_at is not None and now >= self.kill_at:
                self.signal_all(signal.SIGKILL)
                self.kill_at = now + 1

    def patience(self) -> float:
        """How long nothing needs doing, in seconds."""
        waits = [3600.0]
        if self.asked["memory"] and not self.group:
            waits.append(1.0)
        moments = [self.kill_at, None if self.ending else self.deadline]
        waits += [moment - time.monotonic() for moment in moments if moment is not None]
        return max(0.0, min(waits))

    def reap(self) -> None:
        """Take note of every child that has ended."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            rank = self.ranks.pop(ended.si_pid, None)
            if rank is not None:
                # The rest of its group goes too, while the dead leader still holds the number.
                proc.kill_group(ended.si_pid, signal.SIGKILL)
            _, status = os.waitpid(ended.si_pid, 0)
            if rank is not None:
                self.note(rank, os.waitstatus_to_exitcode(status))

    def note(self, rank: int, code: int) -> None:
        """One rank ended: the first failure is the process's, and ends the others."""
        if not self.code:
            self.code = code
            if code and self.asked["ranks"] > 1 and not self.ending:
                self.failed = rank
        if self.ranks:
            self.post_guard()  # for those that are left: the number of the dead may be reused
            if code:
                self.end(f"rank {rank} ended with {code}")

    def weigh(self, allowed: int) -> None:
        used = proc.memory_of(proc.descendants(os.getpid()), unless_under=allowed)
        if used > allowed:
            self.end(f"used {used >> 20} MiB of memory, more than its {allowed >> 20} MiB")

    def end(self, reason: str) -> None:
        """Ask every rank to end; `watch` insists after the grace period."""
        if self.ending:
            return
        self.ending = True
        self.reason = reason
        self.kill_at = time.monotonic() + self.asked["grace"]
        self.signal_all(signal.SIGTERM)

    def signal_all(self, number: int) -> None:
        for pid in self.ranks:  # not reaped yet, so the number is still theirs
            proc.kill_group(pid, number)

    def post_guard(self) -> None:
        """Set a shell to kill the ranks' groups should this keeper be killed.

        The death signal reaches only the leaders.  A shell is a hundredth of our
        size, and it is in no session that is signalled.
        """
        self.dismiss_guard()
        inlet, hold = os.pipe()
        nothing = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, inlet, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, nothing, target) for target in (1, 2)]
        groups = [f"-{pid}" for pid in self.ranks]
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", GUARD, "sh", *groups],
            {},
            file_actions=actions,
            setsid=True,
            setsigmask=[],
        )
        os.close(inlet)
        os.close(nothing)
        self.guard = (pid, hold)

    def dismiss_guard(self) -> None:
        if self.guard is None:
            return
        pid, hold = self.guard
        self.guard = None
        try:
            os.write(hold, b"done\n")
        except BrokenPipeError:
            pass  # it was killed before us
        os.close(hold)

    def fail(self, reason: str) -> None:
        """Something here went wrong: nothing of the process may be left running."""
        self.reason = self.reason or reason
        self.ending = True
        self.signal_all(signal.SIGKILL)
        while self.ranks:
            signal.sigtimedwait(HEEDED, 0.1)
            self.reap()

    def finish(self) -> None:
        """Clear up what the ranks left, then write down the end."""
        self.dismiss_guard()
        self.clear()
        if self.asked.get("after"):
            run_after(self.asked["after"], self.asked["env"])
        if self.group:
            if not self.reason and limits.ran_out(self.group):
                self.reason = f"used more than its {self.asked['memory'] >> 20} MiB of memory"
            limits.dissolve(self.group)
        if self.code and not self.reason and full(self.directory):
            self.reason = f"the disk was full when it ended with exit status {self.code}"
        end = {"code": self.code, "timed_out": self.timed_out, "reason": self.reason[:500]}
        end |= {"rank": self.failed}
        last_word(self.directory, json.dumps(end | {"at": time.time()}))

    def clear(self) -> None:
        """Kill what left its session and so came to us, its reaper; wait for at most 5 s."""
        patience = time.monotonic() + 5
        while True:  # once at least, however late it is
            self.reap()
            left = proc.children(os.getpid())
            for pid in left:
                proc.kill(pid, signal.SIGKILL)
            if not left or time.monotonic() > patience:
                return
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)


def execute(asked: dict[str, Any], env: dict[str, str]) -> NoReturn:
    os.execvpe(asked["command"][0], asked["command"], env)


def run_after(command: list[str], env: dict[str, str], *, seconds: float = 30.0) -> None:
    """Run what is to be run when all has ended: it takes a container away, whoever died."""
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)
    actions = [nothing, (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
    try:
        pid = os.posix_spawn(command[0], command, env, file_actions=actions, setsigmask=[])
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr, flush=True)
        return
    patience = time.monotonic() + seconds
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > patience:
            proc.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.02)


def record(directory: str, name: str, what: object, *, durable: bool = False) -> None:
    """Write a JSON file whole or not at all; `durable`: so that it outlasts the power too."""
    part = f"{directory}/{name}.{os.urandom(4).hex()}.part"
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, json.dumps(what).encode())
        if durable:
            os.fsync(file)
    finally:
        os.close(file)
    os.rename(part, f"{directory}/{name}")
    if durable:
        sync(directory)


def sync(directory: str) -> None:
    """Have the names in a directory on the disk."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def full(directory: str) -> bool:
    """Say whether there is no room: then a log may not say what went wrong."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize < LEAST_ROOM


def last_word(directory: str, text: str, *, pause: float = 1.0) -> None:
    """Write exit.json into the room reserved for it, and have it on the disk.

    Tries until it can: while this waits it holds the lock, so that the process
    counts as alive and not as lost.
    """
    while os.path.isdir(directory):
        try:
            file = os.open(f"{directory}/exit.part", os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.write(file, text[:RESERVED].ljust(RESERVED).encode())
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(f"{directory}/exit.part", f"{directory}/exit.json")
            sync(directory)
            return
        except OSError as error:
            print(f"cannot write exit.json: {error}", file=sys.stderr, flush=True)
            time.sleep(pause)


def remove(directory: str) -> None:
    """Take the whole directory away; a folder that a program made in it is let be."""
    try:
        os.unlink(f"{directory}/process.json")  # first: without the marks it would be run again
        for entry in os.scandir(directory):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
        os.rmdir(directory)
    except OSError as error:
        print(f"cannot remove {directory}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
