from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from finery.serving import openai_chat
from finery.serving.chat import Wish
from finery.serving.openai_chat import Completion
from finery.serving.sampling import Choice
from finery.serving.wire import Refusal

SETTINGS = SimpleNamespace(temperature=None, top_p=None, top_k=None, repetition_penalty=None)
HELLO = [{"role": "user", "content": "hello"}]


def read(**fields: Any) -> Completion:
    return openai_chat.completion_in({"messages": HELLO, **fields}, SETTINGS)


def test_everything_that_is_honoured_arrives() -> None:
    found = read(
        model="m",
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop="END",
        stream=True,
        stream_options={"include_usage": True},
    )
    choice = Choice(temperature=0.5, top_p=0.9, seed=3)
    wish = Wish(choice=choice, max_new=9, stops=("END",), live=True)
    assert found == Completion(messages=HELLO, wish=wish, stream=True, usage=True)


def test_the_defaults_are_openais() -> None:
    found = read()
    assert found.wish == Wish(choice=Choice(temperature=1.0), max_new=None)
    assert not found.stream


def test_text_may_come_in_parts_and_a_developer_speaks_as_the_system() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}]
    assert read(messages=messages).messages == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
    ]


def test_what_changes_nothing_is_taken() -> None:
    plain = read()
    assert plain == read(
        n=1, logprobs=False, presence_penalty=0, tools=[], user="me", store=False, top_logprobs=None
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("tools", [{"type": "function"}]),
        ("presence_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("response_format", {"type": "json_object"}),
        ("frobnicate", 1),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(Refusal) as refused:
        read(**{field: value})
    assert refused.value.status == 400
    assert refused.value.target == field
    assert openai_chat.error_out(refused.value)["error"]["param"] == field


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
        ),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], target: str) -> None:
    with pytest.raises(Refusal) as refused:
        read(**fields)
    assert refused.value.target == target


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (429, "rate_limit_error"), (500, "server_error")],
)
def test_errors_have_openais_shape(status: int, kind: str) -> None:
    assert openai_chat.error_out(Refusal(status, "word", "said")) == {
        "error": {"message": "said", "type": kind, "param": None, "code": "word"}
    }


def test_a_stand_in_says_so_in_the_list_and_in_each_answer() -> None:
    told = openai_chat.Dialect("tuned", stand_in_for="some/model").chunk({})
    assert told["system_fingerprint"] == "a stand-in for some/model"
    [listed] = openai_chat.models_out("tuned", 0, stand_in_for="some/model")["data"]
    assert "a stand-in for some/model" in listed["owned_by"]
    assert openai_chat.Dialect("own").chunk({})["system_fingerprint"] is None
