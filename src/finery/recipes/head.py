"""The loss head: next-token loss where it counts, without the full table of logits.

Only positions that have a label are projected; the vocabulary is wide, so they go
through in chunks whose gradient is formed at once and whose logits are then
dropped.  Accuracy is counted only when asked for.  Models that do more than
`hidden @ weight` on the way to their logits (`plain` says) are left to TRL's head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

CHUNK = 1024
IGNORED = -100
BEYOND = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
    "output_router_logits",
)


def plain(model: Any) -> bool:
    """Whether the logits of this causal model are the hidden states times the head's weight."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    return (
        type(head) is torch.nn.Linear
        and head.bias is None
        and not any(getattr(config, name, None) for name in BEYOND)
    )


def attach(model: Any) -> None:
    """`model(..., labels=…, token_losses=True)` gives sums: {"loss", "tokens", "correct"}.

    It goes through `forward`, so that whatever wraps the model (PEFT, DDP, autocast)
    still does.  Without `token_losses` the model is as it was.
    """
    original: Callable[..., Any] = model.forward

    def forward(*args: Any, token_losses: bool = False, **named: Any) -> Any:
        if not token_losses:
            return original(*args, **named)
        labels = named.pop("labels")
        count = bool(named.pop("count_correct", False))
        named = {name: value for name, value in named.items() if value is not None}
        named.update(use_cache=False, return_dict=True)
        hidden = model.base_model(*args, **named).last_hidden_state
        return losses(hidden, labels, model.get_output_embeddings().weight, count_correct=count)

    model.forward = forward


def losses(
    hidden: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, *, count_correct: bool
) -> dict[str, torch.Tensor]:
    """Sums over the labelled positions: the loss, how many, and (asked for) how many right."""
    flat = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    target = labels[:, 1:].reshape(-1)
    places = (target != IGNORED).nonzero().squeeze(1)
    if places.numel() < target.numel():
        flat, target = flat.index_select(0, places), target.index_select(0, places)
    total, correct = _NextToken.apply(flat, weight, target, count_correct)  # type: ignore[no-untyped-call]
    tokens = torch.tensor(target.numel(), device=hidden.device)
    return {"loss": total, "tokens": tokens, "correct": correct}


class _NextToken(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`, its gradient formed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, count: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = hidden.device.type
        learns, head_learns = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        width = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        )
        with torch.autocast(device, enabled=False):
            table = weight.to(width)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            correct = torch.zeros((), dtype=torch.long, device=hidden.device)
            d_hidden = torch.empty_like(hidden) if learns else None
            d_weight = torch.zeros_like(weight, dtype=torch.float32) if head_learns else None
            for start in range(0, hidden.shape[0], CHUNK):
                part = hidden[start : start + CHUNK].to(width)
                wanted = target[start : start + CHUNK, None]
                logits = functional.linear(part, table).float()
                norm = torch.logsumexp(logits, 1, keepdim=True)
                total += (norm - logits.gather(1, wanted)).sum()
                if count:
                    correct += (logits.argmax(1, keepdim=True) == wanted).sum()
                if d_hidden is None:
                    continue
                # softmax minus the one-hot target, in place of the logits
                slope = logits.sub_(norm).exp_()
                slope.scatter_add_(1, wanted, torch.full_like(norm, -1.0))
                slope = slope.to(width)
                d_hidden[start : start + CHUNK] = slope @ table
                if d_weight is not None:
                    _accumulate(d_weight, slope, part)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = grads[0]
        return (
            None if d_hidden is None else d_hidden * scale.to(d_hidden.dtype),
            None if d_weight is None else d_weight * scale,
            None,
            None,
        )


def _accumulate(total: torch.Tensor, slope: torch.Tensor, part: torch.Tensor) -> None:
    if slope.dtype == torch.float32:
        torch.addmm(total, slope.t(), part, out=total)
    else:
        total += (slope.t() @ part).float()
