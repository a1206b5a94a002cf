"""What a trainer of transformers says and leaves on its way: lines, metrics, whole checkpoints.

`Followed` is the half that both of our trainers share (the chat one on TRL's, the
question-answering one on transformers' own): the clock, and checkpoints that are
whole or not taken for one.  How a loss is made is theirs.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from finery.recipes import metrics

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Followed(Trainer):  # type: ignore[misc]
    """A trainer with a clock that evaluations and savings do not count into."""

    resumed_step = 0
    pause_seconds = 0.0
    began = 0.0

    def train(self, *args: Any, **named: Any) -> Any:
        """Trains; the clock starts here."""
        self.began = time.perf_counter()
        return super().train(*args, **named)

    def per_second(self, seen: int) -> float:
        """What every process has seen as many of, in a second of training."""
        spent = time.perf_counter() - self.began - self.pause_seconds
        return float(seen * self.accelerator.num_processes / max(spent, 1e-6))

    def seconds_left(self) -> float:
        """From the pace so far, evaluations included."""
        done = self.state.global_step - self.resumed_step
        spent = time.perf_counter() - self.began
        left = max(0, self.state.max_steps - self.state.global_step)
        return float(spent / max(1, done) * left)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # The mark beside it says that the folder is not whole yet; `newest` passes over it.
        start = time.perf_counter()
        mark = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}.part"
        if self.args.should_save:
            mark.touch()
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            mark.unlink(missing_ok=True)
        self.pause_seconds += time.perf_counter() - start

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a card in each checkpoint says nothing that the run does not."""


class Progress(TrainerCallback):  # type: ignore[misc]
    """What the trainer logs, as a line and to the reporter."""

    def __init__(self, reporter: metrics.Reporter) -> None:
        """`reporter` takes the metrics."""
        self.reporter = reporter

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Each log, once."""
        if not state.is_world_process_zero or not logs:
            return
        self.reporter.log(logs, step=state.global_step)
        shown = metrics.line(
            logs,
            step=state.global_step,
            steps=state.max_steps,
            speed=logs.get("tokens_per_second", logs.get("rows_per_second", 0.0)),
            unit="tok/s" if "tokens_per_second" in logs else "rows/s",
            left=logs.get("seconds_left"),
        )
        print(shown, flush=True)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Which step a checkpoint is of."""
        if state.is_world_process_zero:
            self.reporter.log({"checkpoint_save_step": state.global_step}, step=state.global_step)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in the folder that is whole."""
    found = []
    for path in folder.glob("checkpoint-*"):
        match = CHECKPOINT.fullmatch(path.name)
        whole = (path / "trainer_state.json").is_file() and not path.with_name(
            path.name + ".part"
        ).exists()
        if match and whole:
            found.append((int(match[1]), path))
    return max(found)[1] if found else None


def account(trainer: Any) -> dict[str, Any]:
    """What a training came to, for the file beside the model."""
    return {
        "steps": trainer.state.global_step,
        "best_metric": trainer.state.best_metric,
        "best_model_checkpoint": Path(trainer.state.best_model_checkpoint or "").name,
        "log_history": trainer.state.log_history,
    }


def clear_halves(folder: Path) -> None:
    """Remove the checkpoints that a killed training had only begun to write."""
    for mark in folder.glob("checkpoint-*.part"):
        shutil.rmtree(mark.with_suffix(""), ignore_errors=True)
        mark.unlink()
