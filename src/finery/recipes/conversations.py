"""Rows of chat data: read them from any of the taken formats, say what is wrong with one.

Reads JSON lines, JSON arrays, CSV, TSV, Parquet and MLTable folders as a stream
of (line, row), one bounded line at a time.  `problem` finds what makes a row
wrong (the run must stop), `excuse` what makes it merely useless (it is dropped,
and counted under that reason).  Tokens and templates are `encoding`'s affair.
Standard library only, but for Parquet (pyarrow) and MLTable (yaml).
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finery.recipes.spec import Failed

Row = dict[str, Any]
COLUMN = "messages"
ROLES = ("system", "user", "assistant")
LINE_LIMIT = 32 * 1024 * 1024
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row, and in which field of it."""

    field: str
    message: str


class BadRow(Failed):
    """A line that cannot be read as a row."""

    def __init__(self, path: Path, line: int, *, field: str, message: str) -> None:
        """`line` counts from 1; `field` is the path inside the row, "" for the whole line."""
        where = f"{path}, line {line}" + (f", {field}" if field else "")
        super().__init__(f"{where}: {message}")
        self.path, self.line, self.field, self.message = path, line, field, message


def read(path: Path) -> Iterator[tuple[int, Row]]:
    """(line from 1, row) of the file, or of the files of an MLTable folder; BadRow, Failed."""
    if path.is_dir() or path.name == "MLTable":
        for part in _mltable(path if path.is_dir() else path.parent):
            yield from read(part)
        return
    if not path.is_file():
        raise Failed(f"{path}: there is no such file")
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            yield from _json_lines(path)
        case ".json":
            yield from _json_array(path) if _starts_array(path) else _json_lines(path)
        case ".csv" | ".tsv":
            yield from _separated(path)
        case ".parquet":
            yield from _parquet(path)
        case other:
            raise Failed(
                f"{path}: {other or 'a name without ending'} is not a format taken here"
                f" ({', '.join(FORMATS)}, or a folder with an MLTable file)"
            )


def problem(row: Row) -> Problem | None:
    """The first thing that makes the row wrong; None for a good or merely useless one."""
    if COLUMN not in row:
        columns = ", ".join(sorted(map(str, row))) or "none"
        return Problem(COLUMN, f"there is no {COLUMN} (the row has: {columns})")
    messages = row[COLUMN]
    if not isinstance(messages, list):
        return Problem(COLUMN, f"is not a list of messages but {_kind(messages)}")
    for number, message in enumerate(messages):
        found = _message_problem(message, number)
        if found:
            return found
    return None


def excuse(row: Row) -> str:
    """Why a row that is not wrong teaches nothing, and is dropped; "" for one that is kept."""
    messages = row[COLUMN]
    if not messages:
        return "empty messages"
    if len(messages) < 2:
        return "fewer than 2 messages"
    if not any(message["role"] == "assistant" for message in messages):
        return "no assistant message"
    return ""


def checked(path: Path) -> Iterator[tuple[int, Row]]:
    """`read`, and BadRow at the first row with a problem."""
    for line, row in read(path):
        found = problem(row)
        if found:
            raise BadRow(path, line, field=found.field, message=found.message)
        yield line, row


def merge_system(messages: list[Row]) -> list[Row]:
    """The messages for a model without a system role: merged into the first user message."""
    if not messages or messages[0]["role"] != "system":
        return messages
    rest = [dict(message) for message in messages[1:]]
    for message in rest:
        if message["role"] == "user":
            message["content"] = f"{messages[0]['content']}\n\n{message['content']}"
            break
    return rest


def _message_problem(message: Any, number: int) -> Problem | None:
    where = f"{COLUMN}[{number}]"
    if not isinstance(message, dict):
        return Problem(where, f"is not an object with role and content but {_kind(message)}")
    role = message.get("role")
    if role is None:
        return Problem(f"{where}.role", "is missing")
    if role not in ROLES:
        return Problem(f"{where}.role", f"{role!r} is not one of {', '.join(ROLES)}")
    if role == "system" and number > 0:
        return Problem(f"{where}.role", "a system message can only come first")
    content = message.get("content")
    if content is None:
        return Problem(f"{where}.content", "is missing")
    if not isinstance(content, str):
        return Problem(f"{where}.content", f"is not text but {_kind(content)}")
    if role == "assistant" and not content.strip():
        return Problem(f"{where}.content", "an assistant message is empty: nothing to learn")
    return None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), "a number")


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(LINE_LIMIT + 1):
            number += 1
            if len(line) > LINE_LIMIT:
                raise BadRow(
                    path, number, field="", message=f"is longer than {LINE_LIMIT >> 20} MiB"
                )
            # A byte order mark survives in files saved on Windows; it is not part of the first row.
            text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if text:
                yield number, _row(path, number, text)


def _row(path: Path, number: int, text: bytes) -> Row:
    try:
        row = json.loads(text)
    except UnicodeDecodeError as error:
        raise BadRow(path, number, field="", message=f"is not UTF-8 ({error.reason})") from error
    except ValueError as error:
        message = f"is not a JSON object ({error})"
        raise BadRow(path, number, field="", message=message) from error
    except RecursionError as error:
        raise BadRow(path, number, field="", message="is nested too deeply") from error
    if not isinstance(row, dict):
        raise BadRow(path, number, field="", message=f"is not a JSON object but {_kind(row)}")
    return row


def _starts_array(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _json_array(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise Failed(f"{path}: is not JSON ({error})") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise BadRow(path, number, field="", message=f"is not an object but {_kind(row)}")
        yield number, row


def _separated(path: Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(LINE_LIMIT)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, delimiter=delimiter)
        try:
            for row in rows:
                yield rows.line_num, _unfolded(path, rows.line_num, dict(row))
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadRow(path, rows.line_num + 1, field="", message=str(error)) from error


def _unfolded(path: Path, line: int, row: Row) -> Row:
    """A table keeps its messages as JSON text in one cell."""
    if isinstance(row.get(COLUMN), str):
        try:
            row[COLUMN] = json.loads(row[COLUMN])
        except ValueError as error:
            message = f"is not a JSON list ({error})"
            raise BadRow(path, line, field=COLUMN, message=message) from error
    return row


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except Exception as error:
        raise Failed(f"{path}: is not a Parquet file ({error})") from error
    number = 0
    for batch in file.iter_batches(batch_size=1000):
        for row in batch.to_pylist():
            number += 1
            yield number, _unfolded(path, number, row)


def _mltable(folder: Path) -> list[Path]:
    """The files that an MLTable folder names, in its order."""
    import yaml

    manifest = folder / "MLTable"
    if not manifest.is_file():
        raise Failed(f"{folder}: is a folder without an MLTable file")
    try:
        document = yaml.safe_load(manifest.read_text(encoding="utf-8-sig")) or {}
    except yaml.YAMLError as error:
        raise Failed(f"{manifest}: is not YAML ({error})") from error
    found: list[Path] = []
    for entry in document.get("paths") or []:
        for kind in ("file", "pattern", "folder"):
            if kind in entry:
                found += _named(folder, str(entry[kind]), kind=kind)
    if not found:
        raise Failed(f"{manifest}: names no file under paths")
    return found


def _named(folder: Path, name: str, *, kind: str) -> list[Path]:
    local = name.removeprefix("file://")
    if "://" in local:
        raise Failed(f"{folder / 'MLTable'}: {name}: only files beside it can be read")
    path = folder / local
    if kind == "pattern":
        return [Path(found) for found in sorted(glob.glob(str(path), recursive=True))]
    if kind == "folder":
        return sorted(found for found in path.iterdir() if found.suffix.lower() in FORMATS)
    return [path]
