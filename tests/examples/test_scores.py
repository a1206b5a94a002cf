"""ANLS and exact match, as DocVQA counts them."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture
def scores(guide: dict[str, ModuleType]) -> ModuleType:
    return guide["scores"]


def test_case_and_spaces_do_not_count(scores: ModuleType) -> None:
    assert scores.anls("  Anna   BERG ", ["Anna Berg"]) == 1.0
    assert scores.exact_match("anna berg", ["Anna  Berg"]) == 1.0


def test_each_wrong_letter_costs_its_share(scores: ModuleType) -> None:
    assert scores.anls("12.57", ["12.50"]) == pytest.approx(0.8)
    assert scores.exact_match("12.57", ["12.50"]) == 0.0


def test_an_answer_with_half_of_its_letters_wrong_was_guessed(scores: ModuleType) -> None:
    assert scores.anls("abxx", ["abcd"]) == 0.0
    assert scores.anls("abcx", ["abcd"]) == 0.75


def test_the_nearest_of_several_right_answers_counts(scores: ModuleType) -> None:
    assert scores.anls("$12.50", ["twelve", "12.50"]) == pytest.approx(1 - 1 / 6)
    assert scores.exact_match("12.50", ["$12.50", "12.50"]) == 1.0


def test_nothing_said_is_nothing_right(scores: ModuleType) -> None:
    assert scores.anls("", ["12.50"]) == 0.0
    assert scores.distance("kitten", "sitting") == 3
    assert scores.distance("", "abc") == scores.distance("abc", "") == 3
