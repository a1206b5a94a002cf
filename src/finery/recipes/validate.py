"""The first step: say within seconds what would fail later (`ft_nlp_common_validation`).

Checks the words of the whole pipeline, that files and model folders are there,
and every row of every data file, and writes a JSON report.  A run that cannot
work ends here, with file, line and field.  Standard library only, so that it
starts in milliseconds; what needs a tokenizer is checked in `preprocess`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finery import checkpoint
from finery.recipes import conversations, evaluate, hyperparameters, spec, splits
from finery.recipes.hyperparameters import Hyperparameters
from finery.recipes.spec import Failed, flag

TASKS = ("ChatCompletion", "chat-completion")
PROBLEMS_KEPT = 20


@dataclass(frozen=True, kw_only=True)
class Spec(splits.Files, Hyperparameters):
    """Everything the pipeline was given, and where to write the report."""

    validation_info: Path = flag(help="the report to write (JSON)")
    task_name: str = flag("ChatCompletion", help="the task", choices=TASKS)
    mlflow_model_path: Path | None = flag(None, help="base model as an MLflow folder")
    pytorch_model_path: Path | None = flag(None, help="base model as a Hugging Face folder")
    huggingface_id: str | None = flag(None, help="base model by its name on the hub")
    finetune_config_path: Path | None = flag(None, help="model-specific settings (JSON)")
    trust_remote_code: bool = flag(False, help="run code that comes with the model")
    user_column_names: str = flag("messages", help="the columns that a row must have")
    batch_size: int = flag(1000, help="rows encoded at a time", low=1)
    pad_to_max_length: bool = flag(False, help="accepted; rows are never padded here")
    max_seq_length: int = flag(-1, help="tokens of a row kept; -1 is the model's own", low=-1)
    num_nodes_finetune: int = flag(1, help="machines", low=1)
    number_of_gpu_to_use_finetuning: int = flag(1, help="GPUs of each machine", low=1)
    shm_size_finetune: str = flag("5g", help="shared memory of the finetune step")
    instance_type_model_import: str | None = flag(None, help="machine size of the import")
    instance_type_preprocess: str | None = flag(None, help="machine size of the preprocessing")
    instance_type_finetune: str | None = flag(None, help="machine size of the finetuning")
    instance_type_model_evaluation: str | None = flag(None, help="machine size of the evaluation")
    compute_model_import: str | None = flag(None, help="compute of the import")
    compute_preprocess: str | None = flag(None, help="compute of the preprocessing")
    compute_finetune: str | None = flag(None, help="compute of the finetuning")
    compute_model_evaluation: str | None = flag(None, help="compute of the evaluation")
    evaluation_config: Path | None = flag(None, help="settings of the evaluation (JSON)")
    evaluation_config_params: str | None = flag(None, help="the same, as JSON text")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def work(given: Spec) -> None:
    """Checks everything and writes the report, also when it fails."""
    report: dict[str, Any] = {"status": "failed", "task": "chat-completion", "files": {}}
    try:
        _check_words(given)
        report["model"] = _check_model(given)
        problems = 0
        for split in splits.SPLITS:
            path = given.source(split)
            if path is not None:
                report["files"][split] = found = inspect(path)
                problems += found["problem_count"]
        _check_rows(report, problems)
        report["status"] = "passed"
    except Failed as error:
        report["error"] = str(error)
        raise
    finally:
        given.validation_info.parent.mkdir(parents=True, exist_ok=True)
        given.validation_info.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _say(report)


@dataclass
class Tally:
    """What is counted of one file."""

    rows: int = 0
    words: int = 0
    lengths: list[int] = field(default_factory=list)
    roles: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    problems: list[dict[str, Any]] = field(default_factory=list)
    problem_count: int = 0

    def bad(self, line: int, name: str, message: str) -> None:
        """A row that is wrong; the first of them are kept in words."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append({"line": line, "field": name, "message": message})

    def good(self, messages: list[dict[str, Any]]) -> None:
        """A row that will be learned from."""
        self.roles.update(message["role"] for message in messages)
        self.words += sum(len(message["content"].split()) for message in messages)
        self.lengths.append(sum(len(message["content"]) for message in messages))


def inspect(path: Path) -> dict[str, Any]:
    """Counts, statistics and problems of one file; Failed when it cannot be read at all."""
    tally = Tally()
    try:
        for line, row in conversations.read(path):
            tally.rows += 1
            found = conversations.problem(row)
            if found:
                tally.bad(line, found.field, found.message)
            elif reason := conversations.excuse(row):
                tally.dropped[reason] += 1
            else:
                tally.good(row[conversations.COLUMN])
    except conversations.BadRow as error:
        # What cannot be parsed ends the reading: lines after it may belong to it.
        tally.bad(error.line, error.field, error.message)
    return {
        "path": str(path),
        "rows": tally.rows,
        "kept": len(tally.lengths),
        "dropped": dict(tally.dropped),
        "roles": dict(tally.roles),
        "characters": _spread(tally.lengths),
        "words": tally.words,
        "estimated_tokens": sum(tally.lengths) // 4,
        "problem_count": tally.problem_count,
        "problems": tally.problems,
    }


def _check_words(given: Spec) -> None:
    try:
        hyperparameters.check(given)
    except spec.WrongWords as error:
        raise Failed(str(error)) from error
    if given.source("train") is None:
        raise Failed("--train_file_path: training rows are required (or --train_mltable_path)")
    if given.finetune_config_path is not None:
        _check_json("finetune_config_path", given.finetune_config_path)
    if given.deepspeed is not None:
        _check_json("deepspeed", given.deepspeed)
    evaluate.settings(given.evaluation_config, given.evaluation_config_params)


def _check_json(name: str, path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise Failed(f"--{name}: {path}: {error.strerror}") from error
    except ValueError as error:
        raise Failed(f"--{name}: {path}: is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise Failed(f"--{name}: {path}: is not a JSON object")


def _check_model(given: Spec) -> dict[str, str]:
    """Which model it will be: a PyTorch folder, else an MLflow folder, else a name on the hub."""
    if given.pytorch_model_path is not None:
        path = given.pytorch_model_path
        if not path.is_dir():
            raise Failed(f"--pytorch_model_path: {path}: there is no such folder")
        if (path / "MLmodel").is_file():
            raise Failed(f"--pytorch_model_path: {path} is an MLflow model; use mlflow_model_path")
        _check_weights("pytorch_model_path", path)
        return {"kind": "pytorch", "path": str(path)}
    if given.mlflow_model_path is not None:
        path = given.mlflow_model_path
        if not path.is_dir():
            raise Failed(f"--mlflow_model_path: {path}: there is no such folder")
        manifests = [*path.glob("MLmodel"), *path.glob("*/MLmodel")]
        if not manifests:
            raise Failed(f"--mlflow_model_path: {path}: there is no MLmodel file in it")
        _check_weights("mlflow_model_path", manifests[0].parent)
        return {"kind": "mlflow", "path": str(path)}
    if given.huggingface_id:
        return {"kind": "hub", "id": given.huggingface_id}
    raise Failed("no model: give mlflow_model_path, pytorch_model_path or huggingface_id")


def _check_weights(name: str, path: Path) -> None:
    try:
        checkpoint.check(path)
    except checkpoint.NoModel as error:
        raise Failed(f"--{name}: {error}") from error


def _check_rows(report: dict[str, Any], problems: int) -> None:
    for found in report["files"].values():
        if found["problems"]:
            first = found["problems"][0]
            where = f"{found['path']}, line {first['line']}"
            where += f", {first['field']}" if first["field"] else ""
            more = f" (and {problems - 1} more rows with problems)" if problems > 1 else ""
            raise Failed(f"{where}: {first['message']}{more}")
        if not found["kept"]:
            why = ", ".join(f"{reason}: {n}" for reason, n in found["dropped"].items())
            raise Failed(f"{found['path']}: no usable rows ({why or 'the file is empty'})")


def _spread(lengths: list[int]) -> dict[str, float]:
    if not lengths:
        return {"total": 0}
    ordered, total = sorted(lengths), sum(lengths)
    return {
        "total": total,
        "mean": round(total / len(ordered), 1),
        "min": ordered[0],
        "median": ordered[len(ordered) // 2],
        "p95": ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))],
        "max": ordered[-1],
    }


def _say(report: dict[str, Any]) -> None:
    for split, found in report["files"].items():
        dropped = sum(found["dropped"].values())
        print(
            f"{split}: {found['rows']} rows, {found['kept']} usable, {dropped} dropped"
            f" ({', '.join(found['dropped']) or 'none'}), about {found['estimated_tokens']} tokens"
        )
    print("validation passed", file=sys.stdout, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
