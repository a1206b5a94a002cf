"""Florence-2 as something that learns: from a batch of `pages.py` to a loss, or to answers."""

from __future__ import annotations

from typing import Any

import torch


class Learner(torch.nn.Module):
    """The model with what comes before it: a batch in, the mean loss of its tokens out.

    What a frozen vision tower sees in a page never changes: it is worked out once and kept, which
    leaves the language model as the only work of most steps.
    """

    def __init__(
        self, model: Any, processor: Any, *, freeze: bool, bf16: bool, keep: float = 0
    ) -> None:
        """`keep`: gigabytes of the device's memory for what a frozen tower has seen."""
        super().__init__()
        self.model, self.frozen, self.bf16 = model, freeze, bf16
        model.model.vision_tower.requires_grad_(not freeze)
        self.seen: dict[str, torch.Tensor] = {}
        self.room = keep * 1e9
        pictures = processor.image_processor
        scale = 1 / pictures.rescale_factor
        mean, std = torch.tensor(pictures.image_mean), torch.tensor(pictures.image_std)
        self.register_buffer("mean", (mean * scale).view(3, 1, 1), persistent=False)
        self.register_buffer("std", (std * scale).view(3, 1, 1), persistent=False)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        with self.precision():
            return self.model(**self.inputs(batch), labels=batch["labels"]).loss

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        if self.frozen:
            self.model.model.vision_tower.eval()  # nothing in it is dropped by chance
        return self

    def inputs(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What the model takes: words and pictures, or both as one if the pictures are known."""
        words = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if not self.frozen:
            return {**words, "pixel_values": self.pixels(batch["pictures"])}
        ids, inner = words.pop("input_ids"), self.model.model
        seen = inner.multi_modal_projector(self.sight(batch["pages"], batch["pictures"]))
        embedded = inner.get_input_embeddings()(ids)
        places = (ids == self.model.config.image_token_id).unsqueeze(-1)
        return {
            **words,
            "inputs_embeds": embedded.masked_scatter(places, seen.to(embedded.dtype)),
        }

    def pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        return (pictures.float() - self.mean) / self.std

    @torch.no_grad()
    def sight(self, pages: list[str], pictures: torch.Tensor) -> torch.Tensor:
        """What the tower sees in each page, worked out for those that were not seen before."""
        first = {page: at for at, page in enumerate(pages) if page not in self.seen}
        fresh = {}
        if first:
            found = self.model.model.vision_tower(self.pixels(pictures[list(first.values())]))
            fresh = dict(zip(first, found.last_hidden_state, strict=True))
        for page, features in fresh.items():
            self.room -= features.nbytes
            if self.room >= 0:
                self.seen[page] = features.clone()  # and not the whole batch with it
        return torch.stack([fresh[page] if page in fresh else self.seen[page] for page in pages])

    def precision(self) -> Any:
        """Weights stay float32; on a GPU the arithmetic is bfloat16."""
        kind = self.mean.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def generate(self, batch: dict[str, Any], **settings: Any) -> torch.Tensor:
        """The answers' tokens, begin and end included."""
        with self.precision():
            inputs = self.inputs(batch)
            if self.frozen:  # `generate` takes words, or what the encoder made of them
                encoder = self.model.model.language_model.encoder
                mask = inputs["attention_mask"]
                inputs = {"encoder_outputs": encoder(**inputs), "attention_mask": mask}
            return self.model.generate(**inputs, **settings)
