"""The fourth step: train (`chat_completion_finetune`).

LoRA or all the weights, on the encoded rows of `preprocess`, from the base model
of `model_import`; evaluates, keeps checkpoints, stops early, and leaves the best
model, merged or as an adapter, in `pytorch_model_folder` with the checkpoints
below it.  The words are in `hyperparameters`, the training itself in `trainer`.
Weights are on the disk before the last metric goes anywhere.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finery import checkpoint
from finery.recipes import folders, hyperparameters, spec
from finery.recipes.hyperparameters import Hyperparameters
from finery.recipes.metrics import Reporter
from finery.recipes.spec import Failed, flag

BESIDE = ("MLmodel", "LICENSE", "LICENSE.txt", "finetune_config.json", "generation_config.json")
GIB = 1 << 30


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


def notes(given: Spec, *, gpus: int) -> list[str]:
    """What was asked for and does nothing here, each said in a line."""
    said = []
    if given.apply_ort:
        said.append("apply_ort: ONNX Runtime training is not used; PyTorch trains")
    if given.apply_deepspeed and gpus < 2:
        said.append(
            f"apply_deepspeed: DeepSpeed divides a model among GPUs and there {_are(gpus)} here;"
            " training goes on without it, with the same result"
        )
    if given.eval_accumulation_steps != -1:
        said.append("eval_accumulation_steps: only losses are kept in evaluation; nothing to move")
    return said


def _are(gpus: int) -> str:
    return {0: "is no GPU", 1: "is one GPU"}[gpus]


def _train(given: Spec, reporter: Reporter) -> None:
    from transformers import EarlyStoppingCallback

    from finery.recipes import trainer as trainers

    rows, evaluation = _rows(given)
    tokenizer = checkpoint.tokenizer(given.preprocess_output)
    given.pytorch_model_folder.mkdir(parents=True, exist_ok=True)
    resume = trainers.newest(given.pytorch_model_folder) if given.resume_from_checkpoint else None
    if given.resume_from_checkpoint and resume is None:
        _say("resume_from_checkpoint: there is no checkpoint yet; training starts at step 0")
    model, half = _model(given)
    stop = EarlyStoppingCallback(given.early_stopping_patience, given.early_stopping_threshold)
    trainer = trainers.Trainer(
        model,
        arguments(given, rows=len(rows), half=half, evaluates=evaluation is not None),
        tokenizer=tokenizer,
        train_rows=rows,
        evaluation_rows=evaluation,
        reporter=reporter,
        peft_config=lora(given) if given.apply_lora else None,
        callbacks=[stop] if given.apply_early_stopping else [],
    )
    _say_plan(given, trainer, rows)
    if resume is not None:
        trainer.resumed_step = int(resume.name.rpartition("-")[2])
        _say(f"goes on from {resume.name}")
        reporter.log({"checkpoint_load_step": trainer.resumed_step}, step=trainer.resumed_step)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.args.should_save:
        _save(given, trainer, tokenizer)
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
        half, why = precision(given, folder)
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


def precision(given: Spec, folder: Path) -> tuple[str, str]:
    """("bfloat16", "float16" or "", the reason in words)."""
    import torch

    if given.precision == "32":
        return "", "precision: 32 bits"
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            return "bfloat16", "precision: 16 bits (bfloat16)"
        return "float16", "precision: 16 bits (float16; this GPU has no bfloat16)"
    size = sum(path.stat().st_size for path in checkpoint.weights(folder))
    able = "avx512_bf16" in _processor() or "amx_bf16" in _processor()
    if not able:
        return "", "precision: 16 was asked for; this processor is faster in 32 bits, so 32 it is"
    if size < 64 << 20:
        return "", "precision: 16 was asked for; so small a model is faster in 32 bits, so 32 it is"
    return "bfloat16", "precision: 16 bits (bfloat16 on the processor)"


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def arguments(given: Spec, *, rows: int, half: str, evaluates: bool) -> Any:
    """The trainer's arguments from ours."""
    import torch
    from trl import SFTConfig

    cuda = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    every = evaluation_steps(given, rows=rows, world=world)
    strategy = given.evaluation_strategy if evaluates else "no"
    return SFTConfig(
        output_dir=str(given.pytorch_model_folder),
        num_train_epochs=given.num_train_epochs,
        max_steps=given.max_steps,
        per_device_train_batch_size=given.per_device_train_batch_size,
        per_device_eval_batch_size=given.per_device_eval_batch_size,
        gradient_accumulation_steps=given.gradient_accumulation_steps,
        auto_find_batch_size=given.auto_find_batch_size,
        # The same algorithm in one pass over the weights.
        optim="adamw_torch_fused" if given.optim == "adamw_torch" else given.optim,
        learning_rate=given.learning_rate,
        lr_scheduler_type=given.lr_scheduler_type,
        warmup_steps=given.warmup_steps,
        weight_decay=given.weight_decay,
        adam_beta1=given.adam_beta1,
        adam_beta2=given.adam_beta2,
        adam_epsilon=given.adam_epsilon,
        max_grad_norm=given.max_grad_norm,
        bf16=half == "bfloat16",
        fp16=half == "float16",
        use_cpu=not cuda,
        seed=given.seed,
        data_seed=given.seed,
        full_determinism=given.enable_full_determinism,
        dataloader_num_workers=given.dataloader_num_workers,
        dataloader_pin_memory=cuda,
        eval_strategy=strategy,
        eval_steps=every if strategy == "steps" else None,
        prediction_loss_only=True,
        # A checkpoint at each evaluation; without evaluations one at each epoch, to go on from.
        save_strategy=strategy if evaluates else "epoch",
        save_steps=every,
        save_total_limit=None if given.save_total_limit < 0 else given.save_total_limit,
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        logging_strategy=given.logging_strategy,
        logging_steps=given.logging_steps,
        activation_checkpointing=cuda and torch.cuda.mem_get_info()[1] < 60 * GIB,
        deepspeed=deepspeed(given) if cuda else None,
        ddp_find_unused_parameters=False if world > 1 else None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        report_to="none",
        disable_tqdm=True,
    )


def evaluation_steps(given: Hyperparameters, *, rows: int, world: int = 1) -> int:
    """Steps between evaluations: a part of an epoch where one was given, else `eval_steps`."""
    part = given.evaluation_steps_interval
    if not 0 < part <= 1:
        return given.eval_steps
    batch = given.per_device_train_batch_size * given.gradient_accumulation_steps * world
    return max(1, int(rows / batch * part))


def lora(given: Spec) -> Any:
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


def deepspeed(given: Spec) -> dict[str, Any] | str | None:
    """DeepSpeed's configuration where it is asked for and there are several GPUs."""
    import importlib.util

    import torch

    if not given.apply_deepspeed or torch.cuda.device_count() < 2:
        return None
    if importlib.util.find_spec("deepspeed") is None:
        raise Failed("--apply_deepspeed: DeepSpeed is not installed here (pip install deepspeed)")
    if given.deepspeed is not None:
        return str(given.deepspeed)
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": int(given.deepspeed_stage),
            "overlap_comm": True,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }


def _save(given: Spec, trainer: Any, tokenizer: Any) -> None:
    """The best model into the folder, all of it or nothing; then what describes it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with folders.filled(given.pytorch_model_folder) as part:
        if given.apply_lora and given.merge_lora_weights:
            model = model.merge_and_unload()
        _restore(model)
        model.save_pretrained(str(part))
        tokenizer.save_pretrained(str(part))
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
            "steps": trainer.state.global_step,
            "best_metric": trainer.state.best_metric,
            "best_model_checkpoint": Path(trainer.state.best_model_checkpoint or "").name,
            "log_history": trainer.state.log_history,
        }
        folders.write_json(part / "finetune_args.json", result)
    for mark in given.pytorch_model_folder.glob("checkpoint-*.part"):
        shutil.rmtree(mark.with_suffix(""), ignore_errors=True)
        mark.unlink()
    best = result["best_model_checkpoint"]
    _say(f"saved{' the model of ' + best if best else ''} to {given.pytorch_model_folder}")


def _restore(model: Any) -> None:
    """The saved configuration names what every reader of it knows, not our attention."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    base.config._attn_implementation = "sdpa"
    base.config.use_cache = True


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
