"""Training on pictures: what is learned, frozen, kept, gone on from, and said.

These train a Florence-2 of 0.2 million parameters for a few steps each: whether a
frozen tower stays, or a checkpoint can be gone on from, only the trainer can show.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finery import checkpoint
from finery.engines import proc
from finery.recipes import arguments, vqa_features

from .conftest import PEFT, flags
from .small_vqa import finetune


def history(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "finetune_args.json").read_text())[
        "log_history"
    ]
    return found


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        name: value
        for path in checkpoint.weights(folder)
        for name, value in load_file(path).items()
    }


def same(one: Path, other: Path, *, base: Path, within: float = 0.01) -> None:
    """Both trainings have gone the same way from the base model.

    Not weight by weight: where a gradient is nothing but rounding (the bias of a key), Adam
    makes a whole step of it.
    """
    mine, theirs, start = weights(one), weights(other), weights(base)
    assert set(mine) == set(theirs)
    apart = sum(float((mine[name] - theirs[name]).abs().sum()) for name in mine)
    gone = sum(float((mine[name] - start[name]).abs().sum()) for name in mine)
    assert gone > 0 and apart / gone < within, apart / gone


def test_it_learns_to_answer_and_leaves_a_whole_model(tuned_vqa: Path, florence: Path) -> None:
    found = [entry for entry in history(tuned_vqa) if "eval_anls" in entry]
    assert len(found) == 16
    assert found[-1]["eval_loss"] < found[0]["eval_loss"] / 10
    assert found[-1]["eval_exact_match"] > 0.6
    assert {
        "loss",
        "learning_rate",
        "grad_norm",
        "epoch",
        "rows_per_second",
        "seconds_left",
    } <= set(history(tuned_vqa)[0])
    names = {path.name for path in tuned_vqa.iterdir()}
    assert {"config.json", "processor_config.json", "vqa.json", "generation_config.json"} <= names
    assert vqa_features.FILE not in names and not list(tuned_vqa.glob("*.part"))
    told = json.loads((tuned_vqa / "vqa.json").read_text())
    assert told == {"task_prompt": "<DocVQA>", "num_beams": 1, "max_answer_length": 16}
    assert set(weights(tuned_vqa)) == set(weights(florence))


def test_a_frozen_tower_stays_and_the_rest_learns(tuned_vqa: Path, florence: Path) -> None:
    import torch

    mine, theirs = weights(tuned_vqa), weights(florence)
    changed = {name for name in mine if not torch.equal(mine[name], theirs[name])}
    assert not {name for name in changed if "vision_tower" in name}
    assert {name for name in changed if "multi_modal_projector" in name}
    assert {name for name in changed if "decoder" in name}


def test_a_sheet_of_answers_is_drawn_at_each_evaluation(tuned_vqa: Path) -> None:
    sheets = sorted((tuned_vqa / "samples").glob("step-*.png"))
    assert len(sheets) == 16
    with Image.open(sheets[-1]) as sheet:
        assert sheet.size == (3 * 320, 320 + 74)  # three validation pictures, each once


def test_features_computed_once_train_as_pixels_do(
    florence: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words: dict[str, Any] = {"max_steps": 4, "evaluation_strategy": "disable"}
    assert finetune(florence, prepared, tmp_path / "cached", **words) == 0
    assert "vision features of 24 pictures: " in capsys.readouterr().out
    nothing = shutil._ntuple_diskusage(1, 1, 0)
    monkeypatch.setattr(vqa_features.shutil, "disk_usage", lambda _: nothing)
    assert finetune(florence, prepared, tmp_path / "pixels", **words) == 0
    assert "they are computed at each step instead" in capsys.readouterr().out
    same(tmp_path / "cached", tmp_path / "pixels", base=florence)


def test_the_tower_learns_when_it_is_not_frozen(
    florence: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    words: dict[str, Any] = {"max_steps": 2, "evaluation_strategy": "disable"}
    assert finetune(florence, prepared, tmp_path, freeze_vision_tower="false", **words) == 0
    assert "vision features" not in capsys.readouterr().out
    mine, theirs = weights(tmp_path), weights(florence)
    first = "model.vision_tower.convs.0.conv.weight"
    assert not torch.equal(mine[first], theirs[first])


def test_accumulated_batches_are_one_large_batch(
    florence: Path, prepared: Path, tmp_path: Path
) -> None:
    for name, (batch, parts) in {"whole": (8, 1), "parts": (2, 4)}.items():
        words: dict[str, Any] = {"max_steps": 3, "learning_rate": 1e-3}
        words |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
        folder = tmp_path / name
        assert finetune(florence, prepared, folder, evaluation_strategy="disable", **words) == 0
    same(tmp_path / "whole", tmp_path / "parts", base=florence)


@pytest.mark.filterwarnings(PEFT)
def test_training_goes_on_from_its_newest_whole_checkpoint_to_the_same_end(
    florence: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: dict[str, Any] = {"apply_lora": "true", "num_train_epochs": 2, "max_eval_rows": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finetune(florence, prepared, whole, **words) == 0
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-6", cut / "checkpoint-6")
    shutil.copytree(whole / "checkpoint-6", cut / "checkpoint-12")
    (cut / "checkpoint-12.part").touch()
    # A killed training leaves its features too; they are made anew.
    (cut / vqa_features.FILE).write_bytes(b"what another training left")
    capsys.readouterr()
    assert finetune(florence, prepared, cut, resume_from_checkpoint="true", **words) == 0
    assert "goes on from checkpoint-6" in capsys.readouterr().out
    same(cut, whole, base=florence)
    assert not list(cut.glob("*.part"))


@pytest.mark.filterwarnings(PEFT)
@pytest.mark.parametrize("adapters", ["true", "false"])
def test_sixteen_bits_are_kept_in_features_and_adapters_base(
    florence: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapters: str
) -> None:
    """What a GPU or a newer processor would choose; on this one small models stay in 32."""
    import torch

    monkeypatch.setattr(arguments, "precision", lambda *_: ("bfloat16", "as told"))
    words: dict[str, Any] = {"apply_lora": adapters, "max_steps": 4, "max_eval_rows": 2}
    assert finetune(florence, prepared, tmp_path, precision="16", **words) == 0
    kinds = {value.dtype for value in weights(tmp_path).values()}
    assert kinds == {torch.bfloat16 if adapters == "true" else torch.float32}
    losses = [entry["eval_loss"] for entry in history(tmp_path) if "eval_loss" in entry]
    assert losses[-1] < 9


def test_the_best_model_is_the_best_by_what_was_asked(
    florence: Path, prepared: Path, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"metric_for_best_model": "anls", "max_steps": 6}
    words |= {"evaluation_strategy": "steps", "eval_steps": 2, "max_eval_rows": 3}
    assert finetune(florence, prepared, tmp_path, **words) == 0
    told = json.loads((tmp_path / "finetune_args.json").read_text())
    scores = [entry["eval_anls"] for entry in history(tmp_path) if "eval_anls" in entry]
    assert told["best_metric"] == max(scores)


def test_the_evaluation_loss_does_not_depend_on_the_batches(
    florence: Path, prepared: Path, tmp_path: Path
) -> None:
    found = []
    for size in (1, 4):
        words = {"max_steps": 1, "per_device_eval_batch_size": size, "max_eval_rows": 0}
        assert finetune(florence, prepared, tmp_path / str(size), **words) == 0
        entries = history(tmp_path / str(size))
        found.append(next(entry["eval_loss"] for entry in entries if "eval_loss" in entry))
        assert not any("eval_anls" in entry for entry in entries)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, "--warmup_ratio: does not go with warmup_steps"),
        ({"metric_for_best_model": "anls", "max_eval_rows": 0}, "needs max_eval_rows above 0"),
        ({"max_steps": 0}, "--max_steps: 0 would train nothing"),
    ],
)
def test_words_that_do_not_go_together_are_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: dict[str, Any], message: str
) -> None:
    assert finetune(tmp_path, tmp_path, tmp_path / "out", **words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(
    florence: Path, prepared: Path, tmp_path: Path
) -> None:
    """Two real processes: what is divided and summed between them nothing else can show."""
    words = {
        "model_selector_output": florence,
        "preprocess_output": prepared,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "num_beams": 1,
        "max_answer_length": 8,
        "per_device_train_batch_size": 4,
        "evaluation_strategy": "steps",
        "eval_steps": 3,
    }
    (held,) = proc.hold(1)  # nobody else is given it, and a rank may listen there all the same
    port = held.getsockname()[1]
    program = [sys.executable, "-m", "finery.recipes.vqa_finetune"]
    ranks = []
    for rank in range(2):
        settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in settings.items()}}
        given = flags(**words, pytorch_model_folder=tmp_path / "two")
        ranks.append(subprocess.Popen([*program, *given], env=environment))
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    held.close()
    one = {**words, "per_device_train_batch_size": 8}
    one = {name: value for name, value in one.items() if not name.endswith("_output")}
    assert finetune(florence, prepared, tmp_path / "one", **one) == 0
    same(tmp_path / "two", tmp_path / "one", base=florence, within=0.05)
    for name in ("eval_loss", "eval_anls"):
        mine, theirs = (
            next(entry[name] for entry in history(tmp_path / folder) if name in entry)
            for folder in ("two", "one")
        )
        assert mine == pytest.approx(theirs, rel=1e-2), name
    assert not list((tmp_path / "two").glob("*.part"))
