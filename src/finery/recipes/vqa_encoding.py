"""Questions and answers as token ids, and batches of them with their pictures.

What is built here is what the model's processor builds: a token for each place
of the picture, then the prompt between the beginning and the end.  Answers begin
as the model begins when it generates.  Reading rows is `vqa_rows`' affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finery.recipes.spec import Failed

IGNORED = -100


class Encoder:
    """One model's way to write a question, and to read its own answer."""

    def __init__(self, processor: Any, config: Any, generation: Any, *, task_prompt: str) -> None:
        """Configurations are transformers'; Failed for a task that takes no question."""
        if task_prompt in processor.task_prompts_without_inputs:
            raise Failed(f"--task_prompt: {task_prompt} takes no question; try <DocVQA>")
        self.tokenizer = processor.tokenizer
        self.form = processor.task_prompts_with_input.get(task_prompt, "{task}{input}")
        self.task = task_prompt
        self.picture = [processor.image_token_id] * processor.num_image_tokens
        positions = int(config.text_config.max_position_embeddings)
        self.room = positions - len(self.picture)
        self.answer_room = positions
        # Where generation is made to begin with a token, answers have it in training too.
        self.begins = generation.forced_bos_token_id is not None

    def prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids without those of the picture."""
        begin, end = self.tokenizer.bos_token, self.tokenizer.eos_token
        texts = [
            begin + self.form.format(task=self.task, input=question) + end for question in questions
        ]
        return self._ids(texts)

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with the end."""
        begin = self.tokenizer.bos_token if self.begins else ""
        return self._ids([begin + text + self.tokenizer.eos_token for text in texts])

    def text(self, ids: Any) -> list[str]:
        """What the model has generated, as text."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def foreign(self, question: str) -> bool:
        """Whether a question has the word that stands for a picture."""
        return str(self.tokenizer.image_token) in question

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        return [list(ids) for ids in found["input_ids"]]


class Batches:
    """Rows into tensors; pictures by number, as bytes or as what the vision tower made of them."""

    def __init__(self, encoder: Encoder, pictures: Any) -> None:
        """`pictures[number]` is an array of bytes or a tensor of features."""
        self.encoder, self.pictures = encoder, pictures

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """input_ids, attention_mask, labels and pixel_values."""
        pad = self.encoder.tokenizer.pad_token_id
        ids = [self.encoder.picture + row["prompt_ids"] for row in rows]
        longest = max(map(len, ids))
        width = max(len(row["label_ids"]) for row in rows)
        return {
            "input_ids": _padded(ids, longest, pad),
            "attention_mask": _padded([[1] * len(one) for one in ids], longest, 0),
            "labels": _padded([row["label_ids"] for row in rows], width, IGNORED),
            "pixel_values": self.stacked([row["picture"] for row in rows]),
        }

    def stacked(self, numbers: Sequence[int]) -> Any:
        """The pictures of these numbers as one tensor."""
        found = [self.pictures[number] for number in numbers]
        if isinstance(found[0], np.ndarray):
            return torch.from_numpy(np.stack(found))
        return torch.stack(found)


class Scale:
    """Bytes of pictures to the floats that the processor would give, where the model computes."""

    def __init__(self, processor: Any) -> None:
        """Mean and deviation are the processor's."""
        reader = processor.image_processor
        factor = reader.rescale_factor if reader.do_rescale else 1.0
        mean = reader.image_mean if reader.do_normalize else [0.0] * 3
        deviation = reader.image_std if reader.do_normalize else [1.0] * 3
        self.factor = float(factor)
        self.mean = torch.tensor(mean).view(1, 3, 1, 1)
        self.deviation = torch.tensor(deviation).view(1, 3, 1, 1)

    def __call__(self, pixels: Any) -> Any:
        """Features stay what they are."""
        if pixels.dtype != torch.uint8:
            return pixels
        mean, deviation = self.mean.to(pixels.device), self.deviation.to(pixels.device)
        return (pixels.permute(0, 3, 1, 2).float() * self.factor - mean) / deviation


def generate(
    model: Any, encoder: Encoder, batch: dict[str, Any], *, num_beams: int, max_answer_length: int
) -> list[str]:
    """Answers to a batch (its pixel values scaled), as text."""
    with torch.inference_mode():
        made = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=batch["pixel_values"],
            num_beams=num_beams,
            do_sample=False,
            early_stopping=num_beams > 1,
            max_new_tokens=min(max_answer_length + 2, encoder.answer_room - 1),
        )
    return encoder.text(made)


def _padded(rows: list[list[int]], width: int, fill: int) -> Any:
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.long)
