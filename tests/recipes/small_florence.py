"""A Florence-2 of two stages and two layers with random weights, in both formats.

The original format is written from the published facts of `microsoft/Florence-2-base-ft`
(names of weights, keys of config.json, how its processor extends BART's vocabulary), so that
reading it is checked against something that the reader has not written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ("what is the invoice number", "which total does the receipt show", "<DocVQA>")
SIDE = 64
# As the original's processor names them.
EXTRA = [
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{number}>" for number in range(1000)),
    *("<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>"),
    *("<seg>", "</seg>", "<sep>", "<region_cap>", "</region_cap>"),
    *("<region_to_desciption>", "</region_to_desciption>", "<proposal>", "</proposal>"),
    *("<poly>", "</poly>", "<and>"),
]
VISION = {
    "depths": [1, 2],
    "patch_size": [7, 3],
    "patch_stride": [4, 4],
    "patch_padding": [3, 1],
    "patch_prenorm": [False, True],
    "num_heads": [2, 4],
    "num_groups": [2, 4],
    "window_size": 4,
    "drop_path_rate": 0.1,
    "projection_dim": 64,
}
TEXT = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 128,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.3,
    "decoder_start_token_id": 2,
}
SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
ENDS = {"forced_bos_token_id": 0, "forced_eos_token_id": 2}
# What transformers 4 wrote into every part of a configuration when it was saved.
LEGACY = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "do_sample": False,
    "finetuning_task": None,
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beam_groups": 1,
    "output_attentions": False,
    "prefix": None,
    "pruned_heads": {},
    "temperature": 1.0,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "torch_dtype": None,
    "torchscript": False,
    "use_bfloat16": False,
}
TOKENS = (SIDE // 16) ** 2 + 1


def bart() -> Any:
    """BART's kind of tokenizer, for a handful of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BartTokenizer

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([word for word in WORDS for _ in range(10)], trainer)
    told = json.loads(made.to_str())["model"]
    merges = [tuple(pair) for pair in told["merges"]]
    return BartTokenizer(vocab=told["vocab"], merges=merges, model_max_length=128)


def native(folder: Path) -> Path:
    """A random model in transformers' own format."""
    import torch
    from transformers import (
        BartConfig,
        CLIPImageProcessorPil,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Florence2VisionConfig,
        GenerationConfig,
    )

    bart().save_pretrained(folder)
    from transformers import BartTokenizer

    tokenizer = BartTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(EXTRA, special_tokens=True)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    tokenizer = BartTokenizer.from_pretrained(
        folder, extra_special_tokens={"image_token": "<image>"}
    )
    pictures = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, resample=3
    )
    pictures.image_seq_length = TOKENS
    processor = Florence2Processor(
        image_processor=pictures, tokenizer=tokenizer, post_processor_config={"pure_text": {}}
    )
    torch.manual_seed(0)
    model = Florence2ForConditionalGeneration(
        Florence2Config(
            text_config=BartConfig(vocab_size=len(tokenizer), **TEXT, **SPECIAL),
            vision_config=Florence2VisionConfig(embed_dim=[32, 64], **VISION),
            image_token_id=tokenizer.image_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        **SPECIAL, **ENDS, decoder_start_token_id=2, num_beams=1
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def original(model: Any, folder: Path, *, pickle: bool = False) -> Path:
    """The same weights as `microsoft/Florence-2-*` has them, with its own files beside."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.clone()
        for ours, value in model.state_dict().items()
        for name in [original_name(ours)]
        if name
    }
    words = len(bart()) + len(EXTRA)
    state["image_projection"] = state["image_projection"].T.contiguous()
    state["language_model.model.shared.weight"] = state["language_model.model.shared.weight"][
        :words
    ].clone()
    state["language_model.final_logits_bias"] = torch.zeros(1, words)
    if pickle:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    bart().save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 128}')
    write(folder / "config.json", configuration(words))
    write(
        folder / "generation_config.json",
        {**SPECIAL, **ENDS, "decoder_start_token_id": 2, "num_beams": 3, "early_stopping": True},
    )
    write(folder / "preprocessor_config.json", PREPROCESSOR)
    (folder / "modeling_florence2.py").write_text("raise RuntimeError('this code was run')\n")
    (folder / "processing_florence2.py").write_text("raise RuntimeError('this code was run')\n")
    (folder / "configuration_florence2.py").write_text("raise RuntimeError('this code was run')\n")
    return folder


def original_name(name: str) -> str:
    """Microsoft's name of a weight; "" for one that its files leave out."""
    if name in ("lm_head.weight",) or name.endswith("embed_tokens.weight"):
        return ""
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    if name.startswith("multi_modal_projector."):
        name = name.removeprefix("multi_modal_projector.")
        name = name.replace("image_position_embed.", "image_pos_embed.")
        return "image_projection" if name == "image_projection.weight" else name
    parts = name.split(".")
    if parts[1] == "convs":
        return name.replace(".conv.", ".proj.")
    attention = "window_attn" if parts[4] == "spatial_block" else "channel_attn"
    tail = ".".join(parts[5:])
    for old, new in (
        ("conv1.", "conv1.fn.dw."),
        ("conv2.", "conv2.fn.dw."),
        ("norm1.", f"{attention}.norm."),
        ("norm2.", "ffn.norm."),
        (f"{attention}.", f"{attention}.fn."),
        ("ffn.", "ffn.fn.net."),
    ):
        if tail.startswith(old):
            return ".".join([*parts[:5], new + tail.removeprefix(old)])
    raise AssertionError(name)


def configuration(words: int) -> dict[str, Any]:
    """config.json with the keys that the published one has."""
    return {
        "_name_or_path": "florence2",
        "architectures": ["Florence2ForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_florence2.Florence2Config",
            "AutoModelForCausalLM": "modeling_florence2.Florence2ForConditionalGeneration",
        },
        "ignore_index": -100,
        "model_type": "florence2",
        "projection_dim": 64,
        "text_config": {
            "vocab_size": words,
            "activation_function": "gelu",
            "add_bias_logits": False,
            "add_final_layer_norm": False,
            "classif_dropout": 0.1,
            "classifier_dropout": 0.0,
            "decoder_layerdrop": 0.0,
            "encoder_layerdrop": 0.0,
            "early_stopping": True,
            "gradient_checkpointing": False,
            "is_encoder_decoder": True,
            "no_repeat_ngram_size": 3,
            "normalize_before": False,
            "num_hidden_layers": 2,
            "scale_embedding": False,
            "num_beams": 3,
            "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
            "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
            **TEXT,
            **SPECIAL,
            **ENDS,
            **LEGACY,
        },
        "vision_config": {
            "model_type": "davit",
            "dim_embed": [32, 64],
            "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
            "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
            "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
            **VISION,
            **LEGACY,
        },
        "vocab_size": words,
        "torch_dtype": "float16",
        "transformers_version": "4.41.0.dev0",
        "is_encoder_decoder": True,
        **SPECIAL,
    }


PREPROCESSOR = {
    "auto_map": {"AutoProcessor": "processing_florence2.Florence2Processor"},
    "_valid_processor_keys": ["images", "do_resize", "size", "resample"],
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "do_center_crop": False,
    "image_processor_type": "CLIPImageProcessor",
    "image_seq_length": TOKENS,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "processor_class": "Florence2Processor",
    "resample": 3,
    "size": {"height": SIDE, "width": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
