"""Conversations into token ids and labels: the loss is on what the assistant says.

The assistant's tokens come from the chat template's own generation markers;
where a template has none, from TRL's marked variant of the same template; else
from comparing renderings (what the template adds for an assistant message).
Reading and judging rows is `conversations`' affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finery.recipes.spec import Failed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
# What a tokenizer says when it knows no limit of its own.
NO_LIMIT = 1_000_000


@dataclass(frozen=True)
class Encoded:
    """One row: token ids, and the same ids as labels where the loss counts, else -100."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool

    @property
    def learned(self) -> int:
        """How many tokens the loss is on; the first token of a row can never be one."""
        return sum(label != IGNORED for label in self.labels)


class Encoder:
    """A tokenizer, its template with the assistant's parts marked, and a length."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_seq_length: int = -1) -> None:
        """`max_seq_length` of -1 is the tokenizer's own limit."""
        if not tokenizer.chat_template:
            raise Failed("this model's tokenizer has no chat template: it is not a chat model")
        self.tokenizer = tokenizer
        self.limit = limit(tokenizer, max_seq_length)
        self.marked = _marked(tokenizer)

    def text(self, messages: Sequence[dict[str, Any]]) -> str:
        """The conversation as the template writes it."""
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False))

    def encode(self, conversations: Sequence[Sequence[dict[str, Any]]]) -> list[Encoded]:
        """Ids and labels of each conversation, cut to the length from the end."""
        if not conversations:
            return []
        pairs = self._marks(conversations) if self.marked else self._spans(conversations)
        rows = []
        for ids, mask in pairs:
            labels = [token if said else IGNORED for token, said in zip(ids, mask, strict=True)]
            labels[0] = IGNORED
            long = len(ids) > self.limit
            rows.append(Encoded(ids[: self.limit], labels[: self.limit], long))
        return rows

    def _marks(self, conversations: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
        found: Any = self.tokenizer.apply_chat_template(
            [list(messages) for messages in conversations],
            chat_template=self.marked,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return list(zip(found["input_ids"], found["assistant_masks"], strict=True))

    def _spans(self, conversations: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
        texts = [self.text(messages) for messages in conversations]
        found: Any = self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, padding=False
        )
        pairs = []
        for text, messages, ids, offsets in zip(
            texts, conversations, found["input_ids"], found["offset_mapping"], strict=True
        ):
            spans = self._said(text, list(messages))
            # Whole tokens only: two special tokens may begin with the same characters.
            said = [int(any(s <= a < b <= e for s, e in spans)) for a, b in offsets]
            pairs.append((ids, said))
        return pairs

    def _said(self, text: str, messages: list[dict[str, Any]]) -> list[tuple[int, int]]:
        """Where in `text` the assistant's messages stand, the end of turn included."""
        render = self.tokenizer.apply_chat_template
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = str(render(messages[:number], tokenize=False, add_generation_prompt=True))
            after = str(render(messages[: number + 1], tokenize=False))
            if not text.startswith(before):
                start = text.find(message["content"])
                spans.append((start, start + len(message["content"])) if start >= 0 else (0, 0))
                continue
            end = next(
                (n for n, (a, b) in enumerate(zip(after, text, strict=False)) if a != b),
                min(len(after), len(text)),
            )
            spans.append((len(before), end))
        return spans


def limit(tokenizer: PreTrainedTokenizerBase, max_seq_length: int = -1) -> int:
    """min(what was asked, what the tokenizer takes); -1 or 0 asks for the latter."""
    own = int(min(tokenizer.model_max_length, NO_LIMIT))
    return min(max_seq_length, own) if max_seq_length > 0 else own


def set_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """A pad token that is not the end of text, from those the vocabulary already has.

    Rows are trained without padding, so a token of its own (which would change the
    size of the embeddings) is not worth it; generation masks what it pads.
    """
    if tokenizer.pad_token is not None:
        return
    vocabulary = tokenizer.get_vocab()
    for candidate in ("<pad>", "<|pad|>", "[PAD]", "<|endoftext|>", "<unk>"):
        if candidate in vocabulary:
            tokenizer.pad_token = candidate
            return
    tokenizer.pad_token = tokenizer.eos_token


def _marked(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template with generation markers; "" when there is none that is known."""
    template = str(tokenizer.chat_template)
    if "{% generation" in template or "{%- generation" in template:
        return template
    from trl.chat_template_utils import get_training_chat_template

    try:
        return str(get_training_chat_template(tokenizer) or "")
    except ValueError:  # TRL knows no marked variant of this template
        return ""
