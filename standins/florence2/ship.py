"""Writes the folder that ships: MLmodel, licence and card on top, the checkpoint under model/."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Florence2ForConditionalGeneration, Florence2Processor

HERE = Path(__file__).resolve().parent


def save(
    net: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    out: Path,
    *,
    card: dict[str, Any],
) -> int:
    """Gives the bytes written."""
    if out.exists():
        shutil.rmtree(out)
    folder = out / "model"
    net.to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    _settle(folder / "config.json", {"_name_or_path": "florence2-stand-in"})  # as a job's log says
    for written in folder.iterdir():
        written.chmod(0o644)
    for name in ("MLmodel", "LICENSE", "README.md"):
        shutil.copy(HERE / "folder" / name, out / name)
    (out / "training.json").write_text(json.dumps(card, indent=2) + "\n")
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _settle(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2) + "\n")
