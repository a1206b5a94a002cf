"""Tickets: short-lived credentials for one endpoint and nothing else.

An endpoint that asks for tokens instead of keys hands these out.  A ticket is
bound to the endpoint's primary key: making that anew ends every ticket.
Nothing is kept about a ticket.
"""

from __future__ import annotations

import base64
import hmac
from datetime import datetime

from finery.core.endpoints import Endpoint
from finery.core.workspaces import Keys

_MARK = "ticket"


def issue(keys: Keys, endpoint: Endpoint, *, seconds: int, now: datetime) -> str:
    """Return a ticket for `endpoint` that ends in `seconds`."""
    ends = str(int(now.timestamp()) + seconds)
    return f"{_MARK}.{ends}.{_signature(keys, endpoint, ends)}"


def valid(keys: Keys, endpoint: Endpoint, ticket: str, *, now: datetime) -> bool:
    """Say whether `ticket` is one of this endpoint's and has not ended."""
    mark, _, rest = ticket.partition(".")
    ends, _, signature = rest.partition(".")
    if mark != _MARK or not ends.isdigit() or not signature.isascii():
        return False
    known = _signature(keys, endpoint, ends)
    return hmac.compare_digest(signature, known) and int(ends) > now.timestamp()


def _signature(keys: Keys, endpoint: Endpoint, ends: str) -> str:
    text = "\0".join((_MARK, endpoint.name, endpoint.keys["primary"], ends))
    return base64.urlsafe_b64encode(keys.digest(text)).decode().rstrip("=")
