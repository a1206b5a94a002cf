"""What Linux says of processes, and the few calls to it that Python has no name for.

Standard library only: the keeper imports it on the path of every job.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False  # importing `typing` would cost as much as the rest of this file
if TYPE_CHECKING:
    from socket import socket

DEATH_SIGNAL, NAME, SUBREAPER = 1, 15, 36  # prctl's numbers (linux/prctl.h)


def boot() -> str:
    """Tell this start of the machine from every other."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; none where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def started(pid: int) -> int:
    """When it started, in ticks since boot: with the pid, who it is.  0: nobody."""
    fields = stat(pid)
    return int(fields[19]) if fields else 0


def children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def descendants(pid: int) -> dict[int, list[str]]:
    """The processes below one (as a reaper it keeps those that lost their parent), with `stat`."""
    stats = {int(name): stat(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    below: dict[int, list[str]] = {}
    found = {pid}
    while found:
        found = {p for p, fields in stats.items() if fields and int(fields[1]) in found}
        below |= {p: stats[p] for p in found}
    return below


def memory_of(processes: dict[int, list[str]], *, unless_under: int) -> int:
    """Bytes of memory that is their own; 0 where a cheap look shows that it is under the limit."""
    pages = sum(int(fields[21]) for fields in processes.values())
    if pages * os.sysconf("SC_PAGE_SIZE") <= unless_under:
        return 0
    used = 0
    for pid in processes:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                lines = [line.split() for line in file]
        except OSError:
            continue
        # Shares of pages, so that forked workers do not count their parent's memory again.
        used += sum(int(line[1]) for line in lines if line[0] in ("Pss_Anon:", "Pss_Shmem:"))
    return used * 1024


def kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


def control(option: int, value: int | bytes) -> None:
    """prctl(2), which Python has no name for."""
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)


def hold(ports: int) -> list[socket]:
    """Return sockets that keep so many free ports from everyone else.

    Bound and never listened on: a program that may reuse the address, as the
    frameworks' rendezvous may, can still listen there.
    """
    if not ports:
        return []
    import socket as sockets  # here: it costs a job's start as much as all else of this file

    found = []
    for _ in range(ports):
        held = sockets.socket()
        held.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        found.append(held)
    return found
