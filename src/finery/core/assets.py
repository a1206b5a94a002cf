"""Named, versioned, immutable things: data, models, environments, components, code.

A version's bytes (`location`) and meaning (`spec`) never change; its texts,
tags and archive mark may.  A scope is a workspace's id or a registry's name.
Where a location lies on disk is `files.py`; who may ask is a door's question.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
    bindparam,
    insert,
    or_,
    select,
)
from sqlalchemy import delete as delete_rows
from sqlalchemy import update as update_rows

from finery.core import ids, workspaces
from finery.core.errors import AlreadyExists, NotFound
from finery.core.store import Page, Store, When, metadata, page

_LONGEST = 255  # characters of a name
_MOST_COMPARED = 1000  # names, the oldest, with one that is not there
KINDS = ("data", "model", "environment", "component", "code")

ASSETS = Table(
    "assets",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("scope", String(255), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String(255), nullable=False),
    Column("version", String(64), nullable=False),
    Column("type", String(64), nullable=False),
    Column("location", String, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("description", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("properties", JSON, nullable=False),
    Column("stage", String(255), nullable=False),
    Column("archived", Boolean, nullable=False),
    Column("anonymous", Boolean, nullable=False),
    Column("hash", String(128), nullable=False),
    Column("made_by", String(255), nullable=False),
    Column("created_at", When, nullable=False),
    Column("modified_at", When, nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("extras", JSON, nullable=False),
    UniqueConstraint("scope", "kind", "name", "version"),
    Index("assets_by_kind", "scope", "kind", "seq"),
    Index("assets_by_name", "scope", "kind", "name", "seq"),
    Index("assets_by_hash", "scope", "kind", "hash"),
    Index("assets_by_maker", "scope", "kind", "made_by"),
)

# One row per name: what versions share, and the next number to give.
NAMES = Table(
    "asset_names",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("scope", String(255), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String(255), nullable=False),
    Column("next", Integer, nullable=False),
    Column("archived", Boolean, nullable=False),
    Column("description", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("created_at", When, nullable=False),
    Column("modified_at", When, nullable=False),
    Column("extras", JSON, nullable=False),
    UniqueConstraint("scope", "kind", "name"),
)

# Asked most: made once.
_NAMED = select(ASSETS).where(
    ASSETS.c.scope == bindparam("scope"),
    ASSETS.c.kind == bindparam("kind"),
    ASSETS.c.name == bindparam("name"),
)
_VERSION = _NAMED.where(ASSETS.c.version == bindparam("version"))
_LATEST = _NAMED.where(~ASSETS.c.archived).order_by(ASSETS.c.seq.desc()).limit(1)


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One version of one thing."""

    scope: str
    kind: str
    name: str
    version: str = ""  # empty when created: the next number is given
    type: str = ""  # uri_file, uri_folder, mltable, custom_model, mlflow_model, command, …
    location: str = ""  # see files.py; empty where there are no bytes
    spec: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    stage: str = ""  # how far a model has come: Staging, Production, or another word
    archived: bool = False
    anonymous: bool = False
    hash: str = ""
    made_by: str = ""  # JOB/OUTPUT that it is; one output makes one version of a name
    created_at: datetime = field(default_factory=ids.now)
    modified_at: datetime = field(default_factory=ids.now)
    created_by: str = ""
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """How other rows point to this version."""
        return f"asset:{self.kind}/{self.scope}/{self.name}/{self.version}"

    @property
    def maker(self) -> str:
        """The job that made it; empty where no job did."""
        return self.made_by.partition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Name:
    """What the versions of one name share."""

    scope: str
    kind: str
    name: str
    next: int = 1
    archived: bool = False
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    created_at: datetime = field(default_factory=ids.now)
    modified_at: datetime = field(default_factory=ids.now)
    extras: dict[str, Any] = field(default_factory=dict)


def create(store: Store, asset: Asset) -> Asset:
    """Write down a new version and return it, its number given where it had none.

    The same version with the same bytes and meaning again is the same thing:
    its texts and tags are brought up to date.  Raises `AlreadyExists` where
    the bytes or the meaning differ.
    """
    ids.name(asset.name)
    with store.transaction() as connection:
        if asset.made_by and (made := _made_by(store, asset)):
            return made
        name = _name(store, asset) or _new_name(store, asset)
        version = ids.version(asset.version) if asset.version else str(name.next)
        asset = replace(asset, version=version)
        old = _find(store, asset.scope, asset.kind, asset.name, version)
        if old is not None:
            return _again(store, old, asset)
        connection.execute(insert(ASSETS).values(**vars(asset)))
        counted = version.isdigit() and len(version) < 18  # dates are; a longer one is no count
        following = max(name.next, int(version) + 1 if counted else 0)
        touched = {"next": min(following, 2**31 - 1), "modified_at": asset.modified_at}
        connection.execute(update_rows(NAMES).where(_is(NAMES, asset)).values(**touched))
    return asset


def get(store: Store, scope: str, kind: str, name: str, version: str = "latest") -> Asset:
    """Return one version; `latest` is the newest that is not archived."""
    found = find(store, scope, kind, name, version)
    if found is None:
        what = f"{kind} {name!r}" + ("" if version == "latest" else f" version {version!r}")
        newest = None if version == "latest" else find(store, scope, kind, name)
        said = f"the newest is {newest.version!r}" if newest else _near(store, scope, kind, name)
        raise NotFound(
            "; ".join(filter(None, [f"no {what}{_where(store, scope)}", said])), target=name
        )
    return found


def _near(store: Store, scope: str, kind: str, name: str) -> str:
    """Say which names are like one that is not there; empty for none.  Code is named by no one."""
    if kind == "code" or len(name) > _LONGEST:
        return ""
    known = [one.name for one in names(store, scope, kind, limit=_MOST_COMPARED).items]
    like = [one for one in difflib.get_close_matches(name, known) if one != name]
    return f"it has {', '.join(map(repr, like))}" if like else ""


def _where(store: Store, scope: str) -> str:
    try:
        return f" in the workspace {workspaces.by_id(store, scope).name!r}"
    except NotFound:
        return f" in the registry {scope!r}"


def find(store: Store, scope: str, kind: str, name: str, version: str = "latest") -> Asset | None:
    if version != "latest":
        return _find(store, scope, kind, name, version)
    row = store.row(_LATEST, scope=scope, kind=kind, name=name)
    return _asset(row) if row else None


def by_ref(store: Store, ref: str) -> Asset:
    """Return what `asset:kind/scope/name/version` points to."""
    kind, scope, name, version = ref.removeprefix("asset:").split("/", 3)
    return get(store, scope, kind, name, version)


def by_hash(store: Store, scope: str, kind: str, hash: str) -> Asset | None:
    query = select(ASSETS).where(
        ASSETS.c.scope == scope, ASSETS.c.kind == kind, ASSETS.c.hash == hash
    )
    row = store.row(query.order_by(ASSETS.c.seq.desc()).limit(1))
    return _asset(row) if row else None


def made(
    store: Store, scope: str, kind: str, job: str, *, below: Sequence[str], limit: int
) -> list[Asset]:
    """Return the versions that a job made, or that lie below these locations, newest first."""
    own = ASSETS.c.made_by.startswith(f"{job}/", autoescape=True)
    there = [ASSETS.c.location.startswith(place, autoescape=True) for place in below]
    query = select(ASSETS).where(ASSETS.c.scope == scope, ASSETS.c.kind == kind, or_(own, *there))
    return [_asset(row) for row in store.rows(query.order_by(ASSETS.c.seq.desc()).limit(limit))]


def versions(
    store: Store,
    scope: str,
    kind: str,
    name: str,
    *,
    stage: str = "",
    archived: bool | None = False,
    after: str = "",
    limit: int = 100,
) -> Page[Asset]:
    """Return the versions of a name, newest first.  Raises `NotFound` for an unknown name.

    `archived`: only those that are, only those that are not, or (None) both.
    `stage`: only those of that stage, if it is given.
    """
    if find_name(store, scope, kind, name) is None:
        said = [f"no {kind} {name!r}{_where(store, scope)}", _near(store, scope, kind, name)]
        raise NotFound("; ".join(filter(None, said)), target=name)
    query = select(ASSETS).where(
        ASSETS.c.scope == scope, ASSETS.c.kind == kind, ASSETS.c.name == name
    )
    if stage:
        query = query.where(ASSETS.c.stage == stage)
    if archived is not None:
        query = query.where(ASSETS.c.archived == archived)
    if after:
        query = query.where(ASSETS.c.seq < ids.whole(after, target="after"))
    rows = store.rows(query.order_by(ASSETS.c.seq.desc()).limit(limit + 1))
    return page([_asset(row) for row in rows], limit, [str(row.seq) for row in rows])


def every_version(
    store: Store, scope: str, kind: str, *, after: str = "", limit: int = 1000
) -> Page[Asset]:
    """Return the versions of all names of a kind, archived ones too, newest first."""
    query = select(ASSETS).where(ASSETS.c.scope == scope, ASSETS.c.kind == kind)
    if after:
        query = query.where(ASSETS.c.seq < ids.whole(after, target="after"))
    rows = store.rows(query.order_by(ASSETS.c.seq.desc()).limit(limit + 1))
    return page([_asset(row) for row in rows], limit, [str(row.seq) for row in rows])


def names(
    store: Store,
    scope: str,
    kind: str,
    *,
    archived: bool | None = False,
    after: str = "",
    limit: int = 100,
) -> Page[Name]:
    """Return the names of a kind, in the order of their making, without the nameless."""
    query = select(NAMES).where(NAMES.c.scope == scope, NAMES.c.kind == kind)
    nameless = select(ASSETS.c.seq).where(
        ASSETS.c.scope == scope,
        ASSETS.c.kind == kind,
        ASSETS.c.name == NAMES.c.name,
        ASSETS.c.anonymous,
    )
    query = query.where(~nameless.exists())
    if archived is not None:
        query = query.where(NAMES.c.archived == archived)
    if after:
        query = query.where(NAMES.c.seq > ids.whole(after, target="after"))
    rows = store.rows(query.order_by(NAMES.c.seq).limit(limit + 1))
    return page([_as_name(row) for row in rows], limit, [str(row.seq) for row in rows])


def find_name(store: Store, scope: str, kind: str, name: str) -> Name | None:
    return _name(store, Asset(scope=scope, kind=kind, name=name))


def update(store: Store, asset: Asset) -> Asset:
    """Write down the texts, tags, properties, stage, archive mark and extras of a version."""
    changed = {
        "description": asset.description,
        "tags": asset.tags,
        "properties": asset.properties,
        "stage": asset.stage,
        "archived": asset.archived,
        "extras": asset.extras,
        "modified_at": asset.modified_at,
    }
    with store.transaction() as connection:
        query = update_rows(ASSETS).where(_is(ASSETS, asset), ASSETS.c.version == asset.version)
        connection.execute(query.values(**changed))
    return asset


def update_name(store: Store, name: Name) -> Name:
    """Write down what versions share; archiving a name archives every version of it."""
    changed = {
        "description": name.description,
        "tags": name.tags,
        "archived": name.archived,
        "extras": name.extras,
        "modified_at": name.modified_at,
    }
    with store.transaction() as connection:
        old = find_name(store, name.scope, name.kind, name.name)
        connection.execute(update_rows(NAMES).where(_is(NAMES, name)).values(**changed))
        if old is not None and old.archived != name.archived:
            query = update_rows(ASSETS).where(_is(ASSETS, name))
            connection.execute(query.values(archived=name.archived))
    return name


def create_name(store: Store, name: Name) -> Name:
    """Write down a name that has no version yet."""
    ids.name(name.name)
    with store.transaction() as connection:
        if find_name(store, name.scope, name.kind, name.name) is not None:
            raise AlreadyExists(f"{name.kind} {name.name!r} exists", target=name.name)
        connection.execute(insert(NAMES).values(**vars(name)))
    return name


def delete(store: Store, asset: Asset) -> None:
    """Forget one version; gone already is fine."""
    with store.transaction() as connection:
        query = delete_rows(ASSETS).where(_is(ASSETS, asset), ASSETS.c.version == asset.version)
        connection.execute(query)


def delete_name(store: Store, scope: str, kind: str, name: str) -> None:
    """Forget a name with all its versions; gone already is fine."""
    what = Asset(scope=scope, kind=kind, name=name)
    with store.transaction() as connection:
        connection.execute(delete_rows(ASSETS).where(_is(ASSETS, what)))
        connection.execute(delete_rows(NAMES).where(_is(NAMES, what)))


def _again(store: Store, old: Asset, new: Asset) -> Asset:
    if (new.location or new.spec) and (old.location, old.spec) != (new.location, new.spec):
        same_bytes = old.hash and old.hash == new.hash and old.spec == new.spec
        if not same_bytes:
            raise AlreadyExists(
                f"{old.kind} {old.name!r} version {old.version!r} exists with other content, "
                "and a version never changes: register a new version",
                target=old.name,
            )
    return update(
        store,
        replace(
            old,
            description=new.description,
            tags=new.tags,
            properties={**old.properties, **new.properties},
            stage=new.stage or old.stage,
            archived=new.archived,
            modified_at=new.modified_at,
        ),
    )


def _made_by(store: Store, asset: Asset) -> Asset | None:
    query = select(ASSETS).where(_is(ASSETS, asset), ASSETS.c.made_by == asset.made_by)
    row = store.row(query)
    return _asset(row) if row else None


def _name(store: Store, asset: Asset) -> Name | None:
    row = store.row(select(NAMES).where(_is(NAMES, asset)))
    return _as_name(row) if row else None


def _new_name(store: Store, asset: Asset) -> Name:
    name = Name(scope=asset.scope, kind=asset.kind, name=asset.name)
    with store.transaction() as connection:
        connection.execute(insert(NAMES).values(**vars(name)))
    return name


def _find(store: Store, scope: str, kind: str, name: str, version: str) -> Asset | None:
    row = store.row(_VERSION, scope=scope, kind=kind, name=name, version=version)
    return _asset(row) if row else None


def _is(table: Table, what: Asset | Name) -> Any:
    return (table.c.scope == what.scope) & (table.c.kind == what.kind) & (table.c.name == what.name)


def _asset(row: Any) -> Asset:
    doc = dict(row._mapping)
    del doc["seq"]
    return Asset(**doc)


def _as_name(row: Any) -> Name:
    doc = dict(row._mapping)
    del doc["seq"]
    return Name(**doc)
