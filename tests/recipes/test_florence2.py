"""Florence-2 in both formats gives the same model; no code of a checkpoint is run.

These build a model of 0.2 million parameters: only the real classes can say what
they make of the weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finery import checkpoint
from finery.recipes import florence2

from . import small_florence

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_florence.native(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def both(native: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any, Any]:
    model, processor = florence2.load(native)
    folder = small_florence.original(model, tmp_path_factory.mktemp("original"))
    return model, processor, *florence2.load(folder)


def asked(processor: Any, *, question: str = "<DocVQA>what is the total?") -> Any:
    picture = Image.linear_gradient("L").convert("RGB").resize((90, 50))
    return processor(text=[question], images=[picture], return_tensors="pt")


def test_the_original_format_gives_the_same_logits_to_the_last_bit(
    both: tuple[Any, Any, Any, Any],
) -> None:
    import torch

    model, processor, other, other_processor = both
    mine = asked(processor)
    mine["pixel_values"] = asked(other_processor)["pixel_values"]
    labels = torch.tensor([[0, 9, 8, 7, 2]])
    with torch.inference_mode():
        one = model(**mine, labels=labels).logits
        two = other(**mine, labels=labels).logits
    words = len(small_florence.bart()) + len(small_florence.EXTRA)
    assert torch.equal(one[..., :words], two[..., :words])
    assert one.std() > 0.1  # they say something


def test_words_that_the_original_lacks_are_never_the_best(both: tuple[Any, Any, Any, Any]) -> None:
    import torch

    _, _, model, processor = both
    words = len(small_florence.bart()) + len(small_florence.EXTRA)
    assert model.config.text_config.vocab_size % 64 == 0
    with torch.inference_mode():
        logits = model(**asked(processor), labels=torch.tensor([[0, 9, 8, 7, 2]])).logits[0]
    assert (logits[:, words:].amax(1) <= logits[:, :words].amax(1)).all()


def test_the_original_processor_reads_and_writes_the_same_tokens(
    both: tuple[Any, Any, Any, Any],
) -> None:
    _, processor, model, other = both
    for question in ("<DocVQA>what is the total?", "<OCR>", "<REGION_TO_OCR><loc_1><loc_999>"):
        mine, theirs = asked(processor, question=question), asked(other, question=question)
        assert mine["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert other.tokenizer.image_token_id == model.config.image_token_id
    assert list(other.image_processor.image_mean) == [0.485, 0.456, 0.406]
    assert model.generation_config.num_beams == 3
    assert model.generation_config.forced_bos_token_id == 0


def test_what_was_translated_is_native_when_saved(
    both: tuple[Any, Any, Any, Any], tmp_path: Path
) -> None:
    import torch

    _, _, model, processor = both
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not florence2.is_original(tmp_path)
    again, reader = florence2.load(tmp_path)
    batch = asked(processor)
    assert asked(reader)["input_ids"].tolist() == batch["input_ids"].tolist()
    with torch.inference_mode():
        assert torch.equal(
            model.generate(**batch, max_new_tokens=8), again.generate(**batch, max_new_tokens=8)
        )


def test_a_pickle_is_read_as_tensors_only(native: Path, tmp_path: Path) -> None:
    import torch

    model, _ = florence2.load(native)
    folder = small_florence.original(model, tmp_path, pickle=True)
    checkpoint.check(folder)  # `finery model import` asks this
    read, _ = florence2.load(folder)
    first = "model.vision_tower.convs.0.conv.weight"
    assert torch.equal(read.state_dict()[first], model.state_dict()[first])

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "was run"),)

    torch.save({"a": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        florence2.load(folder)
    assert not (tmp_path / "was run").exists()


def test_precision_is_32_bits_unless_asked(native: Path, tmp_path: Path) -> None:
    import torch

    folder = small_florence.original(florence2.load(native)[0].half(), tmp_path)
    assert florence2.load(folder)[0].dtype == torch.float32
    assert florence2.load(folder, dtype="auto")[0].dtype == torch.float16
    assert florence2.load(folder, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert florence2.load(native, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"vocab_size": 7}, "the tokenizer belongs to another model"),
        ({"text_config": {"vocab_size": 1344, "normalize_before": True}}, "know normalize_before"),
        ({"vision_config": {"dim_embed": [1], "image_pos_embed": {"type": "x"}}}, "knows learned"),
    ],
)
def test_what_cannot_be_read_is_said(
    native: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = small_florence.original(florence2.load(native)[0], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    small_florence.write(folder / "config.json", {**config, **change})
    with pytest.raises(florence2.NotFlorence, match=message):
        florence2.load(folder)


def test_weights_that_are_missing_or_foreign_are_named(native: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = small_florence.original(florence2.load(native)[0], tmp_path)
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, "language_model.extra": state["image_projection"].clone()}, path)
    with pytest.raises(florence2.NotFlorence, match="language_model.extra is no weight"):
        florence2.load(folder)
    save_file({name: v for name, v in state.items() if name != "image_projection"}, path)
    with pytest.raises(florence2.NotFlorence, match="missing: .*image_projection"):
        florence2.load(folder)


def test_every_weight_of_the_published_model_has_a_native_name() -> None:
    """The real depths and names, without the weights: 1, 1, 9, 1 blocks and 6 layers."""
    import torch
    from transformers import (
        BartConfig,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2VisionConfig,
    )

    text = {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "vocab_size": 51328}
    with torch.device("meta"):
        model = Florence2ForConditionalGeneration(
            Florence2Config(
                vision_config=Florence2VisionConfig(projection_dim=768),
                text_config=BartConfig(**text, encoder_attention_heads=12),
            )
        )
    for name in model.state_dict():
        old = small_florence.original_name(name)
        assert not old or florence2.native_name(old) == name


def test_the_example_carries_the_same_module() -> None:
    ours = ROOT / "src" / "finery" / "recipes" / "florence2.py"
    copy = ROOT / "examples" / "florence2_vqa" / "src_train" / "florence2.py"
    assert copy.read_bytes() == ours.read_bytes()


def test_the_module_stands_alone(tmp_path: Path) -> None:
    """A process of its own, in which nothing of ours can be imported."""
    copy = tmp_path / "florence2.py"
    copy.write_bytes((ROOT / "src/finery/recipes/florence2.py").read_bytes())
    code = "import sys; sys.modules['finery'] = None; import florence2; print(florence2.IMAGE)"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert said.stdout == "<image>\n", said.stderr
