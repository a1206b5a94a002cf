"""An environment of packages from the index, made with uv; `building.py` calls it.

PyTorch is the point: the one that is here is shared where it will do, and where
another is needed it is the one for this machine's devices, not the largest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finery.engines import explaining, images, interpreters, requirements, sharing
from finery.engines.interpreters import Chosen
from finery.engines.wanted import Wanted

# Built against one PyTorch each: from the package index they are for CUDA.
_BESIDE_TORCH = ("torchvision", "torchaudio")
# Compiled when they are installed, and by CUDA's compiler.
_COMPILED = {"flash-attn", "apex", "transformer-engine", "causal-conv1d", "mamba-ssm"}
# What a requirements file cannot hold, and a command line can.
_FLAGS = {"--pre": "--prerelease=allow", "--no-deps": "--no-deps"}
_FLAGS |= {"--no-build-isolation": "--no-build-isolation"}

Run = Callable[..., None]


@dataclass
class Making:
    """An environment on its way: what was found out so far."""

    wanted: Wanted
    folder: Path
    run: Run
    say: Callable[[str], None]
    steps: list[list[str]]
    shared: set[str] = field(default_factory=set)  # packages of ours that are in it
    warnings: list[str] = field(default_factory=list)
    anew: set[str] | None = None  # what is going to be installed, by name

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def inside(self) -> Path:
        return Path(self.wanted.folder or self.folder)


def make(wanted: Wanted, folder: Path, *, run: Run, say: Callable[[str], None]) -> dict[str, Any]:
    """Make the environment; return what ready.json says of it."""
    chosen = interpreters.choose(wanted.python, serving=wanted.serving, say=say)
    say(f"Python {chosen.version} in an environment of its own")
    run(interpreters.uv(), "venv", "--quiet", "--python", str(chosen.path), str(folder))
    steps = [[*step, *requirements.unsaid(step)] for step in wanted.steps]
    making = Making(wanted, folder, run, say, steps)
    making.warnings += [*wanted.warnings, *chosen.warnings]
    _leave_out(making)
    if wanted.serving:
        making.steps = [*making.steps[:-1], [*(making.steps or [[]])[-1], *images.HOST]]
    _share(making, chosen)
    try:
        for step in making.steps:
            _install(making, step, same=chosen.same)
    except explaining.Ended as ended:  # old pins may want the old Python, and no other
        ended.add("; ".join(chosen.warnings))
        if wanted.on_ours and "Failed to build" in ended.said:
            ended.add(
                f"the image may have another Python: it is Finery's own, {chosen.version}, here"
            )
        raise
    _settle(making)
    if wanted.on_ours:
        _mend(making)
    _check_beside(making)
    return {
        "warnings": making.warnings,
        "variables": wanted.variables,
        "python": "bin/python",
        "version": chosen.version,
    }


def _leave_out(making: Making) -> None:
    """Leave out what can only be compiled where CUDA's compiler is."""
    if shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists():
        return
    for step in making.steps:
        for line in [line for line in step if requirements.name(line) in _COMPILED]:
            step.remove(line)
            making.warnings.append(
                f"not honoured: {line}: it is compiled with CUDA's compiler (nvcc), which is not "
                "on this machine"
            )


def _share(making: Making, chosen: Chosen) -> None:
    """Have of our packages what the environment may begin with."""
    ours = sharing.packages()
    asked = {requirements.name(line) for step in making.wanted.steps for line in step}
    names: set[str] = set()
    if chosen.same and making.wanted.on_ours:
        names = {*ours}
    elif chosen.same:
        names = sharing.closure(images.HOST, ours) - asked if making.wanted.serving else set()
        if _sharable(making):
            making.anew = _wanted_anew(making)
        if making.anew and "torch" in making.anew:
            names |= sharing.closure(["torch"], ours) - (asked - {"torch"})
            names |= {one for one in ours if sharing.WITH_TORCH.fullmatch(one)}
    if "pip" not in asked:
        names.add("pip")  # jobs call it, and mean their own environment
    making.shared = {*sharing.share(making.folder, sorted(names), python=chosen.version)}


def _sharable(making: Making) -> bool:
    """Say whether our PyTorch is what the lines ask for, where they name it."""
    torch = sharing.packages().get("torch")
    lines = [line for step in making.steps for line in step]
    asked = [line for line in lines if requirements.name(line) == "torch"]
    return torch is not None and all(interpreters.fits(torch, line) for line in asked)


def _wanted_anew(making: Making) -> set[str]:
    """Return what would be installed, by name; nothing where it cannot be."""
    found: set[str] = set()
    for step in making.steps:
        words = _words(making, step, torch=True)
        ran = subprocess.run(
            [interpreters.uv(), *words, "--dry-run"],
            cwd=making.inside,
            capture_output=True,
            text=True,
        )
        if ran.returncode:  # as where no index is to be asked, and ours is all there is
            found |= {"torch"} if explaining.concerns(ran.stderr, "torch") else set()
        lines = ran.stderr.splitlines()
        found |= {m.group(1) for line in lines if (m := re.match(r" \+ ([\w.-]+)==", line))}
    return found


def _words(making: Making, step: list[str], *, torch: bool) -> list[str]:
    """Return uv's words for one step.  `torch`: it is to be the version that is here."""
    file = making.folder / f"requirements-{making.steps.index(step) + 1}.txt"
    file.write_text("\n".join(line for line in step if line not in _FLAGS) + "\n")
    words = ["pip", "install", "--python", making.python, "--requirement", str(file)]
    words += [_FLAGS[line] for line in step if line in _FLAGS]
    if torch:
        kept = making.folder / "constraints.txt"
        kept.write_text(f"torch=={sharing.packages()['torch'].version.partition('+')[0]}\n")
        words += ["--constraint", str(kept)]
    return words


def _install(making: Making, step: list[str], *, same: bool) -> None:
    """Install one step: with the PyTorch that is here, else with one for this machine."""
    if not any(requirements.name(line) for line in step) and not any("/" in one for one in step):
        return
    making.say("installing " + ", ".join(one for one in step if one[:1] != "-")[:2000])
    if "torch" in making.shared and _sharable(making):
        words = _words(making, step, torch=True)
        try:
            return _run(making, [*words, *_backend_beside(making)], otherwise=words)
        except explaining.Ended as ended:
            if not explaining.concerns(ended.said, "torch"):
                raise
            making.say("it does not go with the PyTorch that is here: once more, with another")
    words = _words(making, step, torch=False)
    try:
        return making.run(interpreters.uv(), *words, *_backend("auto"), cwd=making.inside)
    except explaining.Ended as ended:
        if "/torch/" in ended.said and not same:
            raise explaining.Ended(ended.said, _NOT_SHARED) from None
        raise


_NOT_SHARED = (
    f"the PyTorch that is here is for Python {interpreters.OURS}: an environment of that Python "
    "shares it, and any other has to download one"
)


_ASKED_PYTORCH = re.compile(r"https://\S*pytorch\.\w+/")  # in what uv says of an address


def _run(making: Making, words: list[str], *, otherwise: list[str]) -> None:
    """Run uv; where PyTorch's own index does not answer, without it."""
    try:
        making.run(interpreters.uv(), *words, cwd=making.inside)
    except explaining.Ended as ended:
        if words == otherwise or not _ASKED_PYTORCH.search(ended.said):
            raise
        making.say("PyTorch's own index does not answer: once more, from the package index alone")
        making.run(interpreters.uv(), *otherwise, cwd=making.inside)


def _backend_beside(making: Making) -> list[str]:
    """Have what is built against our PyTorch come from where ours comes from."""
    _, _, local = sharing.packages()["torch"].version.partition("+")
    if making.anew is None:
        making.anew = _wanted_anew(making)
    return _backend(local) if local and making.anew & {*_BESIDE_TORCH} else []


def _backend(name: str) -> list[str]:
    """Say which PyTorch is to be downloaded, unless uv is told otherwise already."""
    return [] if "UV_TORCH_BACKEND" in os.environ else ["--torch-backend", name]


def _settle(making: Making) -> None:
    """Drop of what was there to begin with what in the end nothing needs."""
    if making.wanted.on_ours or making.shared <= {"pip"}:
        return
    there = sharing.packages(sharing.site(making.folder))
    asked = [line for step in making.steps for line in step if requirements.name(line)]
    needed = sharing.closure([*asked, "pip", *({*there} - making.shared)], there)
    if "torch" in making.shared & needed:
        making.say("PyTorch is the one that is here already: nothing of it was downloaded")
        needed |= {one for one in there if sharing.WITH_TORCH.fullmatch(one)}
    if extra := sorted(making.shared & {*there} - needed):
        words = ("pip", "uninstall", "--quiet", "--python", making.python)
        making.run(interpreters.uv(), *words, *extra)


def _mend(making: Making) -> None:
    """Bring packages of ours along whose own needs the new ones go against; name the others."""
    broken = _broken(making)
    names = sorted({name for name, _ in broken} & making.shared - {"torch"})
    if names:
        making.say(f"once more, so that these go with what was installed: {', '.join(names)}")
        making.steps.append([*(line for step in making.steps for line in step), *names])
        try:
            _install(making, making.steps[-1], same=True)
        except explaining.Ended:
            making.say("they do not, in any version")
    making.warnings += [f"{said}: what needs it may fail" for _, said in _broken(making)]


def _broken(making: Making) -> list[tuple[str, str]]:
    """Return the packages whose needs are not met, each with what uv says of it."""
    words = [interpreters.uv(), "pip", "check", "--python", making.python]
    ran = subprocess.run(words, capture_output=True, text=True)
    found = re.finditer(r"^The package `([\w.-]+)` .*$", ran.stderr + ran.stdout, re.MULTILINE)
    return [(sharing.name(one.group(1)), one.group()) for one in found]


def _check_beside(making: Making) -> None:
    """Take away a torchvision that does not load: others believe that it does, and fail too."""
    there = sharing.packages(sharing.site(making.folder))
    for name in _BESIDE_TORCH:
        if name not in there or name in making.shared or "torch" not in making.shared:
            continue
        words = [making.python, "-c", f"import {name}"]
        if subprocess.run(words, capture_output=True, cwd=making.folder).returncode:
            making.run(interpreters.uv(), "pip", "uninstall", "--python", making.python, name)
            making.warnings.append(
                f"not honoured: {name}: the one of the package index is built for CUDA and does "
                "not load with the PyTorch that is here, so that it was left out"
            )
