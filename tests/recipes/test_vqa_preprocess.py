"""Rows and pictures: what is read, what is refused and how, what training gets.

The model is loaded by none of these, only its processor.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finery import checkpoint
from finery.recipes import pictures, vqa_encoding, vqa_preprocess

from . import small_vqa
from .small_vqa import base64_of, prepare, write


def lines(folder: Path, split: str) -> list[dict[str, Any]]:
    return vqa_preprocess.rows(folder, split)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, no rows yet."""
    made = tmp_path / "data"
    small_vqa.pictures(made, 3)
    return made


def good(**change: object) -> dict[str, Any]:
    return {"image": "pictures/000.png", "question": "what?", "answers": ["a"], **change}


def test_no_picture_is_on_two_sides_and_each_is_decoded_once(prepared: Path) -> None:
    sides = [
        {row["picture"] for row in lines(prepared, s)} for s in ("train", "validation", "test")
    ]
    assert [len(side) for side in sides] == [24, 3, 3]
    assert len(set.union(*sides)) == 30
    assert len(lines(prepared, "train")) == 48
    assert len(pictures.Shelf.open(prepared)) == 30
    told = json.loads((prepared / "preprocess_args.json").read_text())
    assert told["splits"]["test"]["kept"] == 6


def test_tokens_and_pixels_are_the_processor_s_own(florence: Path, prepared: Path) -> None:
    import torch
    from transformers import AutoConfig, GenerationConfig

    processor = checkpoint.processor(florence)
    config = AutoConfig.from_pretrained(florence)
    generation = GenerationConfig.from_pretrained(florence)
    encoder = vqa_encoding.Encoder(processor, config, generation, task_prompt="<DocVQA>")
    shelf = pictures.Shelf.open(prepared)
    rows = lines(prepared, "train")[:3]
    batch = vqa_encoding.Batches(encoder, shelf)(rows)
    given = Image.open(next(prepared.parent.glob("data*/pictures/000.png")))
    theirs = processor(
        text=["<DocVQA>" + row["question"] for row in rows],
        images=[given] * 3,
        return_tensors="pt",
        padding=True,
    )
    assert batch["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert batch["attention_mask"].tolist() == theirs["attention_mask"].tolist()
    mine = vqa_encoding.Scale(processor)(batch["pixel_values"])
    torch.testing.assert_close(mine[0], theirs["pixel_values"][0], rtol=0, atol=1e-6)
    # Generation is made to begin with <s>, so answers begin with it too.
    assert batch["labels"][0, 0] == processor.tokenizer.bos_token_id
    assert rows[0]["label_ids"][-1] == processor.tokenizer.eos_token_id


def test_every_way_to_give_a_picture_gives_the_same(florence: Path, folder: Path) -> None:
    import pandas

    path = folder / "pictures" / "001.png"
    text = base64_of(path)
    ways = ["pictures/001.png", "pictures\\001.png", text, f"data:image/png;base64,{text}"]
    write(folder / "train.jsonl", [good(image=way) for way in ways])
    table = {"bild": [{"bytes": path.read_bytes(), "path": None}], "frage": ["what?"]}
    pandas.DataFrame({**table, "antwort": [["a"]]}).to_parquet(folder / "p.parquet")
    write(folder / "other.jsonl", [good()])
    files = {
        "validation_file_path": folder / "other.jsonl",
        "test_file_path": folder / "other.jsonl",
    }
    out = folder.parent / "out"
    assert prepare(florence, folder, out, **files) == 0
    shelf = pictures.Shelf.open(out)
    found = [shelf[row["picture"]] for row in lines(out, "train")]
    assert len(shelf) == 3  # by path, by its bytes, and the other one
    assert all(np.array_equal(one, found[0]) for one in found)
    names = {"image_key": "bild", "question_key": "frage", "answers_key": "antwort"}
    parquet = {f"{s}_file_path": folder / "p.parquet" for s in ("train", "validation", "test")}
    assert prepare(florence, folder, out, **names, **parquet) == 0
    assert np.array_equal(pictures.Shelf.open(out)[0], found[0])


def test_tables_and_folders_of_splits_are_read(florence: Path, folder: Path) -> None:
    csv = 'image,question,answers\npictures/000.png,what?,"[""a"", ""b"", ""b""]"\n'
    for place in ("train/train.csv", "validation.csv", "test.csv"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(csv + "pictures/001.png,who?,Ann Lee\n")
    out = folder.parent / "out"
    assert prepare(florence, folder, out) == 0
    first, second = lines(out, "train")
    assert first["answers"] == ["a", "b", "b"] and second["answers"] == ["Ann Lee"]
    tokenizer = checkpoint.processor(florence).tokenizer
    # The answer that most people gave is learned.
    assert tokenizer.decode(first["label_ids"], skip_special_tokens=True) == "b"
    (folder / "MLTable").write_text("paths:\n  - file: ./test.csv\n")
    tables = {f"{split}_mltable_path": folder for split in ("train", "validation", "test")}
    assert prepare(florence, folder, out, **tables) == 0
    assert len(lines(out, "train")) == 2


def test_a_dataset_that_was_saved_to_disk_is_read(florence: Path, folder: Path) -> None:
    import datasets

    paths = [str(folder / "pictures" / f"00{number}.png") for number in range(3)]
    table = {"image": paths, "question": ["what?"] * 3, "answers": [["a"]] * 3}
    kinds = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answers": datasets.Sequence(datasets.Value("string")),
        }
    )
    made = datasets.Dataset.from_dict(table, features=kinds)
    saved = folder.parent / "saved"
    datasets.DatasetDict({"train": made, "validation": made}).save_to_disk(saved)
    out = folder.parent / "out"
    assert prepare(florence, saved, out) == 0
    assert [len(lines(out, split)) for split in ("train", "validation", "test")] == [2, 3, 1]
    wanted = pictures.fitted(Path(paths[0]), pictures.Shelf.open(out).shape)
    assert np.array_equal(pictures.Shelf.open(out)[0], wanted)


def test_a_picture_is_upright_and_on_white(tmp_path: Path) -> None:
    wanted = pictures.Shape(8, 8, 3)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert (pictures.fitted(tmp_path / "clear.png", wanted) == 255).all()
    tall = Image.new("RGB", (8, 16), "black")
    tall.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, says the camera
    tall.save(tmp_path / "tall.png", exif=exif)
    turned = pictures.fitted(tmp_path / "tall.png", wanted)
    assert turned[0, 0, 0] == 0 and turned[-1, 0, 0] == 255


def test_a_photograph_is_decoded_at_a_fraction_and_a_picture_just_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.linear_gradient("L").resize((4800, 3600)).convert("RGB").save(tmp_path / "photo.jpg")
    wanted = pictures.Shape(64, 64, 3)
    small = pictures.fitted(tmp_path / "photo.jpg", wanted)
    whole = Image.open(tmp_path / "photo.jpg").resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(small.astype(int) - np.asarray(whole).astype(int)).max() <= 4
    monkeypatch.setattr(pictures, "MOST_PIXELS", 4800 * 3600 - 1)
    with pytest.raises(pictures.BadPicture, match="has 4800 x 3600 pixels"):
        pictures.opened(tmp_path / "photo.jpg")


def test_beyond_its_limit_the_shelf_keeps_pictures_as_png(tmp_path: Path) -> None:
    shelf = pictures.Shelf(tmp_path, pictures.Shape(64, 64, 3))
    shelf.raw = 64 * 64 * 3
    given = [np.full((64, 64, 3), shade, np.uint8) for shade in (1, 2, 3)]
    assert [shelf.add(one) for one in given] == [0, 1, 2]
    shelf.close()
    assert (tmp_path / "pictures.bin").stat().st_size < 2 * 64 * 64 * 3
    again = pictures.Shelf.open(tmp_path)
    assert all(np.array_equal(again[number], one) for number, one in enumerate(given))


def huge_png() -> bytes:
    """25,000 by 20,000 pixels in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 25_000, 20_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": (good(image="note.txt"), "image: the picture .*/note.txt is no picture"),
    "500 megapixels": (
        good(image="huge.png"),
        "image: the picture .*/huge.png has .*at most 89 million",
    ),
    "cut short": (
        good(image="short.png"),
        "image: the picture .*/short.png cannot be decoded .*cut short",
    ),
    "base64": (good(image="?!" * 40), "image: .* is neither a file in .* nor base64"),
    "data uri": (good(image="data:image/png,abc"), "image: a data URI must be data:image"),
    "data uri's base64": (good(image="data:image/png;base64,?!"), "image: is not base64"),
    "base64 of nothing": (good(image="aGVsbG8="), "image: the picture is no picture"),
    "outside": (good(image="../secret.png"), r"image: \.\./secret\.png: leaves the folder"),
    "absolute": (good(image="/etc/hosts.png"), "image: .*leaves the folder"),
    "by a link": (good(image="link.png"), "image: link.png: leaves the folder"),
    "not there": (good(image="pictures/9.png"), "image: .*there is no such file in"),
    "an address": (good(image="https://example.com/a.png"), "image: .*pictures are not fetched"),
    "a number": (good(image=7), "image: is not text"),
    "no column": ({"image": "pictures/000.png", "answers": ["a"]}, "question: is missing .*image"),
    "empty answers": (good(answers=[]), "answers: is an empty list"),
    "an empty answer": (good(answers=["a", " "]), "answers: has an empty answer"),
    "no text": (good(answers=[1]), "answers: is neither text nor a list"),
    "empty question": (good(question=" "), "question: is not a question"),
    "half a character": (good(question="\ud800"), "question: has half a character"),
    "half an answer": (good(answers=["\udfff"]), "answers: has half a character"),
    "100,000 characters": (good(question="x" * 100_000), "question: has 100,000 characters"),
}


def test_every_bad_row_is_named_with_file_line_and_column(
    florence: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vqa_preprocess, "PROBLEMS_SAID", 100)
    (folder / "note.txt").write_text("hello")
    (folder / "huge.png").write_bytes(huge_png())
    (folder / "short.png").write_bytes((folder / "pictures/000.png").read_bytes()[:-30])
    (folder.parent / "secret.png").write_bytes((folder / "pictures/000.png").read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    write(folder / "train.jsonl", [good(), *(row for row, _ in BAD.values())])
    out = folder.parent / "out"
    assert prepare(florence, folder, out) == 1
    said = capsys.readouterr()
    assert f"(and {len(BAD) - 1} more rows with problems)" in said.err.splitlines()[-1]
    assert not list(out.iterdir())
    for line, (name, (_, message)) in enumerate(BAD.items(), 2):
        wanted = rf"^\S+/train\.jsonl, line {line}, {message}"
        assert re.search(wanted, said.out, re.M), (name, said.out)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("q " * 4_000, r"question: has 8004 tokens .*room for 111"),
        ("<image> what?", "question: has <image>, which stands"),
    ],
)
def test_a_question_that_the_model_cannot_be_asked_is_named(
    florence: Path, folder: Path, capsys: pytest.CaptureFixture[str], question: str, message: str
) -> None:
    rows = [good(image=f"pictures/00{n}.png", question=question) for n in range(3)]
    write(folder / "train.jsonl", rows)
    assert prepare(florence, folder, folder.parent / "out") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: \S+/train\.jsonl, line 1, {message}", said), said


def test_all_bad_rows_are_shown_at_once(
    florence: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [good(), good(image="pictures/9.png"), good(answers=[]), {"image": 1}]
    write(folder / "train.jsonl", rows)
    assert prepare(florence, folder, folder.parent / "out") == 1
    said = capsys.readouterr()
    assert "line 2, image: pictures/9.png: there is no such file" in said.err
    assert "(and 2 more rows with problems)" in said.err
    assert all(f"line {number}, " in said.out for number in (2, 3, 4))


def test_what_cannot_be_split_or_found_is_said(
    florence: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "out"
    assert prepare(florence, folder, out) == 1
    assert f"in {folder} there is no train with one of" in capsys.readouterr().err
    write(folder / "train.jsonl", [good(), good(question="who?")])
    assert prepare(florence, folder, out) == 1
    assert "1 pictures are too few" in capsys.readouterr().err
    assert prepare(florence, folder, out, task_prompt="<OCR>") == 1
    assert "<OCR> takes no question" in capsys.readouterr().err
    assert prepare(florence, folder / "nowhere", out) == 1
    assert "there is no such folder" in capsys.readouterr().err


def test_answers_longer_than_allowed_are_dropped_and_counted(
    florence: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [good(image=f"pictures/00{n}.png") for n in range(3)]
    write(folder / "train.jsonl", [*rows, good(answers=["which total does the receipt show " * 9])])
    out = folder.parent / "out"
    assert prepare(florence, folder, out, max_answer_length=8) == 0
    assert "train: 1 of 2 rows" in capsys.readouterr().out
