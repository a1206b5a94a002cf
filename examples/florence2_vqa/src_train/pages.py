"""Rows of DocVQA's schema as batches for Florence-2, every page decoded and resized once.

A dataset has a row for each question, and a page has several: decoding and resizing take ten
times longer than everything else that is done with a row.  So pages are kept, as the model takes
them, in a file that all workers share and that fills up as they are first asked for.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps

IGNORED = -100  # what PyTorch's loss leaves out


class Pages(torch.utils.data.Dataset):
    """One split: `page, picture (3 x height x width, uint8), question, answers` by row."""

    def __init__(
        self, split: datasets.Dataset, name: str, *, size: dict[str, int], cache: Path
    ) -> None:
        """`size` is what the model takes; `cache` is a folder for the pages of this split."""
        self.name = name
        self.rows = split.cast_column("image", datasets.Image(decode=False))
        self.height, self.width = size["height"], size["width"]
        self.number = self._numbers(split)
        count = max(self.number, default=0) + 1
        self.pixels = _shared(cache / "pixels", (count, self.height, self.width, 3))
        self.there = _shared(cache / "there", (count,))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> tuple[str, torch.Tensor, str, list[str]]:
        row, page = self.rows[at], self.number[at]
        if not self.there[page]:
            self.pixels[page] = np.asarray(self._resized(row["image"]))
            self.there[page] = 1  # last: another worker may be looking
        picture = torch.from_numpy(np.array(self.pixels[page])).permute(2, 0, 1)
        return f"{self.name}/{page}", picture, row["question"], list(row["answers"])

    def picture(self, at: int) -> Image.Image:
        """The page at its own size."""
        return _upright(_opened(self.rows[at]["image"]))

    def _resized(self, stored: dict[str, Any]) -> Image.Image:
        page = _opened(stored)
        # A JPEG can be decoded at a half, a quarter or an eighth of its size, in as much less time.
        page.draft("RGB", (self.width, self.height))
        return _upright(page).resize((self.width, self.height), Image.Resampling.BICUBIC)

    @staticmethod
    def _numbers(split: datasets.Dataset) -> list[int]:
        """The page of each row: the document's name and page where the rows have them."""
        names = [
            name
            for name in ("ucsf_document_id", "ucsf_document_page_no")
            if name in split.column_names
        ]
        if not names:
            return list(range(len(split)))
        seen: dict[tuple[Any, ...], int] = {}
        keys = zip(*(split[name] for name in names), strict=True)
        return [seen.setdefault(key, len(seen)) for key in keys]


class Batches:
    """Puts rows together: call it with some, or give it to a DataLoader as `collate_fn`."""

    def __init__(self, processor: Any, *, task: str, starts: int | None, longest: int) -> None:
        """`starts` is the token that generation is made to begin with, if there is one."""
        self.tokenizer = processor.tokenizer
        self.places = processor.image_token * processor.num_image_tokens
        self.task, self.starts, self.longest = task, starts, longest

    def __call__(self, rows: list[tuple[str, torch.Tensor, str, list[str]]]) -> dict[str, Any]:
        pages, pictures, questions, answers = zip(*rows, strict=True)
        prompts = [self.prompt(question) for question in questions]
        words = self.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        return {
            "pages": pages,
            "pictures": torch.stack(pictures),
            "input_ids": words["input_ids"],
            "attention_mask": words["attention_mask"],
            "labels": self.labels([several[0] for several in answers]),
            "questions": questions,
            "answers": answers,
        }

    def prompt(self, question: str) -> str:
        """What Florence2Processor makes of a prompt, without its picture."""
        begin, end = self.tokenizer.bos_token, self.tokenizer.eos_token
        words = self.tokenizer(self.task + question, add_special_tokens=False)["input_ids"]
        if len(words) > self.longest:  # never cut off the end token
            question = self.tokenizer.decode(words[: self.longest]).removeprefix(self.task)
        return self.places + begin + self.task + question + end

    def labels(self, answers: list[str]) -> torch.Tensor:
        """The answers' tokens.  They begin with what generation will be made to begin with."""
        first = [] if self.starts is None else [self.starts]
        last = [self.tokenizer.eos_token_id]
        rows = [
            first + self.tokenizer(answer, add_special_tokens=False)["input_ids"] + last
            for answer in answers
        ]
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [IGNORED] * (longest - len(row)) for row in rows])


def read(folder: str) -> datasets.DatasetDict:
    """A folder that `save_to_disk` wrote: train and validation, and test if there is one."""
    found = datasets.load_from_disk(folder)
    missing = {"train", "validation"} - set(found)
    if missing:
        raise SystemExit(f"{folder}: there is no split {' and no split '.join(sorted(missing))}")
    return found


def _shared(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """An array in a file that every process of the training opens: only what is used takes room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, int(np.prod(shape)))
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)


def _opened(stored: dict[str, Any]) -> Image.Image:
    if stored["bytes"] is not None:
        return Image.open(io.BytesIO(stored["bytes"]))
    return Image.open(stored["path"])


def _upright(page: Image.Image) -> Image.Image:
    """In colours, and the way up that its camera noted."""
    ImageOps.exif_transpose(page, in_place=True)
    return page.convert("RGB")
