"""Azure Resource Manager's manners, once for the whole door: routes, errors, times, pages, words.

What a resource means is in its own module (`assets.py`, `jobs.py`, …); ids and
paths are read and written in `references.py`.  Nothing here touches the store
but `room`, which every route starts with.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from finery.core import errors, ids, status, workspaces
from finery.core.errors import Failure, Invalid, NotSupported, TooLarge
from finery.core.store import Page
from finery.core.workspaces import Caller, Workspace
from finery.doors import http
from finery.doors.http import House

T = TypeVar("T")

# More would only wait for each other: for the interpreter, and for the turn to write.
_THREADS = ThreadPoolExecutor(16, thread_name_prefix="door")
_MOST = 8 << 20  # bytes of a body; Azure takes 4 MiB
PROVIDER = "Microsoft.MachineLearningServices"
LOCATION = "local"  # the region that everything here is in
GROUP = "/subscriptions/{subscription}/resourceGroups/{group}"
WORKSPACES = f"{GROUP}/providers/{PROVIDER}/workspaces"
WORKSPACE = f"{WORKSPACES}/{{workspace}}"

# What the SDK puts behind `ACCOUNT.blob.`: some of its patterns know no other text than Azure's.
STORAGE_SUFFIX = "core.windows.net"

CODES: dict[type[Failure], str] = {
    errors.Unauthenticated: "AuthenticationFailed",
    errors.Forbidden: "AuthorizationFailed",
    errors.NotFound: "ResourceNotFound",
    errors.AlreadyExists: "ResourceAlreadyExists",
    errors.Conflict: "Conflict",
    errors.Invalid: "UserError",
    errors.TooLarge: "RequestEntityTooLarge",
    errors.NotSupported: "NotSupported",
    errors.Unavailable: "ServiceUnavailable",
    errors.Failure: "InternalServerError",
}

# Total over the core's machines; `tests/doors/azureml/test_wire.py` checks that.
JOB_STATUS: dict[str, str] = {
    "queued": "Queued",
    "preparing": "Preparing",
    "running": "Running",
    "finalizing": "Finalizing",
    "cancelling": "CancelRequested",
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Canceled",
}
DEPLOYMENT: dict[str, str] = {
    "creating": "Creating",
    "ready": "Succeeded",
    "unhealthy": "Succeeded",  # provisioned all the same: Azure keeps the two apart too
    "updating": "Updating",
    "failed": "Failed",
    "deleting": "Deleting",
    "gone": "Deleting",
}
ENDPOINT: dict[str, str] = {"ready": "Succeeded", "deleting": "Deleting", "gone": "Deleting"}

# What a parameter of a path may be, where not every word will do.
CHOICES = {"plural": frozenset({"data", "models", "environments", "components", "codes"})}

# `listViewType` -> the core's `archived`.
VIEWS: dict[str, bool | None] = {"activeonly": False, "archivedonly": True, "all": None}


class _Strict(Request):
    """A request whose JSON is only taken if it can be kept and said again.

    Python's own reader takes NaN, halves of characters and any depth; no
    database and no other client does.
    """

    async def json(self) -> Any:
        return orjson.loads(await self.body())


class Route(APIRoute):
    """A route whose fixed words match in any case, as Azure's do.

    It compares words, not patterns: the door has over a hundred routes, each
    request is held against most of them, and a pattern costs ten times as much.
    What a route takes it finds itself where that is no more than the request,
    words of the path, who calls and a JSON object: the framework's general way
    to the same costs three times what the door does with them.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **given: Any) -> None:
        super().__init__(path, endpoint, **given)
        words = path.split("/")
        self._open = path.endswith(":path}")
        self._size = len(words)
        self._fixed = tuple(
            (place, word.lower())
            for place, word in reversed(list(enumerate(words)))
            if not word.startswith("{")
        )
        self._names = tuple(
            (place, word.strip("{}").removesuffix(":path"))
            for place, word in enumerate(words)
            if word.startswith("{")
        )
        self._chosen = tuple(
            (place, CHOICES[name]) for place, name in self._names if name in CHOICES
        )
        self._takes = _takes(endpoint, {name for _, name in self._names})
        self._waits = not inspect.iscoroutinefunction(endpoint)  # and so needs a thread

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["method"] not in (self.methods or ()):
            return Match.NONE, {}
        words = scope.get("finery.words")
        if words is None:
            given = scope["path"].rstrip("/").split("/")
            words = scope["finery.words"] = given, [word.lower() for word in given]
        given, lower = words
        if len(given) < self._size if self._open else len(given) != self._size:
            return Match.NONE, {}
        for place, word in self._fixed:
            if lower[place] != word:
                return Match.NONE, {}
        for place, choices in self._chosen:
            if lower[place] not in choices:
                return Match.NONE, {}
        params = {name: given[place] for place, name in self._names}
        if self._open:
            params[self._names[-1][1]] = "/".join(given[self._size - 1 :])
        child = {"endpoint": self.endpoint, "path_params": params, "route": self}
        return Match.FULL, child

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._takes is None:
            return await super().handle(scope, receive, send)
        request = Request(scope, receive, send)
        given: dict[str, Any] = {}
        for name, who in self._takes.items():
            if who is not None:
                given[name] = await who(request)
            elif name == "request":
                given[name] = request
            elif name == "body":
                given[name] = await body(request)
            else:
                given[name] = request.path_params[name]
        if self._waits:
            call = functools.partial(self.endpoint, **given)
            response = await asyncio.get_running_loop().run_in_executor(_THREADS, call)
        else:
            response = await self.endpoint(**given)
        await response(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_Strict(request.scope, request.receive))

        return strict


def _takes(endpoint: Callable[..., Any], words: set[str]) -> dict[str, Any] | None:
    """Return what an endpoint takes, with the dependency where it is one; None: something else."""
    signature, found = inspect.signature(endpoint), {}
    for name, one in signature.parameters.items():
        found[name] = getattr(one.default, "dependency", None)
        if found[name] is None and name not in (words | {"request", "body"}):
            return None
        if found[name] is not None and not inspect.iscoroutinefunction(found[name]):
            return None
    if signature.return_annotation not in ("Response", Response):
        return None
    # Who calls comes first: of a stranger nothing is read.
    return dict(sorted(found.items(), key=lambda item: item[1] is None))


async def body(request: Request) -> dict[str, Any]:
    """Return the JSON object that came with a request."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > _MOST:
            raise TooLarge(f"the body is longer than {_MOST >> 20} MiB")
    try:
        found = orjson.loads(b"".join(parts))
    except ValueError as exc:
        raise Invalid(f"the body is not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise Invalid("the body must be a JSON object")
    return found


def router() -> APIRouter:
    return APIRouter(route_class=Route, include_in_schema=False, max_body_size=_MOST)


def need(house: House) -> Callable[[Request], Awaitable[Caller]]:
    """Return the dependency that says who calls, from the Authorization header."""

    async def caller(request: Request) -> Caller:
        return http.caller(house, http.bearer(request))

    return caller


def room(house: House, request: Request, caller: Caller) -> Workspace:
    """Return the workspace that the request's path names, if the caller may act in it."""
    path = request.path_params
    found = workspaces.get(house.store, path["subscription"], path["group"], path["workspace"])
    caller.need(found.id)
    return found


def failure(request: Request, exc: Exception) -> Response:
    """Say what went wrong in Azure Resource Manager's words."""
    code, number, message, target = _told(exc)
    error: dict[str, Any] = {
        "code": code,
        "message": message,
        "target": target or None,
        "details": [],
    }
    headers = {"x-ms-error-code": code}
    if number == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return answer({"error": error}, status=number, headers=headers)


def _told(exc: Exception) -> tuple[str, int, str, str]:
    if isinstance(exc, Failure):
        kind = next(kind for kind in type(exc).__mro__ if kind in CODES)
        return CODES[kind], http.STATUS[kind], str(exc), exc.target
    if isinstance(exc, RequestValidationError):
        where = "; ".join(
            f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"
            for error in exc.errors()
        )
        return CODES[Invalid], 400, f"the request does not make sense: {where}", ""
    if isinstance(exc, HTTPException):
        known = {404: "ResourceNotFound", 405: "MethodNotAllowed", 413: "RequestEntityTooLarge"}
        return known.get(exc.status_code, "UserError"), exc.status_code, str(exc.detail), ""
    return CODES[Failure], 500, "something went wrong on the server; its log says what", ""


def answer(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `body` as JSON, without the framework's slow way there."""
    data = orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)
    return Response(data, status, headers=headers, media_type="application/json")


def nothing(status: int = 204) -> Response:
    return Response(status_code=status)


def iso(time: datetime | None) -> str | None:
    """Return a UTC time as `2026-01-31T12:00:00.000000Z`."""
    if time is None:
        return None
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def system_data(
    created_at: datetime, *, created_by: str = "", modified_at: datetime | None = None
) -> dict[str, Any]:
    """Return `systemData`; the SDK fails without its times."""
    who = created_by or "finery"
    return {
        "createdAt": iso(created_at),
        "createdBy": who,
        "createdByType": "User",
        "lastModifiedAt": iso(modified_at or created_at),
        "lastModifiedBy": who,
        "lastModifiedByType": "User",
    }


def after(request: Request) -> str:
    """Return where the page asked for begins: the core's `after`."""
    return request.query_params.get("$skipToken") or request.query_params.get("$skip") or ""


def limit(request: Request, most: int = 100) -> int:
    """Return how many are asked for, at most `most`."""
    text = request.query_params.get("$top") or request.query_params.get("$maxpagesize") or ""
    if not text:
        return most
    found = ids.whole(text, target="$top")
    if found < 1:
        raise Invalid(f"$top is {text!r}; it must be a whole number from 1 up", target="$top")
    return min(found, most)


def archived(request: Request) -> bool | None:
    """Return `listViewType` as the core's `archived`: only those, only others, or both."""
    text = request.query_params.get("listViewType") or "ActiveOnly"
    # The registry's client sends the name of its own enum: `ListViewType.ACTIVE_ONLY`.
    said = text.rpartition(".")[2].replace("_", "").lower()
    if said not in VIEWS:
        raise Invalid(
            f"listViewType is {text!r}; it must be ActiveOnly, ArchivedOnly or All",
            target="listViewType",
        )
    return VIEWS[said]


def page_out(request: Request, page: Page[T], item_out: Callable[[T], Any]) -> Response:
    """Return a page in ARM's shape; `nextLink` is this address with where to go on."""
    return listed(request, [item_out(item) for item in page.items], after=page.next)


def listed(request: Request, items: Sequence[Any], *, after: str | None = None) -> Response:
    body: dict[str, Any] = {"value": items}
    if after:
        url = request.url.include_query_params(**{"$skipToken": after})
        body["nextLink"] = str(url)
    return answer(body)


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return the object that a field holds; nothing is an empty one."""
    if not value:
        return {}
    if not isinstance(value, dict):
        raise Invalid(f"{where} must be an object, and is {_shown(value)}", target=where)
    return value


def text(value: Any, where: str) -> str:
    """Return the text that a field holds; nothing is an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Invalid(f"{where} must be a text, and is {_shown(value)}", target=where)
    return value


def _shown(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()[:60]


def refuse_unknown(body: Any, known: Iterable[str], where: str) -> None:
    """Raise `NotSupported` for a field of `body` that is set and that nobody here honours."""
    for name, value in mapping(body, where).items():
        if name not in known and value not in (None, "", [], {}, False):
            raise NotSupported(f"{where}: the field {name!r} is not supported here", target=name)


def keep(body: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the harmless fields that are only echoed: what goes into `extras`."""
    return {name: body[name] for name in names if body.get(name) is not None}


def properties(body: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a resource's `properties`, which every PUT here has."""
    found = body.get("properties")
    if not isinstance(found, dict):
        raise Invalid(f"{where}: the body has no 'properties' object", target="properties")
    return found


def texts(value: Any, where: str) -> dict[str, str]:
    """Return tags or properties as texts: numbers and truth values are written out."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid(f"{where} must be an object of texts", target=where)
    return {str(name): _text(item) for name, item in value.items() if item is not None}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def word(table: Mapping[str, str], said: str, *, field: str) -> str:
    """Return the core's word for Azure's, by a table from ours to theirs, in any case."""
    for ours, theirs in table.items():
        if theirs.lower() == said.lower():
            return ours
    raise Invalid(
        f"{field} is {said!r}; it must be one of {', '.join(dict.fromkeys(table.values()))}",
        target=field,
    )


def job_is_final(said: str) -> bool:
    return status.is_final(status.JOB, said)
