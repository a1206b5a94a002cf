"""What every HTTP door needs: status codes, what it is given, who calls, page parameters.

It speaks no dialect: each door's `wire.py` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request

from finery.core import errors, ids
from finery.core.compute import Capacity
from finery.core.workspaces import Caller, Keys

if TYPE_CHECKING:
    from finery.core.files import Files
    from finery.core.store import Store

STATUS: dict[type[errors.Failure], int] = {
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.Conflict: 409,
    errors.Invalid: 400,
    errors.TooLarge: 413,
    errors.NotSupported: 501,
    errors.Unavailable: 503,
    errors.Failure: 500,
}


@dataclass(frozen=True, kw_only=True)
class House:
    """What a door may use of the house."""

    store: Store
    files: Files
    keys: Keys
    http: str  # our address, http://host:port, without a slash at the end
    https: str
    wake: Callable[[], None]  # tell the supervisor that there is something to do
    log: Callable[[str, int], bytes]  # a process's log, by process id, from an offset
    capacity: Callable[[], Capacity]
    default_workspace: tuple[str, str, str]  # subscription, resource group, name
    tiny: bool = False  # catalog names resolve to stand-ins


def bearer(request: Request) -> str | None:
    """Return the credential of the Authorization header, with or without its `Bearer`."""
    header = request.headers.get("authorization", "")
    return (
        header[7:].strip()
        if header[:7].lower() == "bearer "
        else header.strip() or None
    )


def caller(house: House, credential: str | None) -> Caller:
    """Say who shows `credential`.  Raises `Unauthenticated`."""
    return house.keys.caller(credential, now=ids.now())
