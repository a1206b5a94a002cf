"""Keys and values of the conversations that are being answered together.

A transformers cache with one row per conversation.  Rows are aligned at their
newest token, so that a step of all of them is one column; a row that is shorter
than the others starts further right and what lies before it is masked.  Rows
join and leave between steps.  Written in place: a step copies one column, where
transformers' own DynamicCache copies everything.

Nothing here knows of requests or tokens (`engine.py`), and no cache of fixed
size is taken ahead: memory follows the rows, up to the engine's limit.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK = 64  # columns by which the buffers grow at least


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer of the model: [rows, heads, columns, width]."""

    keys: torch.Tensor
    values: torch.Tensor
    is_sliding = False  # we keep all columns; the model's own mask forgets what is outside a window

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        columns = _rounded(key_states.shape[2])
        # Zeros, not `empty`: what is masked is multiplied by 0, and 0 * NaN is NaN.
        self.keys = _grown(key_states[:, :, :0], self.rows.count, columns)
        self.values = _grown(value_states[:, :, :0], self.rows.count, columns)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, low, high = self.rows.count, self.rows.low, self.rows.high
        end = high + key_states.shape[2]
        self.keys[:rows, :, high:end] = key_states
        self.values[:rows, :, high:end] = value_states
        if low == high:
            return key_states, value_states
        return self.keys[:rows, :, low:end], self.values[:rows, :, low:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.rows.high - self.rows.low

    def get_max_length(self) -> int:
        return -1


class Rows:
    """The rows that run, as a cache to hand to a model's `forward`."""

    def __init__(self, layers: int, starts: list[int]) -> None:
        """One row per entry of `starts`: the column where its first token will be."""
        self.starts = list(starts)
        self.high = 0  # columns that are filled
        self.cache = Cache(layers=[_Layer(self) for _ in range(layers)])

    @property
    def count(self) -> int:
        """How many rows run."""
        return len(self.starts)

    @property
    def low(self) -> int:
        """The first column that any row needs."""
        return min(self.starts)

    def reserve(self) -> None:
        """Make sure that one more column fits."""
        for layer in self._layers():
            if layer.keys.shape[2] <= self.high:
                self._settle(_rounded((self.high - self.low) * 5 // 4 + 1))
                return

    def mask(self, more: int) -> torch.Tensor:
        """1 where a row has a token, for the columns from `low` with `more` new ones."""
        columns = torch.arange(self.low, self.high + more)
        return (columns[None, :] >= torch.tensor(self.starts)[:, None]).long()

    def even(self) -> bool:
        """True when no row has anything to mask."""
        return self.low == max(self.starts)

    def join(self, other: Rows) -> None:
        """Take over all rows of `other`, aligned at the newest column of both."""
        width = max(self.high - self.low, other.high - other.low)
        before = self.count
        lows = self.low, other.low
        offset = width - (self.high - self.low)
        starts = [start - lows[0] + offset for start in self.starts]
        offset_other = width - (other.high - other.low)
        starts += [start - lows[1] + offset_other for start in other.starts]
        for mine, theirs in zip(self._layers(), other._layers(), strict=True):
            for name in ("keys", "values"):
                ours, new = getattr(mine, name), getattr(theirs, name)
                made = _room(ours, rows=len(starts), columns=_rounded(width + 1), reuse=offset == 0)
                if made is not ours or lows[0]:
                    kept = ours[:before, :, lows[0] : self.high]
                    made[:before, :, offset:width] = kept.clone() if made is ours else kept
                if offset:
                    made[:before, :, :offset] = 0
                made[before : len(starts), :, :offset_other] = 0
                made[before : len(starts), :, offset_other:width] = new[
                    : other.count, :, lows[1] : other.high
                ]
                setattr(mine, name, made)
        self.starts, self.high = starts, width

    def leave(self, index: int) -> None:
        """Drop a row; the last one takes its place."""
        last = self.count - 1
        if index != last:
            for layer in self._layers():
                layer.keys[index] = layer.keys[last]
                layer.values[index] = layer.values[last]
            self.starts[index] = self.starts[last]
        self.starts.pop()

    def _settle(self, columns: int) -> None:
        """Move what is needed to the left edge of buffers with so many columns."""
        low, high, rows = self.low, self.high, self.count
        for layer in self._layers():
            layer.keys = _grown(layer.keys[:rows, :, low:high], rows, columns)
            layer.values = _grown(layer.values[:rows, :, low:high], rows, columns)
        self.starts = [start - low for start in self.starts]
        self.high = high - low

    def _layers(self) -> list[Any]:
        return [one for one in self.cache.layers if getattr(one, "is_initialized", False)]


def _room(held: torch.Tensor, *, rows: int, columns: int, reuse: bool) -> torch.Tensor:
    """`held` when it is large enough, else new zeros with room for that many rows and columns."""
    if reuse and held.shape[0] >= rows and held.shape[2] >= columns:
        return held
    rows = max(rows, held.shape[0])
    if rows > held.shape[0]:
        rows = max(rows, min(2 * held.shape[0], rows + 8))
    return held.new_zeros(rows, held.shape[1], max(columns, held.shape[2]), held.shape[3])


def _grown(kept: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """New zeros of so many rows and columns that begin with `kept`."""
    made = kept.new_zeros(rows, kept.shape[1], columns, kept.shape[3])
    made[: kept.shape[0], :, : kept.shape[2]] = kept
    return made


def _rounded(columns: int) -> int:
    return (columns // BLOCK + 1) * BLOCK
