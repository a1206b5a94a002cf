"""Training: what is learned, saved, kept, gone on from, stopped, and said.

These train a two-layer Phi-3 for a few steps each: whether a checkpoint can be
gone on from, or the best one comes back, only the trainer itself can show.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finery import checkpoint
from finery.recipes import arguments, spec
from finery.recipes import finetune as recipe

from .conftest import finetune


def history(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "finetune_args.json").read_text())[
        "log_history"
    ]
    return found


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        name: value
        for path in checkpoint.weights(folder)
        for name, value in load_file(path).items()
    }


def test_a_lora_training_learns_and_leaves_a_whole_model(tuned: Path, base: Path) -> None:
    losses = [entry["eval_loss"] for entry in history(tuned) if "eval_loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0] * 0.9
    assert checkpoints(tuned) == [12, 24, 36]
    names = {path.name for path in tuned.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not {name for name in names if name.endswith(".part")}
    assert set(weights(tuned)) == set(weights(base))
    assert json.loads((tuned / "config.json").read_text()).get("use_cache", True) is True
    assert "finery" not in (tuned / "config.json").read_text()
    for name in ("config.json", "generation_config.json"):
        mine, theirs = (json.loads((folder / name).read_text()) for folder in (tuned, base))
        assert {k: v for k, v in mine.items() if k.endswith("_token_id")} == {
            k: v for k, v in theirs.items() if k.endswith("_token_id")
        }


def test_metrics_have_the_names_that_people_know(tuned: Path) -> None:
    first = history(tuned)[0]
    wanted = {"loss", "learning_rate", "grad_norm", "epoch", "mean_token_accuracy"}
    assert wanted | {"tokens_per_second", "seconds_left", "num_tokens"} <= set(first)
    assert {"train_loss", "train_runtime"} <= set(history(tuned)[-1])


def test_the_log_is_a_line_for_each_step_that_logs(
    imported: Path, encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"max_steps": 4, "logging_steps": 2, "apply_ort": "true", "apply_deepspeed": "true"}
    assert finetune(imported, encoded, tmp_path, **words) == 0
    said = capsys.readouterr().out
    assert " 50% ██████████░░░░░░░░░░ 2/4  loss " in said
    assert "apply_ort: ONNX Runtime training is not used" in said
    assert "apply_deepspeed: DeepSpeed divides a model among GPUs and there is no GPU here" in said
    assert "full fine-tuning of " in said


def test_evaluation_loss_does_not_depend_on_the_batches(
    imported: Path, encoded: Path, tmp_path: Path
) -> None:
    found = []
    for size in (1, 5):
        words = {"max_steps": 1, "per_device_eval_batch_size": size, "eval_steps": 1}
        folder = tmp_path / str(size)
        assert finetune(imported, encoded, folder, evaluation_strategy="steps", **words) == 0
        found.append(next(entry["eval_loss"] for entry in history(folder) if "eval_loss" in entry))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_accumulated_batches_are_one_large_batch(
    imported: Path, encoded: Path, tmp_path: Path
) -> None:
    import torch

    sizes = {"whole": (8, 1), "parts": (2, 4)}
    for name, (batch, parts) in sizes.items():
        words = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
        status = finetune(
            imported, encoded, tmp_path / name, max_steps=3, learning_rate=1e-3, **words
        )
        assert status == 0
    one, other = (weights(tmp_path / name) for name in sizes)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-5, msg=name)


def test_training_goes_on_from_its_newest_whole_checkpoint_to_the_same_end(
    imported: Path, encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    words: dict[str, Any] = {"apply_lora": "true", "num_train_epochs": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finetune(imported, encoded, whole, **words) == 0
    # What a killed training leaves: one whole checkpoint, one half-written, no model.
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-12", cut / "checkpoint-12")
    shutil.copytree(whole / "checkpoint-12", cut / "checkpoint-24")
    (cut / "checkpoint-24.part").touch()
    capsys.readouterr()
    assert finetune(imported, encoded, cut, resume_from_checkpoint="true", **words) == 0
    assert "goes on from checkpoint-12" in capsys.readouterr().out
    mine, theirs = weights(cut), weights(whole)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)
    assert not list(cut.glob("*.part"))


def test_one_process_alone_is_no_distributed_run(
    imported: Path,
    encoded: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)  # as a job of one rank has them
    assert finetune(imported, encoded, tmp_path, max_steps=1, evaluation_strategy="disable") == 0
    assert ", device cpu\n" in capsys.readouterr().out


def test_nothing_to_go_on_from_is_said_and_starts_anew(
    imported: Path, encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"resume_from_checkpoint": "true", "max_steps": 1}
    assert finetune(imported, encoded, tmp_path, **words) == 0
    assert "there is no checkpoint yet" in capsys.readouterr().out


def test_an_adapter_that_is_not_merged_loads_with_its_base_beside_it(
    imported: Path, encoded: Path, tuned: Path, tmp_path: Path
) -> None:
    import torch

    folder = tmp_path / "adapter"
    words = {"apply_lora": "true", "merge_lora_weights": "false", "num_train_epochs": 3}
    assert finetune(imported, encoded, folder, **words) == 0
    assert checkpoint.is_adapter(folder)
    assert checkpoint.base(folder) == folder / "base"
    assert not (folder / "README.md").exists()
    ids = torch.arange(10, 30)[None]
    with torch.inference_mode():
        merged = checkpoint.load(tuned)(input_ids=ids).logits
        adapted = checkpoint.load(folder)(input_ids=ids).logits
    torch.testing.assert_close(adapted, merged, rtol=1e-3, atol=1e-3)


def test_training_stops_early_and_keeps_the_best(
    imported: Path, encoded: Path, tmp_path: Path
) -> None:
    words: dict[str, Any] = {
        # Far too high a rate: the first evaluation is the best.
        "learning_rate": 0.5,
        "evaluation_strategy": "steps",
        "evaluation_steps_interval": 0.25,
        "apply_early_stopping": "true",
        "num_train_epochs": 4,
        "save_total_limit": 1,
    }
    assert finetune(imported, encoded, tmp_path, **words) == 0
    told = json.loads((tmp_path / "finetune_args.json").read_text())
    losses = {e["step"]: e["eval_loss"] for e in history(tmp_path) if "eval_loss" in e}
    best = min(losses, key=lambda step: losses[step])
    assert told["steps"] < 48
    assert sorted(losses)[:2] == [3, 6]
    assert told["best_model_checkpoint"] == f"checkpoint-{best}"
    assert told["best_metric"] == losses[best]
    assert best in checkpoints(tmp_path)
    assert len(checkpoints(tmp_path)) <= 2
    import torch

    kept = weights(tmp_path / f"checkpoint-{best}")
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, kept[name], msg=name)


def test_without_evaluation_there_is_still_something_to_go_on_from(
    imported: Path, encoded: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(encoded, rows)
    (rows / "validation.arrow").unlink()
    out = tmp_path / "out"
    assert finetune(imported, rows, out, evaluation_strategy="disable", optim="adafactor") == 0
    assert checkpoints(out) == [12]
    assert not [entry for entry in history(out) if "eval_loss" in entry]


def test_the_same_seed_gives_the_same_weights(
    imported: Path, encoded: Path, tmp_path: Path
) -> None:
    import torch

    words: dict[str, Any] = {"max_steps": 3, "apply_lora": "true", "lora_dropout": 0.1}
    made = []
    for number, seed in enumerate((5, 5, 6)):
        folder = tmp_path / str(number)
        assert finetune(imported, encoded, folder, seed=seed, **words) == 0
        made.append(weights(folder))
    name = next(name for name in made[0] if "qkv_proj" in name)
    assert torch.equal(made[0][name], made[1][name])
    assert not torch.equal(made[0][name], made[2][name])


def test_what_is_missing_is_named(
    imported: Path, encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(imported, tmp_path, tmp_path / "out") == 1
    assert "train.arrow: there are no encoded train rows; run preprocess" in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(imported / "config.json", bare)
    assert finetune(bare, encoded, tmp_path / "out") == 1
    assert "there are no weights" in capsys.readouterr().err


def test_a_tracking_server_that_is_gone_does_not_end_the_training(
    imported: Path,
    encoded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert finetune(imported, encoded, tmp_path, max_steps=2) == 0
    assert checkpoint.weights(tmp_path)
    assert "warning: MLflow cannot be reached" in capsys.readouterr().out


def given(**words: object) -> recipe.Spec:
    folders = {"preprocess_output": "p", "model_selector_output": "m", "pytorch_model_folder": "o"}
    return spec.build(recipe.Spec, {**folders, **words})


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ({"evaluation_steps_interval": 0.5, "per_device_train_batch_size": 4}, 12),
        ({"evaluation_steps_interval": 0.5, "gradient_accumulation_steps": 2}, 24),
        ({"evaluation_steps_interval": 0.001}, 1),
        ({"evaluation_steps_interval": 0.0, "eval_steps": 7}, 7),
        ({"evaluation_steps_interval": 3, "eval_steps": 7}, 7),
    ],
)
def test_an_interval_is_a_part_of_an_epoch_in_steps(words: dict[str, object], steps: int) -> None:
    assert arguments.evaluation_steps(given(**words), rows=96) == steps


def test_sixteen_bits_are_used_where_they_help_and_else_said(
    imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sixteen = given(precision="16")
    assert arguments.precision(given(), imported) == ("", "precision: 32 bits")
    monkeypatch.setattr(arguments, "_processor", lambda: "flags: avx512_bf16")
    assert arguments.precision(sixteen, imported)[0] == ""
    assert "so small a model is faster in 32 bits" in arguments.precision(sixteen, imported)[1]
    monkeypatch.setattr(arguments, "_processor", lambda: "flags: sse2")
    assert "this processor is faster in 32 bits" in arguments.precision(sixteen, imported)[1]
