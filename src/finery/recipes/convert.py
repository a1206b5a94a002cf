"""The fifth step: the tuned model as an MLflow model (`ft_nlp_model_converter`).

A model from code (`chat_model.py` is copied in) with the Hugging Face folder as
its artifact, weights linked rather than copied: it loads with
`mlflow.pyfunc.load_model` where transformers and torch are installed and nothing
of ours is.  MLflow's own transformers flavour is not used: it loses the weights
of an adapter on a local base without a word.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finery import checkpoint
from finery.recipes import folders, spec
from finery.recipes.spec import Failed, flag

PINNED = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "pandas")


@dataclass(frozen=True)
class Kind:
    """What differs between the models that are converted: their code, task and signature."""

    code: str
    task: str
    signature: Callable[[], Any]
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The tuned model, and where it goes."""

    model_path: Path = flag(help="the folder that finetune has filled")
    mlflow_model_folder: Path = flag(help="the folder to fill")
    converter_output: Path | None = flag(None, help="accepted; nothing is written there")
    task_name: str = flag("ChatCompletion", help="the task")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit status."""
    return spec.run(Spec, work, argv)


def work(given: Spec) -> None:
    """Fills the MLflow folder, all of it or nothing."""
    try:
        folder = checkpoint.find(given.model_path)
        checkpoint.tokenizer(given.model_path)
    except checkpoint.NoModel as error:
        raise Failed(str(error)) from error
    if not checkpoint.weights(given.model_path):
        raise Failed(f"{folder}: there are no weights (*.safetensors) to convert")
    write(folder, given.mlflow_model_folder, kind=CHAT)


def write(folder: Path, target: Path, *, kind: Kind) -> None:
    """The Hugging Face folder as an MLflow model of a kind, and a line that says so."""
    with folders.filled(target) as part, warnings.catch_warnings():
        # MLflow advises on type hints of models; ours is given its schema in so many words.
        warnings.simplefilter("ignore", UserWarning)
        _convert(folder, part, kind)
    size = _size(target / "artifacts" / "model")
    noun = "adapter and base" if checkpoint.is_adapter(target) else "model"
    print(f"MLflow {noun} written to {target}, {size / 1e6:.1f} MB", flush=True)


def _convert(folder: Path, target: Path, kind: Kind) -> None:
    adapter = (folder / checkpoint.ADAPTER).is_file()
    made = target / "mlflow"
    _describe(folder, made, kind, adapter=adapter)
    inside = made / "artifacts" / "model"
    for sketched in inside.iterdir():
        sketched.unlink()
    left = tuple(path.name for path in folder.glob("checkpoint-*"))
    folders.link_tree(folder, inside, skip=(*left, "samples"))
    if adapter and not (inside / "base").is_dir():
        base = checkpoint.base(folder)
        base = checkpoint.find(base) if isinstance(base, Path) else checkpoint.download(base)
        folders.link_tree(base, inside / "base")
    if (folder / "LICENSE").is_file():
        folders.link(folder / "LICENSE", made / "LICENSE")
    _clean(made)
    for path in made.iterdir():
        os.replace(path, target / path.name)
    made.rmdir()


def _describe(folder: Path, made: Path, kind: Kind, *, adapter: bool) -> None:
    """What MLflow writes of a model: manifest, requirements, code; no weights yet."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.pyfunc

    told = folders.read_json(folder / "finetune_args.json")
    stood = checkpoint.stand_in_for(folder)
    with tempfile.TemporaryDirectory() as scratch:
        # MLflow copies artifacts; it gets the small configuration, the weights are linked after.
        sketch = Path(scratch) / "model"
        name = checkpoint.ADAPTER if adapter else "config.json"
        folders.link(folder / name, sketch / name)
        mlflow.pyfunc.save_model(
            path=str(made),
            python_model=str(Path(__file__).with_name(kind.code)),
            artifacts={"model": str(sketch)},
            signature=kind.signature(),
            pip_requirements=requirements(kind, adapter=adapter),
            metadata={
                "base_model_name": str(told.get("model_name", "")),
                "base_model_task": kind.task,
                "is_finetuned_model": True,
                **({"stand_in": True, "stand_in_for": stood} if stood else {}),
            },
        )


def _clean(made: Path) -> None:
    """MLflow notes where this machine keeps its files; the model must read the same everywhere."""
    import yaml

    manifest = made / "MLmodel"
    document = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    flavor = document["flavors"]["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    flavor["artifacts"]["model"]["uri"] = flavor["artifacts"]["model"]["path"]
    document["model_size_bytes"] = _size(made)
    manifest.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def requirements(kind: Kind, *, adapter: bool) -> list[str]:
    """What loads the model, at the versions that made it."""
    names = [*PINNED, *kind.packages, *(("peft",) if adapter else ()), "mlflow"]
    # A local build (2.13.0+cpu) is not on any index under that name.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]


def _signature() -> Any:
    """Any: a list of messages and a list of such lists are both right, which no schema can say."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    names = ("input_string", "parameters")
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name, required=False) for name in names]),
        outputs=Schema([ColSpec(type=DataType.string, name="output")]),
        params=ParamSchema(
            [
                ParamSpec("max_new_tokens", DataType.integer, 256),
                ParamSpec("temperature", DataType.double, 0.0),
                ParamSpec("top_p", DataType.double, 1.0),
                ParamSpec("do_sample", DataType.boolean, True),
                ParamSpec("return_full_text", DataType.boolean, False),
            ]
        ),
    )


CHAT = Kind(code="chat_model.py", task="chat-completion", signature=_signature)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    raise SystemExit(main())
