"""A recipe's frozen dataclass, read from the command line or a JSON file.

One field, one flag of the same name.  Booleans are the words "true" and "false";
an empty value is the same as none given; enumerations take the word or the
number (`--precision 16`).  Wrong words end the process with status 2 and name
the flag, a failure with status 1 and one line.  What the fields mean is said in
the recipe; rules between fields are checked there too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
TRUE, FALSE = "true", "false"


class Failed(Exception):
    """The recipe cannot go on; the message says what, where and what to do."""


class WrongWords(Exception):
    """A flag has a value that it does not take; the message names the flag."""


def flag(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> Any:
    """A field with its help and limits: `low` and `high` are allowed, `above` is not."""
    limits = {"help": help, "choices": choices, "low": low, "above": above, "high": high}
    return dataclasses.field(default=default, metadata=limits)


def run(kind: type[T], work: Callable[[T], None], argv: Sequence[str] | None = None) -> int:
    """Reads a `kind` from `argv`, does `work`, and gives the exit status."""
    work_doc = sys.modules[work.__module__].__doc__ or ""
    name = getattr(sys.modules[work.__module__], "__spec__", None)
    program = f"python -m {name.name}" if name else Path(sys.argv[0]).name
    try:
        spec = parse(kind, sys.argv[1:] if argv is None else argv, program=program, about=work_doc)
    except WrongWords as error:
        print(f"error: {error} (see {program} --help)", file=sys.stderr, flush=True)
        return 2
    try:
        work(spec)
    except Failed as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip() or "no reason given").splitlines()[0]
        print(f"error: {type(error).__name__}: {first}", file=sys.stderr, flush=True)
        return 1
    return 0


def parse(kind: type[T], argv: Sequence[str], *, program: str = "", about: str = "") -> T:
    """A `kind` from flags, on top of `--spec FILE` (a JSON object) where that is given."""
    parser = _Parser(prog=program, description=about.strip(), allow_abbrev=False, add_help=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-h", "--help", action="help", help="show this and end")
    parser.add_argument("--spec", metavar="FILE", help="a JSON object of these values")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        parser.add_argument(f"--{field.name}", metavar=_metavar(field), help=_help(field))
    given = vars(parser.parse_args(list(argv)))
    values = _file(given.pop("spec"))
    values.update({name: value for name, value in given.items() if value not in (None, "")})
    return build(kind, values)


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """A `kind` from words or JSON values, each checked against its field."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise WrongWords(f"--{unknown[0]}: there is no such flag")
    made: dict[str, Any] = {}
    for name, field in fields.items():
        value = values.get(name)
        if value is None or value == "":
            if field.default is dataclasses.MISSING:
                raise WrongWords(f"--{name}: is required ({field.metadata['help']})")
            continue
        made[name] = _limited(name, _convert(name, value, hints[name]), field.metadata)
    return kind(**made)


def words(spec: Any) -> dict[str, Any]:
    """The spec as JSON values: paths as strings, unset fields left out."""
    found = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in found.items()
        if value is not None
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise WrongWords(message)


def _file(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WrongWords(f"--spec {path}: {error}") from error
    if not isinstance(values, dict):
        raise WrongWords(f"--spec {path}: is not a JSON object")
    return values


def _convert(name: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(option for option in options if option is not type(None))
    if kind is bool:
        word = str(value).strip().lower()
        if word not in (TRUE, FALSE):
            raise WrongWords(f"--{name}: {value!r} is neither true nor false")
        return word == TRUE
    try:
        if kind is int:
            return _whole(value)
        return kind(value) if kind in (float, Path) else str(value)
    except (TypeError, ValueError) as error:
        raise WrongWords(f"--{name}: {value!r} is not a {_noun(kind)}") from error


def _whole(value: Any) -> int:
    number = float(value)
    if isinstance(value, bool) or number != int(number):
        raise ValueError(value)
    return int(number)


def _limited(name: str, value: Any, limits: Mapping[str, Any]) -> Any:
    choices = limits["choices"]
    if choices and value not in choices:
        raise WrongWords(f"--{name}: {value!r} is not one of {', '.join(choices)}")
    if isinstance(value, float) and value != value:
        raise WrongWords(f"--{name}: is not a number")
    if limits["low"] is not None and value < limits["low"]:
        raise WrongWords(f"--{name}: {value} is below {limits['low']}")
    if limits["above"] is not None and value <= limits["above"]:
        raise WrongWords(f"--{name}: {value} is not above {limits['above']}")
    if limits["high"] is not None and value > limits["high"]:
        raise WrongWords(f"--{name}: {value} is above {limits['high']}")
    return value


def _noun(kind: type) -> str:
    return {int: "whole number", float: "number", Path: "path"}.get(kind, "word")


def _metavar(field: dataclasses.Field[Any]) -> str:
    choices = field.metadata["choices"]
    if choices:
        return "|".join(choices)
    hint = str(field.type)
    for word, shown in (("bool", "true|false"), ("int", "N"), ("float", "X"), ("Path", "PATH")):
        if word in hint:
            return shown
    return "TEXT"


def _help(field: dataclasses.Field[Any]) -> str:
    default = field.default
    if default is dataclasses.MISSING:
        return f"{field.metadata['help']} (required)".replace("%", "%%")
    shown = "" if default is None else f" (default {str(default).lower()})"
    return f"{field.metadata['help']}{shown}".replace("%", "%%")
