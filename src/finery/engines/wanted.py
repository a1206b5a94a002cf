"""What an environment asks for, in our words: the same for a conda file, a Dockerfile, an image.

`of` reads an environment's spec; the readers are `conda.py`, `dockerfile.py`
and `requirements.py`.  Nothing is installed here (`building.py`), and nothing
of what is read is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finery.core.assets import Asset
from finery.core.errors import Invalid
from finery.engines import conda, dockerfile

Locate = Callable[[str, str], Path]  # (workspace, location) -> where its bytes are


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to build.  Everything that makes a difference to the result is in here."""

    python: str = ""  # a version or a range of them; empty: ours will do
    # One installation after another, each the lines of a requirements file.
    steps: tuple[tuple[str, ...], ...] = ()
    on_ours: bool = False  # begin with a copy of our own packages
    folder: str = ""  # files that the lines name are in here
    conda: str = ""  # the conda file itself, for where a conda program is
    serving: bool = False  # with what the scoring host needs
    variables: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # what is not honoured: shown on the job
    notes: tuple[str, ...] = ()  # what is done in another way: said in the log

    @property
    def ours(self) -> bool:
        """Whether our own interpreter is all that is wanted."""
        return self.on_ours and not self.steps and not self.variables

    def key(self, *about: str) -> str:
        """The name of what is built: equal wishes, equal names.  `about`: what else matters."""
        said = {**asdict(self), "about": about, "files": _digests(self)}
        text = json.dumps(said, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def of(environment: Asset, locate: Locate, *, serving: bool) -> Wanted:
    """Return what an environment asks for where there is no container engine."""
    spec = environment.spec
    match spec.get("kind"):
        case "conda":
            wanted = _of_conda(spec)
        case "build":
            folder = locate(environment.scope, environment.location)
            wanted = _of_context(folder, str(spec.get("dockerfile") or "Dockerfile"))
        case "image":
            wanted = Wanted(on_ours=True, warnings=(_instead(str(spec.get("image"))),))
        case kind:
            raise Invalid(
                f"the environment {environment.name!r} is made from {kind or 'nothing'!r}: give "
                "it a conda file, an image or a build context",
                target="environment",
            )
    return replace(wanted, serving=serving)


def _of_conda(spec: dict[str, Any]) -> Wanted:
    read = conda.read(str(spec["conda"]))
    notes = read.notes
    if image := spec.get("image"):
        notes = (f"the image {image} is not used: the conda file says what is in it", *notes)
    return Wanted(
        python=read.python,
        steps=(read.lines,) if read.lines else (),
        conda=str(spec["conda"]),
        variables=read.variables,
        warnings=read.warnings,
        notes=notes,
    )


def _of_context(folder: Path, path: str) -> Wanted:
    read = dockerfile.read(folder, path)
    return Wanted(
        steps=read.steps,
        on_ours=True,
        folder=str(folder),
        variables=read.variables,
        warnings=(_instead(read.image), *read.warnings),
        notes=read.notes,
    )


def _instead(image: str) -> str:
    return (
        f"no container engine runs here, so that the image {image} is not used: Finery's own "
        "Python packages stand in for its contents"
    )


def _digests(wanted: Wanted) -> list[str]:
    """The contents of the local files that the lines name."""
    found = []
    for line in (line for step in wanted.steps for line in step):
        path = Path(line.removeprefix("-e ").split("[")[0].strip())
        if wanted.folder and path.is_relative_to(wanted.folder):
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            found += [f"{file}:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return found
