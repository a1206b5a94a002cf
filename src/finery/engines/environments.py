"""Which interpreter a job's environment means.

So far one: our own, which the curated environments of the catalog stand for.
What would have to be built (conda, a Docker context or image) is refused by
name; nothing is built here yet.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from finery.core.errors import NotSupported

MADE_FROM = {"conda": "a conda file", "build": "a Docker build context", "image": "a Docker image"}


def interpreter(name: str, spec: Mapping[str, object]) -> Path:
    """Return the Python that runs a job in the environment `name`.

    `spec["kind"]` is `curated` where the catalog says that our own interpreter
    has what the name stands for.  Raises `NotSupported` for any other kind.
    """
    kind = str(spec.get("kind", ""))
    if kind == "curated":
        return Path(sys.executable)
    raise NotSupported(
        f"the environment {name!r} is made from {MADE_FROM.get(kind, 'nothing we know')}, and "
        "none are built here yet: name one of the azureml registry instead, such as "
        "acft-hf-nlp-gpu (Finery's own Python, with PyTorch, transformers and MLflow)",
        target="environment",
    )
