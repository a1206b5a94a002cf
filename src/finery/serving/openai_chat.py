"""Chat completions in OpenAI's shape: requests in; answers, streams and errors out.

What is not honoured is refused by name, unless it was given the value at which
it does nothing.  Answers are made by `chat.py`; models are listed here because
OpenAI's client asks for them at the same address.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from finery.serving import chat, fields
from finery.serving.chat import Answer, Wish
from finery.serving.fields import Messages
from finery.serving.wire import Refusal, invalid

HONOURED = frozenset(
    "messages model max_tokens max_completion_tokens temperature top_p top_k seed stop stream"
    " stream_options repetition_penalty".split()
)
# Fields that are taken only at the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),  # of no tools
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
# Fields that say who asks and why; they never change an answer.
HARMLESS = frozenset("user metadata safety_identifier prompt_cache_key".split())
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A request for a completion, understood."""

    messages: Messages
    wish: Wish
    stream: bool
    usage: bool  # a stream ends with a chunk that says how many tokens


def completion_in(body: Any, settings: Any) -> Completion:
    """The request in a body; a Refusal names the field that is wrong or not honoured."""
    document = fields.of(body, "the body")
    for name, value in document.items():
        _refuse_unheeded(name, value)
    given = fields.Given(document, "")
    stream = given.flag("stream", False)
    options = fields.Given(
        fields.of(document.get("stream_options") or {}, "stream_options", known=("include_usage",)),
        "stream_options",
    )
    if options.has("include_usage") and not stream:
        raise invalid("is only for streams", target="stream_options")
    temperature = given.number("temperature", low=0, high=2)
    if temperature is None:
        temperature = 1.0 if settings.temperature is None else settings.temperature
    return Completion(
        messages=fields.messages(document.get("messages"), "messages"),
        wish=Wish(
            choice=chat.choice(given, settings, temperature=temperature),
            max_new=_most(given),
            stops=given.strings("stop"),
            live=stream,
        ),
        stream=stream,
        usage=options.flag("include_usage", False),
    )


class Dialect:
    """The documents of one answer."""

    def __init__(self, model: str, *, stand_in_for: str = "") -> None:
        """`model` is the name that the answer says made it."""
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._fingerprint = f"a stand-in for {stand_in_for}" if stand_in_for else None

    def whole(self, text: str, finish: str, answer: Answer) -> dict[str, Any]:
        """The complete answer."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": tokens_used(answer)}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """A piece of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, answer: Answer) -> dict[str, Any]:
        """The last piece of a stream, where it was asked for."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": tokens_used(answer)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
        }


async def stream(dialect: Dialect, answer: Answer, *, usage: bool) -> AsyncIterator[bytes]:
    """The events of a streamed answer, to the closing one."""
    yield event(dialect.chunk({"role": "assistant", "content": ""}))
    finish = None
    while finish is None:
        text, finish = await answer.next()
        if text:
            yield event(dialect.chunk({"content": text}))
    yield event(dialect.chunk({}, finish))
    if usage:
        yield event(dialect.usage_chunk(answer))
    yield DONE


def tokens_used(answer: Answer) -> dict[str, int]:
    """How many tokens an answer took."""
    total = answer.prompt_tokens + answer.tokens
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.tokens,
        "total_tokens": total,
    }


def event(document: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def error_out(refusal: Refusal) -> dict[str, Any]:
    """The document of a refusal, in OpenAI's shape."""
    default = "invalid_request_error" if refusal.status < 500 else "server_error"
    return {
        "error": {
            "message": refusal.message,
            "type": TYPES.get(refusal.status, default),
            "param": refusal.target or None,
            "code": refusal.code,
        }
    }


def models_out(name: str, created: int, *, stand_in_for: str = "") -> dict[str, Any]:
    """The list with the one model that is served."""
    owner = f"finery (a stand-in for {stand_in_for})" if stand_in_for else "finery"
    model = {"id": name, "object": "model", "created": created, "owned_by": owner}
    return {"object": "list", "data": [model]}


def _refuse_unheeded(name: str, value: Any) -> None:
    if value is None or name in HONOURED or name in HARMLESS:
        return
    if name not in NEUTRAL:
        raise Refusal(400, "unsupported_parameter", f"{name}: is not known here", target=name)
    if value not in NEUTRAL[name]:
        allowed = " or ".join(json.dumps(one) for one in NEUTRAL[name])
        raise Refusal(
            400, "unsupported_parameter", f"{name}: only {allowed} is supported", target=name
        )


def _most(given: fields.Given) -> int | None:
    old = given.whole("max_tokens", low=1)
    new = given.whole("max_completion_tokens", low=1)
    if old is not None and new is not None and old != new:
        raise invalid("max_tokens says something else", target="max_completion_tokens")
    return old if new is None else new
