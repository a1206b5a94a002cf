"""What a killed keeper may have left running: find it, and end it, and nothing else.

A number alone never says who a process is, since the system uses it again: here
it goes with the start time, or with a mark that only our processes bear.  Every
signal is sent through a handle that was opened before the second look.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finery.engines import proc

PASSES = 5  # a process may start another while we look


def tell(pid: int, start: int, number: signal.Signals) -> None:
    """Send a signal to the process with this number and start time; gone already is fine."""
    _send(pid, number, lambda: proc.started(pid) == start)


def end(directory: Path, name: str, *, ranks: list[dict[str, Any]]) -> None:
    """Kill the ranks of a process, and all that bears the mark of its directory or its name.

    The environment is the mark; a process forked warm has its mark in its name,
    since the system shows for it the environment of the warm parent.
    """
    for rank in ranks:
        if proc.started(rank["pid"]) == rank["start"]:
            proc.kill_group(rank["pid"], signal.SIGKILL)
    variable = f"FINERY_PROCESS_DIR={directory}".encode()
    for _ in range(PASSES):
        found = [pid for pid in _pids() if _bears(pid, variable, name)]
        for pid in found:
            _send(pid, signal.SIGKILL, functools.partial(_bears, pid, variable, name))
        if not found:
            return


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _bears(pid: int, variable: bytes, name: str) -> bool:
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() == name:
            return proc.stat(pid)[0] != "Z"
        return variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return False


def _send(pid: int, number: signal.Signals, still: Callable[[], bool]) -> None:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if still():
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
