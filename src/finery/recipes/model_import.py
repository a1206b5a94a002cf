"""Bring the base model into one folder: a chat's second step, the first of vqa.

It is `chat_completion_model_import` and `visual_question_answering_model_import`.
A PyTorch folder goes before an MLflow model, and that before a name on the hub.
The output folder is a Hugging Face checkpoint with what the later steps need
beside it: `MLmodel`, `LICENSE`, `model_selector_args.json`, `finetune_config.json`.
Weights are linked, not copied, where the disk allows.  A catalog folder without
weights is filled from the hub.  Nothing is loaded, so no torch here, but for a
Florence-2 in Microsoft's original format: that is translated into the native one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finery import checkpoint
from finery.recipes import florence2, folders, spec
from finery.recipes.spec import Failed, flag

BESIDE = ("MLmodel", "conda.yaml", "LICENSE", "LICENSE.txt", "NOTICE.md", "requirements.txt")
SETTINGS = "finetune_config.json"
SEEING = ("VisualQuestionAnswering", "visual-question-answering")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Where the base model is, and where it goes."""

    output_dir: Path = flag(help="the folder to fill")
    huggingface_id: str | None = flag(None, help="a name on the hub")
    pytorch_model_path: Path | None = flag(None, help="a Hugging Face folder")
    mlflow_model_path: Path | None = flag(None, help="an MLflow model")
    finetune_config_path: Path | None = flag(None, help="model-specific settings (JSON)")
    trust_remote_code: bool = flag(False, help="bring code that comes with the model")
    task_name: str = flag("ChatCompletion", help="the task")
    validation_output: Path | None = flag(None, help="the report of validation; only its order")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def work(given: Spec) -> None:
    """Fills the output folder."""
    try:
        kind, name, top, model = _chosen(given)
    except checkpoint.NoModel as error:
        raise Failed(str(error)) from error
    _suits(given.task_name, model)
    settings = _settings(given, top=top, model=model)
    with folders.filled(given.output_dir) as part:
        if _original(model):
            _translate(model, part)
        else:
            skip = () if given.trust_remote_code else _code(model)
            folders.link_tree(model, part, skip=(*skip, *_checkpoints(model)))
            _tokenizer(top, model, part)
        for beside in BESIDE:
            if top is not None and (top / beside).is_file() and not (part / beside).exists():
                folders.link(top / beside, part / beside)
        folders.write_json(part / SETTINGS, settings)
        chosen = {**spec.words(given), "source": kind, "model_name": name}
        folders.write_json(part / "model_selector_args.json", chosen)
    size = sum(path.stat().st_size for path in checkpoint.weights(given.output_dir))
    print(f"imported {name} ({kind}), {size / 1e6:.1f} MB of weights", flush=True)


def _chosen(given: Spec) -> tuple[str, str, Path | None, Path]:
    """(kind, name, the model's whole folder if it has one, the Hugging Face folder)."""
    trust = given.trust_remote_code
    if given.pytorch_model_path is not None:
        top = _top(given.pytorch_model_path)
        if (top / "MLmodel").is_file():
            raise Failed(f"--pytorch_model_path: {top} is an MLflow model; use mlflow_model_path")
        model = checkpoint.find(top)
        if not checkpoint.weights(top) and not _original(model):
            raise Failed(f"--pytorch_model_path: {model}: there are no weights (*.safetensors)")
        return "pytorch", _name(top, model), top, model
    if given.mlflow_model_path is not None:
        top = _top(given.mlflow_model_path)
        if not (top / "MLmodel").is_file():
            raise Failed(f"--mlflow_model_path: {top}: there is no MLmodel file in it")
        model = checkpoint.fetch(top, trust_remote_code=trust)
        return "mlflow", _name(top, model), top, model
    if given.huggingface_id:
        model = checkpoint.download(given.huggingface_id, trust_remote_code=trust)
        if _original(model):
            model = florence2.fetch(given.huggingface_id)
        return "hub", given.huggingface_id, None, model
    raise Failed("no model: give pytorch_model_path, mlflow_model_path or huggingface_id")


def _top(path: Path) -> Path:
    """The model's own folder; a download keeps it one level down."""
    if not path.is_dir():
        raise Failed(f"{path}: there is no such folder")
    inner = [found.parent for found in path.glob("*/MLmodel")]
    return inner[0] if not (path / "MLmodel").is_file() and len(inner) == 1 else path


def _name(top: Path, model: Path) -> str:
    named = checkpoint.hub_id(top) or folders.read_json(model / "config.json").get("_name_or_path")
    return str(named or top.name)


def _settings(given: Spec, *, top: Path | None, model: Path) -> dict[str, Any]:
    """The model's own settings for fine-tuning, then those that were given."""
    found: dict[str, Any] = {}
    places = [model / SETTINGS]
    if top is not None:
        places += [top / SETTINGS, top / "ml_configs" / SETTINGS]
    for place in places:
        found.update(folders.read_json(place))
    if given.finetune_config_path is not None:
        try:
            text = given.finetune_config_path.read_text(encoding="utf-8-sig")
            extra = json.loads(text)
        except (OSError, ValueError) as error:
            raise Failed(f"--finetune_config_path: {error}") from error
        if not isinstance(extra, dict):
            path = given.finetune_config_path
            raise Failed(f"--finetune_config_path: {path}: is not a JSON object")
        found.update(extra)
    return found


def _suits(task: str, model: Path) -> None:
    kind = folders.read_json(model / "config.json").get("model_type")
    if task in SEEING and kind != "florence2":
        raise Failed(f"{model}: is a {kind}; questions about pictures are answered by Florence-2")


def _original(model: Path) -> bool:
    """A Florence-2 as Microsoft writes it: weights and processor for code of its own."""
    config = folders.read_json(model / "config.json")
    return config.get("model_type") == "florence2" and florence2.is_original(model)


def _translate(model: Path, part: Path) -> None:
    from transformers import logging

    logging.disable_progress_bar()
    try:
        made, processor = florence2.load(model, dtype="auto")
    except florence2.NotFlorence as error:
        raise Failed(str(error)) from error
    made.save_pretrained(str(part))
    processor.save_pretrained(str(part))
    for licence in model.glob("LICENSE*"):
        folders.link(licence, part / licence.name)
    print("translated from Microsoft's original format into transformers' own", flush=True)


def _code(model: Path) -> tuple[str, ...]:
    return tuple(path.name for path in model.glob("*.py"))


def _checkpoints(model: Path) -> tuple[str, ...]:
    """A fine-tuned folder carries its checkpoints and samples; a new run starts without them."""
    return ("samples", *(path.name for path in model.glob("checkpoint-*")))


def _tokenizer(top: Path | None, model: Path, part: Path) -> None:
    if any((part / name).is_file() for name in checkpoint.TOKENIZER_FILES):
        return
    for root in (top, model.parent, model.parent.parent):
        for place in checkpoint.TOKENIZER_PLACES:
            if root is not None and (root / place).is_dir():
                folders.link_tree(root / place, part, skip=("config.json",))
                return
    raise Failed(f"{model}: there is no tokenizer with this model")


if __name__ == "__main__":
    raise SystemExit(main())
