"""The words of the Blob protocol: headers, ranges, conditions, XML, errors.

Pairs of translators between them and `core.files`; nothing here reads or
writes a file (`storage.py` has the routes).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from fastapi import Request, Response

from finery.core import errors, ids
from finery.core.files import Entry, Facts, Folder
from finery.core.store import Page
from finery.core.uploads import Piece
from finery.doors.azureml import sas

_MOST_METADATA = 8192  # bytes, names and values together
_MOST_BLOCKS = 50_000
_KEPT_HEADERS = (
    "cache-control content-disposition content-encoding content-language content-md5 content-type"
).split()
_PLAIN_TYPE = "application/octet-stream"

# A request that carries one of these asks for something that we would not do.
_REFUSED_HEADERS = (
    "x-ms-lease-id x-ms-encryption-key x-ms-encryption-scope x-ms-tags x-ms-if-tags"
    " x-ms-access-tier x-ms-immutability-policy-until-date x-ms-legal-hold x-ms-structured-body"
    " x-ms-content-crc64 x-ms-source-lease-id x-ms-requires-sync"
).split()
_REFUSED_PARAMETERS = ("snapshot", "versionid", "deletetype")
_LISTED = {"", "metadata", "snapshots", "versions", "deleted", "deletedwithversions", "copy"}

_CODES: dict[type[errors.Failure], tuple[int, str]] = {
    errors.Unauthenticated: (401, "NoAuthenticationInformation"),
    errors.Forbidden: (403, "AuthenticationFailed"),
    errors.NotFound: (404, "BlobNotFound"),
    errors.AlreadyExists: (409, "BlobAlreadyExists"),
    errors.Conflict: (409, "ResourceTypeMismatch"),
    errors.Invalid: (400, "InvalidInput"),
    errors.TooLarge: (413, "RequestBodyTooLarge"),
    errors.NotSupported: (501, "NotImplemented"),
    # Not a 5xx: the official client would try a full disk again and again, in silence.
    errors.Unavailable: (409, "InsufficientStorage"),
}


@dataclass
class Refusal(Exception):
    """A request refused with a status and a code of the protocol's own."""

    status: int
    code: str
    message: str


def failure(request: Request, exc: Exception) -> Response:
    """Say a failure in the protocol's XML, with its code in a header as well."""
    match exc:
        case Refusal():
            status, code = exc.status, exc.code
            message = exc.message
        case errors.Failure():
            status, code = _CODES.get(type(exc), (500, "InternalError"))
            message = str(exc)
        case _:
            status, code, message = 500, "InternalError", "something went wrong on the server"
    headers = {**common(request), "x-ms-error-code": code}
    if status == 401:
        headers["WWW-Authenticate"] = f'Bearer authorization_uri="{request.base_url}login"'
    if request.method == "HEAD" or status == 304:
        return Response(status_code=status, headers=headers)
    body = f"<Error><Code>{code}</Code><Message>{_text(message)}</Message></Error>"
    return xml(body, status=status, headers=headers)


def xml(body: str, *, headers: Mapping[str, str], status: int = 200) -> Response:
    text = '<?xml version="1.0" encoding="utf-8"?>' + body
    return Response(text, status_code=status, headers=dict(headers), media_type="application/xml")


def common(request: Request) -> dict[str, str]:
    """Return the headers that every answer carries; the listener adds the date."""
    headers = {
        "x-ms-version": request.headers.get("x-ms-version", sas.VERSION),
        "x-ms-request-id": request.scope.get("state", {}).get("request_id") or ids.new(),
    }
    if client := request.headers.get("x-ms-client-request-id"):
        headers["x-ms-client-request-id"] = client
    return headers


def refuse_unkept(request: Request) -> None:
    """Refuse by name what is asked for and would not be done."""
    for name in _REFUSED_HEADERS:
        if name in request.headers:
            raise errors.NotSupported(f"the header {name!r} is not supported here", target=name)
    for name in _REFUSED_PARAMETERS:
        if name in request.query_params:
            raise errors.NotSupported(f"the parameter {name!r} is not supported here", target=name)


def conditions(request: Request) -> Callable[[Entry | None], None]:
    """Return a check of the request's If- headers against what is there."""
    headers, reading = request.headers, request.method in ("GET", "HEAD")
    unmet = (304, "ConditionNotMet") if reading else (412, "ConditionNotMet")

    def expect(entry: Entry | None) -> None:
        wanted, unwanted = headers.get("if-match"), headers.get("if-none-match")
        if wanted and (entry is None or not _matches(wanted, entry)):
            raise Refusal(412, "ConditionNotMet", "the blob is not the one that If-Match names")
        if entry is None:
            return
        if unwanted and _matches(unwanted, entry):
            exists = unwanted.strip() == "*" and not reading
            status, code = (409, "BlobAlreadyExists") if exists else unmet
            raise Refusal(status, code, "the blob is the one that If-None-Match names")
        changed = entry.changed.replace(microsecond=0)
        since, before = _date(headers, "if-modified-since"), _date(headers, "if-unmodified-since")
        if since and changed <= since:
            raise Refusal(*unmet, "the blob has not changed since then")
        if before and changed > before:
            raise Refusal(412, "ConditionNotMet", "the blob has changed since then")

    return expect


def tags_in(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata in a request's headers."""
    found = {
        name.removeprefix("x-ms-meta-"): value
        for name, value in headers.items()
        if name.startswith("x-ms-meta-")
    }
    for name in found:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise Refusal(400, "InvalidMetadata", f"{name!r} cannot name a blob's metadata")
    if sum(len(name) + len(value) for name, value in found.items()) > _MOST_METADATA:
        raise Refusal(400, "MetadataTooLarge", f"{_MOST_METADATA} bytes of metadata are taken")
    return found


def kept_in(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that a blob wants to be handed out with."""
    found = {name: headers.get(f"x-ms-blob-{name}", "") for name in _KEPT_HEADERS}
    if found["content-type"] == _PLAIN_TYPE:
        found["content-type"] = ""
    return {name: value for name, value in found.items() if value}


def headers_out(entry: Entry) -> dict[str, str]:
    """Return the headers that describe a blob."""
    modified = format_datetime(entry.changed, usegmt=True)
    tags = {f"x-ms-meta-{name}": value for name, value in entry.facts.tags.items()}
    return {
        **{"content-type": _PLAIN_TYPE, **entry.facts.headers},
        **{"ETag": f'"0x{entry.etag.upper()}"', "Last-Modified": modified},
        **{"Accept-Ranges": "bytes", "x-ms-blob-type": "BlockBlob", **tags},
        **{"x-ms-lease-status": "unlocked", "x-ms-lease-state": "available"},
        **{"x-ms-server-encrypted": "false", "x-ms-creation-time": modified},
    }


def range_in(headers: Mapping[str, str], size: int) -> tuple[int, int] | None:
    """Return the first byte asked for and the one after the last, if a range is asked for."""
    text = headers.get("x-ms-range") or headers.get("range")
    if not text:
        return None
    found = re.fullmatch(r"bytes=(?:([0-9]+)-([0-9]*)|-([0-9]+))", text.strip())
    if found is None:
        raise Refusal(400, "InvalidHeaderValue", f"{text[:80]!r} is not a range of bytes")
    first, last, tail = found.groups()
    start = max(0, size - int(tail)) if tail else int(first)
    end = min(int(last) + 1, size) if last else size
    if start >= size or end <= start:
        raise Refusal(416, "InvalidRange", f"the range {text!r} is not in the blob's {size} bytes")
    return start, end


def listing_in(request: Request) -> tuple[str, str, int, bool]:
    """Return prefix, what to start after, how many, and whether to show folders."""
    query = request.query_params
    if query.get("delimiter", "") not in ("", "/"):
        raise errors.NotSupported("only '/' is supported as a delimiter", target="delimiter")
    if unknown := set(query.get("include", "").split(",")) - _LISTED:
        raise errors.NotSupported(f"include={','.join(sorted(unknown))} is not supported here")
    asked = query.get("maxresults", "5000")
    if not re.fullmatch("[1-9][0-9]{0,8}", asked):
        raise Refusal(400, "OutOfRangeQueryParameterValue", "maxresults is a number from 1")
    return query.get("prefix", ""), _unmark(query), min(int(asked), 5000), "delimiter" in query


def listing_out(request: Request, container: str, page: Page[Entry | Folder]) -> str:
    query = request.query_params
    with_tags = "metadata" in query.get("include", "").split(",")
    asked = "".join(
        f"<{tag}>{_text(query[name])}</{tag}>"
        for tag, name in (
            ("Prefix", "prefix"),
            ("Marker", "marker"),
            ("MaxResults", "maxresults"),
            ("Delimiter", "delimiter"),
        )
        if query.get(name)
    )
    blobs = "".join(_listed(item, with_tags=with_tags) for item in page.items)
    following = "" if page.next is None else _mark(page.next)
    return (
        f"<EnumerationResults ContainerName={quoteattr(container)}>{asked}"
        f"<Blobs>{blobs}</Blobs><NextMarker>{following}</NextMarker></EnumerationResults>"
    )


def blocks_in(body: bytes) -> list[tuple[str, str]]:
    """Return the blocks that a block list names: from where, and their ids."""
    if b"<!" in body:
        raise Refusal(400, "InvalidXmlDocument", "a block list has no declarations")
    where = {"Uncommitted": "waiting", "Committed": "kept", "Latest": "latest"}
    try:
        wanted = [(where[item.tag], item.text or "") for item in ElementTree.fromstring(body)]
    except (ElementTree.ParseError, KeyError) as exc:
        raise Refusal(400, "InvalidXmlDocument", f"the block list cannot be read: {exc}") from exc
    if len(wanted) > _MOST_BLOCKS:
        raise Refusal(400, "BlockListTooLong", f"{_MOST_BLOCKS} blocks are taken")
    return wanted


def blocks_out(kept: Sequence[tuple[str, int]], waiting: Sequence[Piece], *, which: str) -> str:
    def listed(blocks: Sequence[tuple[str, int]]) -> str:
        return "".join(
            f"<Block><Name>{_text(id)}</Name><Size>{size}</Size></Block>" for id, size in blocks
        )

    parts = []
    if which in ("committed", "all"):
        parts.append(f"<CommittedBlocks>{listed(kept)}</CommittedBlocks>")
    if which in ("uncommitted", "all"):
        ready = [(piece.id, piece.size) for piece in waiting]
        parts.append(f"<UncommittedBlocks>{listed(ready)}</UncommittedBlocks>")
    return f"<BlockList>{''.join(parts)}</BlockList>"


def facts_in(headers: Mapping[str, str]) -> Facts:
    return Facts(tags=tags_in(headers), headers=kept_in(headers))


def _listed(item: Entry | Folder, *, with_tags: bool) -> str:
    if isinstance(item, Folder):
        return f"<BlobPrefix>{_name(item.path)}</BlobPrefix>"
    modified = format_datetime(item.changed, usegmt=True)
    headers = {"content-type": _PLAIN_TYPE, **item.facts.headers}
    kept = "".join(
        f"<{tag}>{_text(value)}</{tag}>"
        for tag, value in ((_title(name), value) for name, value in headers.items())
    )
    tags = "".join(f"<{name}>{_text(value)}</{name}>" for name, value in item.facts.tags.items())
    return (
        f"<Blob>{_name(item.path)}<Properties><Creation-Time>{modified}</Creation-Time>"
        f"<Last-Modified>{modified}</Last-Modified><Etag>0x{item.etag.upper()}</Etag>"
        f"<Content-Length>{item.size}</Content-Length>{kept}<BlobType>BlockBlob</BlobType>"
        "<LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState>"
        "<ServerEncrypted>false</ServerEncrypted></Properties>"
        f"{f'<Metadata>{tags}</Metadata>' if with_tags else ''}</Blob>"
    )


def _title(header: str) -> str:
    return "Content-MD5" if header == "content-md5" else header.title()


def _name(path: str) -> str:
    """Return a path as an element; a path that XML cannot hold goes percent-encoded."""
    if _text(path) == escape(path):
        return f"<Name>{escape(path)}</Name>"
    return f'<Name Encoded="true">{quote(path, errors="surrogateescape")}</Name>'


def _text(text: str) -> str:
    """Return a text as XML can hold it."""
    return escape(re.sub("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


def _mark(path: str) -> str:
    return base64.urlsafe_b64encode(path.encode("utf-8", "surrogateescape")).decode()


def _unmark(query: Mapping[str, str]) -> str:
    try:
        mark = base64.urlsafe_b64decode(query.get("marker", ""))
    except ValueError as exc:
        raise Refusal(400, "InvalidQueryParameterValue", "the marker is not one of ours") from exc
    return mark.decode("utf-8", "surrogateescape")


def _matches(text: str, entry: Entry) -> bool:
    tags = [tag.strip().removeprefix("W/").strip('"').lower() for tag in text.split(",")]
    return "*" in tags or f"0x{entry.etag}" in tags


def _date(headers: Mapping[str, str], name: str) -> datetime | None:
    if name not in headers:
        return None
    try:
        time = parsedate_to_datetime(headers[name])
    except ValueError as exc:
        raise Refusal(400, "InvalidHeaderValue", f"{name} is not a time") from exc
    return time if time.tzinfo else time.replace(tzinfo=UTC)
