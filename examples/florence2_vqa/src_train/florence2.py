"""Florence-2 from a folder or the hub, in transformers' own format or in Microsoft's original one.

`load` gives transformers' native model and processor and never runs code that
comes with a checkpoint.  The original format (`microsoft/Florence-2-*`: weights
under other names, a processor that exists as remote code only) is translated in
memory; `save_pretrained` of what `load` gives writes the native format.  Weights
are read from safetensors, and from `pytorch_model.bin` only as plain tensors
(`weights_only`).  This module stands alone, torch, transformers and safetensors
aside: a copy of it beside a training script works as it is.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

# What the original processor adds to BART's vocabulary, in this order.
LOCATIONS = 1000
ADDED = (
    "<od> </od> <ocr> </ocr>".split(),
    [f"<loc_{bin}>" for bin in range(LOCATIONS)],
    "<cap> </cap> <ncap> </ncap> <dcap> </dcap> <grounding> </grounding> <seg> </seg> <sep>"
    " <region_cap> </region_cap> <region_to_desciption> </region_to_desciption> <proposal>"
    " </proposal> <poly> </poly> <and>".split(),
)
IMAGE = "<image>"
VOCABULARY_MULTIPLE = 64  # as the published native checkpoints have it
FETCHED = ("*.safetensors", "*.json", "*.txt", "*.model", "LICENSE*")
PICKLE = "pytorch_model.bin"
# Old name, as a pattern, and the native one; the first that matches the beginning wins.
NAMES = (
    (r"vision_tower\.convs\.(\d+)\.proj\.", r"model.vision_tower.convs.\1.conv."),
    (r"vision_tower\.convs\.(\d+)\.norm\.", r"model.vision_tower.convs.\1.norm."),
    (r"(vision_tower\.blocks\.\d+\.\d+\.\w+_block\.conv[12])\.fn\.dw\.", r"model.\1."),
    (r"(vision_tower\.blocks\.\d+\.\d+\.\w+_block)\.\w+_attn\.norm\.", r"model.\1.norm1."),
    (r"(vision_tower\.blocks\.\d+\.\d+\.\w+_block\.\w+_attn)\.fn\.", r"model.\1."),
    (r"(vision_tower\.blocks\.\d+\.\d+\.\w+_block)\.ffn\.norm\.", r"model.\1.norm2."),
    (r"(vision_tower\.blocks\.\d+\.\d+\.\w+_block\.ffn)\.fn\.net\.", r"model.\1."),
    (r"image_projection$", r"model.multi_modal_projector.image_projection.weight"),
    (r"image_proj_norm\.", r"model.multi_modal_projector.image_proj_norm."),
    (r"image_pos_embed\.", r"model.multi_modal_projector.image_position_embed."),
    (r"visual_temporal_embed\.", r"model.multi_modal_projector.visual_temporal_embed."),
    (r"language_model\.model\.", r"model.language_model."),
    (r"language_model\.lm_head\.", r"lm_head."),
)
# The native projector has these built in, and nothing else.
BUILT_IN = {
    "visual_temporal_embedding": "COSINE",
    "image_pos_embed": "learned_abs_2d",
}
# Variants of BART that the native model has not.
UNKNOWN = ("normalize_before", "add_final_layer_norm", "add_bias_logits")
SHARED = "model.language_model.shared.weight"
TIED = (
    SHARED,
    "model.language_model.encoder.embed_tokens.weight",
    "model.language_model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
GENERATION = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "num_beams",
    "no_repeat_ngram_size",
    "early_stopping",
)
PARSING: dict[str, dict[str, Any]] = {
    "ocr": {"pattern": "(.+?)" + r"<loc_(\d+)>" * 8, "area_threshold": 0.0},
    "phrase_grounding": {
        "banned_grounding_tokens": (
            "i me mine my myself you your yours yourself yourselves he him his himself she her hers"
            " herself it its itself we us our ours they them their theirs themselves one oneself"
            " this that these those who whom whose which what all another any anybody anyone"
            " anything each everybody everyone everything few many nobody none several some"
            " somebody someone something the a an image images I"
        ).split()
        + ["each other", "one another", "the image", "a group", "other objects", "lots", "a set"]
    },
    **{
        kind: {}
        for kind in (
            "pure_text",
            "description_with_bboxes",
            "description_with_polygons",
            "polygons",
            "bboxes",
            "description_with_bboxes_or_polygons",
        )
    },
}


class NotFlorence(ValueError):
    """The folder holds no Florence-2 that can be read; the message says what is wrong."""


def load(name_or_path: str | Path, *, dtype: Any = None) -> tuple[Any, Any]:
    """(model, processor), the model in evaluation mode on the processor of the machine.

    `name_or_path` is a folder or a name on the hub.  `dtype` is torch's, its name, or
    "auto" for what the weights are stored in; without one the weights are float32, the
    one in which they can be trained.
    """
    import torch
    from transformers import AutoProcessor, Florence2ForConditionalGeneration

    folder = fetch(name_or_path)
    if is_original(folder):
        return _translated(folder, dtype=dtype)
    model = Florence2ForConditionalGeneration.from_pretrained(
        str(folder), dtype=dtype or torch.float32, use_safetensors=True
    )
    return model.eval(), AutoProcessor.from_pretrained(str(folder))


def fetch(name_or_path: str | Path) -> Path:
    """The folder itself, or that of the hub's model; code is never fetched."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)):
        raise NotFlorence(f"{name_or_path}: there is no such folder, and the hub has no such names")
    import huggingface_hub

    name = str(name_or_path)
    folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*FETCHED]))
    if not list(folder.glob("*.safetensors")):
        huggingface_hub.snapshot_download(name, allow_patterns=[*FETCHED, PICKLE])
    return folder


def is_original(folder: str | Path) -> bool:
    """True for Microsoft's format, False for transformers' own; NotFlorence for anything else."""
    config = _json(Path(folder) / "config.json")
    if config.get("model_type") != "florence2" or not isinstance(config.get("vision_config"), dict):
        raise NotFlorence(
            f"{Path(folder) / 'config.json'}: model_type is {config.get('model_type')!r},"
            " not florence2 with a vision_config"
        )
    return "dim_embed" in config["vision_config"]


def native_name(name: str) -> str | None:
    """A weight's name in the native format; None for a name that the original does not have."""
    for pattern, native in NAMES:
        made, found = re.subn(f"^{pattern}", native, name)
        if found:
            return made
    return None


def _translated(folder: Path, *, dtype: Any) -> tuple[Any, Any]:
    """The original checkpoint as native model and processor."""
    import torch
    from transformers import Florence2ForConditionalGeneration

    told = _json(folder / "config.json")
    given = _weights(folder)
    processor = _processor(folder, told)
    config = _config(told, processor)
    state = _native(given, rows=config.text_config.vocab_size, folder=folder)
    with torch.device("meta"):
        model = Florence2ForConditionalGeneration(config)
    wanted = set(model.state_dict())
    computed = {name for name in wanted if name.endswith("visual_temporal_embed.pos_idx_to_embed")}
    missing, unknown = sorted(wanted - set(state) - computed), sorted(set(state) - wanted)
    if missing or unknown:
        kind, names = ("missing", missing) if missing else ("not this model's", unknown)
        raise NotFlorence(f"{folder}: weights that are {kind}: {', '.join(names[:5])}")
    for name in computed - set(state):
        state[name] = _cosines(config)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise NotFlorence(f"{folder}: the weights do not fit the configuration: {error}") from error
    model.tie_weights()
    stored = state[SHARED].dtype
    kind = {None: torch.float32, "auto": stored}.get(dtype, dtype)
    model = model.to(getattr(torch, kind) if isinstance(kind, str) else kind)
    model.generation_config = _generation(folder, told)
    return model.eval(), processor


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(str(path)))
    if not found and (folder / PICKLE).is_file():
        import torch

        # Tensors and nothing else: a pickle that would run something is refused by torch.
        found = torch.load(folder / PICKLE, map_location="cpu", weights_only=True)
    if not found:
        raise NotFlorence(f"{folder}: there are no weights (*.safetensors or {PICKLE})")
    return found


def _native(given: dict[str, Any], *, rows: int, folder: Path) -> dict[str, Any]:
    """The weights under native names, the vocabulary grown to `rows`."""
    state: dict[str, Any] = {}
    for name, value in given.items():
        if name == "language_model.final_logits_bias":
            if value.any():
                raise NotFlorence(f"{folder}: {name} is not zero, which the native model lacks")
            continue
        native = native_name(name)
        if native is None:
            raise NotFlorence(f"{folder}: {name} is no weight of Florence-2")
        # A plain parameter there, the weight of a linear layer here.
        state[native] = value.T.contiguous() if name == "image_projection" else value
    shared = next((state[name] for name in TIED if name in state), None)
    if shared is None:
        raise NotFlorence(f"{folder}: there are no word embeddings among the weights")
    if any(name in state and not state[name].equal(shared) for name in TIED):
        raise NotFlorence(f"{folder}: word embeddings and head differ; the native model ties them")
    grown = _grown(shared, rows)
    return {**state, **dict.fromkeys(TIED, grown)}


def _grown(embeddings: Any, rows: int) -> Any:
    """The mean row for each new word: its logit is never above that of the best old word."""
    import torch

    if rows < len(embeddings):
        raise NotFlorence(
            f"the tokenizer has {rows} words at most and the weights {len(embeddings)}:"
            " the tokenizer belongs to another model"
        )
    mean = embeddings.float().mean(0, keepdim=True).to(embeddings.dtype)
    return torch.cat([embeddings, mean.repeat(rows - len(embeddings), 1)])


def _config(told: dict[str, Any], processor: Any) -> Any:
    from transformers import BartConfig, Florence2Config, Florence2VisionConfig

    vision = dict(told["vision_config"])
    for name, kind in BUILT_IN.items():
        found = (vision.get(name) or {}).get("type", kind)
        if found != kind:
            raise NotFlorence(f"config.json: {name} is {found}; the native model knows {kind} only")
    source = vision.pop("image_feature_source", ["spatial_avg_pool", "temporal_avg_pool"])
    if list(source) != ["spatial_avg_pool", "temporal_avg_pool"]:
        raise NotFlorence(f"config.json: image_feature_source {source} is not the native model's")
    temporal = vision.pop("visual_temporal_embedding", None) or {}
    positions = vision.pop("image_pos_embed", None) or {}
    vision["embed_dim"] = vision.pop("dim_embed")
    vision["max_temporal_embeddings"] = temporal.get("max_temporal_embeddings", 100)
    vision["max_position_embeddings"] = positions.get("max_pos_embeddings", 50)
    odd = [name for name in UNKNOWN if told["text_config"].get(name)]
    if odd:
        raise NotFlorence(f"config.json: the native model does not know {', '.join(odd)}")
    text = _known(BartConfig, told["text_config"])
    words = len(processor.tokenizer)
    text["vocab_size"] = -(-words // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return Florence2Config(
        text_config=BartConfig(**text),
        vision_config=Florence2VisionConfig(**_known(Florence2VisionConfig, vision)),
        image_token_id=processor.tokenizer.image_token_id,
    )


def _known(kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What shapes the model; how to generate, and whatever old versions wrote, lies elsewhere."""
    from transformers import PreTrainedConfig

    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(kind)} - general
    own -= {"forced_eos_token_id", "tie_word_embeddings", "is_decoder", "use_cache"}
    return {name: value for name, value in given.items() if name in own and value is not None}


def _generation(folder: Path, told: dict[str, Any]) -> Any:
    """How the original generates: its generation_config.json, else what its config says."""
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    said = {**told, **told["text_config"], **(_json(file) if file.is_file() else {})}
    return GenerationConfig(
        **{name: said[name] for name in GENERATION if said.get(name) is not None}
    )


def _processor(folder: Path, told: dict[str, Any]) -> Any:
    from transformers import AutoImageProcessor, Florence2Processor

    if not (folder / "preprocessor_config.json").is_file():
        raise NotFlorence(f"{folder}: there is no preprocessor_config.json")
    pictures = AutoImageProcessor.from_pretrained(str(folder), trust_remote_code=False)
    if not getattr(pictures, "image_seq_length", None):
        pictures.image_seq_length = _picture_tokens(pictures.size, told["vision_config"])
    return Florence2Processor(
        image_processor=pictures, tokenizer=_tokenizer(folder, told), post_processor_config=PARSING
    )


def _tokenizer(folder: Path, told: dict[str, Any]) -> Any:
    """BART's tokenizer with the words that the original processor adds, and one for the picture."""
    from transformers import BartTokenizer

    made = BartTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    words = [word for group in ADDED for word in group]
    made.add_tokens(words, special_tokens=True)
    expected = told.get("vocab_size") or told["text_config"]["vocab_size"]
    if len(made) != expected and IMAGE not in made.get_vocab():
        raise NotFlorence(
            f"{folder}: the tokenizer has {len(made)} words with Florence-2's own, and config.json"
            f" says {expected}: the tokenizer belongs to another model"
        )
    made.add_tokens([IMAGE], special_tokens=True)
    with tempfile.TemporaryDirectory() as scratch:
        # Named at loading, and the word is there already: so it keeps its place at the end.
        made.save_pretrained(scratch)
        named = BartTokenizer.from_pretrained(scratch, extra_special_tokens={"image_token": IMAGE})
    named.name_or_path = ""
    return named


def _picture_tokens(size: Any, vision: dict[str, Any]) -> int:
    """Tokens of a picture: the last stage's grid, and one for all of it."""
    sides = []
    for side in (size["height"], size["width"]):
        for patch, stride, padding in zip(
            vision["patch_size"], vision["patch_stride"], vision["patch_padding"], strict=True
        ):
            side = (side + 2 * padding - patch) // stride + 1
        sides.append(side)
    return int(sides[0] * sides[1] + 1)


def _cosines(config: Any) -> Any:
    from transformers.models.florence2 import modeling_florence2

    module = modeling_florence2.Florence2VisionPositionalEmbeddingCosine1D(config)
    return module.pos_idx_to_embed


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NotFlorence(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise NotFlorence(f"{path}: is not a JSON object")
    return found
