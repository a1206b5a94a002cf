"""Base and tuned side by side: scores that are what they say, written, printed, logged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finery import checkpoint
from finery.recipes import evaluate, scores

from .conftest import conversation, flags, write_rows


@pytest.fixture(scope="session")
def result(
    imported: Path, encoded: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One evaluation of the test rows that preprocess kept."""
    folder = tmp_path_factory.mktemp("evaluation")
    words = {"base_model": imported, "tuned_model": tuned, "preprocess_output": encoded}
    parameters = '{"max_new_tokens": 16, "colour": "red"}'
    words |= {"evaluation_result": folder, "evaluation_config_params": parameters}
    assert evaluate.main(flags(**words)) == 0
    return folder


def test_the_tuned_model_is_better_where_it_was_taught(result: Path) -> None:
    found = json.loads((result / "metrics.json").read_text())
    assert found["rows"] == 12
    assert set(found["base"]) == set(found["tuned"]) == set(evaluate.TABLE)
    assert found["tuned"]["loss"] < found["base"]["loss"] * 0.6
    assert found["tuned"]["token_accuracy"] > found["base"]["token_accuracy"]
    assert found["tuned"]["rougeL"] > found["base"]["rougeL"]


def test_the_loss_is_the_models_own(result: Path, tuned: Path, encoded: Path) -> None:
    # transformers' loss, row by row and without padding, is the outside opinion.
    import torch

    from finery.recipes.encoding import Encoder

    model, tokenizer = checkpoint.load(tuned), checkpoint.tokenizer(tuned)
    total = tokens = 0.0
    for line in (encoded / "raw_data" / "test.jsonl").read_text().splitlines():
        row = Encoder(tokenizer).encode([json.loads(line)["messages"]])[0]
        with torch.inference_mode():
            ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            total += float(model(input_ids=ids, labels=labels).loss) * row.learned
        tokens += row.learned
    found = json.loads((result / "metrics.json").read_text())["tuned"]["loss"]
    assert found == pytest.approx(total / tokens, rel=1e-4)


def test_every_answer_is_there_beside_its_reference(result: Path) -> None:
    lines = [json.loads(line) for line in (result / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert lines[0]["prompt"] == conversation(108)[:1]
    assert lines[0]["reference"] == conversation(108)[1]["content"]
    assert all(isinstance(line["base"], str) and line["tuned"] for line in lines)


def test_the_table_shows_both_and_the_change() -> None:
    found = {
        name: dict.fromkeys(evaluate.TABLE, value)
        for name, value in (("base", 2.0), ("tuned", 0.5))
    }
    lines = scores.table(found, evaluate.TABLE, rows=12).splitlines()
    assert lines[0].split() == ["on", "12", "test", "rows", "base", "tuned", "change"]
    assert lines[1].split() == ["loss", "2.0000", "0.5000", "-1.5000"]
    assert len({len(line) for line in lines}) == 1


def test_the_scores_go_to_both_runs(
    imported: Path, tuned: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    monkeypatch.setattr(
        evaluate.Reporter, "log", lambda _, values, step: logged.append((values, step))
    )
    words = {"base_model": imported, "tuned_model": tuned, "test_data": rows, "max_rows": 2}
    assert evaluate.main(flags(evaluation_result=tmp_path, max_new_tokens=2, **words)) == 0
    names = {name for values, _ in logged for name in values}
    assert {"base_loss", "tuned_loss", "tuned_bleu_4", "base_general_loss"} <= names


def test_no_test_rows_is_an_error(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"base_model": imported, "tuned_model": imported, "evaluation_result": tmp_path / "out"}
    assert evaluate.main(flags(**words)) == 1
    assert "no test rows" in capsys.readouterr().err
    words["evaluation_config_params"] = "[1"
    assert evaluate.main(flags(**words)) == 1
    assert "evaluation_config_params" in capsys.readouterr().err


def test_a_case_ends_before_its_last_answer(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    messages = [*conversation(0), *conversation(1), {"role": "user", "content": "Thanks."}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    (case,) = evaluate.read_cases(path, limit=5)
    assert (case.prompt, case.reference) == (messages[:3], messages[3]["content"])
    assert case.messages == messages[:4]
    assert len(evaluate.read_cases(write_rows(path, 9), limit=4)) == 4
    assert len(evaluate.read_cases(path, limit=-1)) == 9


def test_scores_are_what_they_say() -> None:
    same = scores.texts(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert same == dict.fromkeys(same, pytest.approx(1.0))
    other = scores.texts(["a dog ran"], ["the cat sat on the mat"])
    assert max(other.values()) == 0.0
    half = scores.texts(["the cat", "x"], ["the cat", "y"])
    assert (half["exact_match"], half["rouge1"]) == (0.5, pytest.approx(0.5))


def test_a_word_is_a_word_in_any_script() -> None:
    assert scores.rouge(["서울은 한국의 수도이다"], ["서울은 한국의 큰 도시이다"])[
        "rouge1"
    ] == pytest.approx(4 / 7)


def test_the_general_text_is_plain_and_long_enough() -> None:
    lines = evaluate.general_text()
    assert len(lines) >= 50
    assert all(line.isascii() and line.endswith(".") for line in lines)
