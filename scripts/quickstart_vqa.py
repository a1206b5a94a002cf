"""`make quickstart-vqa`: the Florence-2 guide from its data to deleting the endpoint.

Starts a private server on free ports, runs the scripts of `examples/florence2_vqa`
with the official packages only (an environment that has nothing of Finery in it),
ends the server and prints what was reached.  Ends badly when the model that was
trained does not read held-back documents.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PLACE = ROOT / ".quickstart-vqa"
GUIDE = ROOT / "examples" / "florence2_vqa"
FINERY = ROOT / ".venv" / "bin" / "finery"
PYTHON = ROOT / ".venv-sdk" / "bin" / "python"
STEPS = (
    ("prepare_data.py", "Draw documents with questions, register them as a data asset"),
    ("train.py", "Train Florence-2's stand-in with the guide's own script, register the model"),
    ("serve.py", "Put it behind an online endpoint with the guide's own score.py"),
    ("evaluate.py", "Ask the endpoint about documents that no training saw"),
    ("benchmark.py", "Measure it: one caller, then several at once"),
    ("clean_up.py", "Delete the endpoint"),
)
LEAST = 0.85  # ANLS on held-back documents


def main() -> int:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    home, started = PLACE / "home", time.monotonic()
    times: list[tuple[str, float]] = []
    with (PLACE / "server.log").open("w") as log:
        server = subprocess.Popen(
            [FINERY, "up", "--home", home, "--port", "0", "--tls-port", "0", "--models", "tiny"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            address = _ready(server)
            times.append(("Start the server", time.monotonic() - started))
            print(f"Server: {address} (a private one, home {home})\n", flush=True)
            for script, said in STEPS:
                _step(home, script, said, times)
            state = json.loads((PLACE / "florence2_vqa_state.json").read_text())
        finally:
            subprocess.run([FINERY, "down", "--home", home], stdout=subprocess.DEVNULL)
            server.wait(timeout=60)
    _report(state, times, time.monotonic() - started)
    return _verdict(state)


def _ready(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("ready:"):
            return line.split()[1]
    raise SystemExit(f"quickstart: the server did not start; see {PLACE / 'server.log'}")


def _step(home: Path, script: str, said: str, times: list[tuple[str, float]]) -> None:
    print(f"== {said}\n   finery run -- python examples/florence2_vqa/{script}", flush=True)
    began = time.monotonic()
    command = [FINERY, "run", "--home", home, "--", PYTHON, GUIDE / script]
    quiet = {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=PLACE, env={**os.environ, **quiet})
    if done.returncode:
        raise SystemExit(
            f"quickstart: {script} failed (exit status {done.returncode}); the server's log is "
            f"{home / 'logs/server.log'}"
        )
    times.append((said, time.monotonic() - began))
    print(f"   {times[-1][1]:.1f} s\n", flush=True)


def _report(state: dict[str, Any], times: list[tuple[str, float]], total: float) -> None:
    metrics = state["metrics"]
    print("Base and tuned model on held-back documents (the model is a small stand-in):\n")
    print(f"  {'':<36}{'base':>9}{'tuned':>9}{'endpoint':>11}")
    for name, said, form in (("anls", "ANLS", "{:.3f}"), ("exact_match", "exact match", "{:.0%}")):
        row = [metrics[f"base_{name}"], metrics[f"test_{name}"], state[f"endpoint_{name}"]]
        base, tuned, served = (form.format(value) for value in row)
        print(f"  {said:<36}{base:>9}{tuned:>9}{served:>11}")
    print("\nThe endpoint's answers, times in seconds:\n")
    names = list(state["benchmark"][0])
    print("  " + "".join(f"{name:>12}" for name in names))
    for row in state["benchmark"]:
        print(f"  {row['threads']:>12}" + "".join(f"{row[name]:>12.3f}" for name in names[1:]))
    print("\nTime, in seconds:\n")
    for said, seconds in times:
        print(f"  {said:<78}{seconds:>6.1f}")
    print(f"  {'Everything':<78}{total:>6.1f}")
    print(
        "\nThe server is down again; what it made is kept. To look at it:\n\n"
        f"  .venv/bin/finery up --home {PLACE.relative_to(ROOT)}/home --models tiny\n\n"
        "then open http://127.0.0.1:8480 and log in with the key in\n"
        f"{PLACE.relative_to(ROOT)}/home/admin.key. The training is\n\n"
        f"  http://127.0.0.1:8480/studio/jobs/{state['job']}\n\n"
        "and /mlflow has its charts and the pages with the model's answers, by step, and the\n"
        "benchmark as a run below it.\n"
    )


def _verdict(state: dict[str, Any]) -> int:
    """Refuse to end well when nothing was learned, or it was lost on the way to the endpoint."""
    base, tuned = state["metrics"]["base_anls"], state["metrics"]["test_anls"]
    if base < 0.3 and tuned > LEAST and state["endpoint_anls"] > LEAST:
        return 0
    print(
        f"quickstart: ANLS went from {base:.3f} to {tuned:.3f}, {state['endpoint_anls']:.3f} at "
        f"the endpoint; more than {LEAST} was to be reached",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
