"""Fine-tuning throughput beside TRL: real (not padding) tokens per second of processor time.

    python bench/sft.py [--rows 128] [--batch 8] [--rounds 1] [--json]

A random Phi-3 of 8.7 million parameters is fully fine-tuned on rows whose lengths
are lognormal (median 140 tokens), in 32 bits, on one thread, by four trainers:
TRL as it comes, TRL without padding, TRL packed (best-fit, 1,024 tokens), and
ours. Each runs in a process of its own; rounds are interleaved. Processor time
is counted, not wall time, so a busy machine disturbs little. The loss of every
step of ours is then held against the padded one's: the same rows, the same order.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

VARIANTS = ("trl_default", "trl_padding_free", "trl_packed", "finery")
VOCABULARY, LONGEST, WARM = 8192, 1024, 3


def main() -> int:
    """Runs all variants, prints the table (or JSON lines) and the comparison of losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, rows=given.rows, batch=given.batch)))
        return 0
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for _ in range(given.rounds):
        for name in VARIANTS:
            found[name].append(_child(name, given))
            if given.json:
                print(json.dumps(found[name][-1]), flush=True)
    report(found, as_json=given.json)
    return 0


def report(found: dict[str, list[dict[str, Any]]], *, as_json: bool) -> None:
    """The medians, the ratios, and how far the losses are apart."""
    speeds = {
        name: median(run["tokens_per_cpu_second"] for run in runs) for name, runs in found.items()
    }
    peak = max(
        abs(a - b) / a
        for a, b in zip(
            found["trl_default"][0]["losses"], found["finery"][0]["losses"], strict=True
        )
    )
    ratios = {name: speeds["finery"] / speed for name, speed in speeds.items()}
    if as_json:
        summary = {"ratios": ratios, "speeds": speeds, "loss_difference": peak}
        print(json.dumps(summary), flush=True)
        return
    print(f"{'trainer':<20}{'padding':>9}{'tokens/CPU-s':>14}{'ours is':>9}")
    for name in VARIANTS:
        padding = found[name][0]["padding"]
        print(f"{name:<20}{padding:>9.0%}{speeds[name]:>14,.0f}{ratios[name]:>8.2f}x")
    print(f"largest relative difference of a step's loss, ours and TRL's padded: {peak:.1e}")


def measure(name: str, *, rows: int, batch: int) -> dict[str, Any]:
    """One variant in this process."""
    import tempfile

    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    data = _rows(rows)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(name, data, batch=batch, folder=scratch)
        clock = Clock()
        trainer.add_callback(clock.callback())
        inner = trainer.training_step

        def counted(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            clock.all += inputs["input_ids"].numel()
            clock.real += int((inputs["input_ids"] != 0).sum())
            return inner(model, inputs, *rest, **named)

        trainer.training_step = counted
        trainer.train()
    spent, real, everything = clock.spent()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "variant": name,
        "tokens_per_cpu_second": round(real / spent, 1),
        "padding": round(1 - real / everything, 3),
        "real_tokens": real,
        "cpu_seconds": round(spent, 2),
        "steps": trainer.state.global_step,
        "losses": history,
        "torch": torch.__version__,
    }


class Clock:
    """Tokens and processor time after the first steps."""

    def __init__(self) -> None:
        """At zero."""
        self.real = self.all = self.steps = 0
        self.start: tuple[float, int, int] = (0.0, 0, 0)
        self.end: tuple[float, int, int] = (0.0, 0, 0)

    def callback(self) -> Any:
        """What the trainer calls after each step."""
        from transformers import TrainerCallback

        clock = self

        class Tick(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.steps += 1
                now = (time.process_time(), clock.real, clock.all)
                if clock.steps == WARM:
                    clock.start = now
                clock.end = now

        return Tick()

    def spent(self) -> tuple[float, int, int]:
        """Seconds of the processor, real tokens, all tokens."""
        first, last = self.start, self.end
        return last[0] - first[0], last[1] - first[1], last[2] - first[2]


def _trainer(name: str, data: list[list[int]], *, batch: int, folder: str) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    common: dict[str, Any] = {
        "output_dir": folder,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "learning_rate": 1e-4,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": batch,
        "seed": 7,
    }
    variants: dict[str, dict[str, Any]] = {
        "trl_default": {"max_length": LONGEST},
        "trl_padding_free": {"max_length": None, "padding_free": True},
        "trl_packed": {
            "max_length": LONGEST,
            "packing": True,
            "packing_strategy": "bfd",
            "per_device_train_batch_size": 1,
        },
    }
    if name != "finery":
        rows = Dataset.from_dict({"input_ids": data})
        args = SFTConfig(**{**common, **variants[name]})
        return SFTTrainer(
            model=_model("sdpa"), args=args, train_dataset=rows, processing_class=_tokenizer()
        )
    from finery.recipes import packing
    from finery.recipes.metrics import Reporter
    from finery.recipes.trainer import Trainer

    skip = {"max_length": None, "remove_unused_columns": False, "optim": "adamw_torch_fused"}
    args = SFTConfig(**common, **skip, dataset_kwargs={"skip_prepare_dataset": True})
    rows = Dataset.from_dict({"input_ids": data, "labels": data}).with_format("numpy")
    return Trainer(
        _model(packing.register()),
        args,
        tokenizer=_tokenizer(),
        train_rows=rows,
        reporter=Reporter(runs=[]),
    )


def _rows(count: int) -> list[list[int]]:
    import numpy

    random = numpy.random.default_rng(0)
    lengths = numpy.exp(random.normal(math.log(140), 0.8, count)).clip(16, LONGEST).astype(int)
    return [[1, *random.integers(3, VOCABULARY, length - 1).tolist()] for length in lengths]


def _model(attention: str) -> Any:
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    return Phi3ForCausalLM(
        Phi3Config(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=4096,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
            attn_implementation=attention,
        )
    )


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def _child(name: str, given: argparse.Namespace) -> dict[str, Any]:
    quiet = {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    words = [sys.executable, "-W", "ignore", __file__, "--only", name]
    words += ["--rows", str(given.rows), "--batch", str(given.batch)]
    done = subprocess.run(words, env={**os.environ, **quiet}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    raise SystemExit(main())
