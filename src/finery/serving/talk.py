"""A chat model's answers over HTTP: /score, /v1/chat/completions, /v1/models.

What the bodies mean is in `chat.py` (Azure's) and `openai_chat.py` (OpenAI's); here
they get a place among the running, their time, and an end when the caller leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from finery.serving import chat as scoring
from finery.serving import openai_chat, wire
from finery.serving.chat import Answer, Chat
from finery.serving.limits import Gate
from finery.serving.spec import Spec
from finery.serving.wire import Exchange, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable


class Refuses(Protocol):
    """Who says no in our place."""

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer with an error."""

    def broken(self, exchange: Exchange, error: BaseException) -> None:
        """Answer that it is our mistake."""


class Talk:
    """For use on one event loop."""

    def __init__(
        self,
        chat: Chat,
        spec: Spec,
        name: str,
        gate: Gate,
        *,
        stand_in_for: str,
        done: Callable[[Exchange], None],
    ) -> None:
        """`done` is told of each exchange that has had its answer."""
        self.gate = gate
        self._chat, self._spec, self._name, self._done = chat, spec, name, done
        self._stands_for = stand_in_for
        self._created = int(time.time())
        self._timeout = spec.request_timeout_ms / 1000
        self._tasks: set[asyncio.Task[None]] = set()
        chat.open()

    def score(self, exchange: Exchange, host: Refuses) -> None:
        """Azure's shape."""
        self._begin(exchange, host, self._score(exchange))

    def complete(self, exchange: Exchange, host: Refuses) -> None:
        """OpenAI's shape, whole or as a stream."""
        self._begin(exchange, host, self._complete(exchange))

    def models(self) -> dict[str, Any]:
        """The list of the one model that there is."""
        return openai_chat.models_out(self._name, self._created, stand_in_for=self._stands_for)

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """A refusal as OpenAI's clients read it."""
        return openai_chat.error_out(refusal)

    def gauges(self) -> dict[str, float]:
        """What the engine counts, by name."""
        counts = self._chat.engine.counts
        return {
            'tokens_total{kind="prompt"}': counts.prompt_tokens,
            'tokens_total{kind="generated"}': counts.tokens,
            "engine_steps_total": counts.steps,
            "engine_row_steps_total": counts.row_steps,
            "engine_busy_seconds_total": counts.busy,
            "answers_running": self._chat.engine.running,
            "answers_waiting": self._chat.engine.waiting,
        }

    def _begin(self, exchange: Exchange, host: Refuses, work: Coroutine[Any, Any, None]) -> None:
        async def whole() -> None:
            try:
                await work
            except Refusal as refusal:
                if exchange.status:  # a stream says it in its own way
                    exchange.status = refusal.status
                    exchange.write(openai_chat.event(self.error(refusal)))
                    exchange.end()
                    return self._done(exchange)
                return host.refuse(exchange, refusal)
            except Exception as error:
                return host.broken(exchange, error)
            return self._done(exchange)

        task = asyncio.get_running_loop().create_task(whole())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _score(self, exchange: Exchange) -> None:
        wire.unpacked(exchange)
        body = wire.json_in(exchange.body)
        settings, most = self._chat.settings, self._spec.max_new_tokens
        wanted = scoring.scoring_in(body, settings, up_to=most)
        async with self._place():
            answers = self._chat.start_all(
                wanted.conversations, wanted.wish, target="input_data.input_string"
            )
            async with self._watched(exchange, answers):
                document = await scoring.score(self._chat, wanted, answers)
            exchange.answer(200, wire.json_out(document))

    async def _complete(self, exchange: Exchange) -> None:
        wire.unpacked(exchange)
        wanted = openai_chat.completion_in(wire.json_in(exchange.body), self._chat.settings)
        dialect = openai_chat.Dialect(self._name, stand_in_for=self._stands_for)
        async with self._place():
            answer = self._chat.start(wanted.messages, wanted.wish, target="messages")
            async with self._watched(exchange, [answer]):
                if wanted.stream:
                    parts = openai_chat.stream(dialect, answer, usage=wanted.usage)
                    return await _streamed(exchange, parts)
                text, finish = await answer.whole()
            exchange.answer(200, wire.json_out(dialect.whole(text, finish, answer)))

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        await self.gate.enter()
        try:
            yield
        finally:
            self.gate.leave()

    @contextlib.asynccontextmanager
    async def _watched(self, exchange: Exchange, answers: Iterable[Answer]) -> AsyncIterator[None]:
        """Stop the answers when their time is over, their reader leaves or something fails."""

        def stop(why: Refusal) -> None:
            for answer in answers:
                answer.cancel(why)
            if exchange.resumed:
                exchange.resumed()

        gone = Refusal(499, "ClientClosedRequest", "the client went away")
        timer = asyncio.get_running_loop().call_later(self._timeout, stop, wire.late(self._timeout))
        exchange.gone = lambda: stop(gone)
        try:
            yield
        finally:
            timer.cancel()
            exchange.gone = None
            stop(gone)  # nothing, for answers that are complete


async def _streamed(exchange: Exchange, parts: AsyncIterator[bytes]) -> None:
    """Server-sent events, no faster than the client takes them."""
    room = asyncio.Event()
    exchange.resumed = room.set
    exchange.begin(200, [(b"content-type", b"text/event-stream; charset=utf-8")])
    async for part in parts:
        exchange.write(part)
        if exchange.line.paused:
            room.clear()
            await room.wait()
    exchange.end()
