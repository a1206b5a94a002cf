"""The trainer's arguments from the recipe's words, on this machine.

Which precision helps here, when to evaluate and save, whether DeepSpeed has
anything to divide.  Torch and TRL are imported only when asked something.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from finery import checkpoint
from finery.recipes.hyperparameters import Hyperparameters
from finery.recipes.spec import Failed

GIB = 1 << 30
# Inputs that the trainer has under the same name and with the same meaning.
SAME = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "auto_find_batch_size",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "seed",
    "dataloader_num_workers",
    "logging_strategy",
    "logging_steps",
)


def build(given: Hyperparameters, *, folder: Path, rows: int, half: str, evaluates: bool) -> Any:
    """What TRL is to do; checkpoints go into `folder`."""
    import torch
    from trl import SFTConfig

    cuda = torch.cuda.is_available()
    return SFTConfig(
        **shared(given, folder=folder, rows=rows, half=half, evaluates=evaluates),
        activation_checkpointing=cuda and torch.cuda.mem_get_info()[1] < 60 * GIB,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )


def shared(
    given: Hyperparameters, *, folder: Path, rows: int, half: str, evaluates: bool
) -> dict[str, Any]:
    """What every trainer of transformers is told in the same words."""
    import torch

    cuda = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return {
        **{name: getattr(given, name) for name in SAME},
        **_moments(given, every=evaluation_steps(given, rows=rows, world=world), ends=evaluates),
        "output_dir": str(folder),
        # The same algorithm in one pass over the weights.
        "optim": "adamw_torch_fused" if given.optim == "adamw_torch" else given.optim,
        "bf16": half == "bfloat16",
        "fp16": half == "float16",
        "use_cpu": not cuda,
        "data_seed": given.seed,
        "full_determinism": given.enable_full_determinism,
        "dataloader_pin_memory": cuda,
        "deepspeed": deepspeed(given) if cuda else None,
        "ddp_find_unused_parameters": False if world > 1 else None,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "log_level_replica": "error",
    }


def _moments(given: Hyperparameters, *, every: int, ends: bool) -> dict[str, Any]:
    """When to evaluate, to save and what is best; `ends` is whether there is evaluation at all."""
    strategy = given.evaluation_strategy if ends else "no"
    return {
        "eval_strategy": strategy,
        "eval_steps": every if strategy == "steps" else None,
        "prediction_loss_only": True,
        # A checkpoint at each evaluation; without evaluations one at each epoch, to go on from.
        "save_strategy": strategy if ends else "epoch",
        "save_steps": every,
        "save_total_limit": None if given.save_total_limit < 0 else given.save_total_limit,
        "load_best_model_at_end": ends,
        "metric_for_best_model": f"eval_{given.metric_for_best_model}" if ends else None,
        "greater_is_better": given.metric_for_best_model != "loss" if ends else None,
    }


def evaluation_steps(given: Hyperparameters, *, rows: int, world: int = 1) -> int:
    """Steps between evaluations: a part of an epoch where one was given, else `eval_steps`."""
    part = given.evaluation_steps_interval
    if not 0 < part <= 1:
        return given.eval_steps
    batch = given.per_device_train_batch_size * given.gradient_accumulation_steps * world
    return max(1, int(rows / batch * part))


def deepspeed(given: Hyperparameters) -> dict[str, Any] | str | None:
    """DeepSpeed's configuration where it is asked for and there are several GPUs."""
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


def precision(given: Hyperparameters, folder: Path) -> tuple[str, str]:
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
