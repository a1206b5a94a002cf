"""Endpoints, deployments, traffic, keys: a model, kept answering.

This module writes down what is wanted and what became of it.  The supervisor
brings deployments up; `doors/scoring.py` is the way in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
    insert,
    select,
)
from sqlalchemy import delete as delete_rows
from sqlalchemy import update as update_rows

from finery.core import ids, serving, shares, status
from finery.core.errors import AlreadyExists, Conflict, Invalid, NotFound
from finery.core.serving import Serving as Serving
from finery.core.store import EVENTS, Page, Store, When, metadata, page

ENDPOINTS = Table(
    "endpoints",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("workspace", String(64), nullable=False, index=True),
    Column("status", String(16), nullable=False),
    Column("auth", String(16), nullable=False),
    Column("keys", JSON, nullable=False),
    Column("traffic", JSON, nullable=False),
    Column("mirror", JSON, nullable=False),
    Column("description", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("properties", JSON, nullable=False),
    Column("created_at", When, nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("extras", JSON, nullable=False),
    Column("before", JSON, nullable=False, server_default="{}"),
)

DEPLOYMENTS = Table(
    "deployments",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("endpoint", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Column("workspace", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("gone", Boolean, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("restarts", JSON, nullable=False),
    Column("addresses", JSON, nullable=False),
    Column("error", JSON),
    Column("warnings", JSON, nullable=False),
    Column("description", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("properties", JSON, nullable=False),
    Column("created_at", When, nullable=False),
    Column("changed_at", When, nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("extras", JSON, nullable=False),
    Column("scaled", Integer),
    Column("falls", Integer, nullable=False, server_default="0"),
    Column("before", JSON, nullable=False, server_default="{}"),
    UniqueConstraint("endpoint", "name"),
    Index("deployments_kept", "gone", "seq"),
)

_TEXTS = ("description", "tags", "properties", "extras")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A name that answers; its keys; which deployment gets which share."""

    name: str
    workspace: str
    status: str = "ready"
    auth: Literal["key", "token"] = "key"
    keys: dict[str, str] = field(default_factory=dict)  # primary, secondary
    traffic: dict[str, int] = field(default_factory=dict)  # deployment -> percent
    mirror: dict[str, int] = field(default_factory=dict)
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    created_at: datetime = field(default_factory=ids.now)
    created_by: str = ""
    extras: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)  # traffic, mirror: before the last change


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A model behind an endpoint.  Its `revision` counts what it was asked to run."""

    id: str = field(default_factory=ids.new)
    endpoint: str
    name: str
    workspace: str
    spec: Serving
    status: str = "creating"
    revision: int = 1
    restarts: dict[str, int] = field(default_factory=dict)  # instance -> its earlier processes
    addresses: dict[str, str] = field(default_factory=dict)  # process id -> address, of the ready
    error: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    created_at: datetime = field(default_factory=ids.now)
    changed_at: datetime = field(default_factory=ids.now)  # of the status
    created_by: str = ""
    extras: dict[str, Any] = field(default_factory=dict)
    falls: int = 0  # of instances, that others have replaced
    scaled: int | None = None  # how many instances its load has asked for
    before: dict[str, Any] = field(default_factory=dict)  # what answered before: see `earlier`

    @property
    def count(self) -> int:
        """How many instances there should be now."""
        rule = self.spec.scaling
        if rule is None:
            return self.spec.instances
        if self.status in ("creating", "updating"):
            least = max(rule.least, 1)  # what is new has to show that it answers
        else:
            least = rule.least
        given = self.spec.instances if self.scaled is None else self.scaled
        return min(max(given, least), rule.most)

    @property
    def earlier(self) -> Deployment | None:
        """The revision before, while it is the one that answers: this one does not yet."""
        if not self.before.get("answers"):
            return None
        spec = serving.read(self.before["spec"])
        known = {name: self.before[name] for name in ("revision", "restarts", "scaled")}
        return replace(self, spec=spec, status="ready", before={}, **known)

    def process(self, instance: int) -> str:
        """The id of the process that is instance `instance` (from 0) of this revision now."""
        restarts = self.restarts.get(str(instance), 0)
        return f"deployment-{self.id}-{self.revision}-{instance}-{restarts}"


_KEPT = select(DEPLOYMENTS).where(~DEPLOYMENTS.c.gone).order_by(DEPLOYMENTS.c.seq)


def create(store: Store, endpoint: Endpoint) -> Endpoint:
    """Write down a new endpoint, with keys of its own."""
    ids.name(endpoint.name)
    keys = endpoint.keys or {"primary": ids.secret(), "secondary": ids.secret()}
    endpoint = replace(endpoint, keys=keys)
    with store.transaction() as connection:
        if find(store, endpoint.name) is not None:
            raise AlreadyExists(
                f"endpoint {endpoint.name!r} exists; names are one list for the whole server",
                target=endpoint.name,
            )
        _check_traffic(store, endpoint, before={})
        connection.execute(insert(ENDPOINTS).values(**vars(endpoint)))
    return endpoint


def get(store: Store, name: str) -> Endpoint:
    endpoint = find(store, name)
    if endpoint is None:
        raise NotFound(f"no endpoint named {name!r}", target=name)
    return endpoint


def find(store: Store, name: str) -> Endpoint | None:
    row = store.row(select(ENDPOINTS).where(ENDPOINTS.c.name == name))
    return _endpoint(row) if row else None


def list(store: Store, workspace: str, *, after: str = "", limit: int = 100) -> Page[Endpoint]:
    query = select(ENDPOINTS).where(ENDPOINTS.c.workspace == workspace)
    begin = ids.whole(after or "0", target="after")
    query = query.where(ENDPOINTS.c.seq > begin).order_by(ENDPOINTS.c.seq)
    rows = store.rows(query.limit(limit + 1))
    return page([_endpoint(row) for row in rows], limit, [str(row.seq) for row in rows])


def update(store: Store, endpoint: Endpoint) -> Endpoint:
    """Write down texts, tags, traffic, mirror and extras.  Raises for traffic as in `shares.py`.

    What the traffic was is kept, for `rollback.py`.
    """
    with store.transaction() as connection:
        old = get(store, endpoint.name)
        if old.status != "ready":
            raise Conflict(f"endpoint {endpoint.name!r} is being deleted", target=endpoint.name)
        if (old.traffic, old.mirror) != (endpoint.traffic, endpoint.mirror):
            endpoint = replace(endpoint, before={"traffic": old.traffic, "mirror": old.mirror})
            _check_traffic(store, endpoint, before=old.traffic)
        query = update_rows(ENDPOINTS).where(ENDPOINTS.c.name == endpoint.name)
        connection.execute(query.values(**vars(endpoint)))
    return endpoint


def regenerate(store: Store, name: str, which: str, value: str = "") -> Endpoint:
    """Replace one key, `primary` or `secondary`."""
    if which not in ("primary", "secondary"):
        raise Invalid("the key to make anew is 'primary' or 'secondary'", target="keyType")
    with store.transaction():  # or a change of its traffic at the same time would be taken back
        endpoint = get(store, name)
        keys = {**endpoint.keys, which: value or ids.secret()}
        return update(store, replace(endpoint, keys=keys))


def delete(store: Store, name: str) -> Endpoint | None:
    """Ask for an endpoint and its deployments to end; gone already is fine (None)."""
    with store.transaction() as connection:
        endpoint = find(store, name)
        if endpoint is None or endpoint.status != "ready":
            return endpoint
        moved = replace(endpoint, status=status.move(status.ENDPOINT, endpoint.status, "deleting"))
        query = update_rows(ENDPOINTS).where(ENDPOINTS.c.name == name)
        connection.execute(query.values(status=moved.status, traffic={}, mirror={}))
        for deployment in deployments(store, name):
            delete_deployment(store, name, deployment.name)
        forget(store, name)
    return find(store, name)


def forget(store: Store, name: str) -> None:
    """Drop the row of a deleted endpoint whose deployments are gone."""
    with store.transaction() as connection:
        endpoint = find(store, name)
        if endpoint is not None and endpoint.status == "deleting" and not deployments(store, name):
            connection.execute(delete_rows(ENDPOINTS).where(ENDPOINTS.c.name == name))


def deploy(store: Store, deployment: Deployment) -> Deployment:
    """Ask for a deployment, or for a change of the one with that name.

    A change of what it runs makes a new revision, which the supervisor brings
    up before it lets the old one go; a change of how many instances there are
    adds some, or ends some.
    """
    ids.name(deployment.name)
    with store.transaction() as connection:
        endpoint = get(store, deployment.endpoint)
        if endpoint.status != "ready":
            raise Conflict(f"endpoint {endpoint.name!r} is being deleted", target=endpoint.name)
        old = find_deployment(store, deployment.endpoint, deployment.name)
        if old is None:
            connection.execute(insert(DEPLOYMENTS).values(**_row(deployment)))
            _event(store, deployment, "created")
            return deployment
        texts = {name: getattr(deployment, name) for name in _TEXTS}
        if old.spec == deployment.spec and old.status in ("ready", "creating", "updating"):
            return _write(store, replace(old, **texts))
        if old.status == "updating":
            raise Conflict(
                f"deployment {old.name!r} is being updated: wait for it", target=old.name
            )
        changed: dict[str, Any] = {**texts, "spec": deployment.spec}
        if old.scaled is not None:
            changed["scaled"] = max(old.scaled, 1) if deployment.spec.scaling else None
        if _only_counts(old, deployment.spec):
            changed["restarts"] = _fewer(old, replace(old, **changed)).restarts
        else:
            changed |= {"revision": old.revision + 1, "restarts": {}}
            changed["warnings"] = deployment.warnings
            if old.status in ("ready", "unhealthy"):
                changed["before"] = as_before(old)
        if old.status == "creating":
            return _write(store, replace(old, **changed, changed_at=ids.now()))
        return move(store, old, "updating", error=None, **changed)


def get_deployment(store: Store, endpoint: str, name: str) -> Deployment:
    deployment = find_deployment(store, endpoint, name)
    if deployment is None:
        known = ", ".join(one.name for one in deployments(store, endpoint)[:20]) or "none"
        said = f"no deployment {name!r} of endpoint {endpoint!r} (it has: {known})"
        raise NotFound(said, target=name)
    return deployment


def find_deployment(store: Store, endpoint: str, name: str) -> Deployment | None:
    query = select(DEPLOYMENTS).where(DEPLOYMENTS.c.endpoint == endpoint)
    row = store.row(query.where(DEPLOYMENTS.c.name == name))
    return _deployment(row) if row else None


def deployments(store: Store, endpoint: str) -> Sequence[Deployment]:
    query = select(DEPLOYMENTS).where(DEPLOYMENTS.c.endpoint == endpoint)
    return [_deployment(row) for row in store.rows(query.order_by(DEPLOYMENTS.c.seq))]


def kept(store: Store) -> Sequence[Deployment]:
    """Return every deployment that the supervisor has to look after, oldest first."""
    return [_deployment(row) for row in store.rows(_KEPT)]


def delete_deployment(store: Store, endpoint: str, name: str) -> Deployment | None:
    """Ask for a deployment to end; gone already is fine (None).

    Raises `Conflict` while it gets traffic.
    """
    with store.transaction() as connection:
        deployment = find_deployment(store, endpoint, name)
        if deployment is None or deployment.status == "deleting":
            return deployment
        found = get(store, endpoint)
        if found.traffic.get(name):
            raise Conflict(
                f"deployment {name!r} gets {found.traffic[name]} % of the traffic "
                f"of endpoint {endpoint!r}: set its traffic to 0 first",
                target=name,
            )
        traffic, mirror = (
            {one: percent for one, percent in shares.items() if one != name}
            for shares in (found.traffic, found.mirror)
        )
        query = update_rows(ENDPOINTS).where(ENDPOINTS.c.name == endpoint)
        connection.execute(query.values(traffic=traffic, mirror=mirror))
        return move(store, deployment, "deleting", addresses={})  # it gets no more requests


def move(
    store: Store, deployment: Deployment, to: str, *, reason: str = "", **changed: Any
) -> Deployment:
    """Change a deployment's status, if the machine allows it, and write the event.

    `changed` are other fields that change with it.  Raises `Conflict` where the
    deployment was asked to run something else since `deployment` was read.  One
    that is `gone` leaves no row, so its name is free again.
    """
    with store.transaction() as connection:
        found = _unchanged(store, deployment)
        next_status = status.move(status.DEPLOYMENT, found.status, to)
        moved = replace(found, status=next_status, changed_at=ids.now(), **changed)
        _event(store, moved, reason)
        if to == "gone":
            connection.execute(delete_rows(DEPLOYMENTS).where(DEPLOYMENTS.c.id == deployment.id))
            forget(store, deployment.endpoint)
            return moved
        return _write(store, moved)


def place(store: Store, deployment: Deployment, **changed: Any) -> Deployment:
    """Write down where the ready instances answer (`addresses`), their `restarts` and `falls`."""
    assert set(changed) <= {"addresses", "restarts", "falls", "before"}
    with store.transaction():
        return _write(store, replace(_unchanged(store, deployment), **changed))


def scale(store: Store, deployment: Deployment, count: int, *, reason: str) -> Deployment:
    """Write down how many instances its load asks for, and the event."""
    with store.transaction():
        found = _unchanged(store, deployment)
        _event(store, found, f"scaled from {found.count} to {count}: {reason}")
        return _write(store, _fewer(found, replace(found, scaled=count)))


def warn(store: Store, deployment: Deployment, warnings: Sequence[str]) -> Deployment:
    """Add to the deployment what whoever looks at it should know; once is enough."""
    new = [said for said in warnings if said not in deployment.warnings]
    if not new:
        return deployment
    with store.transaction():
        found = _unchanged(store, deployment)
        return _write(store, replace(found, warnings=[*found.warnings, *new]))


def as_before(old: Deployment) -> dict[str, Any]:
    """Return what `before` is of a deployment that replaces this one, which answers."""
    known = {name: getattr(old, name) for name in ("revision", "restarts", "scaled")}
    return {**known, "spec": asdict(old.spec), "answers": True}


def _only_counts(old: Deployment, spec: Serving) -> bool:
    """Say whether a change is one of how many instances there are: those at work stay."""
    same = replace(spec, instances=old.spec.instances, scaling=old.spec.scaling) == old.spec
    return same and spec != old.spec and old.status in ("ready", "unhealthy")


def _fewer(old: Deployment, new: Deployment) -> Deployment:
    """Give an instance that goes another process for when it comes back: ids are not used twice."""
    gone = {str(n): old.restarts.get(str(n), 0) + 1 for n in range(new.count, old.count)}
    return replace(new, restarts={**old.restarts, **gone})


def _unchanged(store: Store, deployment: Deployment) -> Deployment:
    """Return the deployment as it is now.  Raises `Conflict` where it is another revision."""
    found = find_deployment(store, deployment.endpoint, deployment.name)
    if found is None or found.id != deployment.id:
        raise Conflict(f"deployment {deployment.name!r} is gone", target=deployment.name)
    if found.revision != deployment.revision:
        raise Conflict(f"deployment {deployment.name!r} was changed", target=deployment.name)
    return found


def _check_traffic(store: Store, endpoint: Endpoint, *, before: Mapping[str, int]) -> None:
    known = {
        one.name: bool(one.addresses) or one.status not in ("creating", "failed")
        for one in deployments(store, endpoint.name)
        if one.status != "deleting"
    }
    shares.check(endpoint.name, known, traffic=endpoint.traffic, mirror=endpoint.mirror)
    shares.check_move(known, before=before, after=endpoint.traffic)


def _write(store: Store, deployment: Deployment) -> Deployment:
    with store.transaction() as connection:
        query = update_rows(DEPLOYMENTS).where(DEPLOYMENTS.c.id == deployment.id)
        connection.execute(query.values(**_row(deployment)))
    return deployment


def _event(store: Store, deployment: Deployment, reason: str) -> None:
    happened = {"kind": "deployment", "id": deployment.id, "status": deployment.status}
    with store.transaction() as connection:
        connection.execute(insert(EVENTS).values(at=ids.now(), reason=reason, **happened))


def _endpoint(row: Any) -> Endpoint:
    doc = dict(row._mapping)
    del doc["seq"]
    return Endpoint(**doc)


def _row(deployment: Deployment) -> dict[str, Any]:
    gone = status.is_final(status.DEPLOYMENT, deployment.status)
    return {**vars(deployment), "spec": asdict(deployment.spec), "gone": gone}


def _deployment(row: Any) -> Deployment:
    doc = dict(row._mapping)
    del doc["seq"], doc["gone"]
    return Deployment(spec=serving.read(doc.pop("spec")), **doc)
