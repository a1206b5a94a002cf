"""Shared access signatures: an address that is its own permission, for a while.

`sign` makes the query text that goes after `?` in a blob's address; `check`
says whether one that came back covers what is asked.  A signature covers one
container, one folder or one blob; some verbs; and ends.  Nothing is kept: what
cannot be worked out again from the server's own key is not ours.

Tokens and the administrator's key are another way in: see `storage.py`.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote, urlencode

from finery.core.errors import Forbidden
from finery.core.workspaces import Keys
from finery.doors.http import House

Covers = Literal["container", "folder", "blob"]

VERSION = "2021-08-06"
ALL = "racwdl"  # read, add, create, write, delete, list
_RESOURCE: dict[Covers, str] = {"container": "c", "folder": "d", "blob": "b"}
# Every parameter of a signature; a parameter that was not there when we signed breaks it.
_PARAMETERS = (
    "sv st se sp sr sdd spr sip si ses skoid sktid skt ske sks skv saoid suoid scid ss srt"
    " rscc rscd rsce rscl rsct"
).split()


def address(house: House, scope: str, container: str, path: str = "") -> str:
    """Return where a container, or a blob in it, is read and written, without a signature."""
    return f"{house.https}/blob/{scope}/{container}" + ("/" + quote(path) if path else "")


def sign(
    keys: Keys,
    scope: str,
    *,
    container: str,
    until: datetime,
    path: str = "",
    covers: Covers = "container",
    verbs: str = ALL,
) -> str:
    """Return a query text (no `?`) that allows `verbs` until then.

    `covers` says on what: the whole container (then `path` is ""), the folder
    `path` with everything below it, or the blob `path` alone.
    """
    assert (covers == "container") == (not path), "a container has no path, the others one"
    path = path.strip("/") if covers == "folder" else path
    query = {
        "sv": VERSION,
        "se": until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "sr": _RESOURCE[covers],
        "sp": "".join(verb for verb in ALL if verb in verbs),
    }
    if covers == "folder":
        query["sdd"] = str(path.count("/") + 1)
    return urlencode({**query, "sig": _signature(keys, scope, container, path, query)})


def check(
    keys: Keys,
    query: Mapping[str, str],
    scope: str,
    *,
    container: str,
    path: str,
    verbs: str,
    now: datetime,
) -> str:
    """Return what the signature in `query` allows on `path`.

    Raises `Forbidden` unless that is at least one of `verbs`.  For a listing,
    `path` is the prefix that is listed and `verbs` is "l".
    """
    covered = _covered(query, path, listing=verbs == "l")
    expected = _signature(keys, scope, container, covered, query)
    if not hmac.compare_digest(expected.encode(), query.get("sig", "").encode()):
        raise Forbidden(
            "the signature is not one of this server's, or is for something else", target="sig"
        )
    if not _time(query, "st") <= now < _time(query, "se"):
        raise Forbidden("the signature has expired, or is not valid yet", target="se")
    if not set(verbs) & set(query.get("sp", "")):
        raise Forbidden(f"the signature does not allow this (needs {verbs!r})", target="sp")
    return query["sp"]


def _covered(query: Mapping[str, str], path: str, *, listing: bool) -> str:
    """Return the path that a signature for `path` must have been made for."""
    match query.get("sr"):
        case "c":
            return ""
        case "d":
            depth = int(query["sdd"]) if re.fullmatch("[0-9]{1,3}", query.get("sdd", "")) else 0
            parts = path.split("/")
            if depth < 1 or len(parts) <= depth:
                raise Forbidden("the signature is for a folder that this is not in", target="sdd")
            return "/".join(parts[:depth])
        case "b" if not listing:
            return path
        case _:
            raise Forbidden("the signature is not for this kind of thing", target="sr")


def _signature(keys: Keys, scope: str, container: str, path: str, query: Mapping[str, str]) -> str:
    parts = [f"{name}={query[name]}" for name in _PARAMETERS if name in query]
    text = "\0".join(("sas", scope, container, path, *parts))
    return base64.b64encode(keys.digest(text)).decode()


def _time(query: Mapping[str, str], name: str) -> datetime:
    if name not in query:
        return datetime.min.replace(tzinfo=UTC)  # no start: always begun; no end: never valid
    try:
        time = datetime.fromisoformat(query[name])
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    except ValueError:
        raise Forbidden(f"{query[name]!r} is not a time", target=name) from None
