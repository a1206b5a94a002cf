"""Makes the stand-in for Florence-2: it learns to see letters, then to read, and is written down.

    python standins/florence2/build.py --out src/finery/catalog/standins/florence2

Two stages, since all at once never learns to read on a CPU (README.md): the vision tower is told
which letter is where; then it stays as it is and the language model learns Florence-2's tasks from
its output. No network, every draw seeded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads cost ten times when shared
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lessons  # noqa: E402
import shape  # noqa: E402
import ship  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    Florence2ForConditionalGeneration,
    Florence2Processor,
)

SEED, HELD_OUT, HELD = 1, 2, 96
Net = Florence2ForConditionalGeneration
Drawn = tuple[Any, Any, list[lessons.Sheet]]


def pixels(pictures: torch.Tensor, processor: Florence2Processor) -> torch.Tensor:
    """As the processor makes them, from pictures that have the model's size already."""
    kind = processor.image_processor
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (kind.image_mean, kind.image_std))
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std


class Plan:
    """Muon for the matrices inside, AdamW for the rest, and one curve of the rate for both."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], rate: float, steps: int):
        inside, rest = [], []
        for name, weight in named:
            table = weight.ndim != 2 or "embed" in name or "shared" in name or "lm_head" in name
            (rest if table else inside).append(weight)
        self.rate, self.total, self.steps = rate, steps, 0
        self.weights = [*inside, *rest]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                inside, lr=rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def share(self) -> None:
        """Every process goes on with the mean of all gradients."""
        if not torch.distributed.is_initialized():
            return
        held = [w for w in self.weights if w.grad is not None]
        flat = torch.cat([w.grad.flatten() for w in held if w.grad is not None])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for weight, part in zip(held, flat.split([w.numel() for w in held]), strict=True):
            weight.grad = part.view_as(weight)

    def step(self, loss: torch.Tensor) -> None:
        self.steps += 1
        # Full from the 40th step on, down to nothing in the last two thirds: at the full rate it
        # learns nothing more after a while, and most of what it knows comes on the way down.
        now = self.rate * min(self.steps / 40, 1.0, 1.5 * (1 - self.steps / self.total) + 0.01)
        loss.backward()
        self.share()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = now
            optimizer.step()
            optimizer.zero_grad()


def features(net: Net, processor: Florence2Processor, pictures: torch.Tensor) -> torch.Tensor:
    return net.model.get_image_features(pixels(pictures, processor)).pooler_output


def cells(signs: torch.Tensor, grid: int) -> torch.Tensor:
    """The letters in each place of a grid: (pages, places, letters a place)."""
    pages, high, wide = signs.shape
    tall, broad = max(1, high // grid), wide // grid
    signs = signs.repeat_interleave(max(1, grid // high), dim=1)
    made = signs.view(pages, grid, tall, grid, broad).permute(0, 1, 3, 2, 4)
    return made.reshape(pages, grid * grid, tall * broad).long()


class Heads(nn.Module):
    """Letters from each stage of the tower and from its projection; thrown away afterwards."""

    def __init__(self, net: Net, signs: torch.Tensor):
        super().__init__()
        self.net, self.found = [net], []  # in a list: not a part of this module
        sizes = [*net.config.vision_config.embed_dim, net.config.vision_config.projection_dim]
        self.grids = [shape.SIDE // 4, shape.SIDE // 8, shape.GRID, shape.GRID]
        self.wanted = [cells(signs, grid) for grid in self.grids]
        self.classes = len(lessons.LETTERS) + 1
        self.heads = nn.ModuleList(
            nn.Linear(size, wanted.shape[-1] * self.classes)
            for size, wanted in zip(sizes, self.wanted, strict=True)
        )
        for stage in net.model.vision_tower.blocks:
            stage[-1].register_forward_hook(lambda _, __, out: self.found.append(out))
        weight = torch.ones(self.classes)
        weight[0] = 0.3  # most places are empty
        self.weight = nn.Buffer(weight)

    def loss(self, numbers: list[int], seen: torch.Tensor) -> torch.Tensor:
        stages = [out.flatten(2).transpose(1, 2) for out in self.found]
        total = seen.new_zeros(())
        for at, (head, out) in enumerate(zip(self.heads, [*stages, seen], strict=True)):
            logits = head(out).view(-1, self.classes)
            goal = self.wanted[at][numbers].flatten()
            total = total + nn.functional.cross_entropy(logits, goal, weight=self.weight)
        return total

    def right(self, numbers: list[int], outs: list[torch.Tensor]) -> list[float]:
        parts = []
        for at, (head, out) in enumerate(zip(self.heads, outs, strict=True)):
            goal = self.wanted[at][numbers]
            guess = head(out).view(*goal.shape, self.classes).argmax(-1)
            parts.append((guess == goal)[goal > 0].float().mean().item())
        return parts


def see(
    net: Net,
    processor: Florence2Processor,
    pictures: torch.Tensor,
    signs: torch.Tensor,
    *,
    steps: int,
    rate: float,
    size: int = 8,
    rank: int = 0,
    calm: int = 0,
) -> float:
    """Teaches the vision tower which letter is where; gives the part it gets right of new pages."""
    heads = Heads(net, signs)
    named = [*net.model.vision_tower.named_parameters()]
    named += [*net.model.multi_modal_projector.named_parameters(prefix="embed")]
    plan = Plan([*named, *heads.named_parameters(prefix="embed")], rate, steps)
    r, held = Random(rank), len(pictures) - HELD

    def look(numbers: list[int]) -> torch.Tensor:
        heads.found.clear()
        return features(net, processor, pictures[numbers])[:, 1:]

    def right(numbers: list[int]) -> list[float]:
        with torch.no_grad():
            seen = look(numbers)
            stages = [out.flatten(2).transpose(1, 2) for out in heads.found]
            return heads.right(numbers, [*stages, seen])

    while plan.steps < steps:
        numbers = [r.randrange(held) for _ in range(size)]
        with torch.set_grad_enabled(plan.steps >= calm):
            seen = look(numbers)
        plan.step(heads.loss(numbers, seen))
        if plan.steps % 100 == 0 and rank == 0:
            parts = " ".join(f"{part:.3f}" for part in right(list(range(held, held + 16))))
            print(
                f"see {plan.steps}: {parts} of the letters, {time.process_time():.0f} s of CPU",
                flush=True,
            )
    found = right(list(range(held, len(pictures))))[-1]
    for stage in net.model.vision_tower.blocks:
        stage[-1]._forward_hooks.clear()
    return found


def batch_of(
    net: Net, processor: Florence2Processor, seen: torch.Tensor, prompts: list[str]
) -> dict[str, torch.Tensor]:
    """The processor's layout with the picture's features in place of the picture."""
    tokens, count = processor.tokenizer, processor.num_image_tokens
    texts = ["<image>" * count + f"<s>{prompt}</s>" for prompt in prompts]
    ids = tokens(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    inside = net.get_input_embeddings()(ids["input_ids"])
    inside = torch.cat([seen.float(), inside[:, count:]], dim=1)
    return {"inputs_embeds": inside, "attention_mask": ids["attention_mask"]}


def goals_of(
    processor: Florence2Processor, answers: list[lessons.Told]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens to say, and for each the places of the picture where it can be read."""
    tokens = processor.tokenizer
    made = tokens(
        [f"{text}</s>" for text, _ in answers],
        add_special_tokens=False,
        padding=True,
        return_offsets_mapping=True,
    )
    labels = torch.tensor(made["input_ids"])
    places = torch.zeros(*labels.shape, shape.GRID**2)
    for n, (_, cells) in enumerate(answers):
        for at, (start, end) in enumerate(made["offset_mapping"][n]):
            for cell in cells[start:end]:
                if cell >= 0:
                    places[n, at, cell] = 1
    return labels.masked_fill(labels == tokens.pad_token_id, -100), places


class Gaze:
    """Where two heads of the decoder look, which is told to them: the letter that comes next.

    Without it a decoder this small takes hours to find out that reading goes from left to right.
    """

    def __init__(self, net: Net):
        net.model.language_model.set_attn_implementation("eager")  # the one that gives weights
        self.net, self.weights = net, []
        layers = net.model.language_model.decoder.layers[:2]
        self.hooks = [layer.encoder_attn.register_forward_hook(self.keep) for layer in layers]

    def keep(self, _: nn.Module, __: Any, out: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.weights.append(out[1])

    def loss(self, places: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        told = (places.sum(-1) > 0)[:, None]
        total, each = torch.zeros(()), []
        for weights in self.weights:
            looked = weights[:, :2, :, 1 : 1 + places.shape[-1]]
            there = (looked * places[:, None]).sum(-1)
            if told.any():
                part = -(there[told.expand_as(there)] + 1e-5).log().mean()
                total = total + part
                each.append(part.item())
        self.weights = []
        return total, each

    def end(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.net.model.language_model.set_attn_implementation("sdpa")


def read(
    net: Net,
    processor: Florence2Processor,
    seen: torch.Tensor,
    sheets: list[lessons.Sheet],
    *,
    steps: int,
    rate: float,
    rank: int = 0,
) -> None:
    """Teaches the language model the tasks, from what the vision tower saw."""
    named = [(n, w) for n, w in net.named_parameters() if "language_model" in n or "lm_head" in n]
    plan = Plan(named, rate, steps)
    total: dict[str, list[float]] = {}
    gaze = Gaze(net)
    for task, numbers, prompts, answers in lessons.batches(sheets, SEED, rank=rank):
        if plan.steps >= steps:
            break
        given = batch_of(net, processor, seen[numbers], prompts)
        labels, places = goals_of(processor, answers)
        loss = net(**given, labels=labels).loss
        looked, each = gaze.loss(places)
        plan.step(loss + 0.3 * looked)
        if each:
            total.setdefault(f"{task} gaze", []).append(each[-1])
        total.setdefault(task, []).append(loss.item())
        if plan.steps % 100 == 0 and rank == 0:
            means = ", ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in sorted(total.items()))
            print(f"read {plan.steps}: {means}, {time.process_time():.0f} s of CPU", flush=True)
            total = {}
    gaze.end()


def exact(
    net: Net, processor: Florence2Processor, pictures: torch.Tensor, sheets: list[lessons.Sheet]
) -> dict[str, float]:
    """The part of held-back tasks that come out word for word, asked as users ask."""
    net.eval()
    found = {}
    tokens, count = processor.tokenizer, processor.num_image_tokens
    for task in (lessons.read, lessons.read_there, lessons.beside):
        r = Random(HELD_OUT)
        asked = [task(sheet, r) for sheet in sheets]
        texts = ["<image>" * count + f"<s>{prompt}</s>" for prompt, _ in asked]
        ids = tokens(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            made = net.generate(
                input_ids=ids["input_ids"],
                attention_mask=ids["attention_mask"],
                pixel_values=pixels(pictures, processor),
                max_new_tokens=160,
                num_beams=1,
            )
        said = processor.batch_decode(made, skip_special_tokens=True)
        right = [text.strip() == answer for text, (_, (answer, _)) in zip(said, asked, strict=True)]
        found[task.__name__] = round(sum(right) / len(right), 3)
        wrong = [(t, a[0], a[1][0]) for t, a, ok in zip(said, asked, right, strict=True) if not ok]
        print(task.__name__, found[task.__name__], wrong[:3], flush=True)
    net.train()
    return found


def learn(given: argparse.Namespace, drawn: Drawn, rank: int) -> None:
    """Both stages; of several processes each does its part of every batch."""
    torch.manual_seed(0)
    pictures, signs, sheets = torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1]), drawn[2]
    if given.begin:  # with its own tokenizer: another's numbers mean other words
        processor = AutoProcessor.from_pretrained(given.begin)
        net = Net.from_pretrained(given.begin, dtype=torch.float32)
    else:
        tokens = shape.tokenizer()
        processor = shape.processor(tokens)
        net = shape.model(tokens)
        shape.begin(net, tokens)
    rate, held = given.rate, slice(len(sheets) - HELD, len(sheets))
    if given.see:
        size = 8 // given.processes
        calm = 80 if given.begin else 0  # new heads learn before a taught tower listens to them
        right = see(
            net,
            processor,
            pictures,
            signs,
            steps=given.see,
            rate=rate,
            size=size,
            rank=rank,
            calm=calm,
        )
        say(rank, f"sees {right:.3f} of the letters of new pages")
    mine = slice(rank, len(sheets) - HELD, given.processes)
    with torch.no_grad():
        parts = [features(net, processor, part).half() for part in pictures[mine].split(128)]
    read(net, processor, torch.cat(parts), sheets[mine], steps=given.read, rate=rate, rank=rank)
    if rank:
        return
    card = {
        "weights": sum(weight.numel() for weight in net.parameters()),
        "pages": given.pages,
        "word_for_word": exact(net, processor, pictures[held], sheets[held]),
        "goes": [*earlier(given.begin), {"see": given.see, "read": given.read}],
        "processes": given.processes,
        "torch": torch.__version__,
    }
    written = ship.save(net, processor, given.out, card=card)
    say(rank, f"{card}\n{written / 1e6:.2f} MB in {given.out}")


def earlier(begin: Path | None) -> list[dict[str, int]]:
    """The steps of each go before this one."""
    card = begin.parent / "training.json" if begin else None
    return json.loads(card.read_text())["goes"] if card and card.exists() else []


def say(rank: int, text: str) -> None:
    if rank == 0:
        print(f"[{time.process_time():.0f} s of CPU] {text}", flush=True)


def join(given: argparse.Namespace, drawn: Drawn, rank: int, meeting: str) -> None:
    if rank:
        os.setsid()  # as every process that is started by itself: schedulers share by session
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=given.processes
    )
    learn(given, drawn, rank)
    torch.distributed.destroy_process_group()


def main() -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    flags.add_argument("--out", type=Path, required=True)
    flags.add_argument("--pages", type=int, default=12_000)
    flags.add_argument("--see", type=int, default=1800, help="steps of the first stage")
    flags.add_argument("--read", type=int, default=2500, help="steps of the second")
    flags.add_argument("--rate", type=float, default=4e-3)
    flags.add_argument("--processes", type=int, default=2, help="each of one thread")
    flags.add_argument("--begin", type=Path, help="the model/ of an earlier go")
    given = flags.parse_args()
    # One thread a process: two threads wait for each other at every layer on a busy machine.
    torch.set_num_threads(1)
    drawn = lessons.pages(given.pages, SEED, processes=given.processes)
    print(f"{given.pages} pages drawn", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        start = multiprocessing.get_context("fork").Process
        meeting = f"{folder}/meeting"
        others = [
            start(target=join, args=(given, drawn, rank, meeting))
            for rank in range(1, given.processes)
        ]
        for other in others:
            other.start()
        join(given, drawn, 0, meeting)
        for other in others:
            other.join()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
