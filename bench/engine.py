"""How long it takes from asking the local engine for a process to its first line.

`python bench/engine.py [--json] [--runs N]`: a shell that starts Python, beside
the same without an engine; a program that imports the training stack, cold and
forked from the warm parent; and how many trivial processes a second go through.
Wall time, medians: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from finery.core.compute import Process
from finery.engines import local
from finery.engines.local import LocalEngine

LINE = ["bash", "-c", "python -c 'import time; print(\"at\", time.time())'"]
STACK = """
import torch
from transformers import Phi3Config, Phi3ForCausalLM, Trainer
from trl import SFTConfig, SFTTrainer
import peft, datasets, time
print("at", time.time(), flush=True)
torch.set_num_threads(1)
model = Phi3ForCausalLM(Phi3Config(vocab_size=512, hidden_size=64, intermediate_size=128,
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0))
x = torch.randint(3, 500, (2, 64))
model(input_ids=x, labels=x).loss.backward()
torch.optim.AdamW(model.parameters()).step()
print("at", time.time(), flush=True)
"""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--json", action="store_true")
    words.add_argument("--runs", type=int, default=15)
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "program.py").write_text(STACK)
        engine = LocalEngine(home)
        try:
            rows = list(measure(engine, home, asked.runs))
        finally:
            engine.close()
    if asked.json:
        print(json.dumps(dict(rows), indent=1))
        return
    for name, value in rows:
        print(f"{name:56s} {value:10.4g}")


def measure(engine: LocalEngine, home: Path, runs: int) -> Iterable[tuple[str, float]]:
    bare = statistics.median(one_bare() for _ in range(runs))
    kept = statistics.median(lines(engine, home, LINE)[0] for _ in range(runs))
    yield "shell and Python, no engine: first line, ms", bare * 1e3
    yield "shell and Python, engine: first line, ms", kept * 1e3
    yield "  the engine's part, ms", (kept - bare) * 1e3
    program = [sys.executable, "-m", "program"]
    cold = [lines(engine, home, program) for _ in range(3)]
    yield "training stack, cold: first line, ms", middle(cold, 0)
    yield "training stack, cold: first step, ms", middle(cold, 1)
    begun = time.time()
    engine.warm_up()
    while not engine._warm.ready():
        time.sleep(0.01)
    yield "the warm parent is ready after, s", time.time() - begun
    warm = [lines(engine, home, program, warm=True) for _ in range(runs)]
    yield "training stack, warm: first line, ms", middle(warm, 0)
    yield "training stack, warm: first step, ms", middle(warm, 1)
    yield "trivial processes per second, one after the other", rate(engine, home, 40, at_once=1)
    yield "trivial processes per second, eight at once", rate(engine, home, 80, at_once=8)


def one_bare() -> float:
    begun = time.time()
    told = subprocess.run(LINE, stdout=subprocess.PIPE, check=True, env=local.base(os.environ))
    return float(told.stdout.split()[1]) - begun


def lines(
    engine: LocalEngine, home: Path, command: list[str], *, warm: bool = False
) -> list[float]:
    """Seconds from the wish to each line that says when it was written."""
    id = f"p{os.urandom(6).hex()}"
    process = Process(id=id, command=command, cwd=home, log=home / f"{id}.txt", warm=warm)
    begun = time.time()
    engine.start(process)
    wait(engine, {id}, 1)
    assert engine.report(id).exit_code == 0, engine.log(id).decode()
    said = [line.split() for line in engine.log(id).decode().splitlines()]
    return [float(words[1]) - begun for words in said if words[:1] == ["at"]]


def rate(engine: LocalEngine, home: Path, count: int, *, at_once: int) -> float:
    begun = time.time()
    live: set[str] = set()
    for _ in range(count):
        id = f"p{os.urandom(6).hex()}"
        engine.start(Process(id=id, command=["true"], cwd=home, log=home / f"{id}.txt"))
        live = wait(engine, live | {id}, at_once)
    wait(engine, live, 1)
    return count / (time.time() - begun)


def wait(engine: LocalEngine, live: set[str], fewer_than: int) -> set[str]:
    """Until fewer than so many run; those that do."""
    while len(live) >= fewer_than:
        live = {id for id in live if engine.report(id).state != "exited"}
        time.sleep(0.001)
    return live


def middle(found: list[list[float]], line: int) -> float:
    return statistics.median(times[line] for times in found) * 1e3


if __name__ == "__main__":
    main()
