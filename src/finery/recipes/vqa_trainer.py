"""transformers' Seq2SeqTrainer for questions about pictures.

Pictures are scaled where the model computes; the evaluation loss is the mean
over all tokens of the set whatever the batches; a bounded number of validation
rows is answered by generation and scored (ANLS, exact match), and some of them
are drawn with the answers below.  Clock and checkpoints are `progress`'s affair,
what to train is `vqa_finetune`'s.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Seq2SeqTrainer, TrainerCallback

from finery.recipes import metrics, pictures, scores, vqa_encoding, vqa_sheet
from finery.recipes.progress import Followed, Progress


@dataclass(frozen=True)
class Answering:
    """How validation rows are answered."""

    rows: int
    num_beams: int
    max_answer_length: int


class Trainer(Followed, Seq2SeqTrainer):  # type: ignore[misc]
    """One supervised fine-tuning."""

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        batches: vqa_encoding.Batches,
        scale: vqa_encoding.Scale,
        train_rows: Sequence[dict[str, Any]],
        evaluation_rows: Sequence[dict[str, Any]] | None,
        answering: Answering,
        shelf: pictures.Shelf,
        reporter: metrics.Reporter,
        callbacks: list[TrainerCallback],
    ) -> None:
        """Rows are those of `vqa_preprocess.rows`."""
        self.scale, self.batches, self.shelf = scale, batches, shelf
        self.answering, self.reporter = answering, reporter
        self.rows_seen = 0
        self.sums: list[float] = [0.0, 0.0]
        super().__init__(
            model=model,
            args=args,
            data_collator=batches,
            train_dataset=train_rows,
            eval_dataset=evaluation_rows,
            callbacks=[*callbacks, Progress(reporter)],
        )
        self.remove_callback(PrinterCallback)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # Moved as bytes, a quarter of what they are as floats.
        found: dict[str, Any] = super()._prepare_inputs(inputs)
        return {**found, "pixel_values": self.scale(found["pixel_values"])}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean loss over the tokens of the optimizer step; in evaluation also kept as a sum."""
        if self.model.training:
            self.rows_seen += len(inputs["input_ids"])
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, found = super().compute_loss(model, inputs, True, None)
        tokens = int((inputs["labels"] != vqa_encoding.IGNORED).sum())
        self.sums = [self.sums[0] + float(loss) * tokens, self.sums[1] + tokens]
        return (loss, found) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **named: Any) -> Any:
        """The loop for the loss, then answers to some rows."""
        start = time.perf_counter()
        self.sums = [0.0, 0.0]
        output = super().evaluation_loop(*args, **named)
        prefix = named.get("metric_key_prefix", "eval")
        loss, tokens = self._over_ranks(self.sums)
        output.metrics[f"{prefix}_loss"] = loss / max(1.0, tokens)
        for name, value in self._answered().items():
            output.metrics[f"{prefix}_{name}"] = value
        self.pause_seconds += time.perf_counter() - start
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds speed and time left to what the trainer logs while it trains."""
        if "loss" in logs:
            logs["rows_per_second"] = round(self.per_second(self.rows_seen), 2)
            logs["seconds_left"] = round(self.seconds_left(), 1)
        super().log(logs, start_time)

    def _answered(self) -> dict[str, float]:
        """ANLS and exact match over the first rows, each rank its share."""
        rows = list(self.eval_dataset)[: self.answering.rows]
        if not rows:
            return {}
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = rows[rank::world]
        said = self.answers(mine)
        found = scores.nearest(said, [row["answers"] for row in mine])
        sums = self._over_ranks([len(mine), *(value * len(mine) for value in found.values())])
        if self.is_world_process_zero():
            self._draw(mine, said)
        return {
            name: value / max(1.0, sums[0]) for name, value in zip(found, sums[1:], strict=True)
        }

    def answers(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """What the model says to each row now."""
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        said: list[str] = []
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(rows), size):
            batch = self._prepare_inputs(self.batches(rows[start : start + size]))
            with self.compute_loss_context_manager():
                said += vqa_encoding.generate(
                    model,
                    self.batches.encoder,
                    batch,
                    num_beams=self.answering.num_beams,
                    max_answer_length=self.answering.max_answer_length,
                )
        return said

    def _over_ranks(self, values: list[float]) -> list[float]:
        sums = torch.tensor(values, device=self.args.device, dtype=torch.float32)
        reduced: list[float] = self.accelerator.reduce(sums, reduction="sum").tolist()
        return reduced

    def _draw(self, rows: Sequence[dict[str, Any]], said: Sequence[str]) -> None:
        folder = Path(self.args.output_dir) / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{self.state.global_step:06d}.png"
        vqa_sheet.draw(self.shelf, rows, said).save(path)
        self.reporter.file(path, "samples")


def arguments(shared: dict[str, Any], *, warmup: float) -> Any:
    """The trainer's own; `warmup` is steps, or below 1 a part of them."""
    from transformers import Seq2SeqTrainingArguments

    return Seq2SeqTrainingArguments(
        **{**shared, "warmup_steps": warmup}, label_names=["labels"], predict_with_generate=False
    )
