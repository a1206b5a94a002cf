"""The stand-in for Florence-2 and the document pictures it learns from: shape, honesty, that it reads.

That fine-tuning teaches it to answer is a slow test; the VQA quickstart shows the same each time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import finery
from finery import checkpoint

ROOT = Path(__file__).parent.parent
CATALOG = Path(finery.__file__).parent / "catalog"
STANDIN = CATALOG / "standins" / "florence2"
GENERATOR = ROOT / "examples" / "florence2_vqa" / "documents.py"
SCORES = GENERATOR.parent / "src_train" / "scores.py"
Load = Callable[[Path], ModuleType]
RECIPE = ROOT / "standins" / "florence2"


@pytest.fixture(scope="module")
def documents(module: Load) -> ModuleType:
    return module(GENERATOR)


@pytest.fixture(scope="module")
def scores(module: Load) -> ModuleType:
    return module(SCORES)


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(checkpoint.find(STANDIN))


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """The weights themselves: nothing cheaper says whether they read."""
    import torch
    from transformers import AutoModelForImageTextToText

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = checkpoint.find(STANDIN)
    yield AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    torch.set_num_threads(before)


def say(model: Any, processor: Any, prompts: list[str], pictures: list[Any]) -> list[str]:
    import torch

    given = processor(text=prompts, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        made = model.generate(**given, max_new_tokens=140, num_beams=1)
    return [text.strip() for text in processor.batch_decode(made, skip_special_tokens=True)]


# ---- what ships --------------------------------------------------------------------------------


def test_the_stand_in_is_small_and_holds_weights_in_no_other_format_than_safetensors() -> None:
    files = [path for path in STANDIN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 7_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ""}
    assert (STANDIN / "LICENSE").stat().st_size > 10_000


def test_it_is_of_florence_2_s_own_classes_and_needs_no_code_of_the_model(
    model: Any, processor: Any
) -> None:
    assert type(model).__name__ == "Florence2ForConditionalGeneration"
    assert type(processor).__name__ == "Florence2Processor"
    assert "auto_map" not in json.loads((checkpoint.find(STANDIN) / "config.json").read_text())
    assert processor.num_image_tokens == 101
    for token in ("<loc_0>", "<loc_999>", "<od>", "<image>"):
        assert len(processor.tokenizer.encode(token, add_special_tokens=False)) == 1


def test_the_stand_in_says_that_it_is_one_wherever_it_is_described() -> None:
    metadata = yaml.safe_load((STANDIN / "MLmodel").read_text())["metadata"]
    assert metadata["stand_in"] is True
    assert checkpoint.stand_in_for(STANDIN) == "microsoft/Florence-2-base-ft"
    assert "**not** Florence-2" in (STANDIN / "README.md").read_text()
    entry = yaml.safe_load((CATALOG / "models" / "Florence-2-base-ft.yaml").read_text())
    assert entry["x-tiny"]["tags"]["stand_in"] == "true"
    assert entry["x-tiny"]["description"].startswith("A stand-in, not Florence-2")


def test_the_catalog_s_name_means_the_real_weights_in_a_format_that_needs_no_foreign_code() -> None:
    entry = yaml.safe_load((CATALOG / "models" / "Florence-2-base-ft.yaml").read_text())
    folder = CATALOG / "models" / entry["path"]
    assert checkpoint.hub_id(folder) == entry["tags"]["huggingface_model_id"]
    assert checkpoint.hub_id(folder) == "florence-community/Florence-2-base-ft"


# ---- what it can do ----------------------------------------------------------------------------


def test_it_reads_documents_that_it_never_saw(
    model: Any, processor: Any, documents: ModuleType, scores: ModuleType
) -> None:
    pages = list(documents.make(12, 99, "unseen"))
    said = say(model, processor, ["<OCR>"] * 12, [page.image for page in pages])
    near = [scores.anls(text, [page.text]) for text, page in zip(said, pages, strict=True)]
    assert sum(near) / len(near) > 0.9, list(zip(said, pages, strict=True))[:2]


def test_it_answers_no_question_before_it_is_fine_tuned(
    model: Any, processor: Any, documents: ModuleType, scores: ModuleType
) -> None:
    rows = [row for page in documents.make(12, 98, "unseen") for row in page.rows][:36]
    prompts = ["<DocVQA>" + row["question"] for row in rows]
    said = say(model, processor, prompts, [row["image"] for row in rows])
    points = [scores.anls(text, row["answers"]) for text, row in zip(said, rows, strict=True)]
    assert sum(points) / len(points) < 0.1


# ---- the pictures ------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_documents_and_splits_share_none(
    documents: ModuleType,
) -> None:
    once, again = list(documents.make(8, 3, "train")), list(documents.make(8, 3, "train"))
    assert [page.image.tobytes() for page in once] == [page.image.tobytes() for page in again]
    assert [page.questions for page in once] == [page.questions for page in again]
    other = {page.text for page in documents.make(200, 3, "test")}
    assert not other & {page.text for page in documents.make(200, 3, "train")}


def test_rows_have_docvqa_s_columns_and_every_answer_stands_in_the_picture(
    documents: ModuleType,
) -> None:
    seen = set()
    for page in documents.make(80, 4, "train"):
        assert page.kind in documents.KINDS
        for row in page.rows:
            assert tuple(row) == documents.COLUMNS
            assert row["answers"][0] in page.text
            assert row["questionId"] not in seen
            seen.add(row["questionId"])


def test_all_text_lies_inside_the_page_and_in_letters_that_the_fonts_have(
    documents: ModuleType,
) -> None:
    for page in documents.make(200, 5, "train"):
        for line in page.lines:
            assert 0 <= line.edges[0] and line.edges[-1] <= documents.SIDE, line
            assert 0 <= line.top and line.bottom <= documents.SIDE, line
            assert line.text.isascii()


def test_a_folder_of_documents_is_written_by_a_python_that_has_only_pillow(tmp_path: Path) -> None:
    """In a process of its own, with every other package hidden: it runs on people's machines."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('numpy', 'torch', 'datasets', 'finery')));"
        f"sys.argv = ['documents.py', '--out', {str(tmp_path)!r}, '--train', '4',"
        "'--validation', '1', '--test', '1'];"
        f"import runpy; runpy.run_path({str(GENERATOR)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"image", "question", "answers"}
    assert all((tmp_path / row["image"]).is_file() for row in rows)
    assert len({row["image"] for row in rows}) == 4


def test_an_arrow_folder_of_documents_is_read_as_the_guide_reads_it(
    tmp_path: Path, documents: ModuleType
) -> None:
    from datasets import load_from_disk

    wrote = documents.main(
        ["--arrow", "--out", str(tmp_path), "--train", "4", "--validation", "1", "--test", "1"]
    )
    assert wrote == 0
    found = load_from_disk(str(tmp_path))
    assert set(found) == {"train", "validation", "test"}
    assert tuple(found["train"].column_names) == documents.COLUMNS
    assert found["train"][0]["image"].size == (480, 480)


def test_what_it_was_taught_holds_no_question_of_the_dataset(
    documents: ModuleType, module: Load
) -> None:
    lessons = module(RECIPE / "lessons.py")
    _, _, sheets = lessons.pages(40, 7, processes=1)
    batches = lessons.batches(sheets, 7)
    taught = {prompt for _ in range(40) for prompt in next(batches)[2]}
    asked = {q.text for page in documents.make(400, 1, "train") for q in page.questions}
    assert not taught & asked
    assert not any("DocVQA" in prompt for prompt in taught)


# ---- that it can be taught ---------------------------------------------------------------------


@pytest.mark.slow
def test_fine_tuning_lifts_anls_on_held_back_documents_from_nothing_to_above_085() -> None:
    """Only training shows whether something is learned: about a minute on two quiet cores."""
    script = RECIPE / "tune.py"
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    found = re.search(r"ANLS ([\d.]+) -> ([\d.]+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) < 0.1
    assert float(found[2]) > 0.85
