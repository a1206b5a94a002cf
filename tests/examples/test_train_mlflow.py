"""The guide's training script: what its arguments do, what it logs, and that it can go on.

A model of Florence-2's classes takes a few steps here: only it can show that a
gradient is what it should be. That it learns to read is `make quickstart-vqa`'s to show.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

CATALOG = Path(__file__).parents[2] / "src" / "finery" / "catalog"
QUICK = ["--num_beams", "1", "--max_new_tokens", "3", "--eval_samples", "2", "--precision", "fp32"]


class Book:
    """Writes down what is told to MLflow."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self.metrics: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, int, tuple[int, int]]] = []

    @contextlib.contextmanager
    def start_run(self) -> Iterator[None]:
        yield

    def log_params(self, params: dict[str, Any]) -> None:
        self.params.update(params)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics += [(name, value, step) for name, value in metrics.items()]

    def log_image(self, image: Image.Image, *, key: str, step: int) -> None:
        self.images.append((key, step, image.size))

    def flush_artifact_async_logging(self) -> None:
        pass

    def of(self, name: str) -> dict[int, float]:
        return {step: value for named, value, step in self.metrics if named == name}


@pytest.fixture
def train(guide: dict[str, ModuleType]) -> ModuleType:
    return guide["train_mlflow"]


@pytest.fixture
def book(train: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Book:
    made = Book()
    monkeypatch.setattr(train, "mlflow", made)
    return made


def arguments(standin: Path, data: Path, to: Path, *more: str) -> list[str]:
    return [
        *("--model_name_or_path", str(standin), "--train_dir", str(data)),
        *("--model_dir", str(to / "outputs"), "--output_dir", str(to / "outputs/checkpoints")),
        *("--train_batch_size", "6", "--learning_rate", "0.001", *QUICK, *more),
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(str(folder / "model.safetensors"))


def test_what_is_logged_has_the_guides_names_and_steps(
    train: ModuleType, book: Book, standin: Path, data: Path, tmp_path: Path
) -> None:
    train.main(arguments(standin, data, tmp_path, "--save_steps", "2", "--logging_steps", "1"))
    assert {
        *("epochs", "train_batch_size", "eval_batch_size", "seed", "lr_scheduler_type"),
        *("grad_accum_steps", "num_training_steps", "num_warmup_steps", "learning_rate"),
    } <= set(book.params)
    total = book.params["num_training_steps"]
    assert total == 4
    for name in ("train_loss", "learning_rate", "progress"):
        assert list(book.of(name)) == [1, 2, 3, 4]
    assert book.of("progress")[4] == 1.0
    assert list(book.of("avg_val_loss")) == list(book.of("anls")) == [4]
    assert list(book.of("base_anls")) == [0]
    assert list(book.of("test_exact_match")) == [4]
    assert [(key, step) for key, step, _ in book.images] == [("DocVQA", 2), ("DocVQA", 4)]
    assert (tmp_path / "outputs/model.safetensors").is_file()
    assert (tmp_path / "outputs/processor_config.json").is_file()
    assert not (tmp_path / "outputs/checkpoints").exists()  # the model is not sent with its past


def test_the_learning_rate_the_seed_and_freezing_take_effect(
    train: ModuleType, book: Book, standin: Path, data: Path, tmp_path: Path
) -> None:
    def trained(name: str, *more: str) -> dict[str, torch.Tensor]:
        flags = arguments(standin, data, tmp_path / name, "--score_base", "no", *more)
        train.main([*flags, "--warmup_ratio", "0", "--save_steps", "1000"])
        return weights(tmp_path / name / "outputs")

    one, again = trained("one"), trained("again")
    assert all(one[name].equal(again[name]) for name in one)
    start = train.florence2.load(standin / "model")[0].state_dict()
    moved = {name for name in one if not one[name].equal(start[name])}
    assert moved
    assert not [name for name in moved if "vision_tower" in name]

    free = trained("free", "--freeze_vision_tower", "false", "--seed", "1")
    assert any("vision_tower" in name for name in free if not free[name].equal(start[name]))

    slow = trained("slow", "--learning_rate", "1e-9")
    assert max(float((slow[name] - start[name]).abs().max()) for name in slow) < 1e-6


def test_small_batches_added_up_are_one_large_batch(
    train: ModuleType,
    guide: dict[str, ModuleType],
    book: Book,
    standin: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    """Answers differ in length: a mean of the batches' means would not be the mean of all."""

    def gradient(size: int) -> torch.Tensor:
        one = training(train, guide, standin, data, tmp_path / str(size))
        one.optimizer.param_groups[0]["lr"] = 0.0
        one.optimizer.zero_grad = lambda set_to_none: None  # type: ignore[method-assign]
        one.args.max_grad_norm = 1e9
        rows = [one.data["train"][at] for at in range(12)]
        group = [one.batches(rows[at : at + size]) for at in range(0, 12, size)]
        one.one_step(group)
        return torch.cat(
            [
                weight.grad.flatten()
                for weight in one.learner.parameters()
                if weight.grad is not None
            ]
        )

    whole, parts = gradient(12), gradient(4)
    assert float(whole.norm()) > 1e-3
    assert float((whole - parts).norm()) < 1e-3 * float(whole.norm())


def test_a_killed_training_goes_on_to_the_same_weights(
    train: ModuleType,
    book: Book,
    standin: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = ("--score_base", "no", "--save_steps", "1", "--grad_accum_steps", "1", "--epochs", "2")
    train.main(arguments(standin, data, tmp_path / "whole", *more))

    class Killed(Exception):
        pass

    step = train.Training.one_step

    def until_six(self: Any, group: Any) -> Any:
        if self.step == 6:
            raise Killed
        return step(self, group)

    monkeypatch.setattr(train.Training, "one_step", until_six)
    with pytest.raises(Killed):
        train.main(arguments(standin, data, tmp_path / "killed", *more))
    monkeypatch.setattr(train.Training, "one_step", step)
    kept = tmp_path / "killed/outputs/checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["steps_5", "steps_6"]

    book.metrics.clear()
    flags = arguments(standin, data, tmp_path / "second", *more, "--resume_from", str(kept))
    train.main(flags)
    whole, second = weights(tmp_path / "whole/outputs"), weights(tmp_path / "second/outputs")
    assert list(book.of("train_loss")) == [8], "not the steps from 1 to 5 again"
    # Attention does not depend on the bias of its keys: what Adam makes of it is rounding.
    names = [name for name in whole if not name.endswith("k_proj.bias")]
    assert all(torch.allclose(whole[name], second[name], atol=1e-6) for name in names)
    shutil.rmtree(kept)


def test_a_training_killed_before_it_was_validated_makes_up_for_it(train: ModuleType) -> None:
    done: list[Any] = []

    class AtAnEpochsEnd(train.Training):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.args, self.data = argparse.Namespace(epochs=3, score_base=True), {}
            self.step, self.steps_per_epoch = 0, 4

        def resume(self) -> None:
            self.step = 4

        def log_params(self) -> None:
            pass

        def one_epoch(self, epoch: int) -> None:
            done.append(epoch)

        def score(self, split: str, prefix: str = "") -> None:
            done.append(split)

        def finish(self) -> None:
            pass

    AtAnEpochsEnd().run()
    assert done == ["validation", 1, "validation", 2, "validation"]


def test_a_checkpoint_of_another_training_is_refused(
    train: ModuleType,
    guide: dict[str, ModuleType],
    book: Book,
    standin: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    one = training(train, guide, standin, data, tmp_path)
    one.step = 1
    one.save_checkpoint()
    one.total += 1
    with pytest.raises(SystemExit, match="training of 4 steps and this one has 5"):
        one.resume()


def test_a_frozen_tower_looks_at_a_page_once_and_the_model_sees_the_same(
    train: ModuleType,
    guide: dict[str, ModuleType],
    book: Book,
    standin: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = training(train, guide, standin, data, tmp_path)
    batch = one.batches([one.data["train"][at] for at in range(6)])
    one.args.num_beams = 3
    looked = []
    tower = one.learner.model.model.vision_tower
    original = tower.forward

    def forward(pixels: torch.Tensor) -> Any:
        looked.append(len(pixels))
        return original(pixels)

    monkeypatch.setattr(tower, "forward", forward)
    with torch.no_grad():
        first, again = one.learner(batch), one.learner(batch)
        said = one.answers(batch)
        one.learner.frozen = False
        whole, read = one.learner(batch), one.answers(batch)
    assert looked[0] == len(set(batch["pages"])) < 6
    assert looked[1:] == [6, 6]  # those of the model that works out everything
    assert first == again
    assert float(first) == pytest.approx(float(whole), rel=1e-5)
    assert said == read


def test_what_has_no_room_is_looked_at_again(
    train: ModuleType,
    guide: dict[str, ModuleType],
    standin: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    one = training(train, guide, standin, data, tmp_path)
    one.learner.room = 0
    batch = one.batches([one.data["train"][0]])
    with torch.no_grad():
        assert one.learner(batch) == one.learner(batch)
    assert not one.learner.seen


def test_ranks_share_the_rows_and_take_the_same_number_of_steps(train: ModuleType) -> None:
    cpu = torch.device("cpu")
    parts = [train.Ranks(rank, 4, cpu).order(11, 5) for rank in range(4)]
    assert {len(part) for part in parts} == {3}
    assert set().union(*parts) == set(range(11))
    assert train.Ranks(0, 4, cpu).order(11, 6) != parts[0]


def test_a_word_that_is_neither_yes_nor_no_is_refused(train: ModuleType) -> None:
    assert train.yes_or_no("False") is False
    with pytest.raises(train.argparse.ArgumentTypeError, match="maybe"):
        train.yes_or_no("maybe")


def test_a_model_may_lie_one_folder_down(train: ModuleType, standin: Path) -> None:
    assert train.model_folder(str(standin)) == str(standin / "model")
    assert train.model_folder("microsoft/Florence-2-base-ft") == "microsoft/Florence-2-base-ft"


def test_a_registered_model_without_weights_says_which_of_the_hub_it_is(
    train: ModuleType, tmp_path: Path
) -> None:
    """What the registry gives on a server without stand-ins."""
    catalog = CATALOG / "models" / "Florence-2-base-ft"
    assert train.model_folder(str(catalog)) == "florence-community/Florence-2-base-ft"
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    assert train.model_folder(str(tmp_path)) == str(tmp_path)


def test_a_model_that_the_hub_does_not_give_is_named_with_the_ways_out(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(name: str) -> Path:
        raise FileNotFoundError("Got: ConnectError: no such host\nand much more")

    with pytest.raises(SystemExit, match=r"there is no such folder"):
        train.fetched("./models/none")
    monkeypatch.setattr(train.florence2, "fetch", fetch)
    with pytest.raises(SystemExit) as ended:
        train.fetched("microsoft/Florence-2-base-ft")
    said = str(ended.value)
    assert "\n" not in said and "much more" not in said
    for part in ("microsoft/Florence-2-base-ft", "no such host", "HF_MODEL_NAME", "--models tiny"):
        assert part in said


def training(
    train: ModuleType, guide: dict[str, ModuleType], standin: Path, data: Path, to: Path
) -> Any:
    """A training as `main` makes it, before its first step."""
    args = train.arguments(arguments(standin, data, to))
    model, processor = train.florence2.load(train.model_folder(str(standin)))
    rows = guide["pages"].read(str(data))
    size = processor.image_processor.size
    batches = guide["pages"].Batches(processor, task="<DocVQA>", starts=None, longest=300)
    return train.Training(
        args,
        train.Ranks(0, 1, torch.device("cpu")),
        train.Learner(model, processor, freeze=True, bf16=False, keep=1),
        processor,
        batches,
        {name: guide["pages"].Pages(rows[name], name, size=size, cache=to / name) for name in rows},
    )
