"""The third step: train (`visual_question_answering_finetune`).

LoRA or all the weights, the vision tower frozen (its output then computed once
for each picture) or not, on the prepared rows of `vqa_preprocess`; evaluates,
keeps checkpoints, stops early, and leaves the best model, merged or as an
adapter, in `pytorch_model_folder` with the checkpoints below it.  The training
itself is in `vqa_trainer`, what comes before and after it in `training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finery import checkpoint
from finery.recipes import arguments, folders, hyperparameters, spec, training, vqa_preprocess
from finery.recipes.metrics import Reporter
from finery.recipes.spec import Failed, WrongWords, flag
from finery.recipes.training import Training

if TYPE_CHECKING:
    from finery.recipes.vqa_trainer import Trainer

SETTINGS = "vqa.json"
SEEN_AT_ONCE = 8  # pictures, with no gradient to keep
LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
VISION = r".*vision_tower.*\.(qkv|proj|fc1|fc2)"


@dataclass(frozen=True, kw_only=True)
class Spec(Training):
    """A training, and what pictures and answers need besides."""

    freeze_vision_tower: bool = flag(True, help="the part that sees learns nothing, only language")
    warmup_ratio: float = flag(0.0, help="the same as a part of all steps", low=0, high=0.99)
    num_beams: int = flag(3, help="answers followed at once in generation", low=1, high=16)
    max_answer_length: int = flag(64, help="tokens of an answer at most", low=1, high=1024)
    max_eval_rows: int = flag(200, help="validation rows answered at each evaluation", low=0)
    metric_for_best_model: str = flag(
        "loss", help="the best model is the best by this", choices=("loss", "anls", "exact_match")
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def check(given: Spec) -> None:
    """Rules between the fields; WrongWords names the flags that do not go together."""
    hyperparameters.rules(given)
    if given.warmup_ratio and given.warmup_steps:
        raise WrongWords("--warmup_ratio: does not go with warmup_steps; give one of them")
    if given.metric_for_best_model != "loss" and not given.max_eval_rows:
        raise WrongWords(
            f"--metric_for_best_model: {given.metric_for_best_model} needs max_eval_rows above 0"
        )


def work(given: Spec) -> None:
    """Trains and saves; every process of a distributed run does this."""
    training.run(given, _train, check=check, algorithm="visual-question-answering")


def _train(given: Spec, reporter: Reporter) -> None:
    from finery.recipes import vqa_features

    point = training.newest(given)
    trainer, processor, half = _trainer(given, reporter)
    _say_plan(given, trainer)
    training.resumed(trainer, point, reporter)
    try:
        if given.freeze_vision_tower:
            _see_once(given, trainer, half)
        trainer.train(resume_from_checkpoint=str(point) if point else None)
    finally:
        vqa_features.detach(trainer.model)
        if trainer.args.should_save:
            (given.pytorch_model_folder / vqa_features.FILE).unlink(missing_ok=True)
    if trainer.args.should_save:
        settings = {SETTINGS: _settings(given)}
        training.save(given, trainer, processor, reporter, settings=settings)
    trainer.accelerator.wait_for_everyone()


def _trainer(given: Spec, reporter: Reporter) -> tuple[Trainer, Any, str]:
    """(the trainer, the model's processor, the 16-bit kind to compute in)."""
    from finery.recipes import pictures, vqa_encoding, vqa_trainer

    told = folders.read_json(given.preprocess_output / "preprocess_args.json")
    rows = vqa_preprocess.rows(given.preprocess_output, "train")
    evaluates = given.evaluation_strategy != "disable"
    held = vqa_preprocess.rows(given.preprocess_output, "validation") if evaluates else None
    shelf = pictures.Shelf.open(given.preprocess_output)
    model, processor, half = _model(given)
    encoder = vqa_encoding.Encoder(
        processor, model.config, model.generation_config, task_prompt=told["task_prompt"]
    )
    shared = arguments.shared(
        given, folder=given.pytorch_model_folder, rows=len(rows), half=half, evaluates=evaluates
    )
    answering = vqa_trainer.Answering(given.max_eval_rows, given.num_beams, given.max_answer_length)
    trainer = vqa_trainer.Trainer(
        _adapted(given, model),
        vqa_trainer.arguments(shared, warmup=given.warmup_ratio or given.warmup_steps),
        batches=vqa_encoding.Batches(encoder, shelf),
        scale=vqa_encoding.Scale(processor),
        train_rows=rows,
        evaluation_rows=held,
        answering=answering,
        shelf=shelf,
        reporter=reporter,
        callbacks=training.early_stopping(given),
    )
    return trainer, processor, half


def _model(given: Spec) -> tuple[Any, Any, str]:
    """The base model in evaluation's place, its processor, and the 16-bit kind to compute in."""
    import torch

    try:
        folder = checkpoint.fetch(given.model_selector_output)
        half, why = arguments.precision(given, folder)
        training.say(why)
        model = checkpoint.load(
            given.model_selector_output,
            # A frozen base may be kept in 16 bits; weights that are trained need all 32.
            dtype=half if given.apply_lora and half else "float32",
            ignore_mismatched_sizes=given.ignore_mismatched_sizes,
        )
        processor = checkpoint.processor(given.model_selector_output)
    except checkpoint.NoModel as error:
        raise Failed(str(error)) from error
    return model.to("cuda") if torch.cuda.is_available() else model, processor, half


def _adapted(given: Spec, model: Any) -> Any:
    """The model as it is trained: frozen where asked, with adapters where asked."""
    from finery.recipes import vqa_features

    if given.apply_lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(
                r=given.lora_r,
                lora_alpha=given.lora_alpha,
                lora_dropout=given.lora_dropout,
                target_modules=LANGUAGE if given.freeze_vision_tower else f"{LANGUAGE}|{VISION}",
            ),
        )
    if given.freeze_vision_tower:
        vqa_features.freeze(model)
    return model


def _see_once(given: Spec, trainer: Trainer, half: str) -> None:
    """What the frozen tower makes of each picture, computed before the first step."""
    from finery.recipes import vqa_features

    rows = [*trainer.train_dataset, *(trainer.eval_dataset or [])]
    device = trainer.args.device

    def pixels(numbers: list[int]) -> Any:
        return trainer.scale(trainer.batches.stacked(numbers).to(device))

    found = vqa_features.compute(
        trainer.model,
        pixels,
        (row["picture"] for row in rows),
        folder=given.pytorch_model_folder,
        half=half,
        accelerator=trainer.accelerator,
        batch=max(SEEN_AT_ONCE, given.per_device_eval_batch_size),
    )
    if found is not None:
        vqa_features.attach(trainer.model)
        trainer.batches.pictures = found


def _settings(given: Spec) -> dict[str, Any]:
    """How the model is to be asked: as it was in training."""
    told = folders.read_json(given.preprocess_output / "preprocess_args.json")
    return {
        "task_prompt": told["task_prompt"],
        "num_beams": given.num_beams,
        "max_answer_length": given.max_answer_length,
    }


def _say_plan(given: Spec, trainer: Trainer) -> None:
    learned = trainer.model.num_parameters(only_trainable=True)
    total = trainer.model.num_parameters()
    kind = "LoRA" if given.apply_lora else "full"
    sees = "frozen" if given.freeze_vision_tower else "trained"
    training.say(
        f"{kind} fine-tuning of {training.model_name(given)}, vision tower {sees}: {learned:,} of"
        f" {total:,} parameters, {len(trainer.train_dataset)} rows, {given.num_train_epochs}"
        f" epochs, device {trainer.args.device}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
