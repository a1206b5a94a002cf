"""`make bench`: every benchmark in a process of its own, one table, and docs/benchmarks.md.

    python bench/run.py [--quick] [--only control,engine,…]

Each figure stands beside its peer from the same run, as a ratio, and beside its gate
(what must hold) and its goal.  The page names the machine and how busy it was at the
start: wall times of a busy machine say little, processor times and ratios more.
`--only` prints and leaves the page alone.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
CLIENT = ROOT / ".venv-sdk" / "bin" / "python"
LIBRARIES = ("torch", "transformers", "trl", "peft", "mlflow", "fastapi", "uvicorn", "sqlalchemy")
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}


class Row(NamedTuple):
    name: str
    value: float
    unit: str = ""
    peer: float | None = None
    peer_name: str = ""


class Bound(NamedTuple):
    """What a figure must reach; with `ratio`, what its ratio to the peer must."""

    gate: float
    goal: float
    most: bool = False  # it must stay below
    ratio: bool = False


# By the row's name: `Figures` of the issue that built the control plane.
BOUNDS = {
    "PUT to first line of user code, median": Bound(400, 100, most=True),
    "PUT to a recipe's first training step, warm": Bound(1, 0.12, most=True),
    "trivial jobs, submit to Completed": Bound(5, 20),
    "jobs.get, 100 jobs": Bound(2000, 5000),
    "jobs.get, 100,000 jobs": Bound(2000, 5000),
    "jobs.create_or_update, 100 jobs": Bound(1000, 2500),
    "jobs.create_or_update, 100,000 jobs": Bound(1000, 2500),
    "ready after": Bound(3, 1, most=True),
    "memory when idle": Bound(300, 120, most=True),
    "processor use when idle": Bound(1, 0.5, most=True),
    "small, 1 callers, requests/s": Bound(1.5, 2.5, ratio=True),
    "small, 16 callers, requests/s": Bound(2.5, 5, ratio=True),
    "300 KB, 1 callers, requests/s": Bound(1, 1.5, ratio=True),
    "300 KB, 16 callers, requests/s": Bound(1, 1.5, ratio=True),
    "300 KB, 1 callers, us of CPU per request": Bound(1, 0.7, most=True, ratio=True),
    "small, 16 callers, us of CPU per request": Bound(150, 80, most=True),
    "probe while run() sleeps, ms p99": Bound(20, 5, most=True),
    "probe while run() spins, ms p99": Bound(20, 5, most=True),
    "log_metric, calls/s": Bound(0, 600),
    "fine-tuning, against the better of TRL's": Bound(1, 1.5, ratio=True),
    "fine-tuning, against TRL as it comes": Bound(1, 3.5, ratio=True),
}


@dataclass(frozen=True)
class Part:
    """One benchmark: its words in full and in a hurry, and how its answer is read."""

    name: str
    words: list[str]
    quick: list[str]
    read: Callable[[str], Iterator[Row]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under four minutes")
    parser.add_argument("--only", default="", help="names of benchmarks, with commas")
    given = parser.parse_args()
    wanted = [name for name in given.only.split(",") if name]
    about = machine()
    print(about, flush=True)
    begun, told, failed = time.monotonic(), [], []
    for part in PARTS:
        if wanted and part.name not in wanted:
            continue
        print(f"\n{part.name}", flush=True)
        started = time.monotonic()
        rows, error = run(part, quick=given.quick)
        for row in rows:
            print(line(row), flush=True)
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
        told.append((part, rows))
        if error:
            failed.append(part.name)
            print(error, file=sys.stderr)
    took = time.monotonic() - begun
    missed = [row.name for _, rows in told for row in rows if verdict(row) == "below the gate"]
    print(f"\n{took:.0f} s" + "".join(f"\nbelow its gate: {name}" for name in missed))
    if not wanted and not failed:
        PAGE.write_text(page(about, told, took, quick=given.quick))
        print(f"written: {PAGE.relative_to(ROOT)}")
    return 1 if failed else 0


def run(part: Part, *, quick: bool) -> tuple[list[Row], str]:
    script, *words = part.quick if quick else part.words
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / script), *words],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    try:
        rows = list(part.read(done.stdout))
    except (ValueError, KeyError, StopIteration) as exc:
        return [], f"{script} said nothing that can be read ({exc!r}): {done.stderr[-3000:]}"
    error = f"{script} ended with status {done.returncode}: {done.stderr[-3000:]}"
    return rows, error if done.returncode else ""


# -- how each benchmark's answer is read -----------------------------------------------


def rows_of(text: str) -> Iterator[Row]:
    for found in json.loads(text):
        yield Row(**found)


def named(text: str) -> Iterator[Row]:
    """`{name: value}`, the unit in the name: `name [unit]` or `name, unit`."""
    for name, value in json.loads(text).items():
        bracketed = re.fullmatch(r"(.*?) \[(.*)\]", name)
        if bracketed:
            yield Row(bracketed[1], value, bracketed[2])
        else:
            before, comma, unit = name.rpartition(", ")
            yield Row(before, value, unit) if comma and " " not in unit else Row(name, value)


def serving(text: str) -> Iterator[Row]:
    """Served beside the bare forward of the same batch and threads."""
    rows = list(named(text))
    bare = {
        (row.name.rpartition(" ")[2], row.unit): row.value for row in rows if "bare" in row.name
    }
    for row in rows:
        callers = re.fullmatch(r"chat: served, (\d+) callers", row.name)
        if callers and (callers[1], row.unit) in bare:
            yield row._replace(peer=bare[callers[1], row.unit], peer_name="bare forward")
        elif "bare" not in row.name:
            yield row


def scoring(text: str) -> Iterator[Row]:
    """Ours beside the official host, by the name behind the colon."""
    rows = list(named(text))
    theirs = {
        (row.name.partition(": ")[2], row.unit): row.value
        for row in rows
        if row.name.startswith("official: ")
    }
    for row in rows:
        who, _, name = row.name.partition(": ")
        if who == "ours":
            peer = theirs.get((name, row.unit))
            yield Row(f"{name}, {row.unit}", row.value, row.unit, peer, "official host")


def tracking(text: str) -> Iterator[Row]:
    for name, found in json.loads(text).items():
        yield Row(name, found["value"])
        if found["cpu_ms"] is not None:
            yield Row("  server's processor time", found["cpu_ms"], "ms/request")


def sft(text: str) -> Iterator[Row]:
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")][-1]
    speeds, unit = found["speeds"], "tokens/CPU-s"
    ours, packed, plain = (speeds[name] for name in ("finery", "trl_packed", "trl_default"))
    better = max(packed, plain)
    yield Row("fine-tuning, against the better of TRL's", ours, unit, better, "TRL packed")
    yield Row("fine-tuning, against TRL as it comes", ours, unit, plain, "TRL's defaults")
    yield Row("largest relative difference of a step's loss", found["loss_difference"])


def storage(text: str) -> Iterator[Row]:
    for said in text.splitlines():
        found = re.match(r"(.+?) {2,}([\d.]+) (MB/s|MB per second|MB)", said)
        if found:
            unit = "MB/CPU-s" if "per second" in found[3] else found[3]
            yield Row(f"blobs: {found[1]}", float(found[2]), unit)


PARTS = (
    Part("control", ["control.py", "--json"], ["control.py", "--json", "--quick"], rows_of),
    Part(
        "engine",
        ["engine.py", "--json"],
        ["engine.py", "--json", "--runs", "7"],
        named,
    ),
    Part(
        "tracking",
        ["tracking.py", "--json", "--client", str(CLIENT)],
        ["tracking.py", "--json", "--calls", "500", "--client", str(CLIENT)],
        tracking,
    ),
    Part(
        "fine-tuning",
        ["sft.py", "--json"],
        ["sft.py", "--json", "--rows", "64"],
        sft,
    ),
    Part("serving", ["serving.py", "--json"], ["serving.py", "--json"], serving),
    Part(
        "scoring",
        ["scoring.py", "--json"],
        ["scoring.py", "--json", "--rounds", "1", "--seconds", "1"],
        scoring,
    ),
    Part(
        "storage",
        ["storage.py", "--client", str(CLIENT)],
        ["storage.py", "--mib", "256", "--client", str(CLIENT)],
        storage,
    ),
)


# -- the page --------------------------------------------------------------------------


def verdict(row: Row) -> str:
    bound = BOUNDS.get(row.name)
    if bound is None:
        return ""
    value = row.value / row.peer if bound.ratio and row.peer else row.value
    reached = [value <= limit if bound.most else value >= limit for limit in bound[:2]]
    return "goal" if reached[1] else "gate" if reached[0] else "below the gate"


def line(row: Row) -> str:
    beside = f"  {row.peer_name}: {number(row.peer)} ({times(row)})" if row.peer else ""
    return f"{row.name:56s} {number(row.value):>10s} {row.unit:14s} {verdict(row):14s}{beside}"


def number(value: float) -> str:
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def times(row: Row) -> str:
    return f"{number(row.value / row.peer)} x" if row.peer else ""


def page(about: str, told: list[tuple[Part, list[Row]]], took: float, *, quick: bool) -> str:
    how = "make bench" + (" (--quick)" if quick else "")
    text = (
        "# Benchmarks\n\n"
        f"What `{how}` printed, all in one run of {took:.0f} s; nothing here is written by hand.\n"
        "A ratio is the figure divided by its peer's, both measured in this run. `gate` says that\n"
        "the figure holds what it must, `goal` that it reached what it should.\n\n"
        f"```\n{about}\n```\n"
    )
    for part, rows in told:
        text += f"\n## {part.name}\n\n`bench/{part.words[0]}` says what each figure is.\n\n"
        text += (
            "| figure | | | peer | | ratio | gate; goal | |\n|---|--:|---|---|--:|--:|--:|---|\n"
        )
        for row in rows:
            bound = BOUNDS.get(row.name)
            limits = f"{number(bound.gate)}; {number(bound.goal)}" if bound else ""
            cells = [row.name.strip(), number(row.value), row.unit, row.peer_name]
            cells += [number(row.peer) if row.peer else "", times(row), limits, verdict(row)]
            text += f"| {' | '.join(cells)} |\n"
    return text


def machine() -> str:
    """The machine, what is installed on it, and how busy it is now."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    total = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    memory = int(total[1]) / 2**20 if total else 0
    versions: list[Any] = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{len(os.sched_getaffinity(0))} cores, {model[1] if model else platform.machine()}, "
        f"{memory:.0f} GiB of memory, {platform.system()} {platform.release()}\n"
        f"Python {platform.python_version()}, {', '.join(versions)}\n"
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC; "
        f"load average at the start: {load}"
    )


if __name__ == "__main__":
    sys.exit(main())
