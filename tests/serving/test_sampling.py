from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import logits_process

from finery.serving import sampling
from finery.serving.sampling import Choice

SCORES = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])


def drawn(count: int = 4000, **choice: Any) -> Counter[int]:
    chance = random.Random(3)
    picked = Choice(**choice)
    return Counter(
        sampling.next_tokens(SCORES, [picked], [chance], histories=[[]])[0] for _ in range(count)
    )


@pytest.mark.parametrize(
    ("choice", "warper"),
    [
        ({"temperature": 1.0}, None),
        ({"temperature": 0.5}, logits_process.TemperatureLogitsWarper(0.5)),
        ({"temperature": 1.0, "top_k": 3}, logits_process.TopKLogitsWarper(3)),
        ({"temperature": 1.0, "top_p": 0.7}, logits_process.TopPLogitsWarper(0.7)),
    ],
    ids=["plain", "temperature", "top_k", "top_p"],
)
def test_tokens_are_as_frequent_as_transformers_makes_them_likely(
    choice: dict[str, Any], warper: Any
) -> None:
    scores = warper(None, SCORES.clone()) if warper else SCORES
    expected = scores.softmax(-1)[0].tolist()
    found = drawn(**choice)
    for token, share in enumerate(expected):
        assert found[token] / 4000 == pytest.approx(share, abs=0.03)
        assert share > 0 or not found[token]


def test_a_flat_vocabulary_larger_than_the_candidates_is_sorted_whole() -> None:
    size = 4 * sampling.CANDIDATES
    scores = torch.zeros(1, size)
    scores[0, :10] = 0.01
    chances = [random.Random(n) for n in range(400)]
    found = {
        sampling.next_tokens(
            scores, [Choice(temperature=1.0, top_p=0.9)], [chance], histories=[[]]
        )[0]
        for chance in chances
    }
    assert len(found) > 300, "nearly all different: none of the 90 % is left out"


def test_temperature_zero_takes_the_likeliest_beside_others_that_do_not() -> None:
    scores = SCORES.repeat(2, 1)
    choices = [Choice(), Choice(temperature=5.0)]
    found = set()
    for seed in range(50):
        chances = [random.Random(seed), random.Random(seed)]
        first, second = sampling.next_tokens(scores, choices, chances, histories=[[], []])
        assert first == 0
        found.add(second)
    assert len(found) > 3


def test_the_repetition_penalty_is_transformers_own() -> None:
    processor = logits_process.RepetitionPenaltyLogitsProcessor(2.5)
    history = [0, 4, 0]
    expected = int(processor(torch.tensor([history]), SCORES.clone()).argmax())
    found = sampling.next_tokens(
        SCORES, [Choice(repetition_penalty=2.5)], [random.Random()], histories=[history]
    )
    assert found == [expected] == [1]


def test_a_model_that_asks_for_what_is_not_done_is_told_by_name() -> None:
    assert sampling.unheeded(GenerationConfig()) == []
    asked = GenerationConfig(no_repeat_ngram_size=3, suppress_tokens=[7])
    assert sampling.unheeded(asked) == ["no_repeat_ngram_size", "suppress_tokens"]
    greedy = SimpleNamespace(do_sample=False, min_p=0.1)
    assert sampling.unheeded(greedy) == []
    assert sampling.unheeded(SimpleNamespace(do_sample=True, min_p=0.1)) == ["min_p"]
