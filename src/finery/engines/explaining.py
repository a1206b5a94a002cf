"""Why an environment could not be built: the lines that say it, out of all that was written."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass

from finery.core.errors import Failure, Unavailable

_LONGEST = 1500
_FIRST, _LAST = 100, 400  # lines
_ERROR = re.compile(r"^(error:|  ×)", re.MULTILINE)  # where uv begins to explain
# What a network, an index or a full disk is to blame for, and not the one who asked.
_NOT_THEIRS = re.compile(
    r"failed to fetch|error sending request|dns error|timed? ?out|connection (refused|reset)"
    r"|could not connect|No space left|50[0234] |temporary failure|network is unreachable"
    r"|Cannot connect to the Docker daemon|TLS handshake|i/o timeout",
    re.IGNORECASE,
)


class Ended(Exception):
    """A program ended with a failure; `said` is the end of what it wrote."""

    def __init__(self, said: str, hint: str = "") -> None:
        super().__init__(said)
        self.said, self.hint = said, ""
        self.add(hint)

    def add(self, hint: str) -> None:
        """Have what is told of it end with one more hint."""
        if hint:
            self.hint = f"{self.hint} ({hint})".strip()


@dataclass(frozen=True)
class Cause:
    text: str
    invalid: bool  # what was asked for is wrong, rather than that something did not answer


def telling(said: Sequence[str]) -> str:
    """Return of the lines that a program wrote those where it may say why it failed.

    A compiler has hundreds between uv's error, which names the package, and its own at the end.
    """
    begun = max((at for at, line in enumerate(said) if _ERROR.match(line)), default=0)
    told = said[begun:]
    return "".join([*told[:_FIRST], *told[_FIRST:][-_LAST:]])


def cause(error: Exception) -> Cause:
    """Return what to tell who waits."""
    match error:
        case Ended():
            said = " ".join(filter(None, [dockers(error.said) or lines(error.said), error.hint]))
            theirs = not _NOT_THEIRS.search(said)
            return Cause(_short(said) or "it ended without a word", theirs)
        case Unavailable():
            return Cause(str(error), False)
        case Failure():
            return Cause(str(error), True)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Cause("the disk is full", False)
    return Cause(f"{type(error).__name__}: {error}"[:_LONGEST], False)


def _short(text: str) -> str:
    """Return the beginning, which says what failed, and the end, which says why."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 3]} … {text[-_LONGEST // 2 :]}"


def lines(said: str) -> str:
    """Return the part of uv's words that explains: what follows its last error, as one line."""
    begun = [found.start() for found in _ERROR.finditer(said)]
    part = said[begun[-1] :] if begun else said[-_LONGEST:]
    words = r"^\s*(error|cause|×|├─▶|╰─▶|│|hint):?\s*"
    kept = [re.sub(words, "", line).strip() for line in part.splitlines()]
    text = " ".join(line for line in kept if line)
    return re.sub(r"(resolving dependencies):? Because", r"\1: because", text)


def lacking(said: str) -> list[str]:
    """Return the packages that the index does not have at all, as uv names them."""
    return re.findall(r"([A-Za-z0-9][\w.-]*) was not found in the", lines(said))


def concerns(said: str, package: str) -> bool:
    """Say whether a resolver's explanation is about a package."""
    return bool(re.search(rf"\b{re.escape(package)}(?![\w-])", lines(said)))


def dockers(said: str) -> str:
    """Return what Docker's builder says of the line that failed; empty for other programs."""
    marked = re.findall(r"^\s*\d+ \| >>> (.*)$", said, re.MULTILINE)
    stepped = re.findall(r"^(?:STEP|Step) \d+/\d+ ?: (.*)$", said, re.MULTILINE)
    at = re.search(r"^(\S*[Dd]ockerfile\S*):(\d+)$", said, re.MULTILINE)
    if not marked and not (stepped and re.search(r"non-zero code|Error: building at", said)):
        return ""
    line = " ".join(marked) if marked else stepped[-1]
    where = f"{at.group(1)} line {at.group(2)}: " if at else ""
    shown = re.findall(r"^(?:#\d+ )?\s*\d+\.\d+ (.*)$", said, re.MULTILINE)
    wrote = [one.strip() for one in (shown or said.splitlines()) if one.strip()]
    last = " ".join(wrote[-4:] if shown else wrote[-5:-1])
    return f"{where}{line} failed: {last}"
