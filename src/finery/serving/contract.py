"""How Azure's inference server speaks HTTP, which scripts and their callers rely on.

Identifiers in headers, what a query means as input, error bodies, cross-origin
answers.  What a script is given and may return is in `script.py`; who is answered
by what is in `routes.py`.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from finery.serving.wire import JSON, Answer, Exchange, Headers, Refusal

LONGEST = 100  # characters of an identifier
FAILED = b"x-ms-run-function-failed"
INTERNAL = "An unexpected internal error occurred. Check the logs for more info."
UNKNOWN = (
    "The requested URL was not found on the server. If you entered the URL manually please"
    " check your spelling and try again."
)
NOT_ALLOWED = "The method is not allowed for the requested URL."


class Told(Refusal):
    """A refusal in that server's words: `{"message": …}`."""

    def __init__(self, status: int, message: str, *, failed: bool = False, why: str = "") -> None:
        """`failed`: the script is to blame; `why` goes along in a header."""
        super().__init__(status, "", message)
        self.failed = failed
        self.why = why


def told(refusal: Told) -> Answer:
    """The answer that says it."""
    headers = [(b"content-type", JSON), (FAILED, b"True" if refusal.failed else b"False")]
    if refusal.why:
        headers.append(reason(refusal.why))
    return Answer(refusal.status, headers, json.dumps({"message": refusal.message}).encode())


def reason(why: str) -> tuple[bytes, bytes]:
    """The header that says why, as far as a header can."""
    return (b"ms-azureml-model-error-reason", _in_a_header(why))


def identified(exchange: Exchange) -> None:
    """Give the request its identifiers, and the answer the headers that tell them.

    Raises a refusal, 431, for one that is too long.
    """
    fields, extra = exchange.fields, exchange.extra
    id = fields.get(b"x-request-id")
    if id is None:
        id = str(uuid.uuid4()).encode()
    trace = fields.get(b"traceid")
    if trace is not None:
        extra.append((b"traceid", trace))
    legacy, client = fields.get(b"x-ms-request-id", b""), fields.get(b"x-ms-client-request-id", b"")
    if len(id) > LONGEST:
        raise Told(431, f"x-request-id must not exceed {LONGEST} characters")
    extra.append((b"x-request-id", id))
    if legacy:
        client = client or legacy
    else:
        legacy = client or id
    if len(legacy) > LONGEST or len(client) > LONGEST:
        raise Told(
            431, f"x-ms-request-id and x-ms-client-request-id must not exceed {LONGEST} characters"
        )
    exchange.id = legacy.decode("latin-1")
    extra.append((b"x-ms-request-id", legacy))
    if client:
        extra.append((b"x-ms-client-request-id", client))


def parameters(query: bytes) -> dict[str, Any]:
    """The input that a query stands for: JSON where it is JSON, a list where a name is repeated."""
    found: dict[str, list[Any]] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="replace"):
        found.setdefault(name, []).append(_value(value))
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def is_json(kind: bytes) -> bool:
    """Say whether a content type is one of JSON's."""
    name = kind.split(b";")[0].strip().lower()
    return name == JSON or (name.startswith(b"application/") and name.endswith(b"+json"))


def request_headers(exchange: Exchange) -> dict[str, str]:
    """The headers as `run(data, request_headers)` is given them."""
    found: dict[str, str] = {}
    for name, value in exchange.headers:
        if name == b"x-finery-secret" or b"_" in name:
            continue
        title, text = name.decode("latin-1").title(), value.decode("latin-1")
        found[title] = f"{found[title]},{text}" if title in found else text
    return found


def origins() -> Callable[[Exchange], Headers] | None:
    """What is added for other sites' pages, as AML_CORS_ORIGINS says; None where it is not set."""
    given = os.environ.get("AML_CORS_ORIGINS", "")
    if not given:
        return None
    listed = [origin.strip() for origin in given.split(",")]
    return lambda exchange: _cross_origin(exchange, listed)


def _cross_origin(exchange: Exchange, listed: list[str]) -> Headers:
    origin = exchange.header(b"origin").decode("latin-1")
    everyone = "*" in listed
    if origin and not any(_matches(origin, one) for one in listed):
        return []
    shown = origin or ("*" if everyone else min(listed))
    headers = [(b"access-control-allow-origin", shown.encode("latin-1"))]
    asked = exchange.header(b"access-control-request-method").upper()
    if exchange.method == "OPTIONS" and asked in (b"GET", b"POST"):
        names = exchange.header(b"access-control-request-headers")
        if names:
            wanted = b", ".join(sorted(name.strip() for name in names.split(b",")))
            headers.append((b"access-control-allow-headers", wanted))
        headers.append((b"access-control-allow-methods", b"GET, POST"))
    if shown != "*" and (len(listed) > 1 or everyone):
        headers.append((b"vary", b"Origin"))
    return headers


def _matches(origin: str, listed: str) -> bool:
    if listed == "*":
        return True
    if not set(listed) & set("*\\]?$^[()"):
        return listed.lower() == origin.lower()
    try:
        return bool(re.match(listed, origin, re.IGNORECASE))
    except re.error:
        return False


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _in_a_header(text: str) -> bytes:
    plain = "".join(one if one.isprintable() else " " for one in text[:300])
    return plain.encode("ascii", "replace")
