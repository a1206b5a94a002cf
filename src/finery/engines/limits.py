"""Limits of processors and memory: a control group where one is ours to make.

Where none is, the keeper measures the memory (`proc.memory_of`) and the number
of threads is only advised.  Which of these holds is said, never guessed.
Standard library only: the keeper imports it on the path of every job.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # importing `typing` would cost as much as the rest of the keeper
if TYPE_CHECKING:
    from typing import Any


def told(asked: dict[str, Any], group: str | None) -> dict[str, Any]:
    """Say which limit holds by what means, in words for whoever asked."""
    cpus, memory = asked["cpus"], asked["memory"]
    by_cpu = "none asked" if cpus is None else "threads"
    by_memory = "none asked" if memory is None else "watched"
    if group:
        by_cpu, by_memory = (x if x == "none asked" else "cgroup" for x in (by_cpu, by_memory))
    means = {
        "none asked": "no limit was asked for",
        "cgroup": "enforced by a control group",
        "threads": "not enforced (no control group is ours to make): OMP_NUM_THREADS says it",
        "watched": "measured every second (no control group is ours to make); ended when over it",
    }
    said = [f"processors: {cpus or 'all'}, {means[by_cpu]}"]
    said += [f"memory: {memory or 'all'} bytes, {means[by_memory]}"]
    return {"cpus": by_cpu, "memory": by_memory, "group": group, "said": "; ".join(said)}


def enclose(asked: dict[str, Any], root: str = "/sys/fs/cgroup") -> str | None:
    """Make a control group (version 2) with the limits asked for, where one is ours to make."""
    if asked["cpus"] is None and asked["memory"] is None:
        return None
    try:
        with open("/proc/self/cgroup") as file:
            own = root + [line[3:].strip() for line in file if line.startswith("0::")][0]
    except (OSError, IndexError):
        return None
    above = os.path.dirname(own)
    for parent in [own.rstrip("/")] + ([above] if delegated(above) else []):
        group = f"{parent}/{asked['name']}"
        try:
            write(f"{parent}/cgroup.subtree_control", "+cpu +memory")
            os.mkdir(group)
        except OSError:
            continue
        try:
            if asked["memory"] is not None:
                write(f"{group}/memory.max", str(asked["memory"]))
                write(f"{group}/memory.oom.group", "1")
            if asked["cpus"] is not None:
                write(f"{group}/cpu.max", f"{int(asked['cpus'] * 100_000)} 100000")
            return group
        except OSError:
            dissolve(group)
    return None


def ran_out(group: str) -> bool:
    """Say whether the kernel killed something in this control group for want of memory."""
    try:
        with open(f"{group}/memory.events") as file:
            return any(line.split()[0] == "oom_kill" and line.split()[1] != "0" for line in file)
    except OSError:
        return False


def delegated(group: str) -> bool:
    """Say whether systemd gave this control group away (Delegate=, DelegateSubgroup=)."""
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(group, name) == b"1":
                return True
        except OSError:
            continue
    return False


def dissolve(group: str) -> None:
    """Kill what is in a control group and remove it; gone already is fine."""
    write(f"{group}/cgroup.kill", "1", missing_ok=True)
    for _ in range(50):
        try:
            os.rmdir(group)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)  # what was killed is not gone at once


def write(path: str, text: str, *, missing_ok: bool = False) -> None:
    try:
        file = os.open(path, os.O_WRONLY)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)
    except OSError:
        if not missing_ok:
            raise
