"""Which Python an environment gets: the asked one where it can be had, else ours.

Ours is taken where it will do.  Then those of this machine are looked through,
and then uv is asked to fetch one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from finery.core.errors import Invalid

OURS = ".".join(str(part) for part in sys.version_info[:3])
OLDEST_HOST = Version("3.10")  # the scoring host is written for this Python and later ones
CONDA = ("micromamba", "mamba", "conda")  # the fastest first
_MINORS = [f"3.{minor}" for minor in range(15, 6, -1)]


@dataclass(frozen=True)
class Chosen:
    path: Path
    version: str
    same: bool  # as ours, so that packages can be shared
    warnings: tuple[str, ...] = ()


def uv() -> str:
    """Return where uv is.  Raises `Invalid` where it is not."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise Invalid("uv is not installed, and builds environments: pip install uv")
    return found


def conda(path: str | None = None) -> str | None:
    """Return where a program is that makes conda environments; None where none is."""
    return next((found for name in CONDA if (found := shutil.which(name, path=path))), None)


def choose(asked: str, *, serving: bool, say: Callable[[str], None]) -> Chosen:
    """Return the interpreter for what is asked, as in ">=3.8" or "==3.10.*"."""
    wanted = _range(asked)
    if wanted.contains(OURS, prereleases=True):
        return _ours()
    fitting = [minor for minor in _MINORS if _could(wanted, minor)]
    if serving and fitting and max(Version(one) for one in fitting) < OLDEST_HOST:
        return _ours(
            f"Python {asked} was asked for, and the scoring host needs {OLDEST_HOST} or later: it "
            f"is Python {OURS} here"
        )
    for minor in fitting:
        for path in _here(minor):
            version = _version(path)
            if version and wanted.contains(version):
                return Chosen(path, version, same=False)
    fetched = _fetched(asked, fitting, say)
    if fetched is not None:
        return fetched
    return _ours(
        f"Python {asked} was asked for, and is neither on this machine nor to be fetched: it is "
        f"Python {OURS} here"
    )


def suits(asked: str) -> bool:
    """Say whether our own Python is what is asked for."""
    return _range(asked).contains(OURS, prereleases=True)


def fits(ours: Distribution | None, line: str) -> bool:
    """Say whether a package of ours is what a line of a requirements file asks for."""
    if ours is None:
        return False
    try:
        asked = Requirement(line.partition(" --")[0])
    except InvalidRequirement:
        return False
    return not asked.url and asked.specifier.contains(ours.version, prereleases=True)


def _range(asked: str) -> SpecifierSet:
    try:
        return SpecifierSet(asked)
    except InvalidSpecifier as exc:
        raise Invalid(f"the asked Python version {asked!r} is no version: {exc}") from exc


def _ours(*warnings: str) -> Chosen:
    return Chosen(Path(sys.executable), OURS, same=True, warnings=warnings)


def _could(wanted: SpecifierSet, minor: str) -> bool:
    """Say whether some release of 3.x is among those that are wanted."""
    return any(wanted.contains(f"{minor}.{patch}") for patch in range(30))


def _here(minor: str) -> list[Path]:
    """Return the interpreters of a version that this machine may have."""
    found = shutil.which(f"python{minor}")
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    kept = sorted(versions.glob(f"{minor}.*/bin/python{minor}"), reverse=True)
    return [Path(found), *kept] if found else kept


def _version(path: Path) -> str:
    """Return the version of an interpreter; empty where it does not run, or has no venv."""
    words = [str(path), "-I", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    said = ran.stdout.strip()
    return said if re.fullmatch(r"\d+\.\d+\.\d+", said) and ran.returncode == 0 else ""


def _fetched(asked: str, fitting: list[str], say: Callable[[str], None]) -> Chosen | None:
    exact = re.fullmatch(r"==\s*(\d+\.\d+\.\d+)", asked)
    for wish in [exact.group(1)] if exact else fitting[:1]:
        say(f"Python {wish} is not on this machine: uv is asked for it")
        env = {"UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "30", **os.environ}
        for words in (["python", "install", wish], ["python", "find", "--no-project", wish]):
            ran = subprocess.run([uv(), *words], capture_output=True, text=True, env=env)
            if ran.returncode:
                say(ran.stderr.strip()[-1000:])
                return None
        path = Path(ran.stdout.strip())
        return Chosen(path, _version(path), same=False)
    return None
