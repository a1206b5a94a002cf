"""A job's own layer over an environment: what its command installs is its own, and no one else's.

A virtual environment with nothing in it but a line that leads to the one below:
pip sees what is there, puts what it installs on top, and can take nothing away.
It costs a hundred small files and no time worth counting.
"""

from __future__ import annotations

import os
from pathlib import Path

_SKIPPED = ("python", "activate", "Activate")
_LARGEST = 1 << 16  # bytes of a script: what is larger is a program


def make(python: Path, folder: Path) -> Path:
    """Lay an environment over the one of this interpreter; return the new interpreter.

    May be done again, and gives the same.
    """
    below = python.parent.parent
    site = next(iter(sorted(below.glob("lib/python*/site-packages"))))
    inside = folder / site.relative_to(below)
    inside.mkdir(parents=True, exist_ok=True)
    (folder / "bin").mkdir(exist_ok=True)
    real = python.resolve()
    for name in ("python", "python3", real.name):
        if not (folder / "bin" / name).exists():
            (folder / "bin" / name).symlink_to(real)
    (folder / "pyvenv.cfg").write_text(
        f"home = {real.parent}\ninclude-system-site-packages = false\n"
    )
    # Added as a site, not as a path: the lines that it has of this kind count too.
    (inside / "below.pth").write_text(f"import site; site.addsitedir({str(site)!r})\n")
    for program in python.parent.iterdir():
        if not program.name.startswith(_SKIPPED):
            _bring(program, folder / "bin")
    return folder / "bin" / "python"


def _bring(program: Path, place: Path) -> None:
    """Have a program of the environment below, run by the interpreter of this one."""
    target = place / program.name
    if target.exists() or not program.is_file():
        return
    text = program.read_bytes() if program.stat().st_size < _LARGEST else b""
    mine = f"#!{program.parent}/python".encode()
    first, _, rest = text.partition(b"\n")
    if first.startswith(mine):
        target.write_bytes(b"#!" + os.fsencode(place / "python") + b"\n" + rest)
        target.chmod(0o755)
    else:
        target.symlink_to(program)
