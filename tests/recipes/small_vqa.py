"""Coloured squares and questions about them: pictures that a random vision tower tells apart."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from PIL import Image

from .conftest import flags

COLOURS = ("red", "lime", "blue", "white", "black", "yellow")


def pictures(folder: Path, count: int) -> list[Path]:
    made = []
    for number in range(count):
        path = folder / "pictures" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (40 + number % 7, 50 + number % 5)
        Image.new("RGB", size, COLOURS[number % len(COLOURS)]).save(path)
        made.append(path)
    return made


def rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """Two questions about each picture."""
    found = []
    for number, path in enumerate(pictures(folder, count)):
        image = str(path.relative_to(folder))
        colour = COLOURS[number % len(COLOURS)]
        found.append({"image": image, "question": "which colour?", "answers": [colour]})
        found.append({"image": image, "question": "what is it?", "answers": ["a square"]})
    return found


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def prepare(model: Path, folder: Path, out: Path, **words: object) -> int:
    from finery.recipes import vqa_preprocess

    given: dict[str, object] = {"data_folder_path": folder, **words}
    return vqa_preprocess.main(flags(model_selector_output=model, output_dir=out, **given))


def finetune(imported: Path, prepared: Path, folder: Path, **words: object) -> int:
    from finery.recipes import vqa_finetune

    given: dict[str, object] = {
        "model_selector_output": imported,
        "preprocess_output": prepared,
        "pytorch_model_folder": folder,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "num_beams": 1,
        "max_answer_length": 16,
        "logging_steps": 4,
    }
    return vqa_finetune.main(flags(**{**given, **words}))
