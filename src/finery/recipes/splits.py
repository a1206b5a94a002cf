"""The rows of a task as files: which there are, and what became of the rows of each.

`validate`, `preprocess` and `vqa_preprocess` are given their rows in these words.
Reading them is `conversations`' and `vqa_rows`' affair; where there is no file
for a split, each preprocess recipe divides the training rows in its own way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finery.recipes.spec import flag

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Files:
    """The rows of each split: a file, or an MLTable folder."""

    train_file_path: Path | None = flag(None, help="training rows")
    validation_file_path: Path | None = flag(None, help="validation rows")
    test_file_path: Path | None = flag(None, help="test rows")
    train_mltable_path: Path | None = flag(None, help="training rows as an MLTable folder")
    validation_mltable_path: Path | None = flag(None, help="validation rows as an MLTable folder")
    test_mltable_path: Path | None = flag(None, help="test rows as an MLTable folder")

    def file(self, split: str) -> Path | None:
        """The file of a split."""
        path: Path | None = getattr(self, f"{split}_file_path")
        return path

    def table(self, split: str) -> Path | None:
        """The MLTable of a split."""
        path: Path | None = getattr(self, f"{split}_mltable_path")
        return path

    def source(self, split: str) -> Path | None:
        """The rows of a split; a table goes before a file."""
        return self.table(split) or self.file(split)


@dataclass(kw_only=True)
class Tally:
    """What became of the rows of one split; `dropped` counts them by the reason."""

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def reasons(self) -> str:
        """The reasons in words, "" when nothing was dropped."""
        return ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())

    def account(self) -> dict[str, Any]:
        """All counts, as JSON values."""
        return {**vars(self), "dropped": dict(self.dropped)}
