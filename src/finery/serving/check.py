"""The self-check: does the engine say what transformers' own `generate` says?

Run once before a chat deployment is ready, on a few prompts: each is answered by
`generate` alone and by the engine while the others are being answered too.  At
temperature 0 the tokens must be the same.  Where rounding makes two tokens equally
likely (in bfloat16 it can), either is right; anything else ends the process, since a
deployment that answers something else than its model is worse than none.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finery.serving import fields
from finery.serving.engine import Conversation, End, Engine
from finery.serving.fields import Messages
from finery.serving.sampling import Choice
from finery.serving.spec import BadSpec
from finery.serving.wire import Refusal

MOST_ROWS = 8
BUILT_IN: list[Messages] = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "user", "content": "What is the capital of France? Answer in one word."}],
    [
        {"role": "user", "content": "My order has not arrived. I paid for it two weeks ago."},
        {"role": "assistant", "content": "I am sorry. Which order is it?"},
        {
            "role": "user",
            "content": "The blue lamp. Please say what happens next, in steps.",
        },
    ],
]


class Differs(Exception):
    """The engine and `generate` disagree."""


@dataclass(kw_only=True)
class Result:
    """What came of the check."""

    prompts: int
    tokens: int
    ties: int  # prompts where rounding chose between two equally likely tokens

    def __str__(self) -> str:
        said = f"checked {self.prompts} prompts, {self.tokens} tokens: "
        if not self.ties:
            return said + "identical"
        return said + f"identical but for {self.ties} where two tokens are equally likely"


def rows(path: str) -> list[Messages]:
    """The conversations of a file of JSON lines, each up to the last thing that a user says."""
    if not path:
        return BUILT_IN
    found: list[Messages] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            conversation = fields.messages(json.loads(line)["messages"], "messages")
        except (ValueError, KeyError, TypeError, Refusal) as error:
            raise BadSpec(f"checks: {path} line {number}: {error}") from error
        while conversation and conversation[-1]["role"] != "user":
            conversation.pop()
        if conversation:
            found.append(conversation)
        if len(found) == MOST_ROWS:
            break
    return found


def run(model: Any, engine: Engine, prompts: list[list[int]], *, tokens: int) -> Result:
    """Compare `tokens` tokens for each prompt; Differs says where and how."""
    expected = [reference(model, prompt, tokens) for prompt in prompts]
    answers = list(_answered(engine, prompts, tokens, settings=model.generation_config))
    ties = 0
    for prompt, right, got in zip(prompts, expected, answers, strict=True):
        if got != right:
            _must_tie(model, prompt, right, got)
            ties += 1
    return Result(prompts=len(prompts), tokens=sum(map(len, expected)), ties=ties)


def reference(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """What `generate` gives for one prompt alone, at temperature 0."""
    settings = copy.deepcopy(model.generation_config)
    settings.update(do_sample=False, temperature=None, top_p=None, top_k=None, min_p=None)
    settings.update(max_new_tokens=tokens, max_length=None)
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    found: list[int] = made[0, len(prompt) :].tolist()
    return found


@dataclass
class _Waited:
    """A conversation that a thread waits for."""

    began: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    message: str = ""

    def take(self, token: int) -> bool:
        self.began.set()
        return False

    def ended(self, end: End, message: str) -> None:
        if end == "error":
            self.message = message
        self.began.set()
        self.over.set()


def _answered(
    engine: Engine, prompts: list[list[int]], tokens: int, *, settings: Any
) -> Iterator[list[int]]:
    """The engine's answers; the others join while the first runs, as in service."""
    choice = Choice(repetition_penalty=settings.repetition_penalty or 1.0)
    under_way: list[tuple[Conversation, _Waited]] = []
    for prompt in prompts:
        waited = _Waited()
        conversation = Conversation(
            prompt=prompt, max_new=tokens, choice=choice, take=waited.take, ended=waited.ended
        )
        engine.submit(conversation)
        if not under_way:
            waited.began.wait()
        under_way.append((conversation, waited))
    for conversation, waited in under_way:
        waited.over.wait()
        if waited.message:
            raise Differs(f"the engine failed where generate did not: {waited.message}")
        yield conversation.tokens


def _must_tie(model: Any, prompt: list[int], right: list[int], got: list[int]) -> None:
    """Differs, unless at the first difference both tokens are as likely as rounding can tell."""
    at = next(i for i in range(len(right) + 1) if right[i : i + 1] != got[i : i + 1])
    if at < min(len(right), len(got)):
        ids = torch.tensor([prompt + right[:at]], device=model.device)
        with torch.inference_mode():
            scores = model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
        gap = float((scores[right[at]] - scores[got[at]]).abs())
        allowed = 16 * torch.finfo(model.dtype).eps * (1 + float(scores.abs().max()))
        if model.dtype == torch.float32:
            allowed = 1e-4 * (1 + float(scores.abs().max()))
        if gap <= allowed:
            return
    raise Differs(
        f"a prompt of {len(prompt)} tokens: generate gives {right[at : at + 5]} at token {at},"
        f" the engine {got[at : at + 5]}; this model cannot be served by this engine"
    )
