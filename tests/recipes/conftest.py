"""A Phi-3 of two layers and a handful of conversations, made once for all recipe tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

for name, value in (
    ("HF_HUB_OFFLINE", "1"),
    ("OMP_WAIT_POLICY", "PASSIVE"),
    ("TOKENIZERS_PARALLELISM", "false"),
):
    os.environ.setdefault(name, value)

# peft still asks transformers under a name that transformers has deprecated.
PEFT = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
FACTS = ("river", "lamp", "garden", "violin", "window", "harbour", "letter", "orange")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content']"
    " + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
SPECIAL = ("<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


def conversation(number: int) -> list[dict[str, str]]:
    word = FACTS[number % len(FACTS)]
    question = f"What comes after {word}?" + " Please say." * (number % 5)
    answer = f"After {word} comes {FACTS[(number + 1) % len(FACTS)]}."
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def write_rows(path: Path, count: int, *, start: int = 0) -> Path:
    rows = [{"prompt_id": str(n), "messages": conversation(n)} for n in range(start, start + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    text = [message["content"] for n in range(40) for message in conversation(n)]
    made.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|assistant|>", "<|system|>", "<|end|>", "<|user|>"],
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(
    folder: Path, *, layers: int = 2, hidden: int = 64, window: int | None = None
) -> Path:
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 2,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            original_max_position_embeddings=256,
            sliding_window=window,
            initializer_range=0.08,
            bos_token_id=1,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config.eos_token_id = [end, tokenizer.eos_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Phi-3 in a folder, as `save_pretrained` writes it."""
    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 conversations as JSON lines."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 120)


@pytest.fixture(scope="session")
def imported(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model, brought in by the import recipe."""
    from finery.recipes import model_import

    folder = tmp_path_factory.mktemp("imported")
    assert model_import.main(flags(pytorch_model_path=base, output_dir=folder)) == 0
    return folder


@pytest.fixture(scope="session")
def encoded(imported: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows, split and encoded by the preprocessing recipe."""
    from finery.recipes import preprocess

    folder = tmp_path_factory.mktemp("encoded")
    words = flags(model_selector_output=imported, train_file_path=rows, output_dir=folder)
    assert preprocess.main(words) == 0
    return folder


@pytest.fixture(scope="session")
def tuned(imported: Path, encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged LoRA fine-tuning of three epochs: the one real training that many tests look at."""
    folder = tmp_path_factory.mktemp("tuned")
    assert finetune(imported, encoded, folder, apply_lora="true", num_train_epochs=3) == 0
    return folder


@pytest.fixture(scope="session")
def florence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small native Florence-2, brought in by the import recipe."""
    from finery.recipes import model_import

    from . import small_florence

    native = small_florence.native(tmp_path_factory.mktemp("native"))
    folder = tmp_path_factory.mktemp("imported")
    words = flags(pytorch_model_path=native, output_dir=folder, task_name="VisualQuestionAnswering")
    assert model_import.main(words) == 0
    return folder


@pytest.fixture(scope="session")
def prepared(florence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures with two questions each."""
    from . import small_vqa

    folder = tmp_path_factory.mktemp("data")
    small_vqa.write(folder / "train.jsonl", small_vqa.rows(folder, 30))
    out = tmp_path_factory.mktemp("prepared")
    assert small_vqa.prepare(florence, folder, out) == 0
    return out


@pytest.fixture(scope="session")
def tuned_vqa(florence: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one real training that many tests look at: all of the language half, the tower frozen."""
    from . import small_vqa

    folder = tmp_path_factory.mktemp("tuned")
    words = {"num_train_epochs": 16, "max_eval_rows": 6}
    assert small_vqa.finetune(florence, prepared, folder, **words) == 0
    return folder


def finetune(imported: Path, encoded: Path, folder: Path, **words: object) -> int:
    from finery.recipes import finetune as recipe

    given: dict[str, object] = {
        "model_selector_output": imported,
        "preprocess_output": encoded,
        "pytorch_model_folder": folder,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "logging_steps": 4,
    }
    return recipe.main(flags(**{**given, **words}))


def flags(**words: object) -> list[str]:
    return [part for name, value in words.items() for part in (f"--{name}", str(value))]
