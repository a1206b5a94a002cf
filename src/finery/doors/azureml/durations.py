"""Durations as Azure writes them (ISO 8601: `PT1M30S`), in seconds here."""

from __future__ import annotations

import re
from typing import Any

from finery.core.errors import Invalid

_ISO = re.compile(
    r"P(?:(?P<days>\d+(?:\.\d+)?)D)?"
    r"(?:T(?:(?P<hours>\d+(?:\.\d+)?)H)?(?:(?P<minutes>\d+(?:\.\d+)?)M)?"
    r"(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?"
)
_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


_MOST = 1e9  # seconds: what is longer is a mistake, and overflows somewhere


def seconds_in(text: Any, *, field: str) -> float:
    """Return the seconds that `PT1M30S` is; a bare number is seconds already."""
    seconds = float(text) if type(text) in (int, float) else _read(text)
    if seconds is None or not 0 <= seconds <= _MOST:
        said = str(text)[:60]
        raise Invalid(f"{field} is {said!r}; it must be a duration such as PT1M30S", target=field)
    return seconds


def _read(text: Any) -> float | None:
    found = _ISO.fullmatch(text.strip().upper()) if isinstance(text, str) else None
    if found is None or not any(found.groups()):
        return None
    return sum(float(value) * _SECONDS[unit] for unit, value in found.groupdict("0").items())


def seconds_out(seconds: float) -> str:
    """Return seconds as `PT90S` or `PT0.5S`, which every reader of durations takes."""
    return f"PT{seconds:.3f}".rstrip("0").rstrip(".") + "S"
