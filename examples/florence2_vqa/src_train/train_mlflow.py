"""Fine-tune Florence-2 on questions about pictures of documents, and tell MLflow how it goes.

    python train_mlflow.py --train_dir ../dataset --epochs 1
    torchrun --nproc-per-node 4 train_mlflow.py --train_dir ../dataset --epochs 1

It runs on one GPU, on several, or on none, and needs nothing of Azure's: `mlflow.start_run()`
joins the job's own run where there is a job, and writes to ./mlruns where there is none.

Rows come from `pages.py`, the loss and the answers from `learner.py`, scores from `scores.py`, the
model from `florence2.py` (transformers' own classes: no code comes with the weights). `ranks.py` is
several processes in one training, `checkpoints.py` what a killed one goes on from. What is logged,
by step of the optimizer:
`train_loss`, `learning_rate`, `progress`, `seconds_left` of the steps; every `--save_steps` a page
with the model's answer below it, and a checkpoint; after each epoch `avg_val_loss`, `anls` and
`exact_match`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import florence2
import mlflow
import numpy as np
import pages
import scores
import torch
import yaml
from learner import Learner
from PIL import Image, ImageDraw, ImageFont
from ranks import Ranks, join, leave
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler
from transformers.utils import logging


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    logging.disable_progress_bar()  # a log is no place for one
    ranks = join()
    seed_all(args.seed)
    splits = pages.read(args.train_dir)
    model, processor = florence2.load(fetched(model_folder(args.model_name_or_path)))
    learner = Learner(
        model,
        processor,
        freeze=args.freeze_vision_tower,
        bf16=bf16(args.precision, ranks.device),
        keep=room(args.keep_features_gb, ranks.device),
    ).to(ranks.device)
    cache = Path(ranks.told(tempfile.mkdtemp(prefix="pages-") if ranks.first else ""))
    data = {
        name: pages.Pages(rows, name, size=processor.image_processor.size, cache=cache / name)
        for name, rows in splits.items()
    }
    ranks.told(None)  # all have opened the files: without their names they end with the processes
    shutil.rmtree(cache, ignore_errors=True)
    batches = pages.Batches(
        processor,
        task=args.task_prompt,
        starts=starting_token(model),
        longest=model.config.text_config.max_position_embeddings - processor.num_image_tokens - 2,
    )
    try:
        with mlflow.start_run() if ranks.first else contextlib.nullcontext():
            Training(args, ranks, learner, processor, batches, data).run()
    finally:
        leave()


class Training:
    """One training: its data, its optimizer, and how far it has come."""

    def __init__(
        self,
        args: argparse.Namespace,
        ranks: Ranks,
        learner: Learner,
        processor: Any,
        batches: pages.Batches,
        data: dict[str, pages.Pages],
    ) -> None:
        self.args, self.ranks, self.learner = args, ranks, learner
        self.processor, self.batches, self.data = processor, batches, data
        share = math.ceil(len(data["train"]) / ranks.world)
        self.steps_per_epoch = math.ceil(
            math.ceil(share / args.train_batch_size) / args.grad_accum_steps
        )
        self.total = self.steps_per_epoch * args.epochs
        self.warmup = int(self.total * args.warmup_ratio)
        trained = [weight for weight in learner.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained,
            lr=args.learning_rate,
            weight_decay=args.weight_decay,
            fused=ranks.device.type == "cuda",
        )
        self.scheduler = get_scheduler(
            args.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=self.warmup,
            num_training_steps=self.total,
        )
        self.step = 0
        self.wrapped = learner if ranks.world == 1 else DistributedDataParallel(learner)

    def run(self) -> None:
        self.resume()
        self.log_params()
        if self.args.score_base and not self.step and "test" in self.data:
            self.score("test", prefix="base_")
        done, within = divmod(self.step, self.steps_per_epoch)
        if self.step and not within:
            self.score("validation")  # the checkpoint is from before this could be done
        for epoch in range(done, self.args.epochs):
            self.one_epoch(epoch)
            self.score("validation")
        if "test" in self.data:
            self.score("test", prefix="test_")
        self.finish()

    def one_epoch(self, epoch: int) -> None:
        self.wrapped.train()
        since, logged = time.monotonic(), self.step
        for group in grouped(self.loader(epoch), self.args.grad_accum_steps):
            loss = self.one_step(group)
            if self.step % self.args.logging_steps == 0 or self.step == self.total:
                took = time.monotonic() - since
                pairs = (self.step - logged) * self.args.train_batch_size
                pairs *= self.args.grad_accum_steps * self.ranks.world
                self.log(
                    train_loss=float(loss),
                    learning_rate=self.scheduler.get_last_lr()[0],
                    progress=self.step / self.total,
                    samples_per_second=pairs / max(took, 1e-9),
                    seconds_left=took / (self.step - logged) * (self.total - self.step),
                )
                since, logged = time.monotonic(), self.step
            if self.step % self.args.save_steps == 0 and self.step < self.total:
                self.log_sample()
                self.save_checkpoint()
                self.wrapped.train()

    def one_step(self, group: list[dict[str, Any]]) -> torch.Tensor:
        """One step of the optimizer; the mean loss of a token over all of its batches and ranks."""
        counts = [int((batch["labels"] != pages.IGNORED).sum()) for batch in group]
        (tokens,) = self.ranks.total(sum(counts))
        whole = torch.zeros((), device=self.ranks.device)
        for at, (batch, count) in enumerate(zip(group, counts, strict=True)):
            waits = self.ranks.world > 1 and at < len(group) - 1
            with self.wrapped.no_sync() if waits else contextlib.nullcontext():
                # Every token counts the same, however batches are cut; DDP takes the ranks' mean.
                loss = self.wrapped(self.here(batch)) * (count * self.ranks.world / tokens)
                loss.backward()
            whole += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return whole  # of this rank's part; `log` is the first rank's

    def loader(self, epoch: int) -> torch.utils.data.DataLoader:
        """This rank's batches of the epoch, from where the training is on."""
        done = (self.step - epoch * self.steps_per_epoch) * self.args.grad_accum_steps
        rows = self.ranks.order(len(self.data["train"]), self.args.seed + epoch)
        return self.batched("train", rows[done * self.args.train_batch_size :])

    def batched(self, split: str, rows: list[int]) -> torch.utils.data.DataLoader:
        size = self.args.train_batch_size if split == "train" else self.args.eval_batch_size
        workers = self.args.num_workers
        if workers < 0:  # with no GPU the processor is busy enough
            mine = (os.cpu_count() or 1) // self.ranks.world
            workers = min(8, mine) if self.ranks.device.type == "cuda" else 0
        return torch.utils.data.DataLoader(
            torch.utils.data.Subset(self.data[split], rows),
            batch_size=size,
            collate_fn=self.batches,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            pin_memory=self.ranks.device.type == "cuda",
        )

    def here(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(self.ranks.device, non_blocking=True)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in batch.items()
        }

    @torch.no_grad()
    def score(self, split: str, prefix: str = "") -> None:
        """Loss, ANLS and exact match on a split (or its first --eval_samples rows), logged."""
        self.wrapped.eval()
        count = min(len(self.data[split]), self.args.eval_samples or len(self.data[split]))
        sums = np.zeros(5)
        for batch in self.batched(split, list(range(self.ranks.rank, count, self.ranks.world))):
            here = self.here(batch)
            tokens = int((batch["labels"] != pages.IGNORED).sum())
            sums[:2] += float(self.learner(here)) * tokens, tokens
            for said, answers in zip(self.answers(here), batch["answers"], strict=True):
                sums[2:] += scores.anls(said, answers), scores.exact_match(said, answers), 1
        loss, tokens, anls, right, rows = self.ranks.total(*sums)
        found = {"anls": anls / rows, "exact_match": right / rows}
        name = "avg_val_loss" if split == "validation" else "loss"
        self.log(**{f"{prefix}{key}": value for key, value in found.items()})
        self.log(**{f"{prefix}{name}": loss / tokens})

    def answers(self, batch: dict[str, Any]) -> list[str]:
        settings = {name: getattr(self.args, name) for name in ("max_new_tokens", "num_beams")}
        made = self.learner.generate(batch, **settings)
        texts = self.processor.batch_decode(made, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def log_sample(self) -> None:
        """A page of the validation split with a question, the model's answer and the right one."""
        if not self.ranks.first:
            return
        self.wrapped.eval()
        at = random.randrange(len(self.data["validation"]))
        batch = self.batches([self.data["validation"][at]])
        (said,) = self.answers(self.here(batch))
        right = " | ".join(batch["answers"][0])
        text = f"{batch['questions'][0]}\nanswer: {said}\nright: {right}"
        image = image_with_text(self.data["validation"].picture(at), text)
        mlflow.log_image(image, key="DocVQA", step=self.step)
        print(f"step {self.step}: {text}".replace("\n", "  "), flush=True)

    def log(self, **metrics: float) -> None:
        if self.ranks.first:
            said = "  ".join(f"{name} {value:.5g}" for name, value in metrics.items())
            print(f"step {self.step}/{self.total}  {said}", flush=True)
            mlflow.log_metrics(metrics, step=self.step)

    def log_params(self) -> None:
        if self.ranks.first:
            named = {name: value for name, value in vars(self.args).items() if value != ""}
            counted = {"num_training_steps": self.total, "num_warmup_steps": self.warmup}
            mlflow.log_params({**named, **counted, "ranks": self.ranks.world})

    def save_checkpoint(self) -> None:
        """`steps_N` below --output_dir, whole or not at all; the two newest are kept."""
        if not self.ranks.first:
            return
        state = {
            "step": self.step,
            "total": self.total,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        folder = Path(self.args.output_dir)
        checkpoints.write(folder, state, save=self.save, keep=self.args.keep_checkpoints)

    def save(self, folder: Path) -> None:
        self.learner.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def resume(self) -> None:
        """Go on from the newest checkpoint of --output_dir, or else of --resume_from."""
        found = checkpoints.newest([self.args.output_dir, self.args.resume_from])
        if found is None:
            return
        state = checkpoints.read(found, total=self.total)
        model, _ = florence2.load(found)
        self.learner.model.load_state_dict(model.state_dict())
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]
        seed_all(self.args.seed + self.step)  # dropout need not repeat itself
        if self.ranks.first:
            print(f"Going on from {found}", flush=True)

    def finish(self) -> None:
        """Save the model; its checkpoints would only be weight on it."""
        if not self.ranks.first:
            return
        self.log_sample()
        self.save(Path(self.args.model_dir))
        checkpoints.remove(Path(self.args.output_dir))
        mlflow.flush_artifact_async_logging()
        print(f"The model is in {self.args.model_dir}", flush=True)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = flags.add_argument
    add("--model_name_or_path", default="microsoft/Florence-2-base-ft", help="or a folder")
    add("--train_dir", default="../dataset", help="a folder that save_to_disk wrote")
    add("--model_dir", default="./model", help="where the model is saved")
    add("--output_dir", default="./outputs/checkpoints", help="where checkpoints are saved")
    add("--resume_from", default="", help="a folder with checkpoints of a job that was killed")
    add("--epochs", type=int, default=1)
    add("--train_batch_size", type=int, default=10, help="rows of each rank and batch")
    add("--eval_batch_size", type=int, default=10)
    add("--learning_rate", type=float, default=1e-6)
    add("--weight_decay", type=float, default=0.01)
    add("--max_grad_norm", type=float, default=1.0)
    add("--grad_accum_steps", type=int, default=1, help="batches of a step")
    add("--lr_scheduler_type", default="linear")
    add("--warmup_ratio", type=float, default=0.2)
    add("--logging_steps", type=int, default=5)
    add("--save_steps", type=int, default=20)
    add("--keep_checkpoints", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--freeze_vision_tower", type=yes_or_no, default=True)
    add("--keep_features_gb", type=float, default=-1, help="for what a frozen tower saw; -1: some")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 on a GPU")
    add("--task_prompt", default="<DocVQA>", help="what comes before each question")
    add("--max_new_tokens", type=int, default=64, help="of an answer, when scoring")
    add("--num_beams", type=int, default=3, help="when scoring")
    add("--eval_samples", type=int, default=500, help="rows to score of a split; 0: all")
    add("--score_base", type=yes_or_no, default=True, help="score the test split before, too")
    add("--num_workers", type=int, default=-1, help="processes that decode; -1: by the machine")
    return flags.parse_args(argv)


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def model_folder(given: str) -> str:
    """Where the weights are: a registered model may hold them one folder down, or say which model
    of the hub it stands for; a name of the hub stays one."""
    folder = Path(given)
    if (folder / "model/config.json").is_file():
        return str(folder / "model")
    if (folder / "MLmodel").is_file() and not (folder / "config.json").is_file():
        told = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        return (told.get("metadata") or {}).get("huggingface_model_id") or given
    return given


def fetched(name: str) -> Path:
    """The folder, or that of the hub's model; ends with the ways out where the hub gives none."""
    try:
        return florence2.fetch(name)
    except florence2.NotFlorence as error:
        raise SystemExit(str(error)) from None
    except Exception as error:  # the hub's own, those of its HTTP client, or of the disk
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.200}"
        raise SystemExit(
            f"The model {name} could not be fetched from the hub ({why})."
            " Point HF_MODEL_NAME_OR_PATH in config.yml at a local folder with the model, which"
            " goes with the job; or run the job where the hub can be reached; or, for Finery's"
            " stand-in, start the server with `finery up --models tiny`."
        ) from None


def starting_token(model: Any) -> int | None:
    """Florence-2 begins every answer with a token that its generation is made to begin with."""
    return model.generation_config.forced_bos_token_id


def bf16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def room(given: float, device: torch.device) -> float:
    """Gigabytes to keep features in: a quarter of a GPU's memory unless something else is given."""
    if given >= 0:
        return given
    if device.type != "cuda":
        return 2.0
    return torch.cuda.get_device_properties(device).total_memory / 4e9


def grouped(loader: Any, size: int) -> Iterator[list[Any]]:
    group = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def image_with_text(page: Image.Image, text: str, *, width: int = 640) -> Image.Image:
    """The page with text below it."""
    page = page.resize((width, max(1, round(page.height * width / page.width))))
    font = ImageFont.load_default(size=18)
    box = ImageDraw.Draw(page).multiline_textbbox((0, 0), text, font=font)
    made = Image.new("RGB", (width, page.height + math.ceil(box[3]) + 20), "white")
    made.paste(page, (0, 0))
    ImageDraw.Draw(made).multiline_text((8, page.height + 8), text, fill="black", font=font)
    return made


def yes_or_no(text: str) -> bool:
    """`type=bool` would take any word for yes, "false" too."""
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1", "yes")


if __name__ == "__main__":
    main()
