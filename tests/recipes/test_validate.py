"""Bad data is refused with file, line and field, before anything else is done."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from finery.recipes import conversations, validate

from .conftest import conversation, flags, write_rows

GOOD = {"messages": conversation(0)}


def check(tmp_path: Path, base: Path, path: Path, **words: object) -> tuple[int, dict[str, Any]]:
    report = tmp_path / "report.json"
    given = {"validation_info": report, "pytorch_model_path": base, "train_file_path": path}
    status = validate.main(flags(**{**given, **words}))
    return status, json.loads(report.read_text())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Names are enough: validation does not look into weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "model.safetensors").touch()
    return folder


def test_a_model_without_weights_or_with_pickles_is_refused_at_once(
    tmp_path: Path, model: Path
) -> None:
    path = lines(tmp_path / "t.jsonl", GOOD)
    (model / "config.json").write_text('{"hidden_size": 1000000000}')
    assert "hidden_size is 1000000000" in check(tmp_path, model, path)[1]["error"]
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    status, report = check(tmp_path, model, path)
    assert status == 1 and "pickles (pytorch_model.bin)" in report["error"]
    (model / "pytorch_model.bin").unlink()
    status, report = check(tmp_path, model, path)
    assert status == 1 and "--pytorch_model_path" in report["error"]
    assert "there are no weights" in report["error"]


def lines(path: Path, *rows: object) -> Path:
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return path


def test_a_good_file_passes_and_is_counted(tmp_path: Path, model: Path) -> None:
    path = lines(
        tmp_path / "t.jsonl", GOOD, {"messages": []}, {"messages": GOOD["messages"][:1]}, GOOD
    )
    status, report = check(tmp_path, model, path)
    assert (status, report["status"]) == (0, "passed")
    found = report["files"]["train"]
    assert (found["rows"], found["kept"]) == (4, 2)
    assert found["dropped"] == {"empty messages": 1, "fewer than 2 messages": 1}
    assert found["roles"] == {"user": 2, "assistant": 2}
    size = sum(len(message["content"]) for message in GOOD["messages"])
    assert found["characters"]["total"] == 2 * size


def turn(role: object, content: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hello"}, {"role": role, "content": content}]}


@pytest.mark.parametrize(
    ("bad", "field", "message"),
    [
        ("not json\n", "", "is not a JSON object"),
        ("[1, 2]\n", "", "is not a JSON object but a list"),
        ({"prompt": "x"}, "messages", "there is no messages (the row has: prompt)"),
        ({"messages": "hello"}, "messages", "is not a list of messages but text"),
        ({"messages": ["hello"]}, "messages[0]", "is not an object"),
        (turn("robot", "hi"), "messages[1].role", "'robot' is not one of"),
        (turn(None, "hi"), "messages[1].role", "is missing"),
        (turn("assistant", ""), "messages[1].content", "is empty"),
        (turn("assistant", " \n"), "messages[1].content", "is empty"),
        (turn("assistant", [{"type": "text"}]), "messages[1].content", "is not text but a list"),
        (turn("assistant", None), "messages[1].content", "is missing"),
        (turn("system", "late"), "messages[1].role", "can only come first"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    bad: Any,
    field: str,
    message: str,
) -> None:
    path = lines(tmp_path / "t.jsonl", GOOD, GOOD, bad, GOOD)
    status, report = check(tmp_path, model, path)
    assert (status, report["status"]) == (1, "failed")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"error: {path}, line 3" + (f", {field}: " if field else ": "))
    assert message in said
    assert report["files"]["train"]["problems"][0]["line"] == 3


def test_all_bad_rows_are_in_the_report_and_their_number_in_the_error(
    tmp_path: Path, model: Path
) -> None:
    path = lines(tmp_path / "t.jsonl", {"a": 1}, GOOD, {"b": 1}, *[{"c": 1}] * 30)
    status, report = check(tmp_path, model, path)
    found = report["files"]["train"]
    assert (status, found["problem_count"], len(found["problems"])) == (1, 32, 20)
    assert "and 31 more rows" in report["error"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"train_file_path": "/nowhere/t.jsonl"}, "/nowhere/t.jsonl: there is no such file"),
        ({"pytorch_model_path": "/nowhere/model"}, "/nowhere/model: there is no such folder"),
        ({"apply_early_stopping": "true", "evaluation_strategy": "disable"}, "early_stopping"),
        ({"evaluation_config_params": "{"}, "evaluation_config_params"),
        ({"evaluation_config_params": "[1]"}, "evaluation_config_params: is not a JSON object"),
        ({"evaluation_config_params": '{"max_rows": "many"}'}, "max_rows: 'many' is not a whole"),
        ({"evaluation_config": "/nowhere/e.json"}, "/nowhere/e.json: No such file"),
        ({"validation_file_path": "/nowhere/v.jsonl"}, "/nowhere/v.jsonl"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    tmp_path: Path, model: Path, words: dict[str, object], named: str
) -> None:
    path = lines(tmp_path / "t.jsonl", GOOD)
    status, report = check(tmp_path, model, path, **words)
    assert status == 1
    assert named in report["error"]


def test_a_learning_rate_of_zero_is_refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path / "t.jsonl", GOOD)
    words = flags(validation_info=tmp_path / "r", train_file_path=path, learning_rate=0)
    assert validate.main(words) == 2
    assert "--learning_rate" in capsys.readouterr().err


def test_no_model_and_no_rows_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", GOOD)
    report = tmp_path / "r.json"
    assert validate.main(flags(validation_info=report, train_file_path=path)) == 1
    assert "no model" in json.loads(report.read_text())["error"]
    assert validate.main(flags(validation_info=report, huggingface_id="a/b")) == 1
    assert "train_file_path" in json.loads(report.read_text())["error"]


def test_an_mlflow_folder_without_its_manifest_is_refused(tmp_path: Path, model: Path) -> None:
    report = tmp_path / "r.json"
    words = flags(validation_info=report, mlflow_model_path=model, train_file_path="x.jsonl")
    assert validate.main(words) == 1
    assert "there is no MLmodel file" in json.loads(report.read_text())["error"]


def test_an_empty_file_has_no_usable_rows(tmp_path: Path, model: Path) -> None:
    path = lines(tmp_path / "t.jsonl")
    status, report = check(tmp_path, model, path)
    assert status == 1
    assert "no usable rows (the file is empty)" in report["error"]


def test_a_line_without_end_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "LINE_LIMIT", 1 << 20)
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"x" * (3 << 20))
    with pytest.raises(conversations.BadRow, match="line 1: is longer than 1 MiB"):
        list(conversations.read(path))


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps(GOOD).encode()
    )
    assert list(conversations.checked(path)) == [(1, GOOD), (3, GOOD)]


def test_bytes_that_are_not_text_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"messages": "\xff\xfe"}\n')
    with pytest.raises(conversations.BadRow, match="line 2: is not UTF-8"):
        list(conversations.read(path))


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    wanted = [{"messages": conversation(n)} for n in range(3)]
    write_rows(tmp_path / "a.jsonl", 3)
    (tmp_path / "a.json").write_text(json.dumps(wanted))
    (tmp_path / "b.json").write_text("\n".join(map(json.dumps, wanted)))
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter=delimiter)
            writer.writerow(["id", "messages"])
            writer.writerows([n, json.dumps(row["messages"])] for n, row in enumerate(wanted))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(wanted), tmp_path / "a.parquet")
    table = tmp_path / "table"
    table.mkdir()
    write_rows(table / "1.jsonl", 2)
    write_rows(table / "2.jsonl", 1, start=2)
    (table / "MLTable").write_text("paths:\n  - file: ./1.jsonl\n  - pattern: ./2*.jsonl\n")
    paths = [tmp_path / f"a{end}" for end in conversations.FORMATS]
    for path in (*paths, tmp_path / "b.json", table, table / "MLTable"):
        found = [row["messages"] for _, row in conversations.checked(path)]
        assert found == [row["messages"] for row in wanted], path


def test_a_format_that_is_not_taken_and_a_table_of_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(conversations.Failed, match="is not a format taken here"):
        list(conversations.read(tmp_path / "a.txt"))
    with pytest.raises(conversations.Failed, match="without an MLTable file"):
        list(conversations.read(tmp_path))
    (tmp_path / "MLTable").write_text("paths:\n  - file: https://example.com/a.jsonl\n")
    with pytest.raises(conversations.Failed, match="only files beside it"):
        list(conversations.read(tmp_path))


def test_a_system_message_is_merged_into_the_first_question() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *conversation(0)]
    merged = conversations.merge_system(messages)
    assert [message["role"] for message in merged] == ["user", "assistant"]
    assert merged[0]["content"] == "Be brief.\n\nWhat comes after river?"
    assert messages[1]["content"] == "What comes after river?"
