"""Which interpreter a job's environment means.

So far one: our own, which the curated environments of the catalog stand for.
What would have to be built (conda, pip, a Docker context or image) is refused
by name; nothing is built here yet.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from finery.core.errors import NotSupported

BUILT = ("conda_file", "build", "image", "inference_config")


def interpreter(environment: Mapping[str, object]) -> Path:
    """The Python that runs a job in this environment.

    `environment`: its `name`; `curated`, true where the catalog says that our own
    interpreter has what it names; else what it is to be built from.
    """
    if environment.get("curated"):
        return Path(sys.executable)
    name = environment.get("name") or "without a name"
    wanted = [field for field in BUILT if environment.get(field)] or ["nothing we know"]
    raise NotSupported(
        f"the environment {name} is made from {' and '.join(wanted)}, and none are built here "
        "yet: name a curated environment of the azureml registry",
        target="environment",
    )
