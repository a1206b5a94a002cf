"""Make a chat deployment out of a model folder: load, limit, check.

How many bytes and tokens a deployment may hold is decided here, once, from the
spec, the model and the machine; what is loaded is found by `finery.checkpoint`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from finery import checkpoint
from finery.serving import check, journal, sampling
from finery.serving.chat import Chat, Limits
from finery.serving.engine import Counts
from finery.serving.spec import BadSpec, Spec

LARGE = 10**9  # parameters from which a CPU computes in bfloat16
SERVED_LAYERS = {"full_attention", "sliding_attention"}


def chat(spec: Spec) -> Chat:
    """A chat model, loaded and checked; BadSpec or NoModel say why it cannot be served."""
    began = time.monotonic()
    transformers.utils.logging.disable_progress_bar()
    device = spec.device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = checkpoint.fetch(spec.model) if not checkpoint.is_adapter(spec.model) else spec.model
    tokenizer: Any = checkpoint.tokenizer(spec.model)
    if not tokenizer.chat_template:
        raise BadSpec(f"model: {spec.model}: its tokenizer has no chat template")
    model = _model(folder, device, dtype=spec.dtype)
    _consider(model)
    limits = _limits(spec, model, device)
    journal.say(
        "model loaded",
        seconds=round(time.monotonic() - began, 2),
        parameters=sum(one.numel() for one in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        device=device,
        context=limits.context,
        batch=limits.batch,
        cache_cells=limits.cells,
        **({"stand_in_for": stood} if (stood := checkpoint.stand_in_for(spec.model)) else {}),
    )
    made = Chat(model, tokenizer, limits=limits)
    if spec.self_check:
        _check(spec, model, made)
    return made


def _model(folder: Path | str, device: str, *, dtype: str) -> Any:
    chosen = dtype or _dtype(folder, device)
    try:
        model: Any = checkpoint.load(folder, dtype=chosen, device=device)
    except (ValueError, OSError, TypeError) as error:
        raise BadSpec(f"model: {folder} cannot be loaded: {error}") from error
    if hasattr(model, "merge_and_unload"):  # an adapter costs a matrix product at every layer
        model = model.merge_and_unload()
    model.requires_grad_(False)
    return model.eval()


def _dtype(folder: Path | str, device: str) -> str:
    if device != "cpu":
        return "auto"
    source: Path | str = folder
    if checkpoint.is_adapter(folder):
        source = checkpoint.base(folder)
    if not isinstance(source, Path) and not Path(source).is_dir():
        return "bfloat16"  # of the hub by name: those are large
    size = sum(path.stat().st_size for path in checkpoint.weights(source))
    return "float32" if size / 4 < LARGE else "bfloat16"


def _consider(model: Any) -> None:
    """BadSpec for what the engine would answer wrongly, by name."""
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise BadSpec("model: encoder-decoder models are not served as chat models")
    others = set(getattr(config, "layer_types", None) or ()) - SERVED_LAYERS
    if others:
        raise BadSpec(f"model: layers of type {', '.join(sorted(others))} are not supported")
    unheeded = sampling.unheeded(model.generation_config)
    if unheeded:
        raise BadSpec(f"model: its generation_config.json asks for {', '.join(unheeded)}")


def _limits(spec: Spec, model: Any, device: str) -> Limits:
    config = model.config.get_text_config()
    batch = spec.max_batch or (16 if device == "cpu" else 64)
    longest = _context(config)
    context = min(spec.max_context or longest, longest)
    cells = (spec.max_cache_bytes or _budget(device)) // _cell_bytes(config, model.dtype)
    # One conversation must fit whatever its length, so the context follows the memory.
    return Limits(context=min(context, cells), batch=batch, cells=cells)


def _budget(device: str) -> int:
    """Bytes for keys and values: an upper limit, taken only as conversations need them."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info()[0] * 0.4)
    return min(4 * 2**30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


def _context(config: Any) -> int:
    longest = int(getattr(config, "max_position_embeddings", 0) or 4096)
    scaling = getattr(config, "rope_parameters", None) or {}
    kind = scaling.get("rope_type", "default") if isinstance(scaling, dict) else "default"
    if kind in ("longrope", "dynamic"):
        # Their positions change with the longest row of a batch: a conversation would then be
        # answered differently beside a long one.  Up to here they do not.
        before = getattr(config, "original_max_position_embeddings", None)
        before = before or scaling.get("original_max_position_embeddings")
        return min(longest, int(before or longest))
    return longest


def _cell_bytes(config: Any, dtype: torch.dtype) -> int:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * dtype.itemsize)


def _check(spec: Spec, model: Any, made: Chat) -> None:
    began = time.monotonic()
    slow = spec.device != "cuda" and model.num_parameters() > LARGE
    prompts = [made.prompt(one, target="checks") for one in check.rows(spec.checks)]
    prompts = [one for one in prompts if len(one) + 24 <= made.limits.context]
    if slow:
        prompts = prompts[:2]
    try:
        result = check.run(model, made.engine, prompts, tokens=4 if slow else 24)
    except check.Differs as error:
        raise BadSpec(f"model: the self-check failed: {error}") from error
    made.engine.counts = Counts()  # the check is no traffic
    journal.say(str(result), seconds=round(time.monotonic() - began, 2), pid=os.getpid())
