"""Rows of a batch, end to end without padding; attention bounded by row.

The rows that share an optimizer step stay exactly those of
`per_device_train_batch_size`: they are laid one after another into a single row
whose positions start again at each, and attention never crosses from one to the
next.  The loss is therefore that of the padded batch, without the padding's
work.  On a CPU each segment is attended to by itself; on a GPU in one kernel
(`varlen_attn`), where the numbers are 16 bits wide.  Transformers' own
FlashAttention reads the same `cu_seq_lens_*` that `collate` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

NAME = "finery_segments"
IGNORED = -100
# Attention that is more than softmax(q k) v over the row; our function would leave it out.
BEYOND = ("attn_logit_softcapping", "num_sink_tokens", "alibi", "position_bias")
UNSUPPORTED_TYPES = ("gpt_oss", "mamba", "mamba2", "jamba", "bamba", "rwkv", "falcon_h1", "zamba2")


def register() -> str:
    """Makes the attention known to transformers; its name, for `attn_implementation`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    # No mask is ever built: the segments say all.
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
    return NAME


def supports(config: Any) -> bool:
    """Whether a model of this configuration can be trained with segments."""
    text = config.get_text_config()
    if text.model_type in UNSUPPORTED_TYPES or getattr(text, "is_encoder_decoder", False):
        return False
    if getattr(text, "layer_types", None) and "linear_attention" in text.layer_types:
        return False
    return not any(getattr(text, name, None) for name in BEYOND)


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of all rows: ids, labels, positions, and where each begins."""
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
    labels = [_labels(row) for row in rows]
    lengths = [len(row) for row in ids]
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def collate_padded(rows: Sequence[dict[str, Any]], *, pad: int) -> dict[str, Any]:
    """The ordinary batch, for a model whose attention cannot be bounded by row."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[number, :length] = torch.as_tensor(row["input_ids"], dtype=torch.long)
        labels[number, :length] = _labels(row)
        mask[number, :length] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each segment: (1, heads, tokens, size) to (1, tokens, heads, size).

    Without `cu_seq_lens_q` each row of the batch is one segment.
    """
    if query.shape[2] != key.shape[2]:
        raise ValueError("attention by segments is for training; it cannot go on from a cache")
    if cu_seq_lens_q is None:
        output = _segment(query, key, value, scaling, dropout, sliding_window)
        return output.transpose(1, 2).contiguous(), None
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        assert max_length_q is not None
        return _varlen(query, key, value, scaling, sliding_window, cu_seq_lens_q, max_length_q)
    bounds = cu_seq_lens_q.tolist()
    lengths = [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
    parts = zip(
        *(torch.split_with_sizes(whole, lengths, 2) for whole in (query, key, value)), strict=True
    )
    done = [_segment(q, k, v, scaling, dropout, sliding_window) for q, k, v in parts]
    return torch.cat(done, 2).transpose(1, 2).contiguous(), None


def _segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, 1)
        value = value.repeat_interleave(groups, 1)
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        places = torch.arange(length, device=query.device)
        behind = places[:, None] - places[None, :]
        mask = (behind >= 0) & (behind < window)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling
    )


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    bounds: torch.Tensor,
    longest: int,
) -> tuple[torch.Tensor, None]:
    from torch.nn.attention.varlen import varlen_attn

    # The kernel counts the tokens behind the present one, transformers the window with it.
    behind = -1 if window is None else window - 1
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(behind, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output[None], None


def _labels(row: dict[str, Any]) -> torch.Tensor:
    """The labels, the first ignored: nothing comes before it within its own row."""
    labels = torch.tensor(row["labels"], dtype=torch.long)
    labels[0] = IGNORED
    return labels


def _no_mask(*_: Any, **__: Any) -> None:
    return None
