"""What every training does around its trainer: before the first step and after the last.

`finetune` and `vqa_finetune` are begun by `run`, go on from a checkpoint with
`resumed`, and leave their model with `save`: weights, what is read with them, and
what describes them, on the disk before the last metric goes anywhere.  Which
model, which rows and which trainer is theirs; the words are in `hyperparameters`,
what is logged on the way in `progress`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finery import checkpoint
from finery.recipes import folders, spec
from finery.recipes.hyperparameters import Hyperparameters
from finery.recipes.metrics import Reporter
from finery.recipes.spec import Failed, WrongWords, flag

# Files of the base model that the tuned one keeps.
BESIDE = ("MLmodel", "LICENSE", "LICENSE.txt", "finetune_config.json")


@dataclass(frozen=True, kw_only=True)
class Training(Hyperparameters):
    """How to train, on what, from what, and where to."""

    preprocess_output: Path = flag(help="the folder of prepared rows")
    model_selector_output: Path = flag(help="the folder of the imported base model")
    pytorch_model_folder: Path = flag(help="the folder to fill")


T = TypeVar("T", bound=Training)


def run(
    given: T,
    train: Callable[[T, Reporter], None],
    *,
    check: Callable[[T], None],
    algorithm: str,
) -> None:
    """Calls `train` where it may begin; every process of a distributed run does this.

    `check` raises WrongWords, which ends the training as Failed; `algorithm` is
    what the run is tagged with.
    """
    try:
        check(given)
    except WrongWords as error:
        raise Failed(str(error)) from error
    if os.environ.get("WORLD_SIZE", "1") == "1":
        # A rank is what accelerate takes for a distributed run, which costs one process a third.
        os.environ.pop("LOCAL_RANK", None)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not torch.cuda.is_available() and os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for note in notes(given, gpus=torch.cuda.device_count()):
        say(note)
    reporter = Reporter()
    reporter.describe(params=spec.words(given), tags={"run_algorithm": algorithm})
    try:
        with warnings.catch_warnings():
            # What the libraries tell each other of their next versions helps no reader of this log.
            warnings.simplefilter("ignore", FutureWarning)
            train(given, reporter)
    finally:
        reporter.close()


def notes(given: Hyperparameters, *, gpus: int) -> list[str]:
    """What was asked for and does nothing here, each said in a line."""
    said = []
    if given.apply_ort:
        said.append("apply_ort: ONNX Runtime training is not used; PyTorch trains")
    if given.apply_deepspeed and gpus < 2:
        said.append(
            f"apply_deepspeed: DeepSpeed divides a model among GPUs and there {_are(gpus)} here;"
            " training goes on without it, with the same result"
        )
    if given.deepspeed is not None and not given.apply_deepspeed:
        said.append("deepspeed: the configuration is not used, as apply_deepspeed is false")
    if given.eval_accumulation_steps != -1:
        said.append("eval_accumulation_steps: only losses are kept in evaluation; nothing to move")
    return said


def _are(gpus: int) -> str:
    return {0: "is no GPU", 1: "is one GPU"}[gpus]


def say(text: str) -> None:
    """A line of the log, once however many processes train."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def newest(given: Training) -> Path | None:
    """The checkpoint to go on from, where that was asked for and there is one; makes the folder."""
    from finery.recipes import progress

    given.pytorch_model_folder.mkdir(parents=True, exist_ok=True)
    if not given.resume_from_checkpoint:
        return None
    found = progress.newest(given.pytorch_model_folder)
    if found is None:
        say("resume_from_checkpoint: there is no checkpoint yet; training starts at step 0")
    return found


def resumed(trainer: Any, point: Path | None, reporter: Reporter) -> None:
    """Says and logs that the training goes on from the checkpoint, if there is one."""
    if point is None:
        return
    trainer.resumed_step = int(point.name.rpartition("-")[2])
    say(f"goes on from {point.name}")
    reporter.log({"checkpoint_load_step": trainer.resumed_step}, step=trainer.resumed_step)


def early_stopping(given: Training) -> list[Any]:
    """The callback that ends a training which no longer improves, where that was asked for."""
    from transformers import EarlyStoppingCallback

    if not given.apply_early_stopping:
        return []
    return [EarlyStoppingCallback(given.early_stopping_patience, given.early_stopping_threshold)]


def model_name(given: Training) -> str:
    """What the base model is called."""
    chosen = folders.read_json(given.model_selector_output / "model_selector_args.json")
    return str(chosen.get("model_name") or given.model_selector_output.name)


def save(
    given: Training,
    trainer: Any,
    reader: Any,
    reporter: Reporter,
    *,
    beside: Sequence[str] = BESIDE,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """The best model into the folder, all of it or nothing; then its name and score to the run.

    `reader` is the tokenizer or processor that belongs to it, `beside` which of the
    base model's files it keeps, `settings` JSON files by name.
    """
    from finery.recipes import progress

    name = model_name(given)
    account = {**spec.words(given), "model_name": name, **progress.account(trainer)}
    model = trainer.accelerator.unwrap_model(trainer.model)
    with folders.filled(given.pytorch_model_folder) as part:
        if given.apply_lora and given.merge_lora_weights:
            model = model.merge_and_unload()
        model.save_pretrained(str(part))
        reader.save_pretrained(str(part))
        (part / "README.md").unlink(missing_ok=True)  # peft's empty form for a model card
        _keep(given, part, beside)
        for file, value in (settings or {}).items():
            folders.write_json(part / file, value)
        folders.write_json(part / "finetune_args.json", account)
    progress.clear_halves(given.pytorch_model_folder)
    best = account["best_model_checkpoint"]
    say(f"saved{' the model of ' + best if best else ''} to {given.pytorch_model_folder}")
    score = trainer.state.best_metric
    tags = {"score": score} if score is not None else {}
    reporter.describe(tags={**tags, "model_name": name})


def _keep(given: Training, part: Path, beside: Sequence[str]) -> None:
    """What a model folder takes over from its base: some files, or for an adapter all of it."""
    for name in beside:
        source = given.model_selector_output / name
        if source.is_file() and not (part / name).exists():
            folders.link(source, part / name)
    if given.apply_lora and not given.merge_lora_weights:
        # An adapter is nothing without its base: what is registered must stand alone.
        base = checkpoint.fetch(given.model_selector_output)
        skip = tuple(path.name for path in base.glob("checkpoint-*"))
        folders.link_tree(base, part / "base", skip=skip)
