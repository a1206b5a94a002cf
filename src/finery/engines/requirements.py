"""The lines of a requirements file: which are taken, which are left out, which are refused.

Files that a line names are read from one folder and from nowhere else.  What
the scoring host does itself is left out by name.
"""

from __future__ import annotations

import re
import shlex
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from finery.core.errors import Invalid, NotSupported

LARGEST = 1 << 20  # bytes of a file
MOST = 2000  # lines in all
_LONGEST = 64 << 10  # characters of a line
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
_NAMED = re.compile(r"[A-Za-z0-9][\w.-]*\s*(?:\[[^\]]*\]\s*)?@\s*")  # name @ where
_ENDS = re.compile(r"[\[;#]|\s--")  # extras, a marker, a fragment, an option: the path is before it
_PACKED = re.compile(r"\.(whl|egg|zip|tar|tgz|tbz|txz|tar\.\w+)$", re.IGNORECASE)
_WEB = re.compile(r"https?://", re.IGNORECASE)
# Before this one MLflow imports `pkg_resources` without asking for it: it came with every Python,
# and neither an environment of uv's nor setuptools from 82 on has it.
_MLFLOW_WITHOUT = Version("2.16")


@dataclass(frozen=True)
class Lines:
    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()
    characters: int = 0  # that were read for them, in files too


def name(line: str) -> str:
    """Return the package that a line asks for, as the index spells it; empty where none."""
    found = _NAME.match(line)
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""


def read(lines: list[str], *, folder: Path | None = None, where: str) -> Lines:
    """Return the lines to install.  `folder`: where files named in them are; None: nowhere."""
    taken: list[str] = []
    notes: list[str] = []
    reading = _Reading(folder)
    for line in reading.whole(lines, folder, where):
        package = name(line)
        if package in SERVERS:
            notes.append(f"{line}: left out, since Finery's own scoring host does what it does")
        else:
            taken.append(line)
    return Lines(tuple(taken), tuple(notes), reading.characters)


def unsaid(lines: Iterable[str]) -> list[str]:
    """Return the lines for what these need, and what they name does not ask for."""
    listed = [*lines]
    wanted = any(_old_mlflow(line) for line in listed) and "setuptools" not in map(name, listed)
    return ["setuptools<81"] if wanted else []


def _old_mlflow(line: str) -> bool:
    if name(line) not in ("mlflow", "mlflow-skinny"):
        return False
    try:
        asked = Requirement(line.partition(" --")[0]).specifier
        most = [one.version.removesuffix(".*") for one in asked if one.operator[0] in "=<~"]
        return any(Version(one) < _MLFLOW_WITHOUT for one in most)
    except (InvalidRequirement, ValueError, RecursionError):  # the installer will say
        return False


def hidden(text: str) -> str:
    """Return a text with the names and passwords in its addresses left out."""
    return re.sub(r"://[^/@\s]+@", "://****@", text)


def text(path: Path, *, largest: int = LARGEST) -> str:
    """Return what a file of a stranger says.  Raises `Invalid` where it is no text, or large."""
    try:
        told = path.stat()
        if not stat.S_ISREG(told.st_mode):  # a pipe would never say anything
            raise Invalid(f"{path.name} is no file", target=path.name)
        if told.st_size > largest:
            raise Invalid(f"{path.name} is larger than {largest >> 20} MiB", target=path.name)
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
        inside = str(found.relative_to(folder.resolve()))
        raise Invalid(f"{where}: there is no {inside!r} in its folder", target=inside)
    return found


def apart_file(line: str) -> tuple[str, str, str] | None:
    """Return what is before a line's local file, its path, and what is after; None: it has none.

    `dir/x.whl`, `./dir[extra]`, `name @ file:///x.whl ; marker`: a path is a path
    with or without a name before it.
    """
    found = _NAMED.match(line)
    before = found.group() if found else ""
    rest = line[len(before) :]
    ends = _ENDS.search(rest)
    path, after = (rest[: ends.start()], rest[ends.start() :]) if ends else (rest, "")
    path = path.strip().strip("'\"")
    scheme, given, below = path.partition(":")
    if given and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        if scheme.lower() == "file":
            return before, unquote(re.sub(r"^//(localhost(?=/))?", "", below)), after.strip()
        if "file" in scheme.lower().split("+"):
            raise NotSupported(f"{path[:200]!r}: a repository of this machine", target=path[:200])
        return None
    if before or "/" in path or path in (".", "..") or _PACKED.search(path):
        return before, path, after.strip()
    return None


def local(line: str) -> Path | None:
    """Return the file or folder of this machine that a line which `read` returned names."""
    flag, value = _apart(line) if line.startswith("-") else ("", "")
    if flag == "--constraint":
        return Path(shlex.split(line)[1])
    if flag == "--find-links":
        return None if "://" in value else Path(value)
    found = None if flag else apart_file(line)
    return Path(found[1]) if found else None


@dataclass
class _Reading:
    """Lines on their way: where files are looked for, and how much was read so far."""

    folder: Path | None
    lines: int = 0
    characters: int = 0

    def whole(self, lines: list[str], base: Path | None, where: str, depth: int = 0) -> list[str]:
        """Return the lines with those of the files that they name in their place."""
        if depth > _DEEPEST:
            raise Invalid(
                f"{where}: files that name files, more than {_DEEPEST} deep", target=where
            )
        # A file that is named again is read again: what counts is what is read, not what is kept.
        self.characters += sum(map(len, lines))
        if self.characters > 2 * LARGEST:
            raise Invalid(f"{where}: more than {2 * LARGEST >> 20} MiB of lines", target=where)
        found: list[str] = []
        for line in _joined(lines):
            self.lines += 1
            if self.lines > MOST or len(line) > _LONGEST:
                raise Invalid(
                    f"{where}: more than {MOST} lines, or one of more than {_LONGEST} characters",
                    target=where,
                )
            if "${" in line:
                raise NotSupported(
                    f"{where}: {hidden(line)[:200]!r}: variables are not filled in here",
                    target=where,
                )
            if line.startswith("-"):
                found += self.option(line, base, where, depth)
            else:
                found.append(self.placed(line, base, where))
        return found

    def placed(self, line: str, base: Path | None, where: str) -> str:
        """Return a line with the whole path of its local file, which is in the folder."""
        apart = apart_file(line)
        if apart is None:
            return line
        before, path, after = apart
        found = within(self.folder, path, base=base, where=where)
        said = f"{before}file://{quote(str(found))}" if before else str(found)
        return f"{said}{after if after[:1] in ('[', '#') else f' {after}'}".rstrip()

    def option(self, line: str, base: Path | None, where: str, depth: int) -> list[str]:
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
        match flag:
            case "--requirement":
                path = within(self.folder, value, base=base, where=where)
                return self.whole(text(path).splitlines(), path.parent, path.name, depth + 1)
            case "--constraint":
                path = within(self.folder, value, base=base, where=where)
                self.versions(path, depth + 1)
                return [f"--constraint {shlex.quote(str(path))}"]
            case "--editable":
                folder = "" if "/" in value else "./"  # -e here: a folder, and no package
                return [self.placed(f"{folder}{value}", base, where)]
            case "--find-links" | "--index-url" | "--extra-index-url" if not _WEB.match(value):
                if flag != "--find-links":
                    raise NotSupported(
                        f"{where}: {flag} takes an address that begins with https://", target=flag
                    )
                apart = apart_file(value) or ("", value, "")
                return [f"{flag} {within(self.folder, apart[1], base=base, where=where)}"]
        return [f"{flag} {value}"]

    def versions(self, path: Path, depth: int) -> None:
        """Check a file of constraints, which is installed from as it is: it may name no other."""
        for line in self.whole(text(path).splitlines(), path.parent, path.name, depth):
            if line.startswith(("--constraint", "--find-links")) or local(line):
                raise NotSupported(
                    f"{path.name}: a file of constraints names versions, and no files",
                    target=path.name,
                )


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
