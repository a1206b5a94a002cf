"""The engine, on a real (tiny) model: what is tested is that its numbers are generate's own."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finery.serving import check
from finery.serving.engine import Conversation, Engine
from finery.serving.sampling import Choice


class Asked:
    """A conversation and what came of it; ends are waited for."""

    def __init__(self, prompt: list[int], max_new: int, **choice: Any) -> None:
        self.over = threading.Event()
        self.began = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.end = ""
        self.message = ""
        self.conversation = Conversation(
            prompt=prompt,
            max_new=max_new,
            choice=Choice(**choice),
            take=self.take,
            ended=self.ended,
        )

    def take(self, token: int) -> bool:
        self.began.set()
        assert self.go.wait(120)
        return False

    def held(self) -> Asked:
        """Have its first token hold up the whole engine until `go` is set."""
        self.go.clear()
        return self

    def ended(self, end: str, message: str) -> None:
        self.end, self.message = end, message
        self.began.set()
        self.over.set()

    def tokens(self) -> list[int]:
        assert self.over.wait(120)
        return self.conversation.tokens


Start = Callable[..., Engine]
Build = Callable[..., Any]


@pytest.fixture
def start() -> Iterator[Start]:
    engines: list[Engine] = []

    def make(model: Any, *, max_batch: int = 4, max_cells: int = 4096, eos: Any = (5, 2)) -> Engine:
        engine = Engine(model, eos=frozenset(eos), max_batch=max_batch, max_cells=max_cells)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


def prompts(count: int, *, lengths: tuple[int, ...] = (3, 9, 40, 100)) -> list[list[int]]:
    chance = random.Random(count)
    return [[chance.randrange(8, 270) for _ in range(chance.choice(lengths))] for _ in range(count)]


@pytest.mark.parametrize("window", [None, 24], ids=["full attention", "sliding window"])
def test_answers_given_together_are_those_of_generate_alone(
    start: Start, build: Build, window: int | None
) -> None:
    model = build(sliding_window=window)
    engine = start(model)
    lengths = [1, 4, 25, 60]
    asked = [Asked(p, lengths[i % 4]) for i, p in enumerate(prompts(16))]
    asked[0].held()
    for one in asked:  # most of them join while others are in the middle
        engine.submit(one.conversation)
    asked[0].go.set()
    for one in asked:
        expected = check.reference(model, one.conversation.prompt, one.conversation.max_new)
        assert one.tokens() == expected
    assert engine.counts.row_steps > 1.5 * engine.counts.steps, "they were not answered together"


def test_a_longer_prompt_may_join_shorter_ones(start: Start, model: Any) -> None:
    engine = start(model, eos=())
    short, long = prompts(2, lengths=(5,))[0], prompts(2, lengths=(150,))[1]
    first = Asked(short, 60).held()
    engine.submit(first.conversation)
    assert first.began.wait(120)
    second = Asked(long, 10)
    engine.submit(second.conversation)
    first.go.set()
    alone = Asked(short, 60), Asked(long, 10)
    found = first.tokens(), second.tokens()
    for one, expected in zip(alone, found, strict=True):
        engine.submit(one.conversation)
        assert one.tokens() == expected


def test_an_answer_ends_at_an_end_token_or_at_its_length(start: Start, model: Any) -> None:
    prompt = prompts(1)[0]
    free = Asked(prompt, 8)
    start(model, eos=()).submit(free.conversation)
    tokens = free.tokens()
    assert (free.end, len(tokens)) == ("length", 8)
    stopped = Asked(prompt, 8)
    start(model, eos=(tokens[3],)).submit(stopped.conversation)
    assert stopped.tokens() == tokens[: tokens.index(tokens[3]) + 1]
    assert stopped.end == "stop"


def test_a_cancelled_answer_ends_and_the_others_go_on(start: Start, model: Any) -> None:
    engine = start(model, eos=())
    one, other = (Asked(p, 150) for p in prompts(2, lengths=(9,)))
    engine.submit(one.held().conversation)
    engine.submit(other.conversation)
    assert one.began.wait(120)
    one.conversation.cancel()
    one.go.set()
    assert one.over.wait(120)
    assert one.end == "cancelled"
    assert len(one.conversation.tokens) < 150
    assert len(other.tokens()) == 150


def test_one_that_waits_can_be_cancelled(start: Start, model: Any) -> None:
    engine = start(model, eos=(), max_batch=1)
    runs, waits = (Asked(p, 200) for p in prompts(2, lengths=(9,)))
    engine.submit(runs.held().conversation)
    engine.submit(waits.conversation)
    waits.conversation.cancel()
    runs.go.set()
    assert waits.over.wait(120)
    assert waits.end == "cancelled"
    assert len(waits.conversation.tokens) == 0
    assert len(runs.tokens()) == 200


def test_a_caller_that_fails_loses_only_its_own_answer(start: Start, model: Any) -> None:
    engine = start(model, eos=())
    bad, good = (Asked(p, 20) for p in prompts(2))

    def broken(token: int) -> bool:
        raise ValueError("no room for it")

    bad.conversation.take = broken
    engine.submit(bad.conversation)
    engine.submit(good.conversation)
    assert len(good.tokens()) == 20
    bad.tokens()
    assert (bad.end, bad.message) == ("error", "ValueError: no room for it")


def test_a_model_that_fails_ends_the_answers_and_not_the_service(start: Start, model: Any) -> None:
    engine = start(model, eos=())
    wrong = Asked([10**6], 5)  # a token that the model does not have
    engine.submit(wrong.conversation)
    wrong.tokens()
    assert wrong.end == "error"
    assert "IndexError" in wrong.message
    after = Asked(prompts(1)[0], 5)
    engine.submit(after.conversation)
    assert len(after.tokens()) == 5


def test_memory_is_kept_within_its_limit(start: Start, model: Any) -> None:
    engine = start(model, eos=(), max_batch=8, max_cells=2 * 60)
    asked = [Asked(p, 40) for p in prompts(6, lengths=(9, 20))]
    most, all_there = 0, threading.Event()

    def seen(token: int) -> bool:
        nonlocal most
        assert all_there.wait(120)
        most = max(most, engine.running)
        return False

    for one in asked:
        one.conversation.take = seen
        engine.submit(one.conversation)
    all_there.set()
    for one in asked:
        assert len(one.tokens()) == 40
    assert most == 2


def test_the_same_seed_gives_the_same_answer_in_any_company(start: Start, model: Any) -> None:
    engine = start(model, eos=())
    prompt, *others = prompts(4)
    alone = Asked(prompt, 30, temperature=1.0, top_p=0.9, seed=7)
    engine.submit(alone.conversation)
    alone.tokens()
    company = [Asked(p, 30, temperature=1.0, seed=n) for n, p in enumerate(others)]
    again = Asked(prompt, 30, temperature=1.0, top_p=0.9, seed=7)
    other = Asked(prompt, 30, temperature=1.0, top_p=0.9, seed=8)
    for one in (*company, again, other):
        engine.submit(one.conversation)
    assert again.tokens() == alone.tokens()
    assert other.tokens() != alone.tokens()


def test_the_models_repetition_penalty_is_that_of_generate(start: Start, build: Build) -> None:
    model = build()
    model.generation_config.repetition_penalty = 1.4
    engine = start(model)
    for prompt in prompts(4):
        asked = Asked(prompt, 20, repetition_penalty=1.4)
        engine.submit(asked.conversation)
        assert asked.tokens() == check.reference(model, prompt, 20)


def test_what_is_not_finished_at_the_end_is_told_so(
    model: Any, until: Callable[..., object]
) -> None:
    engine = Engine(model, eos=frozenset(), max_batch=1, max_cells=4096)
    runs, waits = (Asked(p, 200) for p in prompts(2))
    engine.submit(runs.held().conversation)
    engine.submit(waits.conversation)
    assert runs.began.wait(120)
    ends = threading.Thread(target=engine.close)
    ends.start()
    until(lambda: engine._closing)
    runs.go.set()
    ends.join()
    for one in (runs, waits):
        assert one.over.wait(120)
        assert one.message == "the service is ending"
