"""Who may come in to MLflow, from where, and to which of its routes.

MLflow itself asks nobody who they are.  Its routes are let through by name:
what is not on the list (an assistant that runs shell commands, a gateway to
other people's models, background jobs, web hooks, …) is refused by name.
Nothing here knows what the routes do.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from urllib.parse import parse_qs, urlsplit

from finery.core import errors
from finery.core.files import Files
from finery.core.workspaces import Caller

Headers = dict[bytes, bytes]

ARTIFACTS = re.compile(r"/(?:ajax-)?api/2\.0/mlflow-artifacts/artifacts(?:/(?P<path>.*))?", re.S)
STORE = "workspaceartifactstore"  # the only datastore that MLflow writes to

_API = re.compile(r"/(?:ajax-)?api/[23]\.0/mlflow/(?P<noun>[^/]+)(?P<rest>/.*)?", re.S)
_PAGES = re.compile(
    r"/|/static-files/.*|/health|/version|/get-artifact|/model-versions/get-artifact"
    r"|/(?:ajax-)?graphql|/v1/traces"
)
_NOUNS = frozenset(
    "artifacts datasets experiments get-trace-artifact issues label-schemas logged-models metrics "
    "model-versions registered-models review-queues runs scorers server-info traces ui-telemetry "
    "unified-traces upload-artifact get-online-trace-details".split()
)
# Of the nouns above: these start background jobs that run on this machine.
_STARTS_JOBS = frozenset({"issues/invoke", "scorers/online-config", "scorers/online-configs"})
# What one job must not do to the work of others.
_NOT_FOR_JOBS = frozenset(
    {"experiments/delete", "registered-models/delete", "registered-models/rename"}
)
# What the pages use to reach the files of any run, past `check_artifact`; clients do not.
_PAGES_ONLY = re.compile(
    r"/get-artifact|/model-versions/get-artifact|/ajax-api/[23]\.0/mlflow/(?:get-trace-artifact"
    r"|upload-artifact|logged-models/[^/]+/artifacts/files)"
)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def artifacts(workspace: str, path: str) -> str:
    """Return how MLflow addresses a path that it may write to."""
    return f"mlflow-artifacts:/{workspace}/{STORE}/{path}"


def credential(headers: Headers) -> tuple[str | None, bool]:
    """Return what the caller shows, and whether a browser showed it by itself (a cookie)."""
    kind, _, rest = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() == "bearer":
        return rest.strip() or None, False
    if kind.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2], False
        except (binascii.Error, UnicodeDecodeError):
            return None, False
    for part in headers.get(b"cookie", b"").decode("latin-1").split(";"):
        name, _, value = part.strip().partition("=")
        if name == "finery":
            return value or None, True
    return None, False


def wants_page(method: str, headers: Headers) -> bool:
    """Say whether a person is looking: then a log-in page helps more than a status code."""
    return method == "GET" and b"text/html" in headers.get(b"accept", b"")


def check_place(method: str, headers: Headers, *, hosts: Iterable[str], cookie: bool) -> None:
    """Refuse a foreign host name (rebinding) and what another site's page sends.

    `hosts` are our own names; any name goes where we listen beyond loopback,
    because then we cannot know them.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    own = _LOOPBACK | set(hosts)
    if own == _LOOPBACK and _host(f"//{host}") not in own:
        raise errors.Forbidden(f"the host name {host[:80]!r} is not one of this server's")
    origin = headers.get(b"origin", b"").decode("latin-1")
    if method not in _CHANGES or (not origin and not cookie):
        return
    if _host(origin) is None or urlsplit(origin).netloc != host:
        raise errors.Forbidden("cross-origin requests are not taken: use this server's own pages")


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # half a pair of brackets
        return None


def check_route(path: str, caller: Caller) -> None:
    """Refuse what is not offered.  `path` is without our prefix."""
    if caller.role != "administrator" and _PAGES_ONLY.fullmatch(path):
        raise errors.Forbidden("a job reaches artifacts by their own addresses only", target=path)
    if _PAGES.fullmatch(path) or ARTIFACTS.fullmatch(path):
        return
    found = _API.fullmatch(path)
    if found is None or found["noun"] not in _NOUNS:
        what = found["noun"] if found else path.strip("/").split("/")[0]
        raise errors.NotFound(f"MLflow's {what[:80]!r} is not offered here", target=what[:80])
    operation = "/".join((found["noun"], *(found["rest"] or "").strip("/").split("/")[:1]))
    if operation in _STARTS_JOBS:
        raise errors.NotFound(
            f"MLflow's {operation!r} is not offered here: it starts processes beside our jobs",
            target=operation,
        )
    if caller.role != "administrator" and operation in _NOT_FOR_JOBS:
        raise errors.Forbidden(f"a job may not call {operation!r}", target=operation)


def check_artifact(files: Files, caller: Caller, method: str, path: str, query: bytes) -> None:
    """Confine a direct artifact request to the caller's workspace and to its datastore.

    `path` is what follows `…/artifacts/`, or empty for a listing, which names
    its folder in the query.
    """
    if not path:
        path = parse_qs(query.decode("latin-1")).get("path", [""])[0]
    workspace, _, rest = path.strip("/").partition("/")
    datastore, _, rest = rest.partition("/")
    if not workspace or not datastore:
        raise errors.Invalid("an artifact's path begins with a workspace and a datastore")
    caller.need(workspace)
    if method in _CHANGES and datastore != STORE:
        raise errors.Forbidden(f"artifacts are written to {STORE!r} only", target=datastore)
    files.path(workspace, datastore, rest)
