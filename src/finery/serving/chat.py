"""A chat model: load it, make prompts of messages, start answers, give their text.

Between the engine's thread, which deals in tokens (`engine.py`), and the event
loop, which deals in requests.  Also `/score` in the shape of Azure's foundation
models; OpenAI's shape is in `openai_chat.py`, and both end in `Chat.start`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Literal

from finery.serving import fields
from finery.serving.engine import Conversation, End, Engine
from finery.serving.fields import Messages
from finery.serving.sampling import Choice
from finery.serving.text import Text
from finery.serving.wire import Refusal, invalid

Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How an answer is to be made.

    `max_new` tokens must fit; where it is None the answer may take as many as the
    context leaves, but not more than `up_to`.
    """

    choice: Choice = Choice()
    max_new: int | None = None
    up_to: int | None = None
    stops: tuple[str, ...] = ()
    live: bool = False  # text is wanted as it comes


class Answer:
    """An answer in the making.  Made and read on the event loop, fed by the engine's thread."""

    def __init__(self, chat: Chat, prompt: list[int], wish: Wish) -> None:
        """`Chat.start` makes these."""
        self.prompt_tokens = len(prompt)
        self.tokens = 0
        self._chat = chat
        self._text = Text(chat.tokenizer, stops=wish.stops, live=wish.live)
        self._pieces: asyncio.Queue[str | tuple[End, str]] = asyncio.Queue()
        self._why: Refusal | None = None
        self.conversation = Conversation(
            prompt=prompt,
            max_new=wish.max_new or 0,
            choice=wish.choice,
            take=self._take,
            ended=self._ended,
        )

    def cancel(self, why: Refusal) -> None:
        """Stop it; whoever reads it gets `why`."""
        self._why = self._why or why
        self.conversation.cancel()

    async def next(self) -> tuple[str, Finish | None]:
        """Text that came and, with the last, why it ended.  Refusal when it was not completed."""
        piece = await self._pieces.get()
        if isinstance(piece, str):
            return piece, None
        end, message = piece
        self.tokens = len(self.conversation.tokens)
        if end == "cancelled":
            raise self._why or Refusal(499, "ClientClosedRequest", "the answer was cancelled")
        if end == "error":
            raise Refusal(500, "EngineFailed", f"the model failed: {message}")
        return self._text.finish() if not self._text.stopped else "", end

    async def whole(self) -> tuple[str, Finish]:
        """All the text, once there is no more to come."""
        parts: list[str] = []
        while True:
            text, finish = await self.next()
            parts.append(text)
            if finish is not None:
                return "".join(parts), finish

    def arrived(self, piece: str | tuple[End, str]) -> None:
        """The event loop brings what the engine's thread put into the outbox."""
        self._pieces.put_nowait(piece)

    def _take(self, token: int) -> bool:
        text = self._text.add(token)
        if text:
            self._chat.outbox.append((self, text))
        return self._text.stopped

    def _ended(self, end: End, message: str) -> None:
        self._chat.outbox.append((self, (end, message)))


class Chat:
    """A loaded chat model that answers.  `engine` is set by `open`, on the event loop."""

    def __init__(self, model: Any, tokenizer: Any, *, limits: Limits) -> None:
        """The model is ready to use: on its device, in evaluation mode."""
        self.tokenizer = tokenizer
        self.limits = limits
        self.settings = model.generation_config
        self.outbox: deque[tuple[Answer, str | tuple[End, str]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.engine = Engine(
            model,
            eos=eos_tokens(model, tokenizer),
            max_batch=limits.batch,
            max_cells=limits.cells,
            after_step=self._wake,
        )

    def open(self) -> None:
        """Deliver to the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def prompt(self, messages: Messages, *, target: str) -> list[int]:
        """The tokens that the model's template makes of the messages."""
        try:
            tokens: list[int] = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # templates raise what they like, for roles they do not take
            raise invalid(
                f"the model's chat template refuses it: {error}", target=target
            ) from error
        return tokens

    def start(self, messages: Messages, wish: Wish, *, target: str) -> Answer:
        """Begin an answer.  Refusal when it cannot fit, with the number of tokens."""
        return self.start_all([messages], wish, target=target)[0]

    def start_all(self, conversations: list[Messages], wish: Wish, *, target: str) -> list[Answer]:
        """Begin an answer to each, or to none."""
        answers = [self._answer(one, wish, target=target) for one in conversations]
        for answer in answers:
            self.engine.submit(answer.conversation)
        return answers

    def close(self) -> None:
        """End the engine's thread."""
        self.engine.close()

    def _answer(self, messages: Messages, wish: Wish, *, target: str) -> Answer:
        prompt = self.prompt(messages, target=target)
        room = self.limits.context - len(prompt)
        wanted = min(room, wish.up_to or room) if wish.max_new is None else wish.max_new
        if room < 1 or wanted > room:
            said = f"{len(prompt)} tokens"
            if wish.max_new is not None:
                said += f" and {wanted} for the answer"
            raise Refusal(
                400,
                "context_length_exceeded",
                f"{target}: {said} do not fit: the context of this deployment"
                f" is {self.limits.context} tokens",
                target=target,
            )
        return Answer(self, prompt, replace(wish, max_new=wanted))

    def _wake(self) -> None:
        if self.outbox and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, nobody reads
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self.outbox:
            answer, piece = self.outbox.popleft()
            answer.arrived(piece)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a deployment allows."""

    context: int  # tokens of prompt and answer
    batch: int  # answers at a time
    cells: int  # rows times columns of keys and values


def eos_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the model's, else the tokenizer's."""
    named = model.generation_config.eos_token_id
    if named is None:
        named = tokenizer.eos_token_id
    return frozenset(named if isinstance(named, list) else [] if named is None else [named])


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A request to /score, understood."""

    conversations: list[Messages]
    single: bool  # one conversation, bare or in a list of its own
    wish: Wish
    full_text: bool


async def score(chat: Chat, scoring: Scoring, answers: list[Answer]) -> Any:
    """The answer's document; `answers` are those of the conversations, in order."""
    outputs = []
    for messages, answer in zip(scoring.conversations, answers, strict=True):
        text, _ = await answer.whole()
        if scoring.full_text:
            shown = chat.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
            text = shown + text
        outputs.append({"output": text})
    return outputs[0] if scoring.single else outputs


def scoring_in(body: Any, settings: Any, *, up_to: int) -> Scoring:
    """The request in a /score body; a Refusal names the field that is wrong."""
    document = fields.of(body, "the body", known=("input_data", "params"))
    if "input_data" not in document:
        raise invalid("missing", target="input_data")
    given = document["input_data"]
    if isinstance(given, list):  # the messages themselves, as the phi-3 samples send them
        given = {"input_string": given}
    held = fields.of(given, "input_data", known=("input_string", "parameters"))
    if "input_string" not in held:
        raise invalid("missing", target="input_data.input_string")
    conversations, single = _conversations(held["input_string"], "input_data.input_string")
    wish, full_text = _parameters(
        fields.of(document.get("params") or {}, "params"),
        fields.of(held.get("parameters") or {}, "input_data.parameters"),
        settings=settings,
        up_to=up_to,
    )
    return Scoring(conversations=conversations, single=single, wish=wish, full_text=full_text)


def _conversations(given: Any, target: str) -> tuple[list[Messages], bool]:
    if not isinstance(given, list) or not given:
        raise invalid("a list of messages, or a list of such lists, is needed", target=target)
    if not isinstance(given[0], list):
        return [fields.messages(given, target)], True
    found = [fields.messages(one, f"{target}[{at}]") for at, one in enumerate(given)]
    return found, len(found) == 1


PARAMETERS = (
    "temperature",
    "top_p",
    "top_k",
    "do_sample",
    "max_new_tokens",
    "return_full_text",
    "repetition_penalty",
    "seed",
    "stop",
)


def _parameters(
    outer: dict[str, Any], inner: dict[str, Any], *, settings: Any, up_to: int
) -> tuple[Wish, bool]:
    for place, held in (("params", outer), ("input_data.parameters", inner)):
        fields.of(held, place, known=PARAMETERS)
    given = fields.Given({**outer, **inner}, "input_data.parameters")
    temperature = given.number("temperature", low=0, high=100)
    sampled = any(given.has(name) for name in ("temperature", "top_p", "top_k"))
    do_sample = given.flag("do_sample", sampled or bool(settings.do_sample))
    if temperature is None:
        temperature = 1.0 if settings.temperature is None else settings.temperature
    wish = Wish(
        choice=choice(given, settings, temperature=temperature if do_sample else 0.0),
        max_new=given.whole("max_new_tokens", low=1),
        up_to=up_to,
        stops=given.strings("stop"),
    )
    return wish, given.flag("return_full_text", False)


def choice(given: fields.Given, settings: Any, *, temperature: float) -> Choice:
    """How tokens are chosen: what was given, else the model's own settings."""
    top_p, top_k = given.number("top_p", low=0, high=1, open=True), given.whole("top_k", low=0)
    penalty = given.number("repetition_penalty", low=0, high=100, open=True)
    return Choice(
        temperature=temperature,
        top_p=(settings.top_p or 1.0) if top_p is None else top_p,
        top_k=(settings.top_k or 0) if top_k is None else top_k,
        seed=given.whole("seed"),
        repetition_penalty=(settings.repetition_penalty or 1.0) if penalty is None else penalty,
    )
