"""Ports: what a component takes and gives, and whether the values for it fit.

Pure: it looks nothing up.  `pipelines.py` asks when it makes a step,
`submission.py` when a job is submitted, so that a wrong value is known before
anything runs.

A port is a mapping with `type` and, where they apply, `optional`, `default`,
`enum`, `min`, `max` and `mode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finery.core.errors import Invalid
from finery.core.jobs import Input

VALUES = ("string", "integer", "number", "boolean")  # every other type is a place with data
_WORDS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}

Port = Mapping[str, Any]


def check(ports: Mapping[str, Port], inputs: Mapping[str, Input], where: str) -> dict[str, Input]:
    """Return `inputs` with defaults filled in, in the order of the ports.

    `where` names the taker in messages.  Values stay the texts they are, once
    they are known to fit; one that still holds a binding (`${{…}}`) fits until
    it is followed.  Raises `Invalid` with the target `inputs.<name>`.
    """
    for name in inputs:
        if name not in ports:
            known = ", ".join(ports) or "none"
            raise Invalid(f"{where} has no input {name!r} (it has: {known})", target=_target(name))
    found = {}
    for name, port in ports.items():
        given = inputs.get(name)
        if given is not None and not (given.value == "" and _may_be_unset(port)):
            found[name] = _fitting(port, given, name, where)
        elif port.get("default") is not None:
            found[name] = _default(port, name, where)
        elif not port.get("optional"):
            raise Invalid(f"{where} needs the input {name!r}", target=_target(name))
    return found


def text(value: object) -> str:
    """Return a value as the text that a command line gets."""
    return value if isinstance(value, str) else str(value)


def _target(name: str) -> str:
    return f"inputs.{name}"


def _may_be_unset(port: Port) -> bool:
    """Say whether nothing at all (an empty text) stands for an input that is not given."""
    return port["type"] != "string" and bool(port.get("optional"))


def _default(port: Port, name: str, where: str) -> Input:
    type = "literal" if port["type"] in VALUES else port["type"]
    return _fitting(port, Input(value=text(port["default"]), type=type), name, where)


def _fitting(port: Port, given: Input, name: str, where: str) -> Input:
    if "${{" in given.value:
        return given
    if port["type"] not in VALUES:
        return _place(port, given, name, where)
    if given.type != "literal":
        raise Invalid(
            f"{where}: the input {name!r} is a {port['type']}, and was given a {given.type}",
            target=_target(name),
        )
    allowed = [text(value) for value in port.get("enum") or ()]
    if allowed and given.value not in allowed:
        alike = [word for word in allowed if word.lower() == given.value.lower()]
        if len(alike) == 1:  # True, as Python writes it
            return replace(given, value=alike[0])
        raise Invalid(
            f"{where}: the input {name!r} is {given.value!r}, and must be one of "
            f"{', '.join(allowed)}",
            target=_target(name),
        )
    _in_range(port, given.value, name, where)
    return given


def _place(port: Port, given: Input, name: str, where: str) -> Input:
    if given.type == "literal":
        raise Invalid(
            f"{where}: the input {name!r} is a {port['type']}, and was given the text "
            f"{given.value!r}",
            target=_target(name),
        )
    return replace(given, mode=given.mode or port.get("mode") or "")


def _in_range(port: Port, value: str, name: str, where: str) -> None:
    number = _number(port["type"], value, name, where)
    if number is None:
        return
    low, high = port.get("min"), port.get("max")
    if low is not None and number < float(low):
        raise Invalid(
            f"{where}: the input {name!r} is {value}, and must be {low} or more",
            target=_target(name),
        )
    if high is not None and number > float(high):
        raise Invalid(
            f"{where}: the input {name!r} is {value}, and must be {high} or less",
            target=_target(name),
        )


def _number(type: str, value: str, name: str, where: str) -> float | None:
    """Return the number that `value` is, or None where the type is not of numbers."""
    try:
        match type:
            case "integer":
                return int(value)
            case "number":
                return float(value)
            case "boolean":
                _WORDS[value.strip().lower()]
    except (ValueError, KeyError):
        raise Invalid(
            f"{where}: the input {name!r} must be {_ARTICLE[type]}, and is {value!r}",
            target=_target(name),
        ) from None
    return None


_ARTICLE = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
