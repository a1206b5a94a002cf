"""The program that builds one environment: `python -m finery.engines.building WISH FOLDER`.

It is run by the engine as a process of its own, so that it outlives the server
and its log is seen from the first line on.  WISH is a file with what
`wanted.Wanted` says.  FOLDER/ready.json is written last: with it the
environment is whole, without it it is nothing.  Where it cannot be built,
FOLDER is taken away and FOLDER.failed.json says why.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from finery.core.errors import Unavailable
from finery.engines import (
    conda,
    explaining,
    images,
    installing,
    interpreters,
    keeper,
    requirements,
    sharing,
)
from finery.engines.wanted import Wanted

READY = "ready.json"
PROCESS = "environment-"  # what the id of a build's process begins with; its key follows
_PACKAGE = Path(__file__).parents[1]  # of Finery itself


def main() -> None:
    wish, folder = Path(sys.argv[1]), Path(sys.argv[2])
    signal.signal(signal.SIGTERM, _stopped)
    try:
        build(Wanted(**json.loads(wish.read_text())), folder)
    except SystemExit:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as exc:
        shutil.rmtree(folder, ignore_errors=True)
        cause = explaining.cause(exc)
        say(f"failed: {cause.text}")
        failed = {"cause": cause.text, "invalid": cause.invalid}
        keeper.record(str(folder.parent), f"{folder.name}.failed.json", failed)
        raise SystemExit(1) from None


def build(wanted: Wanted, folder: Path) -> None:
    """Make the environment.  Raises what `explaining.cause` can explain."""
    shutil.rmtree(folder, ignore_errors=True)
    for note in wanted.notes:
        say(note)
    if wanted.client:
        ready = images.build(wanted, folder, say=say, run=run)
    elif wanted.by_conda:
        ready = by_conda(wanted, folder)
    else:
        ready = by_uv(wanted, folder)
    for warning in ready["warnings"]:
        say(f"warning: {warning}")
    keeper.record(str(folder), READY, ready, durable=True)
    say("ready")


def by_uv(wanted: Wanted, folder: Path) -> dict[str, Any]:
    """Make an environment of packages of the index, or with conda where that lacks one."""
    try:
        ready = installing.make(wanted, folder, run=run, say=say)
    except explaining.Ended as ended:
        if not wanted.conda or "was not found in the" not in ended.said:
            raise
        if interpreters.conda() is None:
            if not _asked_of_pip(wanted.conda, ended.said):
                ended.add("a package that only conda has needs conda or micromamba on this machine")
            raise
        say("the package index does not have all of it: once more, with conda")
        return by_conda(wanted, folder)
    _let_host_in(wanted, folder)
    return ready


def _asked_of_pip(conda_file: str, said: str) -> bool:
    """Whether all that the index lacks stands in the pip section: conda would be of no help."""
    lacking = {sharing.name(one) for one in explaining.lacking(said)}
    return bool(lacking) and lacking <= {sharing.name(one) for one in conda.of_pip(conda_file)}


def by_conda(wanted: Wanted, folder: Path) -> dict[str, Any]:
    """Make an environment with the conda program of this machine."""
    shutil.rmtree(folder, ignore_errors=True)
    program = interpreters.conda()
    if program is None:
        raise Unavailable("conda or micromamba was here when it was asked for, and is gone")
    given = folder.with_name(f"{folder.name}.conda.yml")
    given.write_text(wanted.conda)
    create = ["create", "--yes"] if Path(program).name == "micromamba" else ["env", "create"]
    try:
        run(program, *create, "--prefix", str(folder), "--file", str(given))
    finally:
        given.unlink()
    if wanted.serving:
        words = ("pip", "install", "--python", str(folder / "bin" / "python"), *images.HOST)
        run(interpreters.uv(), *words)
    _let_host_in(wanted, folder)
    return {
        "warnings": [*wanted.warnings],
        "variables": wanted.variables,
        "python": "bin/python",
    }


def run(*words: str, cwd: Path | None = None) -> None:
    """Run a program, its words in the log.  Raises `Ended` with them where it fails."""
    ran = subprocess.Popen(
        words,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said = []
    assert ran.stdout is not None
    for line in map(requirements.hidden, ran.stdout):
        say(line.rstrip("\n"))
        said.append(line)
    if ran.wait():
        raise explaining.Ended(explaining.telling(said))


def say(line: str) -> None:
    print(requirements.hidden(line), flush=True)


def _let_host_in(wanted: Wanted, folder: Path) -> None:
    """Have the scoring host, and nothing else of ours, importable where it is to run."""
    if wanted.serving:
        host = folder / "host"
        host.mkdir()
        (host / "finery").symlink_to(_PACKAGE)
        (sharing.site(folder) / "finery-host.pth").write_text(f"{host}\n")


def _stopped(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    os.umask(0o077)
    main()
