"""Rows end to end give what padded rows give: attention, loss and gradients."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .conftest import make_model

LENGTHS = (5, 17, 1, 40, 9)


def rows() -> list[dict[str, Any]]:
    import torch

    random = torch.Generator().manual_seed(1)
    made = [torch.randint(7, 300, (length,), generator=random).tolist() for length in LENGTHS]
    return [
        {"input_ids": ids, "labels": [-100 if n % 3 == 0 else i for n, i in enumerate(ids)]}
        for ids in made
    ]


@pytest.mark.parametrize("window", [None, 8], ids=["full attention", "sliding window"])
def test_loss_accuracy_and_gradients_are_those_of_the_padded_batch(
    tmp_path: Path, window: int | None
) -> None:
    # A real (two-layer) model: only transformers' own path can say what is right.
    import torch

    from finery import checkpoint
    from finery.recipes import head, packing

    folder = make_model(tmp_path, window=window)
    plain = checkpoint.load(folder, attn_implementation="eager").train()
    packed = checkpoint.load(folder, attn_implementation=packing.register()).train()
    head.attach(packed)
    batch = packing.collate_padded(rows(), pad=2)
    labels = batch.pop("labels")
    logits = plain(**batch, use_cache=False).logits[:, :-1]
    target = labels[:, 1:]
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum"
    )
    flat.backward()
    found = packed(**packing.collate(rows()), token_losses=True, count_correct=True)
    found["loss"].backward()
    kept = target != -100
    assert found["tokens"] == kept.sum()
    assert found["correct"] == (logits.argmax(-1) == target)[kept].sum()
    torch.testing.assert_close(found["loss"], flat, rtol=1e-5, atol=1e-5)
    for (name, mine), (_, theirs) in zip(
        packed.named_parameters(), plain.named_parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_the_batch_says_where_each_row_begins() -> None:
    from finery.recipes import packing

    batch = packing.collate(rows())
    assert batch["input_ids"].shape == (1, sum(LENGTHS))
    assert batch["cu_seq_lens_q"].tolist() == [0, 5, 22, 23, 63, 72]
    assert batch["max_length_q"] == 40
    assert batch["position_ids"][0, 5:9].tolist() == [0, 1, 2, 3]
    starts = batch["cu_seq_lens_q"][:-1].long()
    assert batch["labels"][0, starts].tolist() == [-100] * 5


def test_attention_refuses_to_go_on_from_a_cache() -> None:
    import torch

    from finery.recipes import packing

    one, many = torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="for training"):
        packing.attend(torch.nn.Identity(), one, many, many, None)


@pytest.mark.parametrize(
    ("words", "able"),
    [
        ({"model_type": "phi3"}, True),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, False),
        ({"model_type": "gpt_oss"}, False),
        ({"model_type": "t5", "is_encoder_decoder": True}, False),
    ],
)
def test_models_whose_attention_is_more_than_this_are_padded(
    words: dict[str, Any], able: bool
) -> None:
    from finery.recipes import packing

    text = SimpleNamespace(**words)
    assert packing.supports(SimpleNamespace(get_text_config=lambda: text)) is able


@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
def test_the_head_in_chunks_is_the_head_in_one(
    monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    import torch

    from finery.recipes import head

    monkeypatch.setattr(head, "CHUNK", 7)
    torch.manual_seed(0)
    hidden = torch.randn(1, 40, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=not frozen)
    labels = torch.randint(0, 50, (1, 40))
    labels[0, ::4] = -100
    found = head.losses(hidden, labels, weight, count_correct=False)
    (found["loss"] * 0.5).backward()
    mine = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    want = torch.nn.functional.cross_entropy(
        (hidden[0, :-1] @ weight.t()), labels[0, 1:], ignore_index=-100, reduction="sum"
    )
    (want * 0.5).backward()
    torch.testing.assert_close(found["loss"], want)
    torch.testing.assert_close(mine[0], hidden.grad)
    torch.testing.assert_close(mine[1], weight.grad)


def test_a_batch_without_a_label_has_no_loss_and_no_error() -> None:
    import torch

    from finery.recipes import head

    hidden = torch.randn(1, 4, 8, requires_grad=True)
    labels = torch.full((1, 4), -100)
    found = head.losses(hidden, labels, torch.randn(10, 8), count_correct=True)
    found["loss"].backward()
    assert (found["loss"].item(), int(found["tokens"])) == (0.0, 0)
    assert float(hidden.grad.abs().sum()) == 0.0
