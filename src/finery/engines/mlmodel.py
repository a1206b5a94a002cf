"""What an MLflow model asks for: its conda file, else its Python file and its requirements.

MLflow writes them beside the file `MLmodel`, which says what they are called.
Nothing of the model is loaded or run here, and no file outside of it is read.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finery.core.errors import Invalid, NotSupported
from finery.engines import conda, documents, requirements

MANIFEST = "MLmodel"
LARGEST = 4 << 20  # bytes of the manifest: a signature may have many columns
# What our own recipes leave: models of these tasks, from this code.
_OURS = {"chat_model.py": "chat-completion", "vqa_model.py": "visual-question-answering"}
_RELEASE = re.compile(r"\d+(\.\d+){0,2}")
_FILES = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}


@dataclass(frozen=True)
class Read:
    asks: conda.Read
    folder: Path  # that files named in its lines are in
    conda: str = ""  # the conda file itself, where a conda program needs nothing else


def read(model: Path) -> Read | None:
    """Return what a model asks for; None where it says nothing, or where our recipes made it.

    Raises `Invalid` or `NotSupported` where it says nothing sensible.
    """
    folder = top(model)
    if folder is None:
        return None
    manifest = _manifest(folder / MANIFEST)
    flavor = _mapping(_mapping(manifest.get("flavors")).get("python_function"))
    if _made_here(manifest, flavor):
        return None
    found = _files(folder, flavor.get("env"))
    if found is None:
        return None
    asks = replace(found.asks, python=_minor(found.asks.python), lines=_lines(found.asks))
    files = [path for path in map(requirements.local, asks.lines) if path is not None]
    for path in files:
        if path.is_dir():  # building it would write into the model
            said = path.relative_to(folder.resolve())
            raise NotSupported(f"the model's folder {said}: have it as a wheel", target=str(said))
    whole = not files and {*asks.lines} <= {*found.asks.lines}
    return replace(found, asks=asks, conda=found.conda if whole else "")


def top(model: Path) -> Path | None:
    """Return the folder with the manifest: the model's, or the only one directly inside it."""
    if (model / MANIFEST).is_file():
        return model
    inside = [path.parent for path in model.glob(f"*/{MANIFEST}")]
    return inside[0] if len(inside) == 1 else None


def _manifest(path: Path) -> dict[str, Any]:
    """Return what the manifest says; nothing where it cannot be read: its loader will say why."""
    try:
        return _document(path, largest=LARGEST)
    except Invalid:
        return {}


def _document(path: Path, *, largest: int = requirements.LARGEST) -> dict[str, Any]:
    """Return a YAML file's mapping."""
    text = requirements.text(path, largest=largest)
    return _mapping(documents.read(text, where=path.name))


def _mapping(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _text(given: Any) -> str:
    """Return a text; empty for what is none: a few lines of YAML can be a list without end."""
    return given if isinstance(given, str) else ""


def _made_here(manifest: dict[str, Any], flavor: dict[str, Any]) -> bool:
    """Whether one of our recipes wrote it: it is served by our own packages, of any version."""
    told = _mapping(manifest.get("metadata"))
    task = _OURS.get(_text(flavor.get("model_code_path")))
    return task is not None and (told.get("base_model_task"), told.get("is_finetuned_model")) == (
        task,
        "true",
    )


def _files(folder: Path, env: Any) -> Read | None:
    """Return what the model's own files say; `env`: how its manifest calls them."""
    named = {"conda": env} if isinstance(env, str) else _mapping(env)
    given = {kind: _text(named.get(kind)) or usual for kind, usual in _FILES.items()}
    if (path := _there(folder, given["conda"])) is not None:
        text = requirements.text(path)
        return Read(conda.read(text, folder=folder), folder, text)
    if (path := _there(folder, given["virtualenv"])) is not None:
        return Read(_python_file(path, folder), folder)
    if _there(folder, "requirements.txt") is not None:
        return Read(_required(["-r requirements.txt"], folder, MANIFEST), folder)
    return None


def _there(folder: Path, name: str) -> Path | None:
    """Return a file of the model; None where it is not there.  Raises `Invalid` if outside."""
    if not os.path.lexists(folder / name):
        return None
    return requirements.within(folder, name, base=folder, where=MANIFEST)


def _python_file(path: Path, folder: Path) -> conda.Read:
    document = _document(path)
    python, listed = document.get("python") or "", document.get("dependencies") or []
    if python and not (isinstance(python, str) and _RELEASE.fullmatch(python)):
        raise Invalid(f"{path.name}: `python` is no version", target=path.name)
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise Invalid(f"{path.name}: `dependencies` is no list of texts", target=path.name)
    exact = f"=={python}" if python.count(".") == 2 else f"=={python}.*"
    return replace(_required(listed, folder, path.name), python=exact if python else "")


def _required(lines: list[str], folder: Path, where: str) -> conda.Read:
    found = requirements.read(lines, folder=folder, where=where)
    return conda.Read("", found.lines, notes=found.notes)


def _minor(python: str) -> str:
    """Return the asked Python without its patch: MLflow writes down the one that it ran on."""
    return re.sub(r"^===?(\d+\.\d+)\.\d+$", r"==\1.*", python)


def _lines(asks: conda.Read) -> tuple[str, ...]:
    """Return the lines to install: without pip, which no model calls, and with what loads it."""
    lines = [line for line in asks.lines if requirements.name(line) != "pip"]
    names = {requirements.name(line) for line in lines}
    if "mlflow-skinny" in names:  # which lacks what it needs to load anything
        needed = {"mlflow", "numpy", "pandas"} & names
        return (*lines, *(() if "mlflow" in needed else sorted({"numpy", "pandas"} - needed)))
    return (*lines, *(() if "mlflow" in names else ("mlflow",)))
