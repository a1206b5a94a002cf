"""Answers from a chat model: batched, padded on the left, greedy unless told otherwise.

What `evaluate` scores and what the converter's checks compare with.  Serving has
its own engine; both end an answer at the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from finery.recipes.encoding import set_pad

Conversation = Sequence[dict[str, Any]]


def generate(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> list[str]:
    """The assistant's next message to each conversation, in their order.

    A temperature of 0 is greedy.  Prompts of similar length go together, so that
    little is padded.
    """
    set_pad(tokenizer)
    prompts = [
        tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers = [""] * len(prompts)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [prompts[number] for number in chosen],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_token_type_ids=False,
        ).to(model.device)
        with torch.inference_mode():
            made = model.generate(
                **batch,
                **sampling,
                max_new_tokens=max_new_tokens,
                eos_token_id=stops(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
            )
        fresh = made[:, batch["input_ids"].shape[1] :]
        for number, text in zip(
            chosen, tokenizer.batch_decode(fresh, skip_special_tokens=True), strict=True
        ):
            answers[number] = text.strip()
    return answers


def stops(model: Any, tokenizer: Any) -> list[int]:
    """What ends an answer: the model's tokens, the tokenizer's, and the template's end of turn."""
    given = model.generation_config.eos_token_id
    found = [given] if isinstance(given, int) else list(given or [])
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    mark = "finery"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}], tokenize=False
    )
    after = tokenizer(text.rpartition(mark)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    found += after[:1] if after and after[0] in special else []
    return list(dict.fromkeys(found))
