"""The stand-in's shape: Florence-2's own classes, small. Tokenizer, processor and empty model.

What it learns is lessons.py and build.py; nothing here is trained but the tokenizer's merges.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BartConfig,
    BartTokenizer,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
)
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

SIDE = 160  # pixels of the model's picture; the real one has 768
STRIDES = (4, 2, 2)  # 160 pixels become 10 by 10 places
GRID = SIDE // 16
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
# The tokens that Florence-2 adds to BART's, those that mark its own training data left out.
ADDED = ["<od>", "</od>", "<ocr>", "</ocr>", *(f"<loc_{n}>" for n in range(1000))]
ADDED += ["<cap>", "</cap>", "<grounding>", "</grounding>", "<seg>", "</seg>", "<sep>", "<poly>"]
ADDED += ["</poly>", "<and>", "<proposal>", "</proposal>"]
ROOT = Path(__file__).resolve().parents[2]


def documents() -> ModuleType:
    """The generator, which lives with the example that people copy."""
    return _example("documents.py")


def scores() -> ModuleType:
    """ANLS and exact match, as the same example has them."""
    return _example("src_train/scores.py")


def _example(file: str) -> ModuleType:
    path = ROOT / "examples" / "florence2_vqa" / file
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader
        made = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = made
        spec.loader.exec_module(made)
    return sys.modules[path.stem]


def phrases() -> list[str]:
    """What the tokenizer has words for: prompts, questions, labels; names are spelled in pieces."""
    docs = documents()
    asked = {q.text for d in docs.make(2000, 0, "words") for q in d.questions}
    tasks = [
        "What is the text in the image?",
        "What is the text in the image, with regions?",
        "What does the image describe?",
        "What text is in the region ?",
        "Locate the phrases in the caption:",
        "Locate in the image.",
        "a form a receipt a table a letter with lines",
        "<DocVQA>",
    ]
    labels = "Name City Date Phone No. Receipt Total Item Qty Price your order is ready. Please "
    labels += "pay send You owe us Yours, Regards, Dear Mr. Ms."
    words = [*docs.GOODS, *labels.split(), *docs.TITLES["form"], *docs.TITLES["table"]]
    words += [*docs.SHOPS[0], *docs.SHOPS[1]]
    return [*sorted(asked), *tasks, *words, *(f" {word}" for word in words)] * 20


def tokenizer() -> BartTokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1100,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(phrases(), trainer)
    learned = json.loads(inner.to_str())["model"]
    made = BartTokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=1024,
    )
    made.add_tokens(ADDED)
    return made


def processor(tokens: BartTokenizer) -> Florence2Processor:
    pictures = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, resample=3
    )
    pictures.image_seq_length = GRID * GRID + 1
    kinds = ("pure_text", "description_with_bboxes", "description_with_polygons", "polygons")
    kinds += ("bboxes", "description_with_bboxes_or_polygons", "phrase_grounding", "ocr")
    parsers: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    return Florence2Processor(
        image_processor=pictures, tokenizer=tokens, post_processor_config=parsers
    )


def model(
    tokens: BartTokenizer,
    *,
    width: int = 160,
    vision: tuple[int, ...] = (40, 80, 160),
    layers: tuple[int, int] = (2, 3),
) -> Florence2ForConditionalGeneration:
    eyes = Florence2VisionConfig(
        depths=(1,) * len(vision),
        patch_size=(7, 3, 3),
        patch_stride=STRIDES,
        patch_padding=(3, 1, 1),
        patch_prenorm=(False, True, True),
        embed_dim=vision,
        num_heads=tuple(size // 20 for size in vision),
        num_groups=tuple(size // 20 for size in vision),
        mlp_ratio=2.0,
        window_size=5,
        drop_path_rate=0.0,
        projection_dim=width,
        max_position_embeddings=50,
    )
    text = BartConfig(
        vocab_size=len(tokens) + 2,
        d_model=width,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_attention_heads=width // 32,
        decoder_attention_heads=width // 32,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        max_position_embeddings=512,
        dropout=0.0,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        decoder_start_token_id=tokens.eos_token_id,
        forced_eos_token_id=tokens.eos_token_id,
        forced_bos_token_id=None,
        init_std=0.05,  # the usual 0.02 learns far slower at this width
    )
    config = Florence2Config(
        text_config=text, vision_config=eyes, image_token_id=tokens.image_token_id
    )
    config.pad_token_id = tokens.pad_token_id  # Seq2SeqTrainer asks for it here
    made = Florence2ForConditionalGeneration(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "forced_eos_token_id"):
        setattr(made.generation_config, name, getattr(text, name))
    made.generation_config.decoder_start_token_id = tokens.eos_token_id
    return made


def begin(net: Florence2ForConditionalGeneration, tokens: BartTokenizer) -> None:
    """Better first weights than the classes' own, which are meant for a far wider model."""
    eyes = net.model.vision_tower.named_parameters()
    eyes = [*eyes, *net.model.multi_modal_projector.image_projection.named_parameters()]
    for _, weight in eyes:
        if weight.ndim == 2 or (weight.ndim == 4 and weight.shape[1] > 1):
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    text = net.model.language_model
    spots = GRID * GRID
    with torch.no_grad():
        # Rows and columns as waves, so that "one to the right" is the same step everywhere. The
        # first two rows of BART's table are unused; the first token is the whole picture's mean.
        rows, columns = torch.arange(GRID).repeat_interleave(GRID), torch.arange(GRID).repeat(GRID)
        half = text.config.d_model // 2
        at = torch.cat([waves(columns + 0.5, half), waves(rows + 0.5, half)], dim=1)
        places = text.encoder.embed_positions.weight
        places[:] = 0.07 * waves(torch.arange(len(places)), 2 * half)
        places[3 : 3 + spots] = at  # beside picture features, which are as large
        places = text.decoder.embed_positions.weight
        places[:] = 0.07 * waves(torch.arange(len(places)), 2 * half)
        first = tokens.convert_tokens_to_ids("<loc_0>")
        along = waves((torch.arange(1000) + 0.5) / 1000 * GRID, half)
        net.get_input_embeddings().weight[first : first + 1000] = 0.05 * along.repeat(1, 2)


def waves(at: torch.Tensor, size: int) -> torch.Tensor:
    """Sines and cosines of `at`, their periods from 3 to 300."""
    turns = 2 * torch.pi * at.float()[:, None] / torch.logspace(0.5, 2.5, size // 2)
    return torch.cat([turns.sin(), turns.cos()], dim=1)
