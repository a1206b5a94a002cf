"""A guide of `examples/` from its first step to its last, on a server of its own.

What `quickstart.py` and `quickstart_vqa.py` share: they say which steps there
are, what was reached and whether that is enough.  The steps run with the
official packages only, in an environment that has nothing of Finery in it.
While a step is silent, what its job wrote last is shown: the SDK asks ever
more rarely, and of a pipeline's steps it tells no more than their names.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FINERY = ROOT / ".venv" / "bin" / "finery"
PYTHON = ROOT / ".venv-sdk" / "bin" / "python"
QUIET = {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
WIDTH = 78  # of what a line says before its seconds
SILENCE = 10.0  # seconds without a line, after which the job's own is shown
HEADING = re.compile(r"^==> (.+) \((\w+)\) <==\n", re.M)  # of `finery job logs`


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A folder of `examples/`, its scripts in their order, each with what it does."""

    name: str
    steps: tuple[tuple[str, str], ...]
    place: Path  # where it runs, emptied first; the home is in it

    @property
    def state(self) -> dict[str, Any]:
        """What the steps wrote down of themselves."""
        read: dict[str, Any] = json.loads((self.place / f"{self.name}_state.json").read_text())
        return read


def run(guide: Guide) -> list[tuple[str, float]]:
    """Run every step; return what was done and the seconds it took, the sum last.

    Raises `SystemExit` with the reason where a step fails.  The server is ended in any case.
    """
    shutil.rmtree(guide.place, ignore_errors=True)
    guide.place.mkdir()
    home, started = guide.place / "home", time.monotonic()
    times: list[tuple[str, float]] = []
    with (guide.place / "server.log").open("w") as log:
        server = subprocess.Popen(
            [FINERY, "up", "--home", home, "--port", "0", "--tls-port", "0", "--models", "tiny"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            address = _ready(guide, server)
            times.append(("Start the server", time.monotonic() - started))
            print(f"Server: {address} (a private one, home {home})\n", flush=True)
            for script, said in guide.steps:
                times.append((said, _step(guide, script, said)))
        finally:
            subprocess.run([FINERY, "down", "--home", home], stdout=subprocess.DEVNULL)
            server.wait(timeout=60)
    return [*times, ("Everything", time.monotonic() - started)]


def told(guide: Guide, times: list[tuple[str, float]]) -> None:
    """Print the time that each step took, and where what was made can be looked at."""
    print("\nTime, in seconds:\n")
    for said, seconds in times:
        print(f"  {said:<{WIDTH}}{seconds:>6.1f}")
    home = guide.place.relative_to(ROOT) / "home"
    print(
        "\nThe server is down again; what it made is kept. To look at it:\n\n"
        f"  .venv/bin/finery up --home {home} --models tiny\n"
        f"  .venv/bin/finery job list --home {home}\n\n"
        f"then open http://127.0.0.1:8480 and log in with the key in\n{home}/admin.key.\n"
    )


def _ready(guide: Guide, server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("ready:"):
            return line.split()[1]
    raise SystemExit(f"quickstart: the server did not start; see {guide.place / 'server.log'}")


def _step(guide: Guide, script: str, said: str) -> float:
    print(f"== {said}\n   finery run -- python examples/{guide.name}/{script}", flush=True)
    began, home = time.monotonic(), guide.place / "home"
    file = ROOT / "examples" / guide.name / script
    command = [FINERY, "run", "--home", home, "--", PYTHON, file]
    surroundings = {**os.environ, **QUIET}
    with subprocess.Popen(
        command,
        cwd=guide.place,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as step:
        assert step.stdout is not None
        _show(step.stdout.fileno(), home)
    if step.returncode:
        raise SystemExit(
            f"quickstart: {script} failed (exit status {step.returncode}); the server's log is "
            f"{home / 'logs/server.log'}"
        )
    seconds = time.monotonic() - began
    print(f"   {seconds:.1f} s\n", flush=True)
    return seconds


def _show(output: int, home: Path) -> None:
    """Print what a step writes until it ends, and in its silences how far its job is.

    On a terminal that is one line, written over; elsewhere a line each time.
    """
    terminal = sys.stdout.isatty()
    before, after = ("\r\033[K", "") if terminal else ("", "\n")
    pause, spoke = SILENCE, time.monotonic()
    while True:
        if select.select([output], [], [], pause)[0]:
            written = os.read(output, 65536)
            sys.stdout.buffer.write(before.encode() * (pause < SILENCE) + written)
            sys.stdout.buffer.flush()
            pause, spoke = SILENCE, time.monotonic()
            if not written:
                return
        else:
            line = f"   … {time.monotonic() - spoke:.0f} s  {last_line(home)}".rstrip()
            room = shutil.get_terminal_size().columns - 1 if terminal else len(line)
            if len(line) > room:  # how much time is left is said at its end
                line = f"{line[: room - 22]}… {line[-20:]}"
            print(before + line, end=after, flush=True)
            pause = 2.0 if terminal else SILENCE


def last_line(home: Path) -> str:
    """Return what the newest job, or the step of it that runs, wrote last; "" if it has ended."""
    try:
        jobs = json.loads(_finery("job", "list", "--limit", "1", "--json", "--home", home))
        if not jobs or jobs[0]["status"] in ("completed", "failed", "cancelled"):
            return ""
        log = _finery("job", "logs", jobs[0]["name"], "--home", home)
    except (subprocess.SubprocessError, ValueError):
        return ""  # the step itself says what is wrong
    own, *parts = HEADING.split(log)
    steps = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    running = [text.strip() or name for name, status, text in steps if status == "running"]
    text = running[-1] if running else own.strip() or str(jobs[0]["status"])
    return text.split("\n")[-1].strip()


def _finery(*words: str | Path) -> str:
    done = subprocess.run([FINERY, *words], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout
