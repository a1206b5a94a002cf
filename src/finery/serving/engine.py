"""The engine: one thread that answers many conversations at once, step by step.

A conversation joins between two steps and leaves after its last token, so that
nobody waits for a batch to fill or to end.  What comes is the tokens of a
prompt, what goes out is one token at a time through the conversation's `take`,
called on the engine's thread.  Text, templates and HTTP are in `chat.py`; the
keys and values are in `rows.py`.

A step is the model's own `forward`, with the numbers that `generate` would give
it: at temperature 0 the tokens are those of `generate` for the prompt alone
(`check.py` says so at every start).
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from finery.serving import sampling
from finery.serving.rows import Rows
from finery.serving.sampling import Choice

End = Literal["stop", "length", "cancelled", "error"]
PREFILL = 4096  # tokens, padding included, of prompts that begin in one step


@dataclass(kw_only=True, eq=False)
class Conversation:
    """A prompt and what is to become of it.

    `take(token)` returns True when the answer is complete.  `ended` comes once,
    last, with the reason; after `cancel` it comes within a step.
    """

    prompt: list[int]
    max_new: int
    choice: Choice
    take: Callable[[int], bool]
    ended: Callable[[End, str], None]
    tokens: list[int] = field(default_factory=list)
    cancelled: bool = False
    chance: random.Random = field(default_factory=random.Random)

    @property
    def remaining(self) -> int:
        """Tokens that may still come."""
        return self.max_new - len(self.tokens)

    def cancel(self) -> None:
        """Stop at the next step.  From any thread, any number of times."""
        self.cancelled = True


@dataclass
class Counts:
    """What the engine has done since it started."""

    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    row_steps: int = 0
    busy: float = 0.0  # seconds


class Engine:
    """Answers conversations with one model.  `submit` from any thread."""

    def __init__(
        self,
        model: Any,
        *,
        eos: frozenset[int],
        max_batch: int,
        max_cells: int,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """`max_cells`: rows times columns of keys and values that may be held."""
        self.model = model
        self.counts = Counts()
        self._eos = eos
        self._max_batch = max_batch
        self._max_cells = max_cells
        self._after_step = after_step
        self._layers = int(model.config.get_text_config().num_hidden_layers)
        self._fresh: deque[Conversation] = deque()
        self._call = threading.Condition()
        self._closing = False
        self._rows: Rows | None = None
        self._running: list[Conversation] = []  # in the order of the rows
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Conversations in the batch now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Conversations that have not begun."""
        return len(self._fresh)

    def fits(self, conversation: Conversation) -> bool:
        """True when the memory limit admits it at least alone."""
        return len(conversation.prompt) + conversation.max_new <= self._max_cells

    def submit(self, conversation: Conversation) -> None:
        """Begin as soon as there is room, in order of arrival."""
        if conversation.choice.seed is not None:
            conversation.chance.seed(conversation.choice.seed)
        with self._call:
            self._fresh.append(conversation)
            self._call.notify()

    def close(self) -> None:
        """End the thread after the step that runs; what is not finished is cancelled."""
        with self._call:
            self._closing = True
            self._call.notify()
        self._thread.join(timeout=30)

    def _live(self) -> None:
        while True:
            with self._call:
                while not (self._fresh or self._running or self._closing):
                    self._call.wait()
                if self._closing:
                    break
            began = time.monotonic()
            try:
                self._step()
            except Exception as error:  # one bad step must not end the service
                self._abandon(f"{type(error).__name__}: {error}")
            self._after_step()
            self.counts.busy += time.monotonic() - began
        self._abandon("the service is ending")
        self._after_step()

    def _step(self) -> None:
        with torch.inference_mode():
            self._drop_cancelled()
            if self._running:
                self._decode()
            group = self._admitted()
            if group:
                self._prefill(group)

    def _drop_cancelled(self) -> None:
        for row in reversed(range(len(self._running))):
            if self._running[row].cancelled:
                self._leave(row, "cancelled")
        with self._call:
            gone = [one for one in self._fresh if one.cancelled]
            for one in gone:
                self._fresh.remove(one)
        for one in gone:
            one.ended("cancelled", "")

    def _admitted(self) -> list[Conversation]:
        """Those who begin now: as many as rows, memory and one prefill allow."""
        group: list[Conversation] = []
        while self._fresh and len(self._running) + len(group) < self._max_batch:
            first = self._fresh[0]
            longest = max(len(one.prompt) for one in (*group, first))
            if group and longest * (len(group) + 1) > PREFILL:
                break
            if (group or self._running) and not self._room([*group, first]):
                break
            group.append(self._fresh.popleft())
        return group

    def _room(self, group: list[Conversation]) -> bool:
        everyone = [*self._running, *group]
        columns = self._rows.high - self._rows.low if self._rows else 0
        width = max(columns, *(len(one.prompt) for one in group))
        width += max(one.remaining for one in everyone)
        return width * len(everyone) <= self._max_cells

    def _prefill(self, group: list[Conversation]) -> None:
        longest = max(len(one.prompt) for one in group)
        starts = [longest - len(one.prompt) for one in group]
        rows = Rows(self._layers, starts)
        tokens = [[0] * start + one.prompt for start, one in zip(starts, group, strict=True)]
        positions = torch.arange(longest)[None, :] - torch.tensor(starts)[:, None]
        try:
            scores = self._forward(rows, torch.tensor(tokens), positions.clamp(min=0))
        except Exception as error:
            for one in group:  # those who run already are untouched
                one.ended("error", f"{type(error).__name__}: {error}")
            return
        rows.high = longest
        self.counts.prompt_tokens += sum(len(one.prompt) for one in group)
        first = len(self._running)
        self._running.extend(group)
        if self._rows is None:
            self._rows = rows
        else:
            self._rows.join(rows)
        self._hand_out(scores, first)

    def _decode(self) -> None:
        rows = self._rows
        assert rows is not None
        rows.reserve()
        latest = [[one.tokens[-1]] for one in self._running]
        positions = [[len(one.prompt) + len(one.tokens) - 1] for one in self._running]
        scores = self._forward(rows, torch.tensor(latest), torch.tensor(positions))
        rows.high += 1
        self.counts.steps += 1
        self.counts.row_steps += len(latest)
        self._hand_out(scores, 0)

    def _forward(self, rows: Rows, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        device = self.model.device
        answer = self.model(
            input_ids=tokens.to(device),
            attention_mask=rows.mask(tokens.shape[1]).to(device),
            position_ids=positions.to(device),
            past_key_values=rows.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        scores: torch.Tensor = answer.logits[:, -1]
        return scores

    def _hand_out(self, scores: torch.Tensor, first: int) -> None:
        """Choose and deliver a token for each row from `first` on; those who end leave."""
        group = self._running[first:]
        tokens = sampling.next_tokens(
            scores,
            [one.choice for one in group],
            [one.chance for one in group],
            histories=[one.prompt + one.tokens for one in group]
            if any(one.choice.repetition_penalty != 1.0 for one in group)
            else [],
        )
        self.counts.tokens += len(tokens)
        ends: list[tuple[int, End, str]] = []
        for row, (one, token) in enumerate(zip(group, tokens, strict=True), start=first):
            one.tokens.append(token)
            try:
                complete = token in self._eos or one.take(token)
            except Exception as error:  # a caller's trouble ends the caller's answer only
                ends.append((row, "error", f"{type(error).__name__}: {error}"))
                continue
            if complete:
                ends.append((row, "stop", ""))
            elif one.remaining <= 0:
                ends.append((row, "length", ""))
        for row, reason, message in reversed(ends):
            self._leave(row, reason, message)

    def _leave(self, row: int, reason: End, message: str = "") -> None:
        one = self._running[row]
        self._running[row] = self._running[-1]
        self._running.pop()
        one.ended(reason, message)  # first: whatever happens to the rest, this one is told
        if self._rows is not None:
            self._rows.leave(row)
            if not self._running:
                self._rows = None

    def _abandon(self, why: str) -> None:
        """End everyone who runs; after this the engine is as new."""
        gone, self._running, self._rows = self._running, [], None
        if self._closing:
            gone += self._fresh
            self._fresh.clear()
        for one in gone:
            one.ended("error", why)
