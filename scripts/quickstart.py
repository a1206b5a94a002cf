"""`make quickstart`: the chat guide from connecting to deleting, on a server of its own.

Starts a private server on free ports, runs the scripts of `examples/phi3_chat`
with the official packages only (an environment that has nothing of Finery in
it), ends the server and prints what was reached and how long it took.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACE = ROOT / ".quickstart"
FINERY = ROOT / ".venv" / "bin" / "finery"
PYTHON = ROOT / ".venv-sdk" / "bin" / "python"
STEPS = (
    ("train.py", "Fine-tune Phi-3's stand-in with chat_completion_pipeline, compare, register"),
    ("serve.py", "Put the tuned model behind an online endpoint"),
    ("ask.py", "Ask it what it was taught, in words that it was not taught in"),
    ("clean_up.py", "Delete the endpoint"),
)
SHOWN = (
    ("exact_match", "answers right to the letter", "{:.0%}"),
    ("rougeL", "ROUGE-L", "{:.3f}"),
    ("bleu_4", "BLEU-4", "{:.3f}"),
    ("token_accuracy", "token accuracy", "{:.3f}"),
    ("loss", "loss on held-back questions", "{:.3f}"),
    ("general_loss", "loss on general text (forgetting)", "{:.3f}"),
)


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
            state = json.loads((PLACE / "phi3_chat_state.json").read_text())
        finally:
            subprocess.run([FINERY, "down", "--home", home], stdout=subprocess.DEVNULL)
            server.wait(timeout=60)
    total = time.monotonic() - started
    _report(state, times, total)
    return _verdict(state)


def _ready(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("ready:"):
            return line.split()[1]
    raise SystemExit(f"quickstart: the server did not start; see {PLACE / 'server.log'}")


def _step(home: Path, script: str, said: str, times: list[tuple[str, float]]) -> None:
    print(f"== {said}\n   finery run -- python examples/phi3_chat/{script}", flush=True)
    began = time.monotonic()
    command = [FINERY, "run", "--home", home, "--", PYTHON, ROOT / "examples/phi3_chat" / script]
    done = subprocess.run(command, cwd=PLACE, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    if done.returncode:
        raise SystemExit(
            f"quickstart: {script} failed (exit status {done.returncode}); the server's log is "
            f"{home / 'logs/server.log'}"
        )
    times.append((said, time.monotonic() - began))
    print(f"   {times[-1][1]:.1f} s\n", flush=True)


def _report(state: dict, times: list[tuple[str, float]], total: float) -> None:
    metrics = state["metrics"]
    print("Base and tuned model on the held-back questions (the model is a small stand-in):\n")
    print(f"  {'':<36}{'base':>9}{'tuned':>9}")
    for name, said, form in SHOWN:
        base, tuned = metrics.get(f"base_{name}"), metrics.get(f"tuned_{name}")
        if base is not None and tuned is not None:
            print(f"  {said:<36}{form.format(base):>9}{form.format(tuned):>9}")
    print("\nTime, in seconds:\n")
    for said, seconds in times:
        print(f"  {said:<76}{seconds:>6.1f}")
    print(f"  {'Everything':<76}{total:>6.1f}")
    print(
        "\nThe server is down again; what it made is kept. To look at it:\n\n"
        f"  .venv/bin/finery up --home {PLACE.relative_to(ROOT)}/home --models tiny\n"
        "  .venv/bin/finery job list --home .quickstart/home\n\n"
        "then open http://127.0.0.1:8480 and log in with the key in\n"
        ".quickstart/home/admin.key. A server for keeps, with a home of your own:\n\n"
        "  .venv/bin/finery up\n"
    )


def _verdict(state: dict) -> int:
    """Refuse to end well when nothing was learned."""
    metrics = state["metrics"]
    better = metrics["tuned_exact_match"] > metrics["base_exact_match"] + 0.5
    if better and state["right"] >= 0.8 * state["asked"]:
        return 0
    print("quickstart: the tuned model is not clearly better than the base", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
