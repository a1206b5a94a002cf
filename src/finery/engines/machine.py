"""What this machine has that processes can share: processors, memory, accelerators.

Asks the operating system only; nothing here imports a framework.  What a
container was granted counts, not what its host has.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path


def cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole processors: those we may run on, or the quota where that is less."""
    quotas = [float(len(os.sched_getaffinity(0)))]
    for group in _groups(root, "cpu"):
        words = _read(group / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            quotas.append(int(words[0]) / int(words[1]))
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return max(1, int(min(quotas)))


def memory(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes: the machine's, or the control group's limit where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups(root, "memory"):
        words = [_read(group / "memory.max"), _read(group / "memory.limit_in_bytes")]
        limits += [int(word) for word in words if word.isdigit()]
    return min(limits)


def devices(surroundings: Mapping[str, str]) -> list[str]:
    """The accelerators that we may use, by the name CUDA_VISIBLE_DEVICES takes.

    The index of a lease counts in this list, so that a server that was itself
    given some of the machine's devices hands out those and no others.
    """
    granted = surroundings.get("CUDA_VISIBLE_DEVICES")
    present = _present()
    if granted is None or not present:
        return present
    names = [name.strip() for name in granted.split(",") if name.strip()]
    end = next((n for n, name in enumerate(names) if name.startswith("-")), len(names))
    return names[:end]  # CUDA stops reading at the first that is not there


def _present() -> list[str]:
    nodes = glob.glob("/dev/nvidia[0-9]*")
    if not nodes and not Path("/dev/dxg").exists():  # the second: Windows' subsystem for Linux
        return []
    tool = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if tool is None:
        return [str(n) for n in range(len(nodes))]
    asked = [tool, "--query-gpu=index", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return [str(n) for n in range(len(nodes))]
    return [line.strip() for line in told.stdout.splitlines() if line.strip().isdigit()]


def _groups(root: Path, controller: str) -> list[Path]:
    """Our control group and those above it, in either version's tree."""
    found = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        inner = base / path.lstrip("/")
        found += [group for group in (inner, *inner.parents) if group.is_relative_to(base)]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
