"""TRL's SFTTrainer with what decides speed and truth replaced.

Batches without padding (`packing`), the loss only where it counts (`head`),
accuracy only at logging steps, an evaluation loss that is the mean over all
tokens of the set whatever the batches.  Its clock and its checkpoints are
`progress`'s affair, what to train is `finetune`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from finery.recipes import head, metrics, packing
from finery.recipes.progress import Followed, Progress


class Trainer(Followed, SFTTrainer):  # type: ignore[misc]
    """One supervised fine-tuning."""

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        *,
        tokenizer: Any,
        train_rows: Any,
        evaluation_rows: Any = None,
        reporter: metrics.Reporter,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        """`train_rows` and `evaluation_rows` have `input_ids` and `labels`, already cut."""
        collate: Callable[..., Any] = packing.collate
        if model.config._attn_implementation not in (packing.NAME, "flash_attention_2"):
            collate = partial(packing.collate_padded, pad=tokenizer.pad_token_id or 0)
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=train_rows,
            eval_dataset=evaluation_rows,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=[*(callbacks or []), Progress(reporter)],
        )
        self.remove_callback(PrinterCallback)
        self.tokens_seen = 0
        self.sums: torch.Tensor | None = None
        self.accuracy: torch.Tensor | None = None
        base = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        self.own_head = head.plain(base) and not self.is_deepspeed_enabled
        if self.own_head:
            head.attach(base)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean loss over the labelled tokens of the optimizer step."""
        training = self.model.training
        if training:
            mask = inputs.get("attention_mask")
            self.tokens_seen += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        if not self.own_head:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        count = not training or self._logs_next()
        found = model(**inputs, token_losses=True, count_correct=count)
        loss, tokens = found["loss"], found["tokens"]
        if count:
            sums = torch.stack([loss.detach().double(), tokens.double(), found["correct"].double()])
            if training:
                self.accuracy = sums if self.accuracy is None else self.accuracy + sums
            else:
                self.sums = sums if self.sums is None else self.sums + sums
        whole = tokens if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(whole, device=loss.device).clamp(min=1)
        if training and self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # DDP averages the gradients, while `num_items_in_batch` counts every process's tokens.
            loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **named: Any) -> Any:
        """The loop, its loss replaced by the mean over tokens, with the accuracy beside it."""
        start = time.perf_counter()
        self.sums = None
        output = super().evaluation_loop(*args, **named)
        if self.sums is not None:
            sums = self.accelerator.reduce(self.sums.float(), reduction="sum").tolist()
            prefix = named.get("metric_key_prefix", "eval")
            tokens = max(1.0, sums[1])
            output.metrics[f"{prefix}_loss"] = sums[0] / tokens
            output.metrics[f"{prefix}_mean_token_accuracy"] = sums[2] / tokens
        self.pause_seconds += time.perf_counter() - start
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds accuracy, speed and time left to what the trainer logs while it trains."""
        if "loss" in logs:
            if self.accuracy is not None:
                _, tokens, correct = self.accuracy.tolist()
                logs["mean_token_accuracy"] = correct / max(1.0, tokens)
                self.accuracy = None
            logs["tokens_per_second"] = round(self.per_second(self.tokens_seen), 1)
            logs["seconds_left"] = round(self.seconds_left(), 1)
            logs["num_tokens"] = self.tokens_seen * self.accelerator.num_processes
        super().log(logs, start_time)

    def _logs_next(self) -> bool:
        """Whether the step being computed is one after which the trainer logs."""
        if self.args.logging_strategy == "epoch":
            return True
        step = self.state.global_step + 1
        return bool(
            step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step)
        )
