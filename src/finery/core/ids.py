"""Names, versions, new ids and the clock.

Nothing here remembers anything: whether a name is taken is the store's answer.
"""

from __future__ import annotations

import re
import secrets
import uuid
from datetime import UTC, datetime

from finery.core.errors import Invalid

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_WHOLE = re.compile(r"[0-9]{1,18}")
_PORT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def now() -> datetime:
    return datetime.now(UTC)


def new() -> str:
    """Return 32 hexadecimal digits that nobody has used."""
    return uuid.uuid4().hex


def derived(*parts: str) -> str:
    """Return a UUID that is the same for the same parts: what is made twice is made once."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "\0".join(parts)))


def secret() -> str:
    return secrets.token_urlsafe(32)


def name(text: str, *, target: str = "name") -> str:
    """Return `text` if it can name a thing, else raise `Invalid`."""
    if not _NAME.fullmatch(text):
        raise Invalid(
            f"{text[:80]!r} cannot be a name: 1 to 255 letters, digits, '.', '_' and '-', "
            "the first a letter or digit",
            target=target,
        )
    return text


def whole(text: str, *, target: str) -> int:
    """Return the whole number that `text` spells, if a database can keep it; else `Invalid`."""
    if not _WHOLE.fullmatch(text):
        raise Invalid(f"{target} is {text[:80]!r}; it must be a whole number", target=target)
    return int(text)


def port(text: str, *, target: str) -> str:
    """Return `text` if it can name an input, an output or a step, else raise `Invalid`."""
    if not _PORT.fullmatch(text):
        raise Invalid(
            f"{text[:80]!r} cannot name an input, output or step: letters, digits, '_', '-' and "
            "'.', the first no '.' or '-'",
            target=target,
        )
    return text


def version(text: str, *, target: str = "version") -> str:
    if not _VERSION.fullmatch(text):
        raise Invalid(
            f"{text[:80]!r} cannot be a version: 1 to 64 letters, digits, '.', '_' and '-'",
            target=target,
        )
    return text
