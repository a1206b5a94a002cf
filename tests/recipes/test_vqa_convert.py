"""The MLflow model answers as the weights do, with nothing of ours imported; the scores are true."""

from __future__ import annotations

import ast
import base64
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from finery import checkpoint
from finery.recipes import pictures, scores, vqa_convert, vqa_evaluate, vqa_preprocess

from .conftest import PEFT, flags
from .small_vqa import base64_of, finetune

with warnings.catch_warnings():
    # MLflow warns of its own type hints when it is imported.
    warnings.simplefilter("ignore")
    from finery.recipes import vqa_model

ALLOWED = {
    *("__future__", "base64", "io", "json", "pathlib", "typing"),
    *("mlflow", "torch", "transformers", "peft", "pandas", "PIL"),
}


@pytest.fixture(scope="session")
def converted(tuned_vqa: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tuned model as an MLflow model."""
    folder = tmp_path_factory.mktemp("mlflow")
    assert vqa_convert.main(flags(model_path=tuned_vqa, mlflow_model_folder=folder)) == 0
    return folder


@pytest.fixture(scope="session")
def result(
    florence: Path, tuned_vqa: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One evaluation of the test rows that preprocess kept."""
    folder = tmp_path_factory.mktemp("result")
    words: dict[str, Any] = {"base_model": florence, "tuned_model": tuned_vqa, "num_beams": 1}
    words |= {"preprocess_output": prepared, "evaluation_result": folder, "max_answer_length": 16}
    assert vqa_evaluate.main(flags(**words)) == 0
    return folder


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def png(array: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_tuned_is_better_than_base_and_the_table_says_by_how_much(
    result: Path, florence: Path, tuned_vqa: Path
) -> None:
    found = json.loads((result / "metrics.json").read_text())
    assert found["rows"] == 6
    assert found["tuned"]["anls"] > 0.6 and found["base"]["anls"] < 0.2
    rows = predictions(result)
    right = sum(row["tuned"] in row["answers"] for row in rows) / 6
    assert found["tuned"]["exact_match"] == pytest.approx(right)
    assert "anls" in scores.table(found, vqa_evaluate.TABLE, rows=6)
    said = {name: [row[name] for row in rows] for name in ("base", "tuned")}
    shown = vqa_evaluate.examples(rows, said).splitlines()
    assert len(shown) == 7 and "which colour?" in shown[1]
    with Image.open(result / "examples.png") as sheet:
        assert sheet.width == 3 * 320


def test_mlflow_loads_it_and_it_answers_as_the_weights_do(
    converted: Path, result: Path, prepared: Path
) -> None:
    import mlflow.pyfunc
    import pandas

    shelf = pictures.Shelf.open(prepared)
    rows = predictions(result)
    images = [png(shelf[row["picture"]]) for row in rows]
    questions = [row["question"] for row in rows]
    model = mlflow.pyfunc.load_model(str(converted))
    frame = pandas.DataFrame({"image": images, "question": questions})
    found = model.predict(frame)
    assert list(found["answer"]) == [row["tuned"] for row in rows]
    uris = [f"data:image/png;base64,{image}" for image in images]
    other = model.predict(pandas.DataFrame({"image": uris, "text": questions}))
    assert list(other["answer"]) == list(found["answer"])
    short = model.predict(frame[:1], params={"max_answer_length": 1, "num_beams": 2})
    assert len(short["answer"][0]) < 16
    with pytest.raises(mlflow.exceptions.MlflowException, match="num_beams: must be from 1 to 16"):
        model.predict(frame[:1], params={"num_beams": 100_000})


@pytest.mark.filterwarnings(PEFT)
def test_an_adapter_brings_its_base(florence: Path, prepared: Path, tmp_path: Path) -> None:
    import mlflow.pyfunc
    import pandas

    adapter, folder = tmp_path / "adapter", tmp_path / "mlflow"
    words: dict[str, Any] = {"apply_lora": "true", "merge_lora_weights": "false", "max_steps": 6}
    words |= {"evaluation_strategy": "disable", "precision": "16"}
    assert finetune(florence, prepared, adapter, **words) == 0
    assert vqa_convert.main(flags(model_path=adapter, mlflow_model_folder=folder)) == 0
    assert checkpoint.is_adapter(folder)
    given: dict[str, Any] = {"base_model": florence, "tuned_model": adapter, "num_beams": 1}
    given |= {"preprocess_output": prepared, "evaluation_result": tmp_path / "result"}
    assert vqa_evaluate.main(flags(**given, max_rows=2, max_answer_length=16)) == 0
    rows = predictions(tmp_path / "result")
    shelf = pictures.Shelf.open(prepared)
    frame = {"image": [png(shelf[row["picture"]]) for row in rows]}
    asked = pandas.DataFrame({**frame, "question": [row["question"] for row in rows]})
    found = mlflow.pyfunc.load_model(str(folder)).predict(asked)
    assert list(found["answer"]) == [row["tuned"] for row in rows]


def test_the_models_code_imports_nothing_of_ours(converted: Path) -> None:
    tree = ast.parse((converted / "vqa_model.py").read_text())
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= ALLOWED


def test_the_manifest_names_its_task_and_knows_nothing_of_this_machine(converted: Path) -> None:
    text = (converted / "MLmodel").read_text()
    document = yaml.safe_load(text)
    assert document["flavors"]["python_function"]["model_code_path"] == "vqa_model.py"
    assert document["metadata"]["base_model_task"] == "visual-question-answering"
    assert document["metadata"]["base_model_name"]
    assert "/tmp" not in text
    inside = {path.name for path in (converted / "artifacts" / "model").iterdir()}
    assert "vqa.json" in inside and "samples" not in inside
    assert not any(name.startswith("checkpoint-") for name in inside)
    assert "pillow==" in (converted / "requirements.txt").read_text().lower()


def test_serving_reads_pictures_as_training_does(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (9, 7), (255, 0, 0, 100))
    clear.save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").save(tmp_path / "turned.png", exif=exif)
    Image.effect_noise((900, 700), 90).convert("RGB").save(tmp_path / "large.jpeg")
    shape = pictures.Shape(height=60, width=80, resample=3)
    for name in ("clear.png", "turned.png", "large.jpeg"):
        mine = pictures.fitted(tmp_path / name, shape)
        theirs = vqa_model.picture(base64_of(tmp_path / name), (80, 60), 3)
        assert np.array_equal(mine, np.asarray(theirs))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "what?"}, "row 0, image: is missing"),
        ({"image": "?!", "question": "what?"}, "row 0, image: is not base64"),
        ({"image": "aGVsbG8=", "question": "what?"}, "row 0, image: is no picture"),
        ({"image": "aGVsbG8="}, "row 0, question: is missing"),
        ({"image": "aGVsbG8=", "question": "\ud800"}, "row 0, question: has half a character"),
        ({"image": "aGVsbG8=", "question": "x" * 100_000}, "has 100,000 characters"),
    ],
)
def test_a_bad_request_is_the_caller_s_fault_and_says_why(row: Any, message: str) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message) as refused:
        vqa_model.read([row], (80, 60), 3)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_what_is_no_tuned_folder_is_refused(
    florence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = flags(model_path=florence, mlflow_model_folder=tmp_path / "out")
    assert vqa_convert.main(words) == 1
    assert "there is no vqa.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_anls_is_docvqa_s() -> None:
    assert scores.similarity("Total  Due", "total due") == 1
    assert scores.similarity("abcd", "abcx") == 0.75
    assert scores.similarity("abcd", "abxx") == scores.similarity("abcd", "axxx") == 0
    assert scores.similarity("", "a") == 0
    found = scores.nearest(["12", "no"], [["11", "12"], ["yes"]])
    assert found == {"anls": 0.5, "exact_match": 0.5}


def test_rows_of_preprocess_are_what_evaluation_uses(prepared: Path, result: Path) -> None:
    test = vqa_preprocess.rows(prepared, "test")
    assert [row["picture"] for row in predictions(result)] == [row["picture"] for row in test]
