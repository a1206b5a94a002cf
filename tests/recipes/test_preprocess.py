"""Rows become token ids and labels: splits, drops, templates, the assistant's words only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finery import checkpoint
from finery.recipes import preprocess
from finery.recipes.encoding import IGNORED, Encoder, limit, set_pad

from .conftest import TEMPLATE, conversation, flags, make_tokenizer, write_rows

SYSTEM = {"role": "system", "content": "Answer."}


def read_arrow(path: Path) -> list[dict[str, Any]]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        rows: list[dict[str, Any]] = pyarrow.ipc.open_stream(source).read_all().to_pylist()
    return rows


def ids(path: Path) -> list[str]:
    return [json.loads(line)["prompt_id"] for line in path.read_text().splitlines()]


def work(imported: Path, out: Path, **words: object) -> int:
    return preprocess.main(flags(model_selector_output=imported, output_dir=out, **words))


def test_a_single_file_is_split_80_10_10_in_its_order(encoded: Path) -> None:
    raw = encoded / "raw_data"
    parts = [ids(raw / f"{split}.jsonl") for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [96, 12, 12]
    assert sum(parts, []) == [str(n) for n in range(120)]


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_one_missing_file_is_split_off_80_20(
    imported: Path, rows: Path, tmp_path: Path, missing: str
) -> None:
    given = "test" if missing == "validation" else "validation"
    path = write_rows(tmp_path / "given.jsonl", 3, start=500)
    words = {"train_file_path": rows, f"{given}_file_path": path}
    assert work(imported, tmp_path / "out", **words) == 0
    raw = tmp_path / "out" / "raw_data"
    assert ids(raw / "train.jsonl") == [str(n) for n in range(96)]
    assert ids(raw / f"{missing}.jsonl") == [str(n) for n in range(96, 120)]
    assert ids(raw / f"{given}.jsonl") == ["500", "501", "502"]


def test_test_rows_pass_untouched(imported: Path, rows: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"messages": [],   "more": 1}\n')
    words = {"validation_file_path": rows, "test_file_path": path}
    assert work(imported, tmp_path / "out", train_file_path=rows, **words) == 0
    assert (tmp_path / "out" / "raw_data" / "test.jsonl").read_text() == path.read_text()


def test_too_few_rows_to_split_is_an_error(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "few.jsonl", 2)
    assert work(imported, tmp_path / "out", train_file_path=path) == 1
    assert "2 rows are too few to split" in capsys.readouterr().err


def test_the_encoded_rows_are_the_template_with_the_assistants_words_as_labels(
    encoded: Path, imported: Path
) -> None:
    tokenizer = checkpoint.tokenizer(imported)
    found = read_arrow(encoded / "train.arrow")
    texts = (encoded / "chat_templated_raw_data" / "train.jsonl").read_text().splitlines()
    assert len(found) == len(texts) == 96
    for number in (0, 7, 95):
        row = found[number]
        assert tokenizer.decode(row["input_ids"]) == json.loads(texts[number])["text"]
        learned = [token for token in row["labels"] if token != IGNORED]
        answer = conversation(number)[1]["content"]
        assert tokenizer.decode(learned).strip() == f"{answer}<|end|>\n<|endoftext|>"


def test_the_report_counts_tokens_and_drops(imported: Path, rows: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    extra = [
        {"messages": []},
        {"messages": conversation(0)[:1]},
        {"messages": [SYSTEM, conversation(0)[0]]},
    ]
    path.write_text(rows.read_text() + "".join(json.dumps(row) + "\n" for row in extra))
    out = tmp_path / "out"
    words = {"validation_file_path": rows, "test_file_path": rows, "batch_size": 7}
    assert work(imported, out, train_file_path=path, **words) == 0
    report = json.loads((out / "preprocess_args.json").read_text())["splits"]["train"]
    found = read_arrow(out / "train.arrow")
    assert (report["rows"], report["kept"]) == (123, 120)
    assert report["dropped"] == {
        "empty messages": 1,
        "fewer than 2 messages": 1,
        "no assistant message": 1,
    }
    assert report["tokens"] == sum(len(row["input_ids"]) for row in found)
    assert report["learned"] == sum(label != IGNORED for row in found for label in row["labels"])


def test_rows_are_cut_and_those_cut_before_the_answer_dropped(
    imported: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert work(imported, out, train_file_path=rows, max_seq_length=22) == 0
    report = json.loads((out / "preprocess_args.json").read_text())
    assert report["max_seq_length"] == 22
    assert report["splits"]["train"]["longest"] == 22
    assert report["splits"]["train"]["dropped"]["no assistant token within max_seq_length"] > 0
    assert work(imported, tmp_path / "none", train_file_path=rows, max_seq_length=4) == 1
    assert "has no token of an assistant to learn from" in capsys.readouterr().err
    assert list((tmp_path / "none").iterdir()) == []


def test_a_bad_row_ends_it_with_file_and_line(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "t.jsonl", 20)
    with path.open("a") as stream:
        stream.write('{"messages": [{"role": "robot", "content": "x"}]}\n')
    assert work(imported, tmp_path / "out", train_file_path=path) == 1
    assert f"{path}, line 21, messages[0].role: 'robot'" in capsys.readouterr().err


def test_a_model_without_a_system_role_reads_it_in_the_first_question(
    imported: Path, rows: Path, tmp_path: Path
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(imported, model)
    (model / "finetune_config.json").write_text('{"system_role_supported": "false"}')
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"messages": [SYSTEM, *conversation(0)]}) + "\n")
    out = tmp_path / "out"
    words = {"validation_file_path": path, "test_file_path": path}
    assert work(model, out, train_file_path=path, **words) == 0
    text = json.loads((out / "chat_templated_raw_data" / "train.jsonl").read_text())["text"]
    assert text.startswith("<|user|>\nAnswer.\n\nWhat comes after river?<|end|>")


MARKED = TEMPLATE.replace(
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}",
    "{{ '<|' + message['role'] + '|>\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>\n' }}{% endif %}",
)


@pytest.mark.parametrize("kind", ["markers of its own", "known to TRL", "neither"])
def test_the_assistants_words_are_found_in_every_kind_of_template(kind: str) -> None:
    tokenizer = make_tokenizer()
    if kind == "markers of its own":
        assert MARKED != TEMPLATE
        tokenizer.chat_template = MARKED
    if kind == "known to TRL":
        from trl.chat_template_utils import phi3_chat_template

        tokenizer.chat_template = phi3_chat_template
    encoder = Encoder(tokenizer)
    assert bool(encoder.marked) == (kind != "neither")
    messages = [SYSTEM, *conversation(1), *conversation(4)]
    row = encoder.encode([messages, conversation(2)])[0]
    assert tokenizer.decode(row.input_ids) == encoder.text(messages)
    said = "".join(
        tokenizer.decode([token]) if label != IGNORED else "\0"
        for token, label in zip(row.input_ids, row.labels, strict=True)
    )
    parts = [part.strip() for part in said.split("\0") if part.strip()]
    answers = [
        f"{message['content']}<|end|>" for message in messages if message["role"] == "assistant"
    ]
    assert parts[0] == answers[0]
    assert parts[1].startswith(answers[1])


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(preprocess.Failed, match="has no chat template"):
        Encoder(tokenizer)


def test_the_length_is_the_smaller_of_what_is_asked_and_what_there_is() -> None:
    tokenizer = make_tokenizer()
    assert [limit(tokenizer, asked) for asked in (-1, 0, 100, 1000)] == [256, 256, 100, 256]


def test_a_pad_token_is_taken_from_the_vocabulary() -> None:
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    tokenizer.pad_token = None
    set_pad(tokenizer)
    assert tokenizer.pad_token == "<|endoftext|>"
    assert len(tokenizer) == size
