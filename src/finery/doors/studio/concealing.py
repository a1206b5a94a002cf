"""Texts for a page without the passwords and keys that may be in them.

A guess by names (`--token …`, `PASSWORD=…`) and by shapes (`hf_…`, `sk-…`): better
one word too many hidden than one too few.  Values of environment variables are
no business of a page at all.
"""

from __future__ import annotations

import re

HIDDEN = "[hidden]"
_LONGEST = 20_000  # characters of a text that a page shows

_SECRET = frozenset(
    "pass password passwd passphrase pwd secret secrets token credential credentials sig"
    " signature apikey key keys bearer authorization connectionstring".split()
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ASSIGNED = re.compile(r"\b(?P<name>[A-Za-z][\w.-]{0,80})['\"]?\s{0,3}[=:]\s{0,3}")
_FLAG = re.compile(r"(?<!\S)--?(?P<name>[A-Za-z][\w.-]{0,80})\s{1,3}(?!-)")
_VALUE = re.compile(r"(?![{<])(?:\"[^\"]{1,4096}\"|'[^']{1,4096}'|[^\s;&,'\"$]{1,4096})")
_BEARER = re.compile(r"(?i)\b(bearer\s{1,3})[\w.~+/=-]{8,4096}")
_IN_ADDRESS = re.compile(r"(?<=://)(?!git@)[^\s/@'\"]{1,512}(?=@)")
_SHAPES = re.compile(
    r"\b(?:hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|xox[abprs]-[\w-]{10,}"
    r"|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)"
)
_RANDOM = re.compile(r"[A-Za-z0-9+_-]{36,}={0,2}")


def named(name: str) -> bool:
    """Say whether something of this name is likely to be a secret."""
    return any(word.lower() in _SECRET for word in _WORDS.findall(name))


def hidden(text: str, *, name: str = "") -> str:
    """Return the text without what looks like a secret; all of it where its name is a secret's."""
    if text and named(name):
        return HIDDEN
    cut = f"{text[:_LONGEST]} …" if len(text) > _LONGEST else text
    cut = _BEARER.sub(rf"\1{HIDDEN}", cut)
    for pattern in (_ASSIGNED, _FLAG):
        cut = _without_values(cut, pattern)
    cut = _IN_ADDRESS.sub(HIDDEN, cut)
    cut = _SHAPES.sub(HIDDEN, cut)
    return _RANDOM.sub(lambda found: HIDDEN if _mixed(found[0]) else found[0], cut)


def _without_values(text: str, before: re.Pattern[str]) -> str:
    """Return the text without what follows the names of secrets; `before` finds all names.

    A value is looked at only behind such a name: in `--env=TOKEN=…` the first has another.
    """
    parts, at = [], 0
    for found in before.finditer(text):
        if found.start() < at or not named(found["name"]):
            continue
        if value := _VALUE.match(text, found.end()):
            parts += [text[at : found.end()], HIDDEN]
            at = value.end()
    return "".join((*parts, text[at:]))


def _mixed(text: str) -> bool:
    """Say whether it looks drawn by lot: large, small and figures, and no words in between."""
    kinds = (str.isupper, str.islower)
    if not all(any(kind(one) for one in text) for kind in kinds):
        return False
    if sum(one.isdigit() for one in text) < 3:
        return False
    return len(re.findall(r"(?<![A-Za-z])[a-z]{3,}(?![A-Za-z])", text)) < 2
