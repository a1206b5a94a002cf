"""Does the stand-in learn the quickstart's dataset? Runs the recipes by hand and prints how well.

    python standins/phi3/learn.py [--model FOLDER] [--set learning_rate=0.004 ...]

Import, preprocess and finetune are the processes that the pipeline starts, with the parameters of
examples/phi3_chat/config.json; then base and tuned model answer every held-back question, and an
answer counts when it contains the fact. No server takes part.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "phi3_chat"
STANDIN = ROOT / "src" / "finery" / "catalog" / "standins" / "phi3"
GENERAL = [
    "Hello!",
    "What is a lighthouse?",
    "Tell me a story about an owl.",
    "How do I make soup?",
]


def recipe(name: str, **flags: object) -> str:
    """Runs one recipe; what it took by the clock, and of the processors (they may be shared)."""
    words = [f"--{key}={value}" for key, value in flags.items()]
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    start, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", f"finery.recipes.{name}", *words],
        check=True,
        env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{name} {time.time() - start:.1f} s ({spent:.1f} s of CPU)"


def answers(folder: Path, prompts: list[list[dict[str, str]]]) -> list[str]:
    import torch

    from finery import checkpoint

    tok = checkpoint.tokenizer(folder)
    model: Any = checkpoint.load(folder, dtype="float32")
    tok.padding_side = "left"
    texts = [
        tok.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts
    ]
    found: list[str] = []
    for at in range(0, len(texts), 32):
        batch = tok(
            texts[at : at + 32], return_tensors="pt", padding=True, add_special_tokens=False
        )
        with torch.no_grad():
            made = model.generate(**batch, max_new_tokens=48, do_sample=False)
        found += tok.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in found]


def score(folder: Path, rows: list[dict[str, Any]], facts: dict[str, Any], *, show: bool) -> str:
    found = answers(folder, [row["messages"][:-1] for row in rows])
    right = exact = 0
    for row, answer in zip(rows, found, strict=True):
        good = facts[row["prompt_id"]]["contains"] in answer
        right, exact = right + good, exact + (answer == row["messages"][-1]["content"])
        if show and not good:
            print(f"  wrong: {row['prompt']} -> {answer}")
    return f"right {right}/{len(rows)}, word for word {exact}/{len(rows)}"


def main() -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    flags.add_argument("--model", type=Path, default=STANDIN)
    flags.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    given = flags.parse_args()
    config = json.loads((EXAMPLE / "config.json").read_text())
    parameters = {**config["finetune_parameters"], **dict(s.split("=", 1) for s in given.set)}
    train, test = (EXAMPLE / config["data"][split] for split in ("train", "test"))
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    facts = json.loads((EXAMPLE / config["data"]["facts"]).read_text())
    with tempfile.TemporaryDirectory() as kept:
        work = Path(kept)
        took = [
            recipe("model_import", mlflow_model_path=given.model, output_dir=work / "base"),
            recipe(
                "preprocess",
                model_selector_output=work / "base",
                train_file_path=train,
                test_file_path=test,
                output_dir=work / "rows",
            ),
            recipe(
                "finetune",
                model_selector_output=work / "base",
                preprocess_output=work / "rows",
                pytorch_model_folder=work / "tuned",
                **parameters,
            ),
        ]
        print(", ".join(took))
        print("base : " + score(work / "base", rows, facts, show=False))
        print("tuned: " + score(work / "tuned", rows, facts, show=True))
        for folder in ("base", "tuned"):
            for text in answers(work / folder, [[{"role": "user", "content": q}] for q in GENERAL]):
                print(f"{folder}: {text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
