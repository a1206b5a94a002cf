"""The fourth step: train (`chat_completion_finetune`).

LoRA or all the weights, on the encoded rows of `preprocess`, from the base model
of `model_import`; evaluates, keeps checkpoints, stops early, and leaves the best
model, merged or as an adapter, in `pytorch_model_folder` with the checkpoints
below it.  The words are in `hyperparameters`, the training itself in `trainer`,
what comes before and after it in `training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finery import checkpoint
from finery.recipes import arguments, folders, hyperparameters, spec, training
from finery.recipes.metrics import Reporter
from finery.recipes.spec import Failed, flag
from finery.recipes.training import Training


@dataclass(frozen=True, kw_only=True)
class Spec(Training):
    """A training, and what is a chat's own."""

    task_name: str = flag("ChatCompletion", help="the task")
    trust_remote_code: bool = flag(False, help="run code that comes with the model")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def work(given: Spec) -> None:
    """Trains and saves; every process of a distributed run does this."""
    training.run(given, _train, check=hyperparameters.check, algorithm="chat-completion")


def _train(given: Spec, reporter: Reporter) -> None:
    from finery.recipes import trainer as trainers

    rows, evaluation = _rows(given)
    tokenizer = checkpoint.tokenizer(given.preprocess_output)
    point = training.newest(given)
    model, half = _model(given)
    tokens = _special(model)
    trainer = trainers.Trainer(
        model,
        arguments.build(
            given,
            folder=given.pytorch_model_folder,
            rows=len(rows),
            half=half,
            evaluates=evaluation is not None,
        ),
        tokenizer=tokenizer,
        train_rows=rows,
        evaluation_rows=evaluation,
        reporter=reporter,
        peft_config=_lora(given) if given.apply_lora else None,
        callbacks=training.early_stopping(given),
    )
    _say_plan(given, trainer, rows)
    training.resumed(trainer, point, reporter)
    trainer.train(resume_from_checkpoint=str(point) if point else None)
    if trainer.args.should_save:
        _restore(trainer.accelerator.unwrap_model(trainer.model), tokens)
        beside = (*training.BESIDE, "generation_config.json")
        training.save(given, trainer, tokenizer, reporter, beside=beside)
    trainer.accelerator.wait_for_everyone()


def _rows(given: Spec) -> tuple[Any, Any]:
    """Training rows, and validation rows where evaluation is wanted; mapped, not loaded."""
    from datasets import Dataset

    found: list[Any] = []
    for split in ("train", "validation"):
        path = given.preprocess_output / f"{split}.arrow"
        if not path.is_file():
            if split == "train" or given.evaluation_strategy != "disable":
                raise Failed(f"{path}: there are no encoded {split} rows; run preprocess first")
            found.append(None)
            continue
        found.append(Dataset.from_file(str(path)).with_format("numpy"))
    return found[0], found[1] if given.evaluation_strategy != "disable" else None


def _model(given: Spec) -> tuple[Any, str]:
    """The base model in evaluation's place, and the 16-bit kind to compute in ("" for none)."""
    import torch
    from transformers import AutoConfig

    from finery.recipes import packing

    try:
        folder = checkpoint.fetch(given.model_selector_output)
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=given.trust_remote_code)
        half, why = arguments.precision(given, folder)
        training.say(why)
        packs = packing.supports(config)
        if not packs:
            training.say(
                f"{config.model_type}: attention cannot be bounded by row here; rows are padded"
            )
        # A frozen base may be kept in 16 bits; weights that are trained need all 32.
        narrow = half if given.apply_lora and half else "float32"
        model = checkpoint.load(
            given.model_selector_output,
            dtype=narrow,
            trust_remote_code=given.trust_remote_code,
            attn_implementation=packing.register() if packs else "sdpa",
            ignore_mismatched_sizes=given.ignore_mismatched_sizes,
        )
    except checkpoint.NoModel as error:
        raise Failed(str(error)) from error
    model.config.use_cache = False
    if torch.cuda.is_available():
        model = model.to("cuda")
    return model, half


def _lora(given: Spec) -> Any:
    """The adapters: on every linear layer but the head, unless the model's settings name some."""
    from peft import LoraConfig

    settings = folders.read_json(given.model_selector_output / "finetune_config.json")
    return LoraConfig(
        r=given.lora_r,
        lora_alpha=given.lora_alpha,
        lora_dropout=given.lora_dropout,
        target_modules=settings.get("lora_target_modules") or "all-linear",
        task_type="CAUSAL_LM",
    )


def _special(model: Any) -> dict[str, Any]:
    """What the model says of its special tokens, before the trainer makes it agree with ours."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "config": {name: getattr(model.config, name, None) for name in names},
        "generation": {name: getattr(model.generation_config, name, None) for name in names},
    }


def _restore(model: Any, tokens: dict[str, Any]) -> None:
    """The saved configuration is the base model's: its attention, its cache, its special tokens."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    base.config._attn_implementation = "sdpa"
    base.config.use_cache = True
    for name, value in tokens["config"].items():
        setattr(base.config, name, value)
    for name, value in tokens["generation"].items():
        setattr(base.generation_config, name, value)


def _say_plan(given: Spec, trainer: Any, rows: Any) -> None:
    learned = trainer.model.num_parameters(only_trainable=True)
    total = trainer.model.num_parameters()
    kind = "LoRA" if given.apply_lora else "full"
    training.say(
        f"{kind} fine-tuning of {training.model_name(given)}: {learned:,} of {total:,} parameters,"
        f" {len(rows)} rows, {given.num_train_epochs} epochs, device {trainer.args.device}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
