from __future__ import annotations

import random
from typing import Any

import pytest

from finery.serving.text import Text


def shown(text: Text, tokens: list[int]) -> list[str]:
    parts = [text.add(token) for token in tokens]
    return [*parts, text.finish()]


def test_what_was_shown_joined_is_all_the_tokens_decoded(tokenizer: Any) -> None:
    chance = random.Random(1)
    for _ in range(40):
        words = "".join(chance.choice("aé€𝄞 ß世\n hello") for _ in range(30))
        tokens = tokenizer.encode(words)
        parts = shown(Text(tokenizer), tokens)
        assert "".join(parts) == words == tokenizer.decode(tokens)


def test_random_tokens_too_even_where_they_are_no_characters(tokenizer: Any) -> None:
    chance = random.Random(2)
    for _ in range(40):
        tokens = [chance.randrange(0, 290) for _ in range(40)]
        expected = tokenizer.decode(tokens, skip_special_tokens=True)
        assert "".join(shown(Text(tokenizer), tokens)) == expected


def test_half_a_character_is_not_shown(tokenizer: Any) -> None:
    tokens = tokenizer.encode("€")
    assert len(tokens) == 3, "one token per byte, or this test says nothing"
    assert shown(Text(tokenizer), tokens) == ["", "", "€", ""]


def test_what_never_becomes_a_character_is_shown_at_the_end(tokenizer: Any) -> None:
    tokens = tokenizer.encode("€")[:2]
    assert shown(Text(tokenizer), tokens) == ["", "", "\N{REPLACEMENT CHARACTER}"]


def test_text_that_is_not_wanted_live_comes_whole_at_the_end(tokenizer: Any) -> None:
    parts = shown(Text(tokenizer, live=False), tokenizer.encode("hello there"))
    assert set(parts[:-1]) == {""}
    assert parts[-1] == "hello there"


@pytest.mark.parametrize("live", [True, False])
def test_a_stop_string_across_tokens_ends_it_and_is_not_shown(tokenizer: Any, live: bool) -> None:
    text = Text(tokenizer, stops=("xyz", "END"), live=live)
    shown_so_far = ""
    for token in tokenizer.encode("one xy two ENDless"):
        shown_so_far += text.add(token)
        assert "EN" not in shown_so_far
        if text.stopped:
            break
    assert text.stopped
    assert shown_so_far + text.finish() == "one xy two "


def test_the_beginning_of_a_stop_string_that_does_not_come_is_shown_at_last(
    tokenizer: Any,
) -> None:
    text = Text(tokenizer, stops=("END",))
    parts = shown(text, tokenizer.encode("the EN"))
    assert "".join(parts[:-1]) == "the "
    assert parts[-1] == "EN"
    assert not text.stopped
