"""What an environment becomes: an interpreter of this machine.

So far one: our own, which the curated environments of the catalog stand for.
What would have to be built (conda, a Docker context or image) is refused by
name; nothing is built here yet.
"""

from __future__ import annotations

import sys
from pathlib import Path

from finery.core.assets import Asset
from finery.core.compute import Runtime
from finery.core.errors import NotSupported

MADE_FROM = {"conda": "a conda file", "build": "a Docker build context", "image": "a Docker image"}
OWN = Runtime(python=sys.executable, own=True)


class Environments:
    """The environments of one home.  The contract is `core.compute.Environments`."""

    def __init__(self, home: Path) -> None:
        self.home = home / "environments"

    def runtime(
        self, environment: Asset | None, *, serving: bool, log: Path | None = None
    ) -> Runtime | None:
        if environment is None or environment.spec.get("kind") == "curated":
            return OWN
        kind = str(environment.spec.get("kind", ""))
        raise NotSupported(
            f"the environment {environment.name!r} is made from "
            f"{MADE_FROM.get(kind, 'nothing we know')}, and none are built here yet: name one of "
            "the azureml registry instead, such as acft-hf-nlp-gpu (Finery's own Python, with "
            "PyTorch, transformers and MLflow)",
            target="environment",
        )
