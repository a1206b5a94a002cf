"""A tiny random Phi-3, and real serving processes, for the tests of the serving side."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

SPECIAL = ["<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('system must be first') }}{% endif %}"
    "<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def build_phi3(folder: Path, *, sliding_window: int | None = None, **config: Any) -> Path:
    """Random weights of Phi-3's architecture, large enough for answers to differ by prompt."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["hello there, where is the capital of France?"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = Phi3ForCausalLM(
        Phi3Config(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 256,
                "original_max_position_embeddings": 256,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 2,
                "initializer_range": 0.3,
                "sliding_window": sliding_window,
                **config,
            }
        )
    )
    model.generation_config.eos_token_id = [5, 2]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny chat model."""
    return build_phi3(tmp_path_factory.mktemp("phi3") / "tiny-chat")


@pytest.fixture(scope="session")
def tokenizer(phi3: Path) -> Any:
    from finery import checkpoint

    return checkpoint.tokenizer(phi3)


@pytest.fixture(scope="session")
def model(phi3: Path) -> Any:
    from finery import checkpoint

    return checkpoint.load(phi3, dtype="float32")


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Any]:
    """Make and load another tiny chat model, with settings of its own."""

    def make(**config: Any) -> Any:
        from finery import checkpoint

        return checkpoint.load(build_phi3(tmp_path / "phi3", **config), dtype="float32")

    return make


@dataclass
class Served:
    """A real serving process."""

    client: httpx.Client
    process: subprocess.Popen[str]
    folder: Path
    log: Path

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


Serve = Callable[..., contextlib.AbstractContextManager[Served]]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory, until: Callable[..., object]) -> Serve:
    """Start a serving process from a spec, as an engine would."""

    @contextlib.contextmanager
    def start(document: dict[str, Any], **environment: str) -> Iterator[Served]:
        folder = tmp_path_factory.mktemp("process")
        (folder / "serve.json").write_text(json.dumps(document))
        log = folder / "log.txt"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "finery.serving.host", str(folder / "serve.json")],
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | ENVIRONMENT | {"FINERY_PROCESS_DIR": str(folder)} | environment,
            )
        address = folder / "address"
        try:
            until(lambda: address.exists() or process.poll() is not None, 300)
            assert address.exists(), log.read_text()
            headers = {"x-finery-secret": environment.get("FINERY_SERVING_SECRET", "")}
            with httpx.Client(
                base_url=address.read_text(), headers=headers, timeout=120, trust_env=False
            ) as client:
                yield Served(client, process, folder, log)
        finally:
            process.terminate()
            process.wait(90)

    return start
