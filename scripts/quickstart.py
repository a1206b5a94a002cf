"""`make quickstart`: the chat guide from connecting to deleting, on a server of its own.

Runs the scripts of `examples/phi3_chat` (`guide.py`) and prints what was
reached.  Ends badly when nothing was learned.
"""

from __future__ import annotations

import sys
from typing import Any

import guide
from guide import Guide

CHAT = Guide(
    name="phi3_chat",
    place=guide.ROOT / ".quickstart",
    steps=(
        ("train.py", "Fine-tune Phi-3's stand-in with chat_completion_pipeline, compare, register"),
        ("serve.py", "Put the tuned model behind an online endpoint"),
        ("ask.py", "Ask it what it was taught, in words that it was not taught in"),
        ("clean_up.py", "Delete the endpoint"),
    ),
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
    times = guide.run(CHAT)
    metrics = CHAT.state["metrics"]
    print("Base and tuned model on the held-back questions (the model is a small stand-in):\n")
    print(f"  {'':<36}{'base':>9}{'tuned':>9}")
    for name, said, form in SHOWN:
        base, tuned = metrics.get(f"base_{name}"), metrics.get(f"tuned_{name}")
        if base is not None and tuned is not None:
            print(f"  {said:<36}{form.format(base):>9}{form.format(tuned):>9}")
    guide.told(CHAT, times)
    print("A server for keeps, with a home of your own:\n\n  .venv/bin/finery up\n")
    return verdict(CHAT.state)


def verdict(state: dict[str, Any]) -> int:
    """Refuse to end well when nothing was learned."""
    metrics = state["metrics"]
    better = metrics["tuned_exact_match"] > metrics["base_exact_match"] + 0.5
    if better and state["right"] >= 0.8 * state["asked"]:
        return 0
    print("quickstart: the tuned model is not clearly better than the base", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
