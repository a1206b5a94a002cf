"""Fine-tunes the stand-in on questions about drawn documents, and says how much it learned.

    python standins/florence2/tune.py

A plain loop, as a user's script has it: every step the processor takes the pictures, the frozen
vision tower looks at them, AdamW moves the rest. Answers to held-back documents are scored with
the example's ANLS, as DocVQA defines it. Nothing of Finery is used.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shape  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    Florence2ForConditionalGeneration,
    get_scheduler,
)

STANDIN = shape.ROOT / "src" / "finery" / "catalog" / "standins" / "florence2" / "model"
PROMPT = "<DocVQA>"
Row = dict[str, Any]


def rows(count: int, seed: int, split: str) -> list[Row]:
    """Questions with the document's kind beside DocVQA's columns."""
    return [
        {**row, "kind": document.kind}
        for document in shape.documents().make(count, seed, split)
        for row in document.rows
    ]


def answers(net: Any, processor: Any, asked: list[Row], *, size: int = 32, beams: int = 3) -> Any:
    net.eval()
    said: list[str] = []
    for at in range(0, len(asked), size):
        part = asked[at : at + size]
        given = processor(
            text=[PROMPT + row["question"] for row in part],
            images=[row["image"] for row in part],
            return_tensors="pt",
            padding=True,
        )
        with torch.no_grad():
            made = net.generate(**given, max_new_tokens=20, num_beams=beams)
        for text in processor.batch_decode(made, skip_special_tokens=False):
            text = text.replace("<pad>", "")
            size_of = part[0]["image"].size
            found = processor.post_process_generation(text, task=PROMPT, image_size=size_of)
            said.append(found[PROMPT])
    return said


def score(net: Any, processor: Any, asked: list[Row], title: str) -> float:
    said = answers(net, processor, asked)
    anls = shape.scores().anls
    points = [anls(text, row["answers"]) for text, row in zip(said, asked, strict=True)]
    exact = [text in row["answers"] for text, row in zip(said, asked, strict=True)]
    kinds = {
        kind: [p for p, row in zip(points, asked, strict=True) if row["kind"] == kind]
        for kind in shape.documents().KINDS
    }
    each = ", ".join(f"{kind} {sum(p) / len(p):.3f}" for kind, p in kinds.items() if p)
    mean = sum(points) / len(points)
    print(f"{title}: ANLS {mean:.3f}, exact {sum(exact)}/{len(exact)} ({each})", flush=True)
    return mean


def labels(processor: Any, part: list[Row]) -> torch.Tensor:
    tokens = processor.tokenizer
    made = tokens(
        [row["answers"][0] for row in part],
        return_tensors="pt",
        padding=True,
        return_token_type_ids=False,
    ).input_ids
    return made.masked_fill(made == tokens.pad_token_id, -100)


def adapted(net: Any, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    names = r".*language_model.*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
    return get_peft_model(net, config)


def tune(net: Any, processor: Any, learned: list[Row], given: argparse.Namespace) -> float:
    """The loop; gives the seconds that it took."""
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    total = given.epochs * (len(learned) // given.batch)
    optimizer = torch.optim.AdamW(weights, lr=given.rate)
    schedule = get_scheduler("linear", optimizer, int(0.1 * total), total)
    net.train()
    start, step, losses = time.time(), 0, []
    for epoch in range(given.epochs):
        order = Random(epoch).sample(range(len(learned)), len(learned))
        for at in range(0, len(order) - given.batch + 1, given.batch):
            part = [learned[n] for n in order[at : at + given.batch]]
            inputs = processor(
                text=[PROMPT + row["question"] for row in part],
                images=[row["image"] for row in part],
                return_tensors="pt",
                padding=True,
            )
            loss = net(**inputs, labels=labels(processor, part)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            losses.append(loss.item())
            if step % 25 == 0:
                mean = sum(losses) / len(losses)
                print(
                    f"step {step}/{total} loss {mean:.3f} {time.time() - start:.0f} s", flush=True
                )
                losses = []
    return time.time() - start


def main() -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    flags.add_argument("--model", type=Path, default=STANDIN)
    flags.add_argument("--documents", type=int, default=400)
    flags.add_argument("--held-back", type=int, default=40)
    flags.add_argument("--epochs", type=int, default=3)
    flags.add_argument("--batch", type=int, default=16)
    flags.add_argument("--rate", type=float, default=1e-3)
    flags.add_argument("--lora", type=int, default=0, help="the rank; 0: all weights but the eyes")
    flags.add_argument("--threads", type=int, default=2)
    given = flags.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(given.model)
    net = Florence2ForConditionalGeneration.from_pretrained(given.model, dtype=torch.float32)
    net.model.vision_tower.requires_grad_(False)
    learned, held = rows(given.documents, 1, "train"), rows(given.held_back, 1, "test")
    before = score(net, processor, held, "before")
    tuned = adapted(net, given.lora) if given.lora else net
    taken, busy = tune(tuned, processor, learned, given), time.process_time()
    after = score(tuned, processor, held, "after")
    print(
        f"{len(learned)} rows of {given.documents} documents, {given.epochs} epochs: "
        f"ANLS {before:.3f} -> {after:.3f} in {taken:.0f} s ({busy:.0f} s of CPU until then)"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
