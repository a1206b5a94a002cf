"""The fifth step: the base model and the tuned one, side by side on the test rows.

ANLS and exact match of answers that both really generate, held against all the
answers of a row, and a table of some rows with what each model said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finery import checkpoint
from finery.recipes import folders, pictures, scores, spec, vqa_preprocess, vqa_sheet
from finery.recipes.metrics import Reporter
from finery.recipes.spec import Failed, flag

SHOWN = 10
COLUMNS = (("question", 34), ("right", 20), ("base", 20), ("tuned", 20))
TABLE = ("anls", "exact_match")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Two models, the rows, and where the scores go."""

    base_model: Path = flag(help="the folder of the imported base model")
    tuned_model: Path = flag(help="the tuned model: a checkpoint, an adapter or an MLflow model")
    preprocess_output: Path = flag(help="the prepared rows; those of test are used")
    evaluation_result: Path = flag(help="the folder to fill")
    num_beams: int = flag(3, help="answers followed at once in generation", low=1, high=16)
    max_answer_length: int = flag(64, help="tokens of an answer at most", low=1, high=1024)
    max_rows: int = flag(200, help="test rows used at most; -1 is all", low=-1)
    batch_size: int = flag(16, help="answers generated at a time", low=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def work(given: Spec) -> None:
    """Scores both models, writes and prints the tables, and logs the scores."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = vqa_preprocess.rows(given.preprocess_output, "test")
    rows = rows if given.max_rows < 0 else rows[: given.max_rows]
    said: dict[str, list[str]] = {}
    found: dict[str, dict[str, float]] = {}
    for name, folder in (("base", given.base_model), ("tuned", given.tuned_model)):
        try:
            said[name] = answers(given, folder, rows)
        except checkpoint.NoModel as error:
            raise Failed(str(error)) from error
        found[name] = scores.nearest(said[name], [row["answers"] for row in rows])
    _write(given, rows, found, said)
    print(scores.table(found, TABLE, rows=len(rows)))
    print(examples(rows[:SHOWN], said), flush=True)
    reporter = Reporter()
    for name, values in found.items():
        reporter.log({f"{name}_{key}": value for key, value in values.items()}, step=0)
    for name in ("metrics.json", "predictions.jsonl", "examples.png"):
        reporter.file(given.evaluation_result / name, "evaluation")
    reporter.close()


def answers(given: Spec, folder: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the model in a folder says to each row."""
    import torch

    from finery.recipes import vqa_encoding

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Both in the same precision; a processor has no arithmetic of its own for 16-bit floats.
    model = checkpoint.load(folder, dtype="auto" if device == "cuda" else "float32", device=device)
    processor = checkpoint.processor(folder)
    told = folders.read_json(given.preprocess_output / "preprocess_args.json")
    encoder = vqa_encoding.Encoder(
        processor, model.config, model.generation_config, task_prompt=told["task_prompt"]
    )
    batches = vqa_encoding.Batches(encoder, pictures.Shelf.open(given.preprocess_output))
    scale = vqa_encoding.Scale(processor)
    found: list[str] = []
    for start in range(0, len(rows), given.batch_size):
        batch = batches(rows[start : start + given.batch_size])
        batch = {name: value.to(device) for name, value in batch.items()}
        batch["pixel_values"] = scale(batch["pixel_values"]).to(model.dtype)
        found += vqa_encoding.generate(
            model,
            encoder,
            batch,
            num_beams=given.num_beams,
            max_answer_length=given.max_answer_length,
        )
    return found


def _write(
    given: Spec,
    rows: Sequence[dict[str, Any]],
    found: dict[str, dict[str, float]],
    said: dict[str, list[str]],
) -> None:
    given.evaluation_result.mkdir(parents=True, exist_ok=True)
    with (given.evaluation_result / "predictions.jsonl").open("w", encoding="utf-8") as stream:
        for number, row in enumerate(rows):
            line = {name: row[name] for name in ("question", "answers", "picture")}
            line |= {name: one[number] for name, one in said.items()}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    folders.write_json(given.evaluation_result / "metrics.json", {"rows": len(rows), **found})
    shelf = pictures.Shelf.open(given.preprocess_output)
    sheet = vqa_sheet.draw(shelf, rows, said["tuned"])
    sheet.save(given.evaluation_result / "examples.png")


def examples(rows: Sequence[dict[str, Any]], said: dict[str, list[str]]) -> str:
    """Some rows: the question, the first right answer, what each model says."""
    lines = ["  ".join(f"{name:<{width}}" for name, width in COLUMNS)]
    for number, row in enumerate(rows):
        cells = (row["question"], row["answers"][0], said["base"][number], said["tuned"][number])
        shown = [
            (cell if len(cell) <= width else cell[: width - 1] + "…").ljust(width)
            for cell, (_, width) in zip(cells, COLUMNS, strict=True)
        ]
        lines.append("  ".join(shown).replace("\n", " "))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
