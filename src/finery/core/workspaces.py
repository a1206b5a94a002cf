"""Workspaces, and who is calling: keys, tokens, what a caller may do.

A workspace is a room of its own for assets, jobs and endpoints.  A credential
is the administrator's key, or a token signed by this server that expires.
Which header a credential comes in is a door's business.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

from sqlalchemy import (
    JSON,
    Column,
    Integer,
    String,
    Table,
    UniqueConstraint,
    bindparam,
    delete,
    insert,
    select,
)
from sqlalchemy import update as update_rows
from sqlalchemy.exc import IntegrityError

from finery.core import ids
from finery.core.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    NotFound,
    Unauthenticated,
)
from finery.core.store import Page, Store, When, metadata, page

Role = Literal["administrator", "job"]

WORKSPACES = Table(
    "workspaces",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("subscription", String(255), nullable=False),
    Column("group", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Column("created_at", When, nullable=False),
    Column("display_name", String, nullable=False),
    Column("description", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("extras", JSON, nullable=False),
    # Names are compared without regard to case, as the callers' own tools do.
    Column("key", String(800), nullable=False),
    UniqueConstraint("key"),
)

_BY_KEY = select(WORKSPACES).where(WORKSPACES.c.key == bindparam("key"))  # asked most: made once
_BELIEVED = 1.0  # seconds that a workspace which every request names is not looked up again


@dataclass(frozen=True, kw_only=True)
class Workspace:
    id: str = field(default_factory=ids.new)
    subscription: str
    group: str
    name: str
    created_at: datetime = field(default_factory=ids.now)
    display_name: str = ""
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who is calling, and where they may act.  `workspace` None: everywhere."""

    name: str
    role: Role = "administrator"
    workspace: str | None = None

    def need(self, workspace: str) -> None:
        """Raise `Forbidden` unless this caller may act in that workspace."""
        if self.workspace not in (None, workspace):
            raise Forbidden("this credential is for another workspace", target=workspace)

    def need_administrator(self) -> None:
        if self.role != "administrator":
            raise Forbidden(f"a token of the role {self.role!r} may not do this")


def create(store: Store, workspace: Workspace) -> Workspace:
    ids.name(workspace.name)
    row = {
        **_row(workspace),
        "key": _key(workspace.subscription, workspace.group, workspace.name),
    }
    try:
        with store.transaction() as connection:
            connection.execute(insert(WORKSPACES).values(**row))
    except IntegrityError as exc:
        raise AlreadyExists(f"workspace {workspace.name!r} exists", target=workspace.name) from exc
    return workspace


def get(store: Store, subscription: str, group: str, name: str) -> Workspace:
    key = _key(subscription, group, name)
    at, found = store.recent.get(key, (0.0, None))
    if found is not None and time.monotonic() - at < _BELIEVED:
        return cast(Workspace, found)
    row = store.row(_BY_KEY, key=key)
    if row is None:
        raise NotFound(
            f"no workspace {name!r} in resource group {group!r}: "
            "`finery config` prints where the default one is",
            target=name,
        )
    workspace = _workspace(row)
    store.recent[key] = time.monotonic(), workspace
    return workspace


def by_id(store: Store, id: str) -> Workspace:
    row = store.row(select(WORKSPACES).where(WORKSPACES.c.id == id))
    if row is None:
        raise NotFound(f"no workspace with the id {id!r}", target=id)
    return _workspace(row)


def list(
    store: Store,
    *,
    subscription: str,
    group: str | None = None,
    after: str = "",
    limit: int = 100,
) -> Page[Workspace]:
    query = select(WORKSPACES).where(WORKSPACES.c.subscription == subscription)
    if group is not None:
        query = query.where(WORKSPACES.c.group == group)
    begin = ids.whole(after or "0", target="after")
    query = query.where(WORKSPACES.c.seq > begin).order_by(WORKSPACES.c.seq)
    rows = store.rows(query.limit(limit + 1))
    return page([_workspace(row) for row in rows], limit, [str(row.seq) for row in rows])


def update(store: Store, workspace: Workspace) -> Workspace:
    """Write down what may change of a workspace: its texts, tags and extras."""
    changed = {
        name: getattr(workspace, name) for name in ("display_name", "description", "tags", "extras")
    }
    with store.transaction() as connection:
        connection.execute(
            update_rows(WORKSPACES).where(WORKSPACES.c.id == workspace.id).values(**changed)
        )
    store.recent.clear()
    return workspace


def remove(store: Store, workspace: Workspace, *, busy: bool) -> None:
    """Forget a workspace; `busy` says that something in it still runs."""
    if busy:
        raise Conflict(
            f"workspace {workspace.name!r} has running jobs or deployments: end them first",
            target=workspace.name,
        )
    with store.transaction() as connection:
        connection.execute(delete(WORKSPACES).where(WORKSPACES.c.id == workspace.id))
    store.recent.clear()


class Keys:
    """The server's own secrets, made at first start and kept in the home (mode 0600)."""

    def __init__(self, home: Path) -> None:
        self.admin = _kept(home / "admin.key")
        self._signing = _kept(home / "signing.key").encode()

    def mint(self, caller: Caller, *, audience: str, seconds: int, now: datetime) -> str:
        """Return a signed token (a JWT, HS256) for `caller` that ends in `seconds`."""
        start = int(now.timestamp())
        claims = {
            "aud": audience,
            "iss": "finery",
            "sub": caller.name,
            "oid": ids.derived("oid", caller.name),
            "tid": ids.derived("tid"),
            "name": caller.name,
            "upn": f"{caller.name}@finery",
            "role": caller.role,
            "workspace": caller.workspace,
            "iat": start,
            "nbf": start,
            "exp": start + seconds,
        }
        head = _b64(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        text = f"{head}.{_b64(json.dumps(claims).encode())}"
        return f"{text}.{_b64(self.digest(text))}"

    def caller(self, credential: str | None, *, now: datetime) -> Caller:
        """Say who shows `credential`, or raise `Unauthenticated`."""
        if not credential:
            raise Unauthenticated("no credential came with the request: send a key or a token")
        if hmac.compare_digest(credential.encode(), self.admin.encode()):
            return Caller(name="administrator")
        text, _, signature = credential.rpartition(".")
        if not text or not hmac.compare_digest(
            signature.encode(), _b64(self.digest(text)).encode()
        ):
            raise Unauthenticated("the key or token is not one of this server's")
        claims = json.loads(_unb64(text.split(".")[1]))
        if claims["exp"] <= now.timestamp():
            raise Unauthenticated("the token has expired: ask for a new one")
        return Caller(name=claims["sub"], role=claims["role"], workspace=claims["workspace"])

    def digest(self, text: str) -> bytes:
        """Return the signature (HMAC-SHA256, 32 bytes) of `text` under the server's own key."""
        return hmac.new(self._signing, text.encode(), hashlib.sha256).digest()

    def derived(self, *parts: str) -> str:
        """Return a secret that only this server can work out from `parts`, again and again."""
        return _b64(self.digest("\0".join(("derived", *parts))))


def _kept(path: Path) -> str:
    """Return the secret in `path`, made now if there is none."""
    if not path.exists():
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(ids.secret())
        part.rename(path)
    return path.read_text().strip()


def _key(subscription: str, group: str, name: str) -> str:
    return "/".join((subscription, group, name)).lower()


def _row(workspace: Workspace) -> dict[str, Any]:
    return {
        column.name: getattr(workspace, column.name)
        for column in WORKSPACES.c
        if column.name not in ("seq", "key")
    }


def _workspace(row: Any) -> Workspace:
    doc = dict(row._mapping)
    del doc["seq"], doc["key"]
    return replace(Workspace(subscription="", group="", name=""), **doc)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
