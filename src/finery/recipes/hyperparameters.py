"""The training inputs of the pipelines: names, defaults, limits, rules.

The names and defaults are those of the upstream chat component, so that a
pipeline written for it runs here; `vqa_finetune` takes the same and adds its
own.  `validate` (in the first second) and `finetune` (again, for those who run
it by hand) read them.  Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finery.recipes.spec import WrongWords, flag

SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """How to train; what to train and on which rows is the recipe's own."""

    apply_lora: bool = flag(False, help="train low-rank adapters, not all the weights")
    merge_lora_weights: bool = flag(True, help="write merged weights, not an adapter")
    lora_alpha: int = flag(128, help="scale of the adapters", low=1)
    lora_r: int = flag(8, help="rank of the adapters", low=1)
    lora_dropout: float = flag(0.0, help="dropout before the adapters", low=0, high=1)
    num_train_epochs: int = flag(1, help="passes over the training rows", low=1)
    max_steps: int = flag(-1, help="optimizer steps in all; -1 goes by epochs", low=-1)
    per_device_train_batch_size: int = flag(1, help="rows in one step of one device", low=1)
    per_device_eval_batch_size: int = flag(1, help="rows in one evaluation batch", low=1)
    auto_find_batch_size: bool = flag(False, help="halve the batch when memory runs out")
    optim: str = flag("adamw_torch", help="optimizer", choices=("adamw_torch", "adafactor"))
    learning_rate: float = flag(2e-5, help="learning rate at its highest", above=0)
    warmup_steps: int = flag(0, help="steps to reach the learning rate", low=0)
    weight_decay: float = flag(0.0, help="weight decay", low=0)
    adam_beta1: float = flag(0.9, help="first decay of Adam", low=0, high=1)
    adam_beta2: float = flag(0.999, help="second decay of Adam", low=0, high=1)
    adam_epsilon: float = flag(1e-8, help="the small number of Adam", above=0)
    gradient_accumulation_steps: int = flag(1, help="batches in one optimizer step", low=1)
    eval_accumulation_steps: int = flag(-1, help="accepted; only losses are kept", low=-1)
    lr_scheduler_type: str = flag("linear", help="learning rate schedule", choices=SCHEDULERS)
    precision: str = flag("32", help="bits of arithmetic", choices=("32", "16"))
    seed: int = flag(42, help="seed of order, dropout and adapters", low=0)
    enable_full_determinism: bool = flag(False, help="the same numbers in every run, slower")
    dataloader_num_workers: int = flag(0, help="processes that read rows", low=0)
    ignore_mismatched_sizes: bool = flag(False, help="take weights whose shapes differ as new")
    max_grad_norm: float = flag(1.0, help="gradients are clipped to this norm", low=0)
    evaluation_strategy: str = flag(
        "epoch",
        help="when to evaluate and keep a checkpoint",
        choices=("epoch", "steps", "disable"),
    )
    evaluation_steps_interval: float = flag(
        0.0, help="with steps: evaluate after this part of an epoch (0 goes by eval_steps)"
    )
    eval_steps: int = flag(500, help="with steps: evaluate after so many steps", low=1)
    logging_strategy: str = flag("steps", help="when to log", choices=("steps", "epoch"))
    logging_steps: int = flag(10, help="with steps: log after so many steps", low=1)
    metric_for_best_model: str = flag(
        "loss", help="the best model is the best by this", choices=("loss", "f1", "exact")
    )
    resume_from_checkpoint: bool = flag(False, help="go on from the newest checkpoint")
    save_total_limit: int = flag(-1, help="checkpoints to keep, beside the best; -1 is all", low=-1)
    apply_early_stopping: bool = flag(False, help="stop when evaluation no longer improves")
    early_stopping_patience: int = flag(1, help="evaluations without improvement", low=1)
    early_stopping_threshold: float = flag(0.0, help="what counts as improvement", low=0)
    apply_deepspeed: bool = flag(False, help="DeepSpeed, where there are several GPUs")
    deepspeed: Path | None = flag(None, help="a DeepSpeed configuration of one's own")
    deepspeed_stage: str = flag("2", help="ZeRO stage", choices=("2", "3"))
    apply_ort: bool = flag(False, help="accepted and said to do nothing (ONNX Runtime)")


def check(given: Hyperparameters) -> None:
    """The rules of a chat training; WrongWords names the flags that do not go together."""
    if given.metric_for_best_model != "loss":
        raise WrongWords(
            f"--metric_for_best_model: {given.metric_for_best_model!r} belongs to question"
            " answering; chat completion is judged by loss"
        )
    rules(given)


def rules(given: Hyperparameters) -> None:
    """Rules between the fields that hold for every task; WrongWords as in `check`."""
    if given.apply_early_stopping and given.evaluation_strategy == "disable":
        raise WrongWords(
            "--apply_early_stopping: needs evaluation; set evaluation_strategy to epoch or steps"
        )
    if given.save_total_limit == 0:
        raise WrongWords("--save_total_limit: 0 would keep nothing; -1 keeps all")
    if given.max_steps == 0:
        raise WrongWords("--max_steps: 0 would train nothing; -1 goes by epochs")
    if given.deepspeed is not None and not given.deepspeed.is_file():
        raise WrongWords(f"--deepspeed: {given.deepspeed}: there is no such file")
    if given.apply_deepspeed and given.deepspeed_stage == "3" and given.auto_find_batch_size:
        raise WrongWords("--auto_find_batch_size: does not go with deepspeed_stage 3")
