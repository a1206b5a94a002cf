"""From tokens to text, a token at a time.

What is shown never has to be taken back: the bytes of a half-written character
are held until it is whole, and the beginning of what may become a stop string
until it is known.  Everything that was shown, joined, is what the tokenizer
makes of all the tokens at once.
"""

from __future__ import annotations

from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"


class Text:
    """The text of one answer as it grows."""

    def __init__(self, tokenizer: Any, *, stops: tuple[str, ...] = (), live: bool = True) -> None:
        """`live`: `add` gives text at once; otherwise all of it comes from `finish`."""
        self.stopped = False  # a stop string came; it and what follows are not shown
        self._tokenizer = tokenizer
        self._stops = stops
        self._live = live or bool(stops)
        self._tokens: list[int] = []
        self._context = 0  # tokens from here are decoded together, so that joins come out right
        self._read = 0  # tokens up to here have been turned into text
        self._context_text = ""
        self._held = ""

    def add(self, token: int) -> str:
        """Take a token; give what can be shown now."""
        self._tokens.append(token)
        return self._shown(self._fresh(final=False)) if self._live else ""

    def finish(self) -> str:
        """No more tokens: give what was held back."""
        if self.stopped:
            return ""
        text = self._shown(self._fresh(final=True)) + ("" if self.stopped else self._held)
        self._held = ""
        return text

    def _fresh(self, *, final: bool) -> str:
        text = self._decoded(self._tokens[self._context :])
        if text.endswith(BROKEN) and not final:
            return ""
        fresh = text[len(self._context_text) :]
        if fresh:
            self._context, self._read = self._read, len(self._tokens)
            self._context_text = self._decoded(self._tokens[self._context :])
        return fresh

    def _shown(self, fresh: str) -> str:
        if not self._stops:
            return fresh
        text = self._held + fresh
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
