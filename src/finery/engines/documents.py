"""A YAML file of a stranger: lists, mappings and texts, no deeper than a person writes them.

No numbers, dates and merged mappings: a version is a text, and a few lines of
merges can stand for more than any memory holds.
"""

from __future__ import annotations

from typing import Any

import yaml

from finery.core.errors import Invalid

DEEPEST = 50  # lists and mappings in one another: the fast reader dies of many thousands
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def read(text: str, *, where: str) -> Any:
    """Return what a text of known size says.  Raises `Invalid` where it is no such file."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise Invalid(f"{where} is no YAML: it is more than {DEEPEST} deep", target=where)
        return yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as exc:
        raise Invalid(f"{where} is no YAML: {exc}", target=where) from exc
