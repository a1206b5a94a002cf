"""`make quickstart-vqa`: the Florence-2 guide from its data to deleting the endpoint.

Runs the scripts of `examples/florence2_vqa` (`guide.py`) and prints what was
reached.  Ends badly when the model that was trained does not read held-back
documents.
"""

from __future__ import annotations

import sys
from typing import Any

import guide
from guide import Guide

PICTURES = Guide(
    name="florence2_vqa",
    place=guide.ROOT / ".quickstart-vqa",
    steps=(
        ("prepare_data.py", "Draw documents with questions, register them as a data asset"),
        ("train.py", "Train Florence-2's stand-in with the guide's own script, register the model"),
        ("serve.py", "Put it behind an online endpoint with the guide's own score.py"),
        ("evaluate.py", "Ask the endpoint about documents that no training saw"),
        ("benchmark.py", "Measure it: one caller, then several at once"),
        ("clean_up.py", "Delete the endpoint"),
    ),
)
LEAST = 0.85  # ANLS on held-back documents


def main() -> int:
    times = guide.run(PICTURES)
    state = PICTURES.state
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
    guide.told(PICTURES, times)
    print(
        f"The training is\n\n  http://127.0.0.1:8480/studio/jobs/{state['job']}\n\n"
        "its charts, the pages with the model's answers by step, and the benchmark as a run\n"
        "below it are in MLflow:\n\n"
        "  http://127.0.0.1:8480/mlflow/#/experiments?workflowType=machine_learning\n"
    )
    return verdict(state)


def verdict(state: dict[str, Any]) -> int:
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
