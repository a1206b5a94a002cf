"""Rows as batches: what goes into the model is what its processor would have made."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def loaded(guide: dict[str, ModuleType], standin: Path) -> tuple[Any, Any]:
    """The stand-in: only its own processor can say what a prompt becomes."""
    return guide["florence2"].load(guide["train_mlflow"].model_folder(str(standin)))


def split(guide: dict[str, ModuleType], data: Path, cache: Path, processor: Any) -> Any:
    rows = guide["pages"].read(str(data))["train"]
    return guide["pages"].Pages(rows, "train", size=processor.image_processor.size, cache=cache)


def test_a_page_is_decoded_once_for_all_of_its_questions(
    guide: dict[str, ModuleType],
    data: Path,
    tmp_path: Path,
    loaded: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = split(guide, data, tmp_path, loaded[1])
    decoded: Counter[int] = Counter()
    original = rows._resized

    def counted(stored: dict[str, Any]) -> Any:
        decoded[hash(stored["bytes"])] += 1
        return original(stored)

    monkeypatch.setattr(rows, "_resized", counted)
    for _ in range(2):
        for at in range(len(rows)):
            rows[at]
    assert len(rows) > len(decoded) == 5
    assert set(decoded.values()) == {1}


def test_a_page_is_seen_the_way_up_that_its_camera_noted(
    guide: dict[str, ModuleType], tmp_path: Path
) -> None:
    upright = Image.linear_gradient("L").resize((100, 200)).convert("RGB")
    turned, plain, exif = io.BytesIO(), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # held upright, and kept lying on its side
    upright.rotate(90, expand=True).save(turned, "PNG", exif=exif)
    upright.save(plain, "PNG")
    pictures = [{"bytes": one.getvalue(), "path": None} for one in (turned, plain)]
    rows = datasets.Dataset.from_dict(
        {"image": pictures, "question": ["which?"] * 2, "answers": [["one"]] * 2},
        features=datasets.Features(
            image=datasets.Image(),
            question=datasets.Value("string"),
            answers=datasets.List(datasets.Value("string")),
        ),
    )
    size = {"height": 32, "width": 32}
    made = guide["pages"].Pages(rows, "train", size=size, cache=tmp_path / "cache")
    assert torch.equal(made[0][1], made[1][1])
    assert made.picture(0).size == upright.size


def test_processes_share_decoded_pages(
    guide: dict[str, ModuleType], data: Path, tmp_path: Path, loaded: tuple[Any, Any]
) -> None:
    one = split(guide, data, tmp_path, loaded[1])
    picture = one[0][1]
    other = split(guide, data, tmp_path, loaded[1])  # as another rank opens it
    assert other.there[other.number[0]] == 1
    assert other[0][1].equal(picture)


def test_a_batch_is_what_the_processor_would_have_made(
    guide: dict[str, ModuleType], data: Path, tmp_path: Path, loaded: tuple[Any, Any]
) -> None:
    model, processor = loaded
    rows = split(guide, data, tmp_path, processor)
    batches = guide["pages"].Batches(processor, task="<DocVQA>", starts=None, longest=300)
    batch = batches([rows[0], rows[7]])
    learner = guide["train_mlflow"].Learner(model, processor, freeze=False, bf16=False)
    ours = learner.inputs(batch)
    theirs = processor(
        text=[f"<DocVQA>{rows.rows[at]['question']}" for at in (0, 7)],
        images=[rows.picture(0), rows.picture(7)],
        padding=True,
        return_tensors="pt",
    )
    assert ours["input_ids"].equal(theirs["input_ids"])
    assert ours["attention_mask"].equal(theirs["attention_mask"])
    # It resizes, and so do we; a byte's rounding between the two is 1/255 before normalizing.
    assert (ours["pixel_values"] - theirs["pixel_values"]).abs().max() < 0.05


@pytest.mark.parametrize("starts", [None, 0])
def test_labels_begin_with_what_generation_is_made_to_begin_with(
    guide: dict[str, ModuleType], loaded: tuple[Any, Any], starts: int | None
) -> None:
    _, processor = loaded
    batches = guide["pages"].Batches(processor, task="<DocVQA>", starts=starts, longest=300)
    labels = batches.labels(["12.50", "a longer answer"])
    words = processor.tokenizer("12.50", add_special_tokens=False)["input_ids"]
    begin = [] if starts is None else [starts]
    wanted = [*begin, *words, processor.tokenizer.eos_token_id]
    assert labels[0, : len(wanted)].tolist() == wanted
    assert set(labels[0, len(wanted) :].tolist()) == {guide["pages"].IGNORED}


def test_a_question_of_any_length_keeps_its_end(
    guide: dict[str, ModuleType], loaded: tuple[Any, Any]
) -> None:
    _, processor = loaded
    batches = guide["pages"].Batches(processor, task="<DocVQA>", starts=None, longest=20)
    prompt = batches.prompt("why? " * 20_000)
    ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids[-1] == processor.tokenizer.eos_token_id
    assert processor.num_image_tokens < len(ids) <= processor.num_image_tokens + 25


def test_a_folder_without_a_split_is_refused_by_name(
    guide: dict[str, ModuleType], tmp_path: Path
) -> None:
    guide["documents"].arrow(tmp_path / "d", {"train": 1}, seed=1)
    with pytest.raises(SystemExit, match="no split validation"):
        guide["pages"].read(str(tmp_path / "d"))


def test_pictures_are_bytes_until_the_model_needs_them(
    guide: dict[str, ModuleType], data: Path, tmp_path: Path, loaded: tuple[Any, Any]
) -> None:
    rows = split(guide, data, tmp_path, loaded[1])
    assert rows[0][1].dtype == torch.uint8
