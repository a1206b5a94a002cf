"""The fourth step: the tuned model as an MLflow model that answers with no code.

What `convert` does for a chat model, with `vqa_model.py` as the model's code:
columns `image` (base64 or a data URI) and `question` in, `answer` out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finery import checkpoint
from finery.recipes import convert, folders, spec
from finery.recipes.convert import Spec
from finery.recipes.spec import Failed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def work(given: Spec) -> None:
    """Fills the MLflow folder, all of it or nothing."""
    try:
        folder = checkpoint.find(given.model_path)
    except checkpoint.NoModel as error:
        raise Failed(str(error)) from error
    if not checkpoint.weights(given.model_path):
        raise Failed(f"{folder}: there are no weights (*.safetensors) to convert")
    if not folders.read_json(folder / "vqa.json"):
        raise Failed(f"{folder}: there is no vqa.json; was it made by the finetune step?")
    convert.write(folder, given.mlflow_model_folder, kind=VQA)


def _signature() -> Any:
    """`text` is what Azure's own question-answering models call the question."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "image"),
                ColSpec(DataType.string, "question", required=False),
                ColSpec(DataType.string, "text", required=False),
            ]
        ),
        outputs=Schema([ColSpec(DataType.string, "answer")]),
        # Nothing given is what the model was tuned with.
        params=ParamSchema(
            [
                ParamSpec("num_beams", DataType.integer, 0),
                ParamSpec("max_answer_length", DataType.integer, 0),
                ParamSpec("task_prompt", DataType.string, ""),
            ]
        ),
    )


VQA = convert.Kind(
    code="vqa_model.py",
    task="visual-question-answering",
    signature=_signature,
    packages=("pillow",),
)

if __name__ == "__main__":
    raise SystemExit(main())
