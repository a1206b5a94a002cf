"""Reading the fields of a request: of the right type, in range, and known.

Every refusal names the field by its path.  What the fields mean is said where
they are used (`chat.py`, `openai_chat.py`, `pyfunc.py`).
"""

from __future__ import annotations

import math
from typing import Any

from finery.serving.wire import invalid

Messages = list[dict[str, str]]

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def of(value: Any, target: str, *, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """`value` as an object, with no other fields than those."""
    if not isinstance(value, dict):
        raise invalid("must be an object", target=target)
    for name in value:
        if known is not None and name not in known:
            raise invalid(
                f"{name!r} is not supported here; known are {', '.join(known)}", target=target
            )
    return value


def messages(value: Any, target: str) -> Messages:
    """A conversation: a list of messages with a role and text."""
    if not isinstance(value, list) or not value:
        raise invalid("a list with at least one message is needed", target=target)
    return [_message(one, f"{target}[{at}]") for at, one in enumerate(value)]


class Given:
    """The fields that a request gave, read one by one.  null counts as not given."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        """`place` is the path that refusals begin with; "" for the body itself."""
        self._values = {name: value for name, value in values.items() if value is not None}
        self._place = f"{place}." if place else ""

    def has(self, name: str) -> bool:
        """True when the field was given."""
        return name in self._values

    def number(
        self, name: str, *, low: float = -math.inf, high: float = math.inf, open: bool = False
    ) -> float | None:
        """A number from `low` (not itself when `open`) to `high`."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, "must be a number")
        if not low <= value <= high or (open and value == low):
            more = "more than" if open else "at least"
            raise self._wrong(name, f"must be {more} {low:g} and at most {high:g}")
        return float(value)

    def whole(self, name: str, *, low: int | None = None) -> int | None:
        """A whole number, not below `low`."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "must be a whole number")
        if low is not None and value < low:
            raise self._wrong(name, f"must be {low} or more")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "must be true or false")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A string or several, none of them empty."""
        value = self._values.get(name, [])
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list) or not all(isinstance(s, str) and s for s in several):
            raise self._wrong(name, "must be a string that is not empty, or a list of them")
        if len(several) > 16:
            raise self._wrong(name, "at most 16 are taken")
        return tuple(several)

    def _wrong(self, name: str, message: str) -> Exception:
        return invalid(message, target=self._place + name)


def _message(value: Any, target: str) -> dict[str, str]:
    message = of(value, target)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"must be one of {', '.join(ROLES)}", target=f"{target}.role")
    for name, held in message.items():
        if name not in ("role", "content", "name") and held not in (None, [], {}):
            raise invalid("is not supported", target=f"{target}.{name}")
    return {"role": ROLES[role], "content": _content(message.get("content"), f"{target}.content")}


def _content(value: Any, target: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid("must be text", target=target)
    parts = []
    for at, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise invalid(
                f"parts of type {kind!r} are not supported; only text is", target=f"{target}[{at}]"
            )
        parts.append(part["text"])
    return "".join(parts)
