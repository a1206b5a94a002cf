"""What /score takes and gives for a chat model: mostly translation, so no model is needed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from finery.serving import chat, check
from finery.serving.chat import Chat, Limits, Scoring, Wish
from finery.serving.routes import Host
from finery.serving.sampling import Choice
from finery.serving.spec import Spec
from finery.serving.wire import Refusal

from .loopback import answering

SETTINGS = SimpleNamespace(
    do_sample=False, temperature=None, top_p=None, top_k=None, repetition_penalty=None
)
HELLO = [{"role": "user", "content": "hello"}]
BYE = [{"role": "user", "content": "bye"}]


def read(body: Any, settings: Any = SETTINGS) -> Scoring:
    return chat.scoring_in(body, settings, up_to=256)


def test_the_guides_request_is_understood() -> None:
    scoring = read(
        {
            "input_data": {
                "input_string": [HELLO],
                "parameters": {
                    "temperature": 0.6,
                    "top_p": 0.9,
                    "do_sample": True,
                    "max_new_tokens": 200,
                },
            },
            "params": {},
        }
    )
    assert scoring == Scoring(
        conversations=[HELLO],
        single=True,
        wish=Wish(choice=Choice(temperature=0.6, top_p=0.9), max_new=200, up_to=256),
        full_text=False,
    )


@pytest.mark.parametrize(
    ("given", "conversations", "single"),
    [
        (HELLO, [HELLO], True),
        ([HELLO], [HELLO], True),
        ([HELLO, BYE], [HELLO, BYE], False),
    ],
)
def test_messages_may_be_nested_or_not(given: Any, conversations: Any, single: bool) -> None:
    scoring = read({"input_data": {"input_string": given}})
    assert (scoring.conversations, scoring.single) == (conversations, single)


def test_messages_may_come_as_the_input_itself_with_params_beside_them() -> None:
    scoring = read({"input_data": HELLO, "params": {"max_new_tokens": 5, "temperature": 0.0}})
    assert scoring.conversations == [HELLO]
    assert scoring.wish == Wish(choice=Choice(temperature=0.0), max_new=5, up_to=256)


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"top_p": 0.5}, 1.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True, "temperature": 0}, 0.0),
    ],
)
def test_sampling_is_what_was_asked_for_else_what_the_model_says(
    parameters: dict[str, Any], temperature: float
) -> None:
    body = {"input_data": {"input_string": HELLO, "parameters": parameters}}
    assert read(body).wish.choice.temperature == temperature


def test_the_models_own_settings_are_the_defaults() -> None:
    own = SimpleNamespace(
        do_sample=True, temperature=0.3, top_p=0.8, top_k=20, repetition_penalty=1.1
    )
    found = read({"input_data": {"input_string": HELLO}}, own).wish.choice
    assert found == Choice(temperature=0.3, top_p=0.8, top_k=20, repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "the body: must be an object"),
        ({}, "input_data: missing"),
        ({"input_data": {}}, "input_data.input_string: missing"),
        ({"inputs": {}}, "the body: 'inputs' is not supported here; known are input_data, params"),
        (
            {"input_data": {"input_string": "hello"}},
            "input_data.input_string: a list of messages, or a list of such lists, is needed",
        ),
        (
            {"input_data": {"input_string": []}},
            "input_data.input_string: a list of messages, or a list of such lists, is needed",
        ),
        (
            {"input_data": {"input_string": [HELLO, []]}},
            "input_data.input_string[1]: a list with at least one message is needed",
        ),
        (
            {"input_data": {"input_string": [{"role": "usr", "content": "x"}]}},
            "input_data.input_string[0].role: must be one of system, developer, user, assistant",
        ),
        (
            {"input_data": {"input_string": [[{"role": "user"}]]}},
            "input_data.input_string[0][0].content: must be text",
        ),
        (
            {"input_data": {"input_string": HELLO, "parameters": {"beams": 4}}},
            "input_data.parameters: 'beams' is not supported here",
        ),
        (
            {"input_data": {"input_string": HELLO}, "params": {"beams": 4}},
            "params: 'beams' is not supported here",
        ),
        (
            {"input_data": {"input_string": HELLO, "parameters": {"temperature": "hot"}}},
            "input_data.parameters.temperature: must be a number",
        ),
        (
            {"input_data": {"input_string": HELLO, "parameters": {"top_p": 0}}},
            "input_data.parameters.top_p: must be more than 0 and at most 1",
        ),
        (
            {"input_data": {"input_string": HELLO, "parameters": {"max_new_tokens": 0}}},
            "input_data.parameters.max_new_tokens: must be 1 or more",
        ),
        (
            {"input_data": {"input_string": HELLO, "parameters": {"do_sample": "yes"}}},
            "input_data.parameters.do_sample: must be true or false",
        ),
    ],
)
def test_a_wrong_request_is_refused_with_the_fields_path(body: Any, message: str) -> None:
    with pytest.raises(Refusal) as refused:
        read(body)
    assert refused.value.status == 400
    assert refused.value.message.startswith(message)


@pytest.fixture
def served(model: Any, tokenizer: Any) -> Iterator[Chat]:
    """A real model, because what is tested is what its template and its tokens make of requests."""
    made = Chat(model, tokenizer, limits=Limits(context=128, batch=4, cells=1024))
    yield made
    made.close()


def scored(served: Chat, body: Any) -> Any:
    async def story() -> Any:
        served.open()
        wanted = read(body)
        answers = served.start_all(wanted.conversations, wanted.wish, target="input_string")
        return await asyncio.wait_for(chat.score(served, wanted, answers), 120)

    return asyncio.run(story())


def test_an_answer_is_the_text_of_generates_tokens(served: Chat, model: Any) -> None:
    prompt = served.prompt(HELLO, target="")
    tokens = check.reference(model, prompt, 20)
    text = served.tokenizer.decode(tokens, skip_special_tokens=True)
    parameters = {"max_new_tokens": 20, "temperature": 0}
    body = {"input_data": {"input_string": [HELLO], "parameters": parameters}}
    assert scored(served, body) == {"output": text}


def test_several_conversations_get_a_list_in_their_order(served: Chat) -> None:
    def one(messages: Any) -> Any:
        return scored(served, {"input_data": {"input_string": messages}, "params": params})

    params = {"max_new_tokens": 9}
    assert one([HELLO, BYE, HELLO]) == [one(HELLO), one(BYE), one(HELLO)]
    assert one(HELLO) != one(BYE)


def test_the_full_text_begins_with_the_conversation(served: Chat) -> None:
    plain = scored(served, {"input_data": HELLO, "params": {"max_new_tokens": 4}})
    params = {"max_new_tokens": 4, "return_full_text": True}
    full = scored(served, {"input_data": HELLO, "params": params})
    assert full["output"] == "<|user|>\nhello<|end|>\n<|assistant|>\n" + plain["output"]


def test_a_stop_string_ends_the_text_before_it(served: Chat) -> None:
    params: dict[str, Any] = {"max_new_tokens": 40}
    whole = scored(served, {"input_data": HELLO, "params": params})["output"]
    stop = whole[6:9]
    cut = scored(served, {"input_data": HELLO, "params": params | {"stop": [stop]}})["output"]
    assert cut == whole[: whole.index(stop)]


def test_what_does_not_fit_is_refused_with_the_number_of_tokens(served: Chat) -> None:
    with pytest.raises(Refusal, match="7 tokens and 122 for the answer do not fit.* 128 tokens"):
        served.start(HELLO, Wish(max_new=122), target="messages")
    with pytest.raises(Refusal, match=r"messages: \d{3} tokens do not fit"):
        served.start([{"role": "user", "content": "xyz" * 80}], Wish(), target="messages")
    with pytest.raises(Refusal, match=r"messages: \d{5,6} tokens do not fit") as refused:
        served.start([{"role": "user", "content": "why? " * 20_000}], Wish(), target="messages")
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")
    assert served.engine.waiting == served.engine.running == 0


def test_where_no_length_is_asked_for_it_is_what_fits(served: Chat) -> None:
    for up_to, expected in ((256, 121), (50, 50), (None, 121)):
        answer = served._answer(HELLO, Wish(up_to=up_to), target="messages")
        assert answer.conversation.max_new == expected


def test_what_the_template_refuses_is_refused_with_its_words(served: Chat) -> None:
    with pytest.raises(Refusal, match="messages: .*system must be first"):
        served.start([*HELLO, {"role": "system", "content": "x"}], Wish(), target="messages")


def told(served: Chat, story: Any, **spec: Any) -> None:
    """Tell a story of requests to a host with that model, whose answers end at their length."""
    served.engine._eos = frozenset()

    async def whole() -> None:
        host = Host(Spec(kind="chat", model="m", **spec), chat=served)
        async with answering(host) as client:
            await story(client)

    asyncio.run(whole())


LONG = {"messages": HELLO, "max_tokens": 110, "temperature": 0}


def test_an_answer_that_takes_too_long_is_408_and_its_stream_ends_with_an_error(
    served: Chat, monkeypatch: pytest.MonkeyPatch, until: Callable[..., object]
) -> None:
    engine, step = served.engine, served.engine._step

    def late() -> None:  # it answers nobody in time, however slow the clock is that they have
        until(lambda: all(one.cancelled for one in (*engine._fresh, *engine._running)))
        step()

    monkeypatch.setattr(engine, "_step", late)

    async def story(client: httpx.AsyncClient) -> None:
        late = await client.post("/v1/chat/completions", json=LONG)
        assert late.status_code == 408
        assert late.json()["error"]["message"] == "not answered within 1 ms"
        body = {"input_data": HELLO, "params": {"max_new_tokens": 110}}
        assert (await client.post("/score", json=body)).status_code == 408
        stream = await client.post("/v1/chat/completions", json=LONG | {"stream": True})
        last = stream.text.strip().splitlines()[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["message"] == "not answered within 1 ms"

    told(served, story, request_timeout_ms=1)
    until(lambda: served.engine.running == 0)


def test_as_many_are_answered_at_once_as_the_settings_allow(
    served: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, step = threading.Event(), served.engine._step
    monkeypatch.setattr(served.engine, "_step", lambda: go.wait(120) and step())

    async def story(client: httpx.AsyncClient) -> None:
        asked = [client.post("/v1/chat/completions", json=LONG) for _ in range(3)]
        calls = [asyncio.ensure_future(one) for one in asked]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        go.set()
        answers = await asyncio.gather(*calls)
        assert sorted(one.status_code for one in answers) == [200, 200, 429]
        again = await client.post("/v1/chat/completions", json=LONG)
        assert again.status_code == 200

    limits = {"max_concurrent_requests": 2, "max_queue_wait_ms": 0}
    told(served, story, request_timeout_ms=60_000, **limits)
