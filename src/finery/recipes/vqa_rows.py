"""Rows of picture, question and answers: find them, read them, say what is wrong with one.

Reads what `conversations` reads (JSON lines, JSON, CSV, TSV, Parquet, MLTable),
and a folder that the datasets library has saved.  A picture is a path below the
folder of its rows, a data URI, base64, or the bytes of a column of pictures.
Nothing is decoded here: that is `pictures`' affair, tokens are `vqa_preprocess`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finery.recipes import conversations, pictures, splits
from finery.recipes.conversations import BadRow
from finery.recipes.spec import Failed

MOST_CHARACTERS = 10_000  # of a question, or of an answer
SAVED = "dataset_info.json"
NAME_CHARACTERS = 1_000  # of a path


@dataclass(frozen=True)
class Columns:
    """What the columns are called."""

    image: str = "image"
    question: str = "question"
    answers: str = "answers"


@dataclass(frozen=True)
class Part:
    """Rows of a split: a file or MLTable folder, and the folder that their pictures lie in."""

    path: Path
    root: Path


@dataclass(frozen=True)
class Row:
    """A question about a picture; `answers` are all right, the first most often."""

    path: Path
    line: int
    picture: pictures.Source
    question: str
    answers: tuple[str, ...]

    def bad(self, column: str, message: str) -> BadRow:
        """The row's error, with its place."""
        return BadRow(self.path, self.line, field=column, message=message)


def sources(given: splits.Files, *, folder: Path | None) -> dict[str, Part]:
    """Where the rows of each split are; a table goes before a file, a file before the folder."""
    if folder is not None and not folder.is_dir():
        raise Failed(f"--data_folder_path: {folder}: there is no such folder")
    found: dict[str, Part] = {}
    for split in splits.SPLITS:
        table, file = given.table(split), given.file(split)
        if table is not None:
            found[split] = Part(table, table if table.is_dir() else table.parent)
        elif file is not None:
            found[split] = Part(file, folder or file.parent)
        elif folder is not None and (named := _named(folder, split)):
            found[split] = Part(named, folder)
    if "train" not in found:
        endings = ", ".join(conversations.FORMATS)
        where = f" (in {folder} there is no train with one of {endings})" if folder else ""
        raise Failed(
            "no training rows: give data_folder_path, train_file_path or train_mltable_path" + where
        )
    return found


def _named(folder: Path, split: str) -> Path | None:
    if (folder / split / SAVED).is_file():
        return folder / split
    for place in (folder, folder / split):
        for ending in conversations.FORMATS:
            if (place / f"{split}{ending}").is_file():
                return place / f"{split}{ending}"
    return None


def read(part: Part, columns: Columns) -> Iterator[Row | BadRow]:
    """Each row, or what is wrong with it; Failed when the file cannot be read at all."""
    saved = (part.path / SAVED).is_file()
    lines = _saved(part.path) if saved else conversations.read(part.path)
    while True:
        try:
            line, row = next(lines)
        except StopIteration:
            return
        except BadRow as error:
            # What cannot be parsed ends the reading: lines after it may belong to it.
            yield error
            return
        try:
            yield _row(part, line, row, columns)
        except BadRow as error:
            yield error


def _saved(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A split that `save_to_disk` has written; its pictures as the bytes that they came in."""
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises of Arrow's, of JSON's and of its own kinds
        raise Failed(f"{folder}: cannot be read as a saved dataset ({error})") from error
    for name, kind in table.features.items():
        if isinstance(kind, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    yield from enumerate(table, 1)


def _row(part: Part, line: int, row: dict[str, Any], columns: Columns) -> Row:
    def bad(column: str, message: str) -> BadRow:
        return BadRow(part.path, line, field=column, message=message)

    for column in (columns.image, columns.question, columns.answers):
        if row.get(column) is None:
            there = ", ".join(map(str, row)) or "none"
            raise bad(column, f"is missing (the row has: {there})")
    question = row[columns.question]
    if not isinstance(question, str) or not question.strip():
        raise bad(columns.question, "is not a question but empty or no text")
    if _broken(question):
        raise bad(columns.question, "has half a character (a lone surrogate): write it anew")
    if len(question) > MOST_CHARACTERS:
        raise bad(
            columns.question,
            f"has {len(question):,} characters; at most {MOST_CHARACTERS:,} are taken: shorten it",
        )
    try:
        picture = _picture(row[columns.image], part.root)
    except pictures.BadPicture as error:
        raise bad(columns.image, str(error)) from error
    try:
        answers = _answers(row[columns.answers])
    except ValueError as error:
        raise bad(columns.answers, str(error)) from error
    return Row(part.path, line, picture, question.strip(), answers)


def _answers(given: Any) -> tuple[str, ...]:
    """One answer or several; in a table's cell, several are a JSON list."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        try:
            given = json.loads(given)
        except ValueError:
            pass  # an answer that begins so
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ValueError("is neither text nor a list of texts")
    if not given:
        raise ValueError("is an empty list: there is nothing to learn; leave the row out")
    if not all(one.strip() for one in given):
        raise ValueError("has an empty answer: there is nothing to learn; leave it out")
    if any(_broken(one) for one in given):
        raise ValueError("has half a character (a lone surrogate): write it anew")
    longest = max(len(one) for one in given)
    if longest > MOST_CHARACTERS:
        raise ValueError(f"has {longest:,} characters; at most {MOST_CHARACTERS:,} are taken")
    return tuple(one.strip() for one in given)


def _broken(text: str) -> bool:
    """Whether it has what JSON can write and no tokenizer or file can take."""
    return any("\ud800" <= one <= "\udfff" for one in text)


def _picture(given: Any, root: Path) -> pictures.Source:
    if isinstance(given, dict):
        # As the datasets library writes pictures into Parquet.
        given = given.get("bytes") or given.get("path")
    if isinstance(given, bytes):
        return given
    if not isinstance(given, str) or not given.strip():
        raise pictures.BadPicture("is not text: a path, a data URI or base64 is expected")
    text = given.strip()
    if text.startswith(("http:", "https:")):
        raise pictures.BadPicture("is an address; pictures are not fetched: put it in the folder")
    if text.startswith("data:") or "." not in text[:NAME_CHARACTERS]:
        if not text.startswith("data:") and len(text) < 64 and (root / text).is_file():
            return _inside(text, root)
        try:
            return pictures.from_text(text)
        except pictures.BadPicture as error:
            if text.startswith("data:"):
                raise
            raise pictures.BadPicture(
                f"{text[:40]!r} is neither a file in {root} nor base64 ({error})"
            ) from error
    return _inside(text, root)


def _inside(name: str, root: Path) -> Path:
    """The file of that name in the folder, links followed; never one outside."""
    if len(name) > NAME_CHARACTERS or "\0" in name:
        raise pictures.BadPicture("is neither a path nor base64")
    found = (root / name.replace("\\", "/")).resolve()
    if not found.is_relative_to(root.resolve()):
        raise pictures.BadPicture(f"{name}: leaves the folder {root}; put the picture into it")
    if not found.is_file():
        raise pictures.BadPicture(f"{name}: there is no such file in {root}")
    return found
