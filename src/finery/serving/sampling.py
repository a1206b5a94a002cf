"""The next token of each conversation, from the model's scores.

The order and meaning of what is applied are transformers' own (repetition
penalty, temperature, top_k, top_p), so that greedy answers are those of
`generate`.  Chance comes from a generator per conversation, never from a shared
one: the same seed gives the same answer whoever else is being answered.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

# Fields of a generation configuration that change which token comes next, and the values at
# which they do not.  A model that asks for one of these is refused at the start, by name.
UNHEEDED: dict[str, tuple[Any, ...]] = {
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None, {}),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0.0),
    "watermarking_config": (None,),
}
UNHEEDED_WHEN_SAMPLING: dict[str, tuple[Any, ...]] = {
    "typical_p": (None, 1.0),
    "min_p": (None, 0.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
}
CANDIDATES = 512  # tokens that are sorted first; all are only when these do not fill top_p


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a conversation's tokens are chosen.  `temperature` 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    seed: int | None = None
    repetition_penalty: float = 1.0


def unheeded(settings: Any) -> list[str]:
    """Names of what a transformers generation configuration asks for and is not done here."""
    fields = dict(UNHEEDED)
    if settings.do_sample:
        fields |= UNHEEDED_WHEN_SAMPLING
    return [name for name, off in fields.items() if getattr(settings, name, None) not in off]


def next_tokens(
    scores: torch.Tensor,
    choices: list[Choice],
    chances: list[random.Random],
    *,
    histories: list[list[int]],
) -> list[int]:
    """One token per row of `scores` [rows, vocabulary]; `histories` are the tokens so far."""
    if any(choice.repetition_penalty != 1.0 for choice in choices):
        scores = _penalised(scores, choices, histories)
    tokens: list[int] = scores.argmax(dim=-1).tolist()
    for row, choice in enumerate(choices):
        if choice.temperature > 0:
            tokens[row] = _drawn(scores[row].float(), choice, chances[row].random())
    return tokens


def _penalised(
    scores: torch.Tensor, choices: list[Choice], histories: list[list[int]]
) -> torch.Tensor:
    # In float32 as transformers does it, since bfloat16 would make ties of near neighbours.
    scores = scores.float().clone()
    for row, (choice, history) in enumerate(zip(choices, histories, strict=True)):
        if choice.repetition_penalty == 1.0:
            continue
        seen = torch.tensor(sorted(set(history)), device=scores.device)
        held = scores[row, seen]
        penalty = choice.repetition_penalty
        scores[row, seen] = torch.where(held < 0, held * penalty, held / penalty)
    return scores


def _drawn(scores: torch.Tensor, choice: Choice, chance: float) -> int:
    scores = scores / choice.temperature
    if choice.top_k == 0 and choice.top_p >= 1.0:
        return _at(scores.softmax(dim=-1), chance)
    size = scores.shape[-1]
    wanted = min(choice.top_k or CANDIDATES, size)
    likely, tokens = scores.topk(wanted)
    if choice.top_k:
        shares = likely.softmax(dim=-1)
    else:
        shares = (likely - scores.logsumexp(dim=-1)).exp()
        if wanted < size and float(shares.sum()) < choice.top_p:
            likely, tokens = scores.sort(descending=True)
            shares = likely.softmax(dim=-1)
    if choice.top_p < 1.0:
        before = shares.cumsum(dim=-1) - shares
        shares = shares[: max(1, int((before < choice.top_p).sum()))]
    return int(tokens[_at(shares / shares.sum(), chance)])


def _at(shares: torch.Tensor, chance: float) -> int:
    """The index at which the running sum of `shares` passes `chance`."""
    sums = shares.double().cumsum(dim=-1)
    return min(int((sums <= chance * sums[-1]).sum()), shares.shape[-1] - 1)
