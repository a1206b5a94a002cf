"""An environment as a container image: pulled, built from a context, or with a layer on top.

For machines where Docker or Podman runs; `building.py` calls it in the
builder's own process.  How a process runs in the image is `containers.py`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finery.engines import containers
from finery.engines.wanted import Wanted

# What the scoring host imports; ours are shared where the Python is the same.
HOST = ("httptools", "uvloop", "werkzeug")
_ANSWERS = 5.0  # seconds that a client is given to say whether an image is here
_PYTHON = {True: "/opt/finery-env/bin/python", False: "python"}  # with a conda file, without


def build(
    wanted: Wanted, folder: Path, *, say: Callable[[str], None], run: Callable[..., None]
) -> dict[str, Any]:
    """Have the image on this machine; return what ready.json says of it."""
    image = wanted.image
    tag = f"finery-environment:{folder.name}"
    if wanted.dockerfile:
        say(f"building the context's {wanted.dockerfile} with {wanted.client}")
        image = f"{tag}-context" if wanted.serving else tag
        file = str(Path(wanted.folder) / wanted.dockerfile)
        run(wanted.client, "build", "--tag", image, "--file", file, wanted.folder)
    elif not _here(wanted.client, image):
        say(f"pulling {image}")
        run(wanted.client, "pull", image)
    layer = containers.dockerfile(image, conda=wanted.conda, host=HOST if wanted.serving else ())
    folder.mkdir(parents=True)
    if layer:
        image = _laid_over(layer, wanted, folder, tag, run)
    return {
        "warnings": [*wanted.warnings],
        "variables": wanted.variables,
        "python": _PYTHON[bool(wanted.conda)],
        "image": image,
        "client": wanted.client,
    }


def gone(client: str, image: str, surroundings: Mapping[str, str]) -> bool:
    """Say whether an image that was here has been removed since; not where nobody answers."""
    try:
        asked = subprocess.run(
            [client, "image", "inspect", image],
            capture_output=True,
            timeout=_ANSWERS,
            env=dict(surroundings),
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return asked.returncode != 0 and containers.answers(client, surroundings)


def _here(client: str, image: str) -> bool:
    asked = subprocess.run([client, "image", "inspect", image], capture_output=True)
    return asked.returncode == 0


def _laid_over(layer: str, wanted: Wanted, folder: Path, tag: str, run: Callable[..., None]) -> str:
    """Build a Dockerfile of our own on top of what there is; return the image's name."""
    context = folder / "layer"
    context.mkdir()
    (context / "Dockerfile").write_text(layer)
    if wanted.conda:
        (context / "conda.yml").write_text(wanted.conda)
    run(wanted.client, "build", "--tag", tag, str(context))
    shutil.rmtree(context)
    return tag
