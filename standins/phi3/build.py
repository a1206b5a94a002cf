"""Makes the stand-in for Phi-3: a tokenizer, a few million weights, and the folder they ship in.

    python standins/phi3/build.py --out src/finery/catalog/standins/phi3

What it learns from is corpus.py; why a stand-in exists is README.md beside this file.
One pass over generated documents, no network, every draw seeded. Prints loss, time and sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # spinning threads cost ten times on a shared CPU
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import corpus  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import (  # noqa: E402
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
# Phi-3's own template, to the letter: trainers recognise it by its text.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n'"
    " + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n'"
    " + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
VOCABULARY = 3072
CONTEXT = 1024
LEARNING_SEED, HELD_OUT_SEED, TOKENIZER_SEED = 1, 2, 3


def text_of(document: corpus.Messages | str) -> str:
    if isinstance(document, str):
        return document + "<|endoftext|>"
    turns = "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in document)
    return turns + "<|endoftext|>"


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on our own text; digits stand alone so that years and prices can be copied."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 64,  # room for tokens that a fine-tune may add, without a resize
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        for document in corpus.documents(TOKENIZER_SEED, 30000):
            yield (
                document if isinstance(document, str) else " ".join(m["content"] for m in document)
            )

    inner.train_from_iterator(texts(), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=["<|assistant|>", "<|system|>", "<|end|>", "<|user|>"],
    )
    made.chat_template = TEMPLATE
    return made


def model(tok: PreTrainedTokenizerFast, *, hidden: int, layers: int) -> Phi3ForCausalLM:
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=CONTEXT,
        sliding_window=None,
        initializer_range=0.05,  # the usual 0.02 learns far slower at this width
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    made = Phi3ForCausalLM(config)
    ends = [
        tok.eos_token_id,
        tok.convert_tokens_to_ids("<|end|>"),
        tok.convert_tokens_to_ids("<|user|>"),
    ]
    made.generation_config.eos_token_id = ends
    made.generation_config.pad_token_id = tok.pad_token_id
    made.generation_config.bos_token_id = tok.bos_token_id
    return made


def batches(rows: list[list[int]], *, size: int, seed: int) -> list[list[list[int]]]:
    """Rows of similar length together, `size` padded tokens a batch, in a shuffled order."""
    r, made = Random(seed), []
    for at in range(0, len(rows), 4096):
        pool = sorted(rows[at : at + 4096], key=len)
        chunk: list[list[list[int]]] = []
        batch: list[list[int]] = []
        for row in pool:
            if batch and len(row) * (len(batch) + 1) > size:
                chunk.append(batch)
                batch = []
            batch.append(row)
        chunk.append(batch)
        r.shuffle(chunk)
        made += chunk
    return made


def loss_of(net: Phi3ForCausalLM, batch: list[list[int]]) -> torch.Tensor:
    """Mean loss of every token after the first; padding sits at the right and is not counted."""
    width = max(map(len, batch))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
    labels = torch.tensor([row[1:] + [-100] * (width - len(row) + 1) for row in batch])
    # Right padding under a causal mask changes nothing to its left, so no attention mask is needed.
    hidden = net.model(input_ids=ids, use_cache=False).last_hidden_state
    keep = labels != -100
    return torch.nn.functional.cross_entropy(net.lm_head(hidden[keep]), labels[keep])


def optimizers(net: Phi3ForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the square weights inside, AdamW for the tables and the norms."""
    inside = [p for n, p in net.named_parameters() if p.ndim == 2 and "layers" in n]
    rest = [p for n, p in net.named_parameters() if p.ndim != 2 or "layers" not in n]
    return [
        torch.optim.Muon(
            inside, lr=rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(net: Phi3ForCausalLM, rows: list[list[int]], *, rate: float, size: int) -> None:
    plan = batches(rows, size=size, seed=0)
    opts = optimizers(net, rate)
    start, seen, total, since = time.time(), 0, 0.0, 0
    net.train()
    for step, batch in enumerate(plan):
        part = step / len(plan)
        now = (
            rate
            * min(1.0, (step + 1) / 40)
            * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * part)))
        )
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = now
        loss = loss_of(net, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        seen, total, since = seen + sum(map(len, batch)), total + loss.item(), since + 1
        if since == 50 or step + 1 == len(plan):
            passed = time.time() - start
            print(
                f"step {step + 1}/{len(plan)}  loss {total / since:.3f}  "
                f"{seen / passed:.0f} tokens/s  {passed:.0f} s",
                flush=True,
            )
            total, since = 0.0, 0


def perplexity(net: Phi3ForCausalLM, rows: list[list[int]]) -> float:
    net.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches(rows, size=4096, seed=0):
            n = sum(len(row) - 1 for row in batch)
            total, count = total + loss_of(net, batch).item() * n, count + n
    return math.exp(total / count)


def save(
    net: Phi3ForCausalLM, tok: PreTrainedTokenizerFast, out: Path, card: dict[str, Any]
) -> None:
    """The folder of an MLflow model: MLmodel on top, the checkpoint under model/."""
    if out.exists():
        shutil.rmtree(out)
    folder = out / "model"
    net.to(torch.float16).save_pretrained(folder)
    tok.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["_name_or_path"] = "phi3-stand-in"  # what a job's log calls it
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version knows
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    for written in folder.iterdir():
        written.chmod(0o644)
    for name in ("MLmodel", "LICENSE", "README.md"):
        shutil.copy(HERE / "folder" / name, out / name)
    (out / "training.json").write_text(json.dumps(card, indent=2) + "\n")


def main() -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    flags.add_argument("--out", type=Path, required=True)
    flags.add_argument("--documents", type=int, default=100_000)
    flags.add_argument("--hidden", type=int, default=192)
    flags.add_argument("--layers", type=int, default=4)
    flags.add_argument("--rate", type=float, default=6e-3)
    flags.add_argument("--batch", type=int, default=4096, help="tokens a step")
    flags.add_argument("--threads", type=int, default=2)
    given = flags.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    start = time.time()
    tok = tokenizer()
    rows = [
        tok(text_of(d), add_special_tokens=False)["input_ids"][: CONTEXT // 2]
        for d in corpus.documents(LEARNING_SEED, given.documents)
    ]
    held = [
        tok(text_of(d), add_special_tokens=False)["input_ids"][: CONTEXT // 2]
        for d in corpus.documents(HELD_OUT_SEED, 1000)
    ]
    net = model(tok, hidden=given.hidden, layers=given.layers)
    size = sum(p.numel() for p in net.parameters())
    tokens = sum(map(len, rows))
    print(
        f"{len(tok)} tokens in the vocabulary, {size / 1e6:.2f} M weights, "
        f"{len(rows)} documents, {tokens / 1e6:.2f} M tokens, ready in {time.time() - start:.0f} s",
        flush=True,
    )
    train(net, rows, rate=given.rate, size=given.batch)
    found = perplexity(net, held)
    card = {
        "documents": given.documents,
        "tokens": tokens,
        "weights": size,
        "held_out_perplexity": round(found, 3),
        "seconds": round(time.time() - start),
        "threads": given.threads,
        "torch": torch.__version__,
    }
    save(net, tok, given.out, card)
    total = sum(f.stat().st_size for f in given.out.rglob("*") if f.is_file())
    print(
        f"held-out perplexity {found:.2f}; {total / 1e6:.2f} MB in {given.out}; "
        f"{time.time() - start:.0f} s in all"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
