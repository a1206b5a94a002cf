"""The fourth step: train (`chat_completion_finetune`).

LoRA or all the weights, on the encoded rows of `preprocess`, from the base model
of `model_import`; evaluates, keeps checkpoints, stops early, and leaves the best
model, merged or as an adapter, in `pytorch_model_folder` with the checkpoints
below it.  The words are in `hyperparameters`, the training itself in `trainer`.
Weights are on the disk before the last metric goes anywhere.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finery import checkpoint
from finery.recipes import arguments, folders, hyperparameters, spec
from finery.recipes.hyperparameters import Hyperparameters
from finery.recipes.metrics import Reporter
from finery.recipes.spec import Failed, flag

BESIDE = ("MLmodel", "LICENSE", "LICENSE.txt", "finetune_config.json", "generation_config.json")


@dataclass(frozen=True, kw_only=True)
class Spec(Hyperparameters):
    """How to train, on what, from what, and where to."""

    preprocess_output: Path = flag(help="the folder of encoded rows")
    model_selector_output: Path = flag(help="the folder of the imported base model")
    pytorch_model_folder: Path = flag(help="the folder to fill")
    task_name: str = flag("ChatCompletion", help="the task")
    trust_remote_code: bool = flag(False, help="run code that comes with the model")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def work(given: Spec) -> None:
    """Trains and saves; every process of a distributed run does this."""
    try:
        hyperparameters.check(given)
    except spec.WrongWords as error:
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
        _say(note)
    reporter = Reporter()
    reporter.describe(params=spec.words(given), tags={"run_algorithm": "chat-completion"})
    try:
        with warnings.catch_warnings():
            # What the libraries tell each other of their next versions helps no reader of this log.
            warnings.simplefilter("ignore", FutureWarning)
            _train(given, reporter)
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


def _train(given: Spec, reporter: Reporter) -> None:
    from transformers import EarlyStoppingCallback

    from finery.recipes import progress
    from finery.recipes import trainer as trainers

    rows, evaluation = _rows(given)
    tokenizer = checkpoint.tokenizer(given.preprocess_output)
    given.pytorch_model_folder.mkdir(parents=True, exist_ok=True)
    resume = progress.newest(given.pytorch_model_folder) if given.resume_from_checkpoint else None
    if given.resume_from_checkpoint and resume is None:
        _say("resume_from_checkpoint: there is no checkpoint yet; training starts at step 0")
    model, half = _model(given)
    tokens = _special(model)
    stop = EarlyStoppingCallback(given.early_stopping_patience, given.early_stopping_threshold)
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
        callbacks=[stop] if given.apply_early_stopping else [],
    )
    _say_plan(given, trainer, rows)
    if resume is not None:
        trainer.resumed_step = int(resume.name.rpartition("-")[2])
        _say(f"goes on from {resume.name}")
        reporter.log({"checkpoint_load_step": trainer.resumed_step}, step=trainer.resumed_step)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.args.should_save:
        _save(given, trainer, tokenizer, tokens=tokens)
        best = trainer.state.best_metric
        tags = {"score": best} if best is not None else {}
        reporter.describe(tags={**tags, "model_name": _model_name(given)})
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
        _say(why)
        packs = packing.supports(config)
        if not packs:
            _say(f"{config.model_type}: attention cannot be bounded by row here; rows are padded")
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


def _save(given: Spec, trainer: Any, tokenizer: Any, *, tokens: dict[str, Any]) -> None:
    """The best model into the folder, all of it or nothing; then what describes it."""
    from finery.recipes import progress

    model = trainer.accelerator.unwrap_model(trainer.model)
    with folders.filled(given.pytorch_model_folder) as part:
        if given.apply_lora and given.merge_lora_weights:
            model = model.merge_and_unload()
        _restore(model, tokens)
        model.save_pretrained(str(part))
        tokenizer.save_pretrained(str(part))
        (part / "README.md").unlink(missing_ok=True)  # peft's empty form for a model card
        for name in BESIDE:
            source = given.model_selector_output / name
            if source.is_file() and not (part / name).exists():
                folders.link(source, part / name)
        if given.apply_lora and not given.merge_lora_weights:
            # An adapter is nothing without its base: what is registered must stand alone.
            base = checkpoint.fetch(given.model_selector_output)
            skip = tuple(path.name for path in base.glob("checkpoint-*"))
            folders.link_tree(base, part / "base", skip=skip)
        result = {
            **spec.words(given),
            "model_name": _model_name(given),
            **progress.account(trainer),
        }
        folders.write_json(part / "finetune_args.json", result)
    progress.clear_halves(given.pytorch_model_folder)
    best = result["best_model_checkpoint"]
    _say(f"saved{' the model of ' + best if best else ''} to {given.pytorch_model_folder}")


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


def _model_name(given: Spec) -> str:
    chosen = folders.read_json(given.model_selector_output / "model_selector_args.json")
    return str(chosen.get("model_name") or given.model_selector_output.name)


def _say_plan(given: Spec, trainer: Any, rows: Any) -> None:
    learned, total = (
        trainer.model.num_parameters(only_trainable=True),
        trainer.model.num_parameters(),
    )
    kind = "LoRA" if given.apply_lora else "full"
    _say(
        f"{kind} fine-tuning of {_model_name(given)}: {learned:,} of {total:,} parameters,"
        f" {len(rows)} rows, {given.num_train_epochs} epochs, device {trainer.args.device}"
    )


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
