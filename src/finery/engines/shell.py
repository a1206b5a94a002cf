"""A line of a shell read, not run: its simple commands, and what `pip install` is given in one.

For `dockerfile.py`.  Nothing is filled in or executed here.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex


def listed(text: str) -> str:
    """Return the words of ["pip", "install"] as a line; what is no such list is a line already."""
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return " ".join(words) if all(isinstance(word, str) for word in words) else text


def commands(text: str) -> list[list[str]]:
    """Return the simple commands of a shell line, as words."""
    commands: list[list[str]] = []
    for line in text.splitlines():
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="();&|")
            lexer.whitespace_split = True
            lexer.commenters = "#"
            words = [*lexer]
        except ValueError:
            words = line.split()  # quotes that do not match: it is named as it is
        commands.append([])
        for word in words:
            if re.fullmatch(r"[;&|()]+", word):
                commands.append([])
            else:
                commands[-1].append(word)
    return [command for command in commands if command]


def installer(words: list[str]) -> list[str] | None:
    """Return what `pip install` is given; None where this is none."""
    names = [posixpath.basename(words[0]), *words[1:]]
    if names[0] in ("conda", "mamba", "micromamba") and names[1:2] == ["run"]:
        begin = next((n for n, word in enumerate(names) if re.match(r"pip|python", word)), None)
        names = names[begin:] if begin is not None else names
    if re.fullmatch(r"python[\d.]*", names[0]) and names[1:3] == ["-m", "pip"]:
        names = names[2:]
    elif names[:2] == ["uv", "pip"]:
        names = names[1:]
    if re.fullmatch(r"pip[\d.]*", names[0]):
        flags = [n for n, word in enumerate(names) if n and not word.startswith("-")]
        if flags and names[flags[0]] == "install":
            return names[flags[0] + 1 :]
    return None


def words(text: str) -> list[str]:
    """Return the words of a text as a shell has them."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()
