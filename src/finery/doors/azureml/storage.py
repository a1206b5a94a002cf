"""Blobs: what `azure-storage-blob` calls, over the files that jobs and models use.

A blob is a file below `files/<workspace>/<container>`, whoever wrote it.  One
route takes every request and looks at its verb; `sas.py` has the signatures,
`blobs.py` the words of the protocol.  Bytes go from the wire to a part of a
file, and from a file to the wire, a megabyte at a time.

Not here, and refused by name: append and page blobs, leases, snapshots,
versions, tags on blobs, tiers, keys of the caller's own; file shares (what lies in
the datastores of that kind is reached as blobs) and Data Lake file systems.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from finery.core import ids, uploads, workspaces
from finery.core.errors import Failure, Forbidden, Invalid, NotFound, NotSupported
from finery.core.files import Entry, Facts
from finery.core.store import Page
from finery.core.uploads import Place
from finery.core.workspaces import Caller
from finery.doors import http
from finery.doors.azureml import blobs, references, sas, streams
from finery.doors.azureml.blobs import Refusal
from finery.doors.http import House

_CHUNK = 1 << 20
# The SDK makes `ACCOUNT.blob.SUFFIX` of an account's name, whatever the name.
_ACCOUNT = re.compile(r"(.+?)\.(blob|file|dfs|queue|table)\..+")
_METHODS = ["GET", "HEAD", "PUT", "DELETE", "POST", "PATCH", "OPTIONS"]


def router(house: House) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/blob/{address:path}", methods=_METHODS)
    async def blob(request: Request) -> Response:
        try:
            return await _answer(house, request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except (Failure, Refusal) as exc:
            await streams.drain(request)
            return blobs.failure(request, exc)

    return routes


def failure(request: Request, exc: Exception) -> Response:
    """Say what went wrong in the protocol's words: for the app's own handlers."""
    return blobs.failure(request, exc)


async def _answer(house: House, request: Request) -> Response:
    if "sig" not in request.query_params:
        _caller(house, request)  # before anything else is said, be it that we cannot do it
    place = _place(request)
    blobs.refuse_unkept(request)
    query = request.query_params
    what = (request.method, query.get("restype"), query.get("comp"))
    if not place.path or what == ("GET", "container", "list"):
        return await _container(house, request, place, what)
    match what:
        case ("GET" | "HEAD", None, None):
            return await _read(house, request, place)
        case ("PUT", None, None) if "x-ms-copy-source" in request.headers:
            return await _copy(house, request, place)
        case ("PUT", None, None):
            return await _write(house, request, place)
        case ("PUT", None, "block"):
            return await _stage(house, request, place)
        case ("PUT", None, "blocklist"):
            return await _commit(house, request, place)
        case ("GET", None, "blocklist"):
            return await _blocks(house, request, place)
        case ("GET" | "HEAD", None, "metadata"):
            _allowed(house, request, place, "r")
            entry = await run_in_threadpool(_entry, house, request, place)
            return Response(headers={**blobs.headers_out(entry), **blobs.common(request)})
        case ("PUT", None, "metadata" | "properties"):
            return await _annotate(house, request, place)
        case ("DELETE", None, None):
            return await _delete(house, request, place)
    raise NotSupported(f"{_said(what)} on a blob is not supported here", target="comp")


async def _container(
    house: House, request: Request, place: Place, what: tuple[str, str | None, str | None]
) -> Response:
    if not place.datastore:
        _allowed(house, request, place, "")
        raise NotSupported(f"{_said(what)} on an account is not supported here", target="comp")
    match what:
        case ("GET", "container", "list"):
            prefix = _within(place) + request.query_params.get("prefix", "")
            _allowed(house, request, replace(place, path=prefix), "l")
            return await run_in_threadpool(_list, house, request, place)
        case ("GET" | "HEAD", "container", None):
            _allowed(house, request, place, "rl")
            await run_in_threadpool(_need_container, house, request, place)
            return Response(headers=_container_headers(request))
        case ("PUT", "container", None):
            _allowed(house, request, place, "")
            await run_in_threadpool(workspaces.by_id, house.store, place.scope)
            if not await run_in_threadpool(house.files.create, place.scope, place.datastore):
                raise Refusal(409, "ContainerAlreadyExists", "the container exists")
            return Response(status_code=201, headers=_container_headers(request))
    raise NotSupported(f"{_said(what)} on a container is not supported here", target="comp")


def _place(request: Request) -> Place:
    """Return what a request's path names; the account may end in the SDK's own suffix."""
    raw = request.scope.get("raw_path") or request.url.path.encode()
    path = unquote(raw.decode("ascii").partition("?")[0], errors="surrogateescape")
    return _place_at(path)


def _place_at(path: str) -> Place:
    account, _, rest = path.removeprefix("/blob/").partition("/")
    container, _, name = rest.partition("/")
    found = _ACCOUNT.fullmatch(account)
    scope, kind = found.groups() if found else (account, "blob")
    if kind != "blob":
        raise NotSupported(f"{kind!r} storage is not supported here: only 'blob' is", target=kind)
    return Place(scope=scope, datastore=container, path=name)


def _allowed(house: House, request: Request, place: Place, verbs: str) -> str:
    """Return what the caller may do there.  Raises unless that is one of `verbs`.

    With no `verbs`, only a token or key will do, not a signature.
    """
    if "sig" in request.query_params:
        return _signed(house, dict(request.query_params), place, verbs)
    _caller(house, request).need(place.scope)
    return sas.ALL


def _caller(house: House, request: Request) -> Caller:
    if request.headers.get("authorization", "").lower().startswith("sharedkey"):
        raise Forbidden("account keys are not supported: use a signature or a token")
    return http.caller(house, http.bearer(request))


def _signed(house: House, query: Mapping[str, str], place: Place, verbs: str) -> str:
    return sas.check(
        house.keys,
        query,
        place.scope,
        container=place.datastore,
        path=place.path,
        verbs=verbs,
        now=ids.now(),
    )


async def _read(house: House, request: Request, place: Place) -> Response:
    _allowed(house, request, place, "r")
    if request.method == "HEAD":
        entry = await run_in_threadpool(_entry, house, request, place)
        headers = {**blobs.headers_out(entry), **blobs.common(request)}
        return Response(headers={**headers, "content-length": str(entry.size)})
    entry, file = await run_in_threadpool(
        house.files.open, place.scope, place.datastore, place.path
    )
    try:
        blobs.conditions(request)(entry)
        wanted = blobs.range_in(request.headers, entry.size)
        start, end = wanted or (0, entry.size)
        headers = {**blobs.headers_out(entry), **blobs.common(request)}
        headers["content-length"] = str(end - start)
        if wanted:
            headers["content-range"] = f"bytes {start}-{end - 1}/{entry.size}"
            if "content-md5" in headers:
                headers["x-ms-blob-content-md5"] = headers.pop("content-md5")
            if request.headers.get("x-ms-range-get-content-md5") == "true":
                headers["content-md5"] = await run_in_threadpool(streams.md5_of, file, start, end)
        file.seek(start)
    except BaseException:
        file.close()
        raise
    return StreamingResponse(
        streams.sent(file, end - start), status_code=206 if wanted else 200, headers=headers
    )


async def _write(house: House, request: Request, place: Place) -> Response:
    """Take a whole blob in one request."""
    kind = request.headers.get("x-ms-blob-type", "BlockBlob")
    if kind != "BlockBlob":
        raise NotSupported(f"{kind} is not supported here: only BlockBlob is", target="blob type")
    facts, expect = blobs.facts_in(request.headers), _expected(house, request, place)
    with uploads.part(house.files, size=streams.length(request)) as part:
        md5 = await streams.received(request, part)
        entry = await run_in_threadpool(_put, house, place, part, facts, expect)
    return _written(request, entry, 201, md5=md5)


async def _stage(house: House, request: Request, place: Place) -> Response:
    """Take one block of a blob; blocks come side by side and in any order."""
    _allowed(house, request, place, "cw")
    if "x-ms-copy-source" in request.headers:
        raise NotSupported("a block from an address is not supported here", target="copy source")
    await run_in_threadpool(_need_container, house, request, place)
    id = request.query_params.get("blockid", "")
    with uploads.part(house.files, size=streams.length(request)) as part:
        md5 = await streams.received(request, part)
        await run_in_threadpool(uploads.keep, house.files, place, id, part=part)
    return Response(status_code=201, headers=_with_md5(blobs.common(request), md5))


async def _commit(house: House, request: Request, place: Place) -> Response:
    """Make a blob of its blocks."""
    facts, expect = blobs.facts_in(request.headers), _expected(house, request, place)
    body = await streams.small(request)
    streams.same_md5(request, hashlib.md5(body, usedforsecurity=False).digest())
    wanted = blobs.blocks_in(body)
    entry = await run_in_threadpool(_join, house, place, wanted, facts, expect)
    return _written(request, entry, 201)


def _join(
    house: House,
    place: Place,
    wanted: list[tuple[str, str]],
    facts: Facts,
    expect: Callable[[Entry | None], None],
) -> Entry:
    size = uploads.waiting_size(house.files, place, wanted)
    with uploads.part(house.files, size=size) as part:
        pieces = uploads.join(house.files, place, wanted, part=part)
        entry = _put(house, place, part, replace(facts, pieces=pieces), expect)
    uploads.forget(house.files, place)
    return entry


async def _blocks(house: House, request: Request, place: Place) -> Response:
    _allowed(house, request, place, "r")
    which = request.query_params.get("blocklisttype", "committed")
    present = await run_in_threadpool(house.files.find, place.scope, place.datastore, place.path)
    waiting = await run_in_threadpool(uploads.pieces, house.files, place)
    if present is None and not waiting:
        raise NotFound(f"there is no blob {place.path!r}", target=place.path)
    kept = present.facts.pieces if present else []
    return blobs.xml(blobs.blocks_out(kept, waiting, which=which), headers=blobs.common(request))


async def _copy(house: House, request: Request, place: Place) -> Response:
    """Copy a blob of this server; of any other, refused."""
    expect = _expected(house, request, place)
    try:
        source = urlsplit(request.headers["x-ms-copy-source"])
    except ValueError as exc:
        raise Invalid(f"x-ms-copy-source is not an address: {exc}", target="copy source") from exc
    ours = {urlsplit(house.http).netloc, urlsplit(house.https).netloc, request.url.netloc}
    if source.netloc not in ours or not source.path.startswith("/blob/"):
        raise NotSupported("only a blob of this server can be copied", target="copy source")
    start = _place_at(unquote(source.path))
    query = {key: values[0] for key, values in parse_qs(source.query).items()}
    if "sig" in query:
        _signed(house, query, start, "r")
    elif "sig" in request.query_params:
        raise Forbidden("the source needs a signature of its own", target="copy source")
    else:
        _caller(house, request).need(start.scope)
    tags = blobs.tags_in(request.headers)
    entry = await run_in_threadpool(_copied, house, start, place, tags, expect)
    answer = _written(request, entry, 202)
    answer.headers.update({"x-ms-copy-id": ids.new(), "x-ms-copy-status": "success"})
    return answer


def _copied(
    house: House,
    start: Place,
    place: Place,
    tags: dict[str, str],
    expect: Callable[[Entry | None], None],
) -> Entry:
    found, file = house.files.open(start.scope, start.datastore, start.path)
    with file, uploads.part(house.files, size=found.size) as part, part.open("wb") as out:
        while data := file.read(_CHUNK):
            out.write(data)
        out.close()
        facts = replace(found.facts, tags=tags or found.facts.tags)
        return _put(house, place, part, facts, expect)


async def _annotate(house: House, request: Request, place: Place) -> Response:
    """Replace a blob's metadata, or the headers it is handed out with."""
    _allowed(house, request, place, "w")
    tags, kept = blobs.tags_in(request.headers), blobs.kept_in(request.headers)

    def change(facts: Facts) -> Facts:
        if request.query_params["comp"] == "metadata":
            return replace(facts, tags=tags)
        return replace(facts, headers=kept)

    def annotated() -> Entry:
        return house.files.annotate(
            place.scope,
            place.datastore,
            place.path,
            change=change,
            expect=blobs.conditions(request),
        )

    return _written(request, await run_in_threadpool(annotated), 200)


async def _delete(house: House, request: Request, place: Place) -> Response:
    _allowed(house, request, place, "d")

    def deleted() -> None:
        house.files.delete(
            place.scope, place.datastore, place.path, expect=blobs.conditions(request)
        )

    await run_in_threadpool(deleted)
    return Response(status_code=202, headers=blobs.common(request))


def _within(place: Place) -> str:
    """Return the prefix of a folder that is asked for as if it were a container.

    Uploaded code lies in such a folder: the SDK takes its address for a container's.
    """
    return f"{place.path}/" if place.path else ""


def _list(house: House, request: Request, place: Place) -> Response:
    prefix, after, limit, folders = blobs.listing_in(request)
    within = _within(place)
    try:
        page = house.files.list(
            place.scope,
            place.datastore,
            prefix=within + prefix,
            after=after,
            limit=limit,
            folders=folders,
        )
    except NotFound:
        _need_container(house, request, place)
        page = Page([])
    shown = [replace(item, path=item.path.removeprefix(within)) for item in page.items]
    page = replace(page, items=shown)
    body = blobs.listing_out(request, place.datastore, page)
    return blobs.xml(body, headers=blobs.common(request))


def _entry(house: House, request: Request, place: Place) -> Entry:
    entry = house.files.get(place.scope, place.datastore, place.path)
    blobs.conditions(request)(entry)
    return entry


def _expected(house: House, request: Request, place: Place) -> Callable[[Entry | None], None]:
    """Return what must hold of the blob that is written over; the caller may write at all."""
    allowed, met = _allowed(house, request, place, "cw"), blobs.conditions(request)

    def expect(entry: Entry | None) -> None:
        _need_container(house, request, place)
        met(entry)
        if entry is not None and "w" not in allowed:
            raise Forbidden("the signature allows new blobs, and this one exists", target="sp")

    return expect


def _put(
    house: House,
    place: Place,
    part: Path,
    facts: Facts,
    expect: Callable[[Entry | None], None],
) -> Entry:
    return house.files.put(
        place.scope, place.datastore, place.path, part=part, facts=facts, expect=expect
    )


def _need_container(house: House, request: Request, place: Place) -> None:
    """Raise unless the container is there, or may be made by the first who writes to it."""
    if house.files.base(place.scope, place.datastore).is_dir() or "sig" in request.query_params:
        return
    if place.datastore not in references.DATASTORES:
        raise Refusal(404, "ContainerNotFound", f"there is no container {place.datastore!r}")
    try:
        workspaces.by_id(house.store, place.scope)
    except NotFound as exc:
        raise Refusal(404, "ContainerNotFound", str(exc)) from exc


def _written(request: Request, entry: Entry, status: int, *, md5: bytes | None = None) -> Response:
    described = blobs.headers_out(entry)
    headers = {name: described[name] for name in ("ETag", "Last-Modified")}
    headers |= {"x-ms-request-server-encrypted": "false", **blobs.common(request)}
    return Response(status_code=status, headers=_with_md5(headers, md5))


def _with_md5(headers: dict[str, str], md5: bytes | None) -> dict[str, str]:
    return {**headers, "Content-MD5": base64.b64encode(md5).decode()} if md5 else headers


def _container_headers(request: Request) -> dict[str, str]:
    state = {"x-ms-lease-status": "unlocked", "x-ms-lease-state": "available"}
    fixed = {"ETag": '"0x1"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    return {**state, **fixed, "x-ms-has-immutability-policy": "false", **blobs.common(request)}


def _said(what: tuple[str, str | None, str | None]) -> str:
    method, restype, comp = what
    asked = [f"restype={restype}"] * bool(restype) + [f"comp={comp}"] * bool(comp)
    return " ".join((method, *asked))
