"""`finery doctor`: what this machine has, and what that makes possible or not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from finery.core.errors import Failure
from finery.engines import containers, interpreters, machine

# Optional packages and what each is for.
_PACKAGES = {
    "deepspeed": "training over several GPUs in stages",
    "psycopg": "PostgreSQL instead of SQLite",
}
_NEEDED = ("torch", "transformers", "trl", "peft", "accelerate", "mlflow", "fastapi")
_PHI_3_MINI = 8e9  # bytes of disk for the weights


def examine(home: Path) -> dict[str, Any]:
    """Return what is here, and a list of findings: (good, text)."""
    existing = next(path for path in (home, *home.parents) if path.exists())
    disk = shutil.disk_usage(existing)
    gpus = len(machine.devices(os.environ))
    engine = containers.find(os.environ)
    clients = [name for name in containers.PROGRAMS if shutil.which(name)]
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "cpus": machine.cpus(),
        "memory": machine.memory(),
        "gpus": gpus,
        "disk_free": disk.free,
        "home": str(home),
        "container_engines": [os.path.basename(engine)] if engine else [],
        "container_clients": clients,
        "conda": interpreters.conda(),
        "uv": _uv(),
        "packages": {name: _version(name) for name in (*_NEEDED, *_PACKAGES)},
    }
    return {**found, "findings": _findings(found)}


def show(found: dict[str, Any]) -> None:
    print(f"python    {found['python']}")
    print(f"cores     {found['cpus']}")
    print(f"memory    {found['memory'] / 2**30:.1f} GiB")
    print(f"GPUs      {found['gpus']}")
    print(f"disk      {found['disk_free'] / 2**30:.1f} GiB free at {found['home']}")
    for name, version in found["packages"].items():
        print(f"{name:<13} {version or '-'}")
    print()
    for finding in found["findings"]:
        print(("ok   " if finding["good"] else "note ") + finding["text"])


def _findings(found: dict[str, Any]) -> list[dict[str, Any]]:
    missing = [name for name in _NEEDED if not found["packages"][name]]
    lines = [
        (
            not missing,
            "everything that Finery needs is installed"
            if not missing
            else f"missing: {', '.join(missing)}: run `make setup`",
        ),
        (
            found["gpus"] > 0,
            f"{found['gpus']} GPU(s): real models can be tuned here"
            if found["gpus"]
            else "no GPU: small models (`finery up --models tiny`) are tuned in a minute; a real "
            "Phi-3-mini answers at a few tokens per second and is not for tuning here",
        ),
        (
            found["disk_free"] > 2 * _PHI_3_MINI,
            "there is room for a real model's weights"
            if found["disk_free"] > 2 * _PHI_3_MINI
            else "less than 16 GB of disk are free: too little to tune a Phi-3-mini",
        ),
        _containers(found),
        (
            bool(found["uv"]),
            "uv is here: environments are built from conda files and requirements"
            if found["uv"]
            else "uv is not installed, and builds environments: pip install uv",
        ),
        (
            bool(found["conda"]),
            f"{found['conda']}: conda files get what only conda has"
            if found["conda"]
            else "no conda or micromamba: of a conda file the packages of the Python index are "
            "installed, and what only conda has is named and left out",
        ),
    ]
    for name, use in _PACKAGES.items():
        version = found["packages"][name]
        said = f"{name} {version}: {use}" if version else f"{name} is not installed: no {use}"
        lines.append((bool(version), said))
    return [{"good": good, "text": text} for good, text in lines]


def _containers(found: dict[str, Any]) -> tuple[bool, str]:
    if found["container_engines"]:
        engine = found["container_engines"][0]
        return True, f"{engine} runs: images and Docker contexts become containers"
    instead = (
        "of a Docker context the pip and conda lines are honoured, on top of Finery's own packages"
    )
    if found["container_clients"]:
        clients = " and ".join(found["container_clients"])
        return False, f"{clients} is installed and its engine does not run: {instead}"
    return False, f"no container engine: {instead}"


def _uv() -> str | None:
    try:
        return interpreters.uv()
    except Failure:
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
