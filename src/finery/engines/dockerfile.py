"""A Dockerfile read, not built: what it installs with pip or conda, and all that it does besides.

For machines without a container engine.  Only `pip install`, `uv pip install`,
`conda install` and `conda env` can be honoured; every other line that does
something is named, with its number.  Nothing of it is executed here.
"""

from __future__ import annotations

import posixpath
import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from finery.core.errors import Invalid
from finery.engines import conda, requirements, shell

MOST_WARNINGS = 30
_MOST_STEPS = 200  # pip and conda installations
_MOST_LINES = 5000  # instructions
_MOST_WORK = 4 << 20  # in all: characters filled in and read, files copied, places looked at
_LARGEST = 256 << 10  # characters of an instruction
_MOST_HEREDOCS = 20  # of an instruction
_DEEPEST = 1000  # characters of a working directory
_LONGEST = 160  # characters of a line that is quoted
_WORD = re.compile(r"\$(?:\{(\w+)(?::?-([^}]{0,1000}))?\}|(\w+))")
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_SILENT = {"LABEL", "MAINTAINER", "EXPOSE", "SHELL", "STOPSIGNAL"}  # a job misses nothing by them
_BEFORE = {"sudo", "exec", "if", "then", "else", "elif", "do", "while", "until", "!", "{", "time"}
# Commands that leave nothing that a job could miss.
_IDLE = {
    "rm",
    "true",
    ":",
    "set",
    "echo",
    "cd",
    "mkdir",
    "export",
    "ls",
    "cat",
    "which",
    "fi",
    "done",
    "}",
    "[",
    "test",
}
_FLAGS = (  # of pip install, and nothing changes without them
    *("--no-cache-dir", "--no-cache", "--upgrade", "-U", "--quiet", "-q", "-qq", "--user", "-v"),
    *("--system", "--ignore-installed", "-I", "--force-reinstall", "--disable-pip-version-check"),
    *("--no-warn-script-location", "--prefer-binary", "--break-system-packages", "--no-input"),
    *("--verbose", "--no-compile", "--compile", "--no-python-version-warning", "--reinstall"),
    *("--compile-bytecode", "--upgrade-strategy=eager", "--upgrade-strategy=only-if-needed"),
)
_VALUED = (  # the same, with a value
    *("--timeout", "--default-timeout", "--retries", "--trusted-host", "--progress-bar"),
    *("--root-user-action", "--cache-dir", "--python", "--upgrade-strategy", "--cert", "--proxy"),
)
_CARRIED = (  # options that a requirements file can hold
    *("-r", "--requirement", "-c", "--constraint", "-i", "--index-url", "--extra-index-url"),
    *("-f", "--find-links", "--no-binary", "--only-binary", "-e", "--editable"),
)


@dataclass(frozen=True)
class Instruction:
    line: int
    word: str
    rest: str


@dataclass
class Read:
    """What a Dockerfile comes to; filled in as it is read."""

    folder: Path
    name: str
    image: str = ""
    steps: tuple[tuple[str, ...], ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    arguments: dict[str, str] = field(default_factory=dict)
    stands: str = "/"  # its working directory
    copied: dict[str, str] = field(default_factory=dict)  # path in the image -> in the context
    installations: int = 0
    work: int = 0  # what reading has cost so far
    untold: int = 0  # warnings past the most that are told

    def spend(self, work: int) -> None:
        """Say what a step of reading costs: a small file can ask for an endless one."""
        self.work += work
        if self.work > _MOST_WORK:
            raise Invalid(f"{self.name} asks for more than can be read in reasonable time")

    def missed(self, one: Instruction, what: str, why: str = "") -> None:
        if len(self.warnings) >= MOST_WARNINGS:
            self.untold += 1
            return
        said = f"not honoured: {self.name} line {one.line}: {_short(what)}"
        self.warnings += (f"{said}: {why}" if why else said,)

    def filled(self, text: str) -> str:
        """Return a text with what ENV and ARG say in the place of their names."""
        known = self.arguments | self.variables

        def value(match: re.Match[str]) -> str:
            return known.get(match.group(1) or match.group(3), match.group(2) or "")

        for match in _WORD.finditer(text):  # ENV A=$A$A, often enough, would be endless
            self.spend(1 + len(value(match)))
        return _WORD.sub(value, text)

    def enter(self, path: str) -> None:
        """Make a path the working directory."""
        self.stands = posixpath.join(self.stands, path)
        if len(self.stands) > _DEEPEST:
            raise Invalid(f"{self.name}: a working directory of more than {_DEEPEST} characters")


def read(folder: Path, path: str) -> Read:
    """Return what the Dockerfile at `path` of a context asks for."""
    file = requirements.within(folder, path, base=folder, where="the build context")
    found = Read(folder, posixpath.basename(path))
    instructions = parse(requirements.text(file), found.name)
    for one in _last_stage(instructions, found):
        _take(one, found)
    if more := found.untold + max(0, len(found.warnings) - MOST_WARNINGS):
        found.warnings = (*found.warnings[:MOST_WARNINGS], f"and {more} lines more of {found.name}")
    return found


def parse(text: str, name: str) -> list[Instruction]:
    """Return the instructions: comments out, lines that go on joined, here-documents in."""
    found = re.match(r"(?:#\s*\w+\s*=.*\n)*?#\s*escape\s*=\s*`", text, re.IGNORECASE)
    escape = "`" if found else "\\"
    lines = text.splitlines()
    instructions: list[Instruction] = []
    at = 0
    while at < len(lines):
        begun, line = at, lines[at].strip()
        at += 1
        if not line or line.startswith("#"):
            continue
        pieces = [line]
        while pieces[-1].endswith(escape) and at < len(lines):
            more = lines[at].strip()
            at += 1
            if more and not more.startswith("#"):  # a comment between them is left out
                pieces[-1] = pieces[-1][:-1].rstrip()
                pieces.append(more)
        line = " ".join(pieces)
        word, _, rest = line.partition(" ")
        ends = _HEREDOC.findall(rest) if word.upper() in ("RUN", "COPY", "ADD") else []
        if len(line) > _LARGEST or len(instructions) >= _MOST_LINES or len(ends) > _MOST_HEREDOCS:
            raise Invalid(f"{name} line {begun + 1}: an instruction too long, or one too many")
        for _, end in ends:
            inside = []
            while at < len(lines) and lines[at].strip() != end:
                inside.append(lines[at])
                at += 1
            at += 1
            rest = f"{_HEREDOC.sub('', rest, count=1)}\n" + "\n".join(inside)
        if not re.fullmatch(r"[A-Za-z]+", word):
            raise Invalid(f"{name} line {begun + 1} is no instruction: {_short(line)}")
        instructions.append(Instruction(begun + 1, word.upper(), rest.strip()))
    return instructions


def _last_stage(instructions: list[Instruction], found: Read) -> list[Instruction]:
    """Return the instructions of the last stage and of the stages that it stands on."""
    stages: dict[str, tuple[str, list[Instruction]]] = {}
    last = ""
    for one in instructions:
        if one.word == "FROM":
            words = [w for w in found.filled(one.rest).split() if not w.startswith("--")]
            if not words:
                raise Invalid(f"{found.name} line {one.line}: FROM names no image")
            last = words[2].lower() if len(words) > 2 else f"stage {len(stages)}"
            stages[last] = (words[0], [one])
        elif last:
            stages[last][1].append(one)
        elif one.word == "ARG":
            _argument(one, found)
        else:
            raise Invalid(f"{found.name} line {one.line}: {one.word} comes before FROM")
    if not last:
        raise Invalid(f"{found.name} has no FROM: it says nothing to build")
    chain: list[Instruction] = []
    image = last
    while image.lower() in stages:
        image, inside = stages.pop(image.lower())
        chain = [*inside, *chain]
    found.image = image
    return chain


def _take(one: Instruction, found: Read) -> None:
    match one.word:
        case "ENV":
            _variable(one, found)
        case "ARG":
            _argument(one, found)
        case "WORKDIR":
            found.enter(found.filled(one.rest))
        case "COPY" | "ADD":
            _copy(one, found)
        case "RUN":
            _run(one, found)
        case "USER" if one.rest.strip().split(":")[0] in ("root", "0"):
            pass  # a process here is whoever runs the server, who may be anyone
        case word if word not in _SILENT and word != "FROM":
            found.missed(one, f"{one.word} {one.rest}")


def _variable(one: Instruction, found: Read) -> None:
    if re.match(r"\w+\s*=", one.rest):
        pairs = [word.partition("=")[::2] for word in shell.words(one.rest)]
    else:
        pairs = [one.rest.partition(" ")[::2]]  # the old way: ENV NAME value
    for name, value in pairs:
        said = found.filled(value)
        if name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME"):
            found.missed(one, f"ENV {name}", "it names places of the image")
        elif re.fullmatch(r"[A-Za-z_]\w*", name):
            found.variables[name] = said


def _argument(one: Instruction, found: Read) -> None:
    for word in shell.words(one.rest):
        name, given, value = word.partition("=")
        if given:
            found.arguments[name] = found.filled(value)


def _copy(one: Instruction, found: Read) -> None:
    """Remember where files come to lie; only those that pip is given can be honoured."""
    words = shell.words(found.filled(one.rest.partition("\n")[0]))
    if any(word.startswith("--from") for word in words) or one.rest.startswith("["):
        return found.missed(one, f"{one.word} {one.rest}")
    words = [word for word in words if not word.startswith("--")]
    *sources, target = words or [""]
    place = posixpath.join(found.stands, target)
    for source in sources:
        inside = found.folder / source.lstrip("/")
        if any(mark in source for mark in "*?["):
            within = "" if ".." in source.split("/") else source.lstrip("/")
            # As in Docker, ** means no more than *: and it is quick.
            for file in found.folder.glob(re.sub(r"\*+", "*", within) or "*"):
                found.spend(100)
                if not file.is_file():
                    continue
                found.copied[posixpath.join(place, file.name)] = str(file)
        elif inside.is_dir():
            found.copied[posixpath.normpath(place)] = str(inside)
        else:
            folder = target.endswith("/") or target in (".", "..") or len(sources) > 1
            name = posixpath.join(place, posixpath.basename(source)) if folder else place
            found.copied[posixpath.normpath(name)] = str(inside)
    if not all(re.search(r"(requirements|conda|env|constraints)[\w.-]*\.(txt|in|ya?ml)$", s)
               for s in sources):  # fmt: skip
        found.missed(one, f"{one.word} {one.rest}", "jobs bring their own files")
    return None


def _run(one: Instruction, found: Read) -> None:
    text = re.sub(r"^(--\w+(=\S+)?\s+)+", "", one.rest)
    if text.startswith("["):
        text = shell.listed(text)
    for command in shell.commands(found.filled(text) if "$(" not in text else text):
        _command(one, command, found)


def _command(one: Instruction, words: list[str], found: Read) -> None:
    whole = " ".join(words)
    begin = (n for n, w in enumerate(words) if w not in _BEFORE and not re.match(r"\w+=", w))
    words = words[next(begin, len(words)) :]
    if not words:
        return None
    if words[0] == "cd" and len(words) > 1:
        found.enter(words[1])
    rest = shell.installer(words)
    if rest is not None:
        return _pip(one, whole, rest, found)
    program = posixpath.basename(words[0])
    if program in ("conda", "mamba", "micromamba"):
        return _conda(one, whole, words[1:], found)
    if program in _IDLE or whole.startswith(("apt-get clean", "apt clean")):
        return None
    return found.missed(one, whole)


def _pip(one: Instruction, whole: str, words: list[str], found: Read) -> None:
    where = f"{found.name} line {one.line}"
    _count(found, where)
    lines, packages = [], []
    for flag, value in _apart(words, where):
        if flag in ("-e", "--editable"):
            folder = "" if "/" in value else "./"
            lines.append(f"{flag} {_installed(f'{folder}{value}', found)}")
        elif flag in _CARRIED:
            lines.append(f"{flag} {_place(value, flag, found)}")
        elif flag in requirements.BARE:
            lines.append(flag)
        elif flag not in ("", *_FLAGS, *_VALUED):
            found.missed(one, f"{flag} of {whole}")
        elif flag == "" and value.lower() not in ("pip", "setuptools", "wheel"):
            packages.append(_installed(value, found))
    asked = requirements.read([*lines, *packages], folder=found.folder, where=where)
    found.spend(asked.characters)
    found.notes += asked.notes
    if any(not line.startswith("-") for line in asked.lines):
        found.steps += (asked.lines,)


def _count(found: Read, where: str) -> None:
    found.installations += 1
    if found.installations > _MOST_STEPS:
        raise Invalid(f"{where}: more than {_MOST_STEPS} installations")


def _installed(value: str, found: Read) -> str:
    """Return what pip is to install, a local file of the image as what the context has of it."""
    apart = requirements.apart_file(value)
    if apart is None:
        return value
    before, path, after = apart
    space = "" if after[:1] in ("[", "#") else " "
    return f"{before}{_place(path, '-e', found)}{space}{after}".rstrip()


def _apart(words: list[str], where: str) -> list[tuple[str, str]]:
    """Return each option with its value; what is none has no name."""
    found, queue = [], deque(words)
    while queue:
        word = queue.popleft()
        flag, given, value = word.partition("=")
        if not word.startswith("-"):
            found.append(("", word))
        elif word[:2] in ("-r", "-c", "-e", "-i", "-f") and len(word) > 2:
            found.append((word[:2], word[2:]))
        elif flag in _VALUED + _CARRIED and word not in _FLAGS:
            if not given and not queue:
                raise Invalid(f"{where}: {flag} is given nothing")
            found.append((flag, value if given else queue.popleft()))
        else:
            found.append((word, ""))
    return found


def _conda(one: Instruction, whole: str, words: list[str], found: Read) -> None:
    plain = [word for word in words if not word.startswith("-")]
    where = f"{found.name} line {one.line}"
    if plain[:1] == ["clean"] or plain[:1] in (["init"], ["activate"], ["config"]):
        return None
    named = [w for flag, w in zip(words, words[1:], strict=False) if flag in ("-f", "--file")]
    named += [word.partition("=")[2] for word in words if word.startswith("--file=")]
    if plain[:1] == ["env"] and named:
        place = _place(named[0], "-r", found)
        file = requirements.within(found.folder, place, base=found.folder, where=where)
        text = requirements.text(file)
        found.spend(4 * len(text))
        asked = conda.read(text)
    elif plain[:1] == ["install"] and not named:
        values = {"-n", "--name", "-p", "--prefix", "-c", "--channel"}
        pairs = zip(["", *words], words, strict=False)
        specs = [w for before, w in pairs if before not in values and not w.startswith("-")]
        asked = conda.of(specs[1:])
    else:
        return found.missed(one, whole)
    _count(found, where)
    if asked.python:
        found.missed(one, f"python{asked.python}", "the Python is Finery's own")
    found.warnings += asked.warnings
    found.notes += asked.notes
    found.variables.update(asked.variables)
    if asked.lines:
        found.steps += (asked.lines,)
    return None


def _place(value: str, flag: str, found: Read) -> str:
    """Return where the context has what the image has at a path."""
    if flag not in ("-r", "--requirement", "-c", "--constraint", "-e", "--editable", "-f",
                    "--find-links") or "://" in value:  # fmt: skip
        return value
    found.spend(1 + len(found.copied))
    whole = posixpath.normpath(posixpath.join(found.stands, value))
    if whole in found.copied:
        return found.copied[whole]
    for place, source in found.copied.items():  # a folder was copied, and this is in it
        base = place.rstrip("/") + "/"
        if whole.startswith(base) and (Path(source) / whole.removeprefix(base)).exists():
            return str(Path(source) / whole.removeprefix(base))
    return value.lstrip("/")


def _short(text: str) -> str:
    text = requirements.hidden(" ".join(text[: 10 * _LONGEST].split()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
