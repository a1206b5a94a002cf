"""The lines of a requirements file: which are taken, which are left out, which are refused.

Files that a line names are read from one folder and from nowhere else.  What
the scoring host does itself is left out by name.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from finery.core.errors import Invalid, NotSupported

LARGEST = 1 << 20  # bytes of a file
MOST = 2000  # lines in all
_DEEPEST = 8  # files that name files
# They are the server that our own host takes the place of; the rest of what they bring (the
# SDK v1) is installed where it is asked for by its own name.
SERVERS = {"azureml-defaults", "azureml-inference-server-http"}
_TAKEN = ("--index-url", "--extra-index-url", "--find-links", "--no-binary")
_KEPT = {*_TAKEN, "--only-binary", "--constraint", "--editable", "--requirement"}
BARE = ("--no-index", "--pre", "--no-deps", "--no-build-isolation")  # they take no value
_SHORT = {
    "-i": "--index-url",
    "-f": "--find-links",
    "-c": "--constraint",
    "-e": "--editable",
    "-r": "--requirement",
}
_HARMLESS = {"--trusted-host", "--prefer-binary", "--use-feature", "--require-hashes"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Lines:
    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()


def name(line: str) -> str:
    """Return the package that a line asks for, as the index spells it; empty where none."""
    found = _NAME.match(line)
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""


def read(lines: list[str], *, folder: Path | None = None, where: str) -> Lines:
    """Return the lines to install.  `folder`: where files named in them are; None: nowhere."""
    taken: list[str] = []
    notes: list[str] = []
    for line in _whole(lines, folder, folder, where, 0):
        package = name(line)
        if package in SERVERS:
            notes.append(f"{line}: left out, since Finery's own scoring host does what it does")
        else:
            taken.append(line)
    return Lines(tuple(taken), tuple(notes))


def hidden(text: str) -> str:
    """Return a text with the names and passwords in its addresses left out."""
    return re.sub(r"://[^/@\s]+@", "://****@", text)


def text(path: Path) -> str:
    """Return what a file of a stranger says.  Raises `Invalid` where it is no text, or large."""
    try:
        if path.stat().st_size > LARGEST:
            raise Invalid(f"{path.name} is larger than {LARGEST >> 20} MiB", target=path.name)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise Invalid(f"{path.name} is no text: {exc}", target=path.name) from exc
    except OSError as exc:
        raise Invalid(f"{path.name} cannot be read: {exc.strerror}", target=path.name) from exc


def within(folder: Path | None, path: str, *, base: Path | None, where: str) -> Path:
    """Return a file of the folder.  Raises `Invalid` for one that is not there, or outside."""
    if folder is None or base is None:
        raise NotSupported(
            f"{where}: the file {path!r} did not come with it: write its lines out, or use a "
            "build context",
            target=path,
        )
    try:
        found = (base / path).resolve()
    except (OSError, RuntimeError, ValueError) as exc:  # links that lead in a circle, a zero byte
        raise Invalid(f"{where}: {path[:200]!r} leads nowhere: {exc}", target=path) from exc
    if not found.is_relative_to(folder.resolve()):
        raise Invalid(f"{where}: {path!r} is outside its folder", target=path)
    if not found.exists():
        raise Invalid(f"{where}: there is no {path!r} in its folder", target=path)
    return found


def _whole(
    lines: list[str], folder: Path | None, base: Path | None, where: str, depth: int
) -> list[str]:
    """Return the lines with those of the files that they name in their place."""
    if depth > _DEEPEST:
        raise Invalid(f"{where}: files that name files, more than {_DEEPEST} deep", target=where)
    found: list[str] = []
    for line in _joined(lines):
        if line.startswith("-"):
            found += _option(line, folder, base, where, depth)
        elif re.match(r"\.{0,2}/|file:", line) or line == ".":
            path, _, extras = line.removeprefix("file://").partition("[")
            local = within(folder, path.strip(), base=base, where=where)
            found.append(f"{local}[{extras}" if extras else str(local))
        else:
            found.append(line)
        if len(found) > MOST:
            raise Invalid(f"{where}: more than {MOST} lines", target=where)
    return found


def _option(line: str, folder: Path | None, base: Path | None, where: str, depth: int) -> list[str]:
    """Return the lines that stand for an option's."""
    flag, value = _apart(line)
    if flag in _HARMLESS:
        return []
    if flag not in (*_KEPT, *BARE):
        raise NotSupported(f"{where}: the option {flag} of pip is not known here", target=flag)
    if flag in BARE:
        return [flag]
    if not value:
        raise Invalid(f"{where}: {flag} is given nothing", target=flag)
    if flag == "--requirement":
        path = within(folder, value, base=base, where=where)
        inside = text(path).splitlines()
        return _whole(inside, folder, path.parent, path.name, depth + 1)
    if flag == "--constraint":
        path = within(folder, value, base=base, where=where)
        return [f"--constraint {shlex.quote(str(path))}"]
    if flag == "--editable":
        if "://" in value:
            return [value.replace("#egg=", "#egg=")]
        return [str(within(folder, value, base=base, where=where))]
    if flag == "--find-links" and "://" not in value:
        return [f"--find-links {within(folder, value, base=base, where=where)}"]
    return [f"{flag} {value}"]


def _apart(line: str) -> tuple[str, str]:
    """Return an option's long name and its value."""
    found = re.match(r"(--?[A-Za-z][A-Za-z-]*)(?:\s*=\s*|\s+|$)(.*)", line)
    if found is None:
        return line, ""
    flag, value = found.group(1), found.group(2).strip()
    if not flag.startswith("--") and len(flag) > 2:
        flag, value = flag[:2], f"{flag[2:]}{value}"
    return _SHORT.get(flag, flag), value.strip("'\"")


def _joined(lines: list[str]) -> list[str]:
    """Return the lines without comments, those that go on in the next one joined."""
    text = "\n".join(lines).replace("\\\r\n", " ").replace("\\\n", " ")
    bare = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in text.splitlines())
    return [line for line in bare if line]
