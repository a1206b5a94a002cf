"""Words on a command line become a frozen dataclass, or are refused by name."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

import finery.catalog
from finery.recipes import hyperparameters, spec
from finery.recipes.spec import Failed, WrongWords, flag

RECIPES = ("validate", "model_import", "preprocess", "finetune", "convert", "evaluate")
COMPONENTS = Path(str(finery.catalog.__file__)).parent / "components"


@dataclass(frozen=True, kw_only=True)
class Example:
    where: Path = flag(help="a path")
    rate: float = flag(0.5, help="a rate", above=0, high=1)
    count: int = flag(1, help="a count", low=1)
    quick: bool = flag(False, help="quick or not")
    bits: str = flag("32", help="bits", choices=("16", "32"))
    name: str | None = flag(None, help="a name")


def parse(*words: str) -> Example:
    return spec.parse(Example, words)


def test_words_become_values_of_the_fields_types() -> None:
    words = [
        "--where",
        "a/b",
        "--rate",
        "1e-1",
        "--count",
        "2.0",
        "--quick",
        "True",
        "--bits",
        "16",
    ]
    assert parse(*words) == Example(where=Path("a/b"), rate=0.1, count=2, quick=True, bits="16")


def test_an_empty_word_is_the_same_as_none() -> None:
    assert parse("--where", "x", "--name", "", "--rate", "") == Example(where=Path("x"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--where"),
        (["--where", "x", "--rate", "0"], "--rate"),
        (["--where", "x", "--rate", "nan"], "--rate"),
        (["--where", "x", "--rate", "two"], "--rate"),
        (["--where", "x", "--count", "1.5"], "--count"),
        (["--where", "x", "--count", "0"], "--count"),
        (["--where", "x", "--quick", "yes"], "--quick"),
        (["--where", "x", "--bits", "8"], "--bits"),
        (["--where", "x", "--colour", "red"], "--colour"),
        (["--where", "x", "--co", "3"], "--co"),
    ],
)
def test_wrong_words_are_refused_by_the_name_of_their_flag(words: list[str], named: str) -> None:
    with pytest.raises(WrongWords, match=re.escape(named)):
        parse(*words)


def test_a_file_gives_values_and_flags_go_before_them(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"where": "x", "count": 3, "bits": 16, "quick": True}))
    made = parse("--spec", str(path), "--count", "4")
    assert made == Example(where=Path("x"), count=4, bits="16", quick=True)


def test_a_file_with_an_unknown_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"where": "x", "colour": "red"}))
    with pytest.raises(WrongWords, match="--colour"):
        parse("--spec", str(path))


def test_the_exit_status_tells_wrong_words_from_failure(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Example) -> None:
        raise Failed("the disk is full")

    def crash(_: Example) -> None:
        raise ValueError("a bug\nwith lines")

    assert spec.run(Example, fail, ["--where", "x", "--quick", "maybe"]) == 2
    assert "--quick" in capsys.readouterr().err
    assert spec.run(Example, fail, ["--where", "x"]) == 1
    assert capsys.readouterr().err == "error: the disk is full\n"
    assert spec.run(Example, crash, ["--where", "x"]) == 1
    assert capsys.readouterr().err.endswith("error: ValueError: a bug\n")
    assert spec.run(Example, lambda _: None, ["--where", "x"]) == 0


def test_words_of_a_spec_make_the_same_spec_again() -> None:
    made = parse("--where", "x", "--rate", "0.25", "--bits", "16")
    assert spec.build(Example, spec.words(made)) == made


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"apply_early_stopping": "true", "evaluation_strategy": "disable"}, "early_stopping"),
        ({"metric_for_best_model": "f1"}, "metric_for_best_model"),
        ({"save_total_limit": 0}, "save_total_limit"),
        ({"max_steps": 0}, "max_steps"),
        ({"deepspeed": "/nowhere.json"}, "deepspeed"),
        ({"learning_rate": 0}, "learning_rate"),
    ],
)
def test_hyperparameters_that_cannot_work_are_refused(words: dict[str, Any], named: str) -> None:
    with pytest.raises(WrongWords, match=named):
        hyperparameters.check(spec.build(hyperparameters.Hyperparameters, words))


def test_the_guides_words_are_taken() -> None:
    given = {"learning_rate": "5e-6", "precision": 16, "deepspeed_stage": 2, "apply_lora": "true"}
    made = spec.build(hyperparameters.Hyperparameters, given)
    assert (made.learning_rate, made.precision, made.deepspeed_stage) == (5e-6, "16", "2")


@pytest.mark.parametrize("path", sorted(COMPONENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_flag_of_a_catalog_component_is_one_its_recipe_takes(path: Path) -> None:
    command = str(yaml.safe_load(path.read_text(encoding="utf-8")).get("command") or "")
    module = re.search(r"finery\.recipes\.(\w+)", command)
    if module is None:
        assert path.stem.endswith("pipeline")
        return
    recipe = importlib.import_module(module[0])
    taken = {field.name for field in fields(recipe.Spec)}
    assert set(re.findall(r"--(\w+)", command)) <= taken


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_is_there_before_anyone_waits(recipe: str) -> None:
    # A process: what is measured is the interpreter's start with the recipe's imports.
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"finery.recipes.{recipe}", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage" in done.stdout
    heavy = re.findall(r"\| +(torch|transformers|mlflow|pyarrow|numpy|trl)$", done.stderr, re.M)
    assert heavy == []
