"""What an environment asks for, in our words: the same for a conda file, a Dockerfile, an image.

`of` reads an environment's spec; its readers are `conda.py`, `dockerfile.py`,
`mlmodel.py` and `requirements.py`.  Nothing is installed here (`building.py`), and nothing
of what is read is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from finery.core.assets import Asset
from finery.core.errors import Failure, Invalid
from finery.engines import conda, dockerfile, interpreters, mlmodel, requirements, sharing

MOST_TOLD = 50  # warnings of one model
_LARGE = 16 << 20  # bytes of a file
Locate = Callable[[str, str], Path]  # (workspace, location) -> where its bytes are


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to build.  Everything that makes a difference to the result is in here."""

    python: str = ""  # a version or a range of them; empty: ours will do
    # One installation after another, each the lines of a requirements file.
    steps: tuple[tuple[str, ...], ...] = ()
    on_ours: bool = False  # begin with a copy of our own packages
    folder: str = ""  # files that the lines name are in here; for a container, its context
    conda: str = ""  # the conda file itself
    by_conda: bool = False  # some of it only conda has
    client: str = ""  # of the container engine that is to build it; empty: no container
    image: str = ""  # to begin with, in a container
    dockerfile: str = ""  # in the folder, for a container
    serving: bool = False  # with what the scoring host needs
    variables: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # what is not honoured: shown on the job
    notes: tuple[str, ...] = ()  # what is done in another way: said in the log

    @property
    def ours(self) -> bool:
        """Whether our own interpreter is all that is wanted."""
        return self.on_ours and all(sharing.satisfied(step) for step in self.steps)

    def key(self, *about: str) -> str:
        """The name of what is built: equal wishes, equal names.  `about`: what else matters."""
        said = {**asdict(self), "about": about, "files": _digests(self)}
        text = json.dumps(said, sort_keys=True)
        if self.folder:  # what is in it counts, and not where it is
            for folder in (str(Path(self.folder).resolve()), self.folder):
                text = text.replace(json.dumps(folder)[1:-1], ".")
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def of(
    environment: Asset, locate: Locate, *, serving: bool, client: str = "", conda_here: bool = False
) -> Wanted:
    """Return what an environment asks for.

    `client`: of a container engine that runs here; `conda_here`: whether a conda
    program is.
    """
    spec = environment.spec
    image = str(spec.get("image") or "")
    match spec.get("kind"):
        case "conda" if client and image:
            wanted = Wanted(client=client, image=image, conda=str(spec["conda"]))
        case "conda":
            wanted = _of_conda(str(spec["conda"]), image, conda_here)
        case "build":
            folder = locate(environment.scope, environment.location)
            path = str(spec.get("dockerfile") or "Dockerfile")
            wanted = _of_context(folder, path, client)
        case "image" if client:
            wanted = Wanted(client=client, image=image)
        case "image":
            wanted = Wanted(on_ours=True, warnings=(_instead(image),))
        case kind:
            raise Invalid(
                f"the environment {environment.name!r} is made from {kind or 'nothing'!r}: give "
                "it a conda file, an image or a build context",
                target="environment",
            )
    return replace(wanted, serving=serving)


def of_model(model: Path, *, serving: bool, conda_here: bool = False, own: bool = False) -> Wanted:
    """Return what an MLflow model asks for itself; ours, where that is what it would get.

    `own`: it is to be ours whatever it asks for, with a warning for each line that ours is not,
    or of why its files cannot be read.
    """
    try:
        read = mlmodel.read(model)
        lacking = _lacking(read.asks) if read else []
    except Failure as exc:
        if not own:
            raise
        told = f"not honoured: what the model asks for: {exc}"
        return Wanted(on_ours=True, serving=serving, warnings=(told,))
    if read is None:
        return Wanted(on_ours=True, serving=serving)
    asks = read.asks
    wanted = Wanted(variables=asks.variables, notes=asks.notes, serving=serving)
    named = [line for line in asks.lines if requirements.local(line) is not None]
    by_conda = conda_here and asks.by_conda and bool(read.conda)
    if own or not (lacking or by_conda):
        return replace(wanted, on_ours=True, warnings=(*asks.warnings, *lacking))
    return replace(
        wanted,
        python=asks.python,
        steps=(asks.lines,) if asks.lines else (),
        conda=read.conda,
        by_conda=by_conda,
        folder=str(read.folder) if named else "",
        warnings=() if by_conda else asks.warnings,
    )


def _lacking(asks: conda.Read) -> list[str]:
    """Return, as warnings, what a model asks for and our own interpreter is not."""
    found = []
    if not interpreters.suits(asks.python):
        found.append(
            f"not honoured: the model asks for Python {asks.python}, and it is {interpreters.OURS}"
        )
    for line in asks.lines:
        # What a file of constraints says is for the installer to read.
        if line.startswith("--constraint") or not sharing.satisfied([line]):
            one = sharing.packages().get(requirements.name(line))
            here = f"{one.name} {one.version} is here" if one else "it is not here"
            found.append(f"not honoured: the model's {_said(line)}: {here}")
    return found[:MOST_TOLD]


def _said(line: str) -> str:
    """Return a line as its writer knows it: without where its file is on this machine."""
    path = requirements.local(line)
    return path.name if path is not None else requirements.hidden(line)[:200]


def _of_conda(text: str, image: str, conda_here: bool) -> Wanted:
    read = conda.read(text)
    notes = read.notes
    if image:
        notes = (f"the image {image} is not used: the conda file says what is in it", *notes)
    by_conda = conda_here and read.by_conda
    return Wanted(
        python=read.python,
        steps=(read.lines,) if read.lines else (),
        conda=text,
        by_conda=by_conda,
        variables=read.variables,
        warnings=() if by_conda else read.warnings,
        notes=notes,
    )


def _of_context(folder: Path, path: str, client: str) -> Wanted:
    if client:
        requirements.within(folder, path, base=folder, where="the build context")
        return Wanted(client=client, folder=str(folder), dockerfile=path)
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
    """What the local files say that the lines name; the whole context of a container."""
    if not wanted.folder:
        return []
    inside = Path(wanted.folder).resolve()  # as `requirements.within` says paths
    named = [inside] if wanted.client else []
    for line in (line for step in wanted.steps for line in step):
        path = requirements.local(line)
        named += [path] if path is not None and path.is_relative_to(inside) else []
    found: list[str] = []
    for path in named:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        found += [f"{file.relative_to(inside)} {_digest(file)}" for file in files]
    return found


def _digest(file: Path) -> str:
    """What a file says; of a large one only its size and date, since this is asked in a hurry."""
    told = file.stat()
    if told.st_size > _LARGE:
        return f"{told.st_size} {told.st_mtime_ns}"
    return hashlib.sha256(file.read_bytes()).hexdigest()
