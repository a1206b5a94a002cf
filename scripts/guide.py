"""A guide of `examples/` from its first step to its last, on a server of its own.

What `quickstart.py` and `quickstart_vqa.py` share: they say which steps there
are, what was reached and whether that is enough.  The steps run with the
official packages only, in an environment that has nothing of Finery in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FINERY = ROOT / ".venv" / "bin" / "finery"
PYTHON = ROOT / ".venv-sdk" / "bin" / "python"
QUIET = {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
WIDTH = 78  # of what a line says before its seconds


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
    done = subprocess.run(command, cwd=guide.place, env={**os.environ, **QUIET})
    if done.returncode:
        raise SystemExit(
            f"quickstart: {script} failed (exit status {done.returncode}); the server's log is "
            f"{home / 'logs/server.log'}"
        )
    seconds = time.monotonic() - began
    print(f"   {seconds:.1f} s\n", flush=True)
    return seconds
