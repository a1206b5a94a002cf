"""The database: connect, transaction, page, migrate.

Each noun's module declares its own tables on `metadata` and asks its own
questions; this module knows how to reach the database and nothing of what is
in it.  SQLite in WAL mode by default, PostgreSQL by URL.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.types import TypeDecorator

from finery.core.errors import Invalid, Unavailable

T = TypeVar("T")

FULL = "disk"  # the target of the failure of whatever found no room
_NO_ROOM = ("disk is full", "disk I/O error", "No space left on device")
HEAD = "0002"  # the newest revision in migrations/versions
metadata = MetaData()


class When(TypeDecorator[datetime]):
    """An aware UTC time, kept as seconds since the epoch so that every database sorts it."""

    impl = Float(53)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> float | None:
        return None if value is None else value.timestamp()

    def process_result_value(self, value: float | None, dialect: Any) -> datetime | None:
        return None if value is None else datetime.fromtimestamp(value, UTC)


# What happened, in the order in which it happened: written with the change it tells of.
EVENTS = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("kind", String(32), nullable=False),
    Column("id", String(255), nullable=False, index=True),
    Column("at", When, nullable=False),
    Column("status", String(32), nullable=False),
    Column("reason", String, nullable=False, default=""),
)


@dataclass(frozen=True)
class Page(Generic[T]):
    items: list[T]
    next: str | None = None  # the mark of the last item, when more follow


class Store:
    """One database.  Writers take turns; a transaction inside another joins it.

    `dump` and `load` are how JSON columns are written and read: whoever has
    quicker ones than the standard library's gives them.
    """

    def __init__(
        self,
        url: str,
        *,
        dump: Callable[[Any], str] | None = None,
        load: Callable[[str], Any] = json.loads,
    ) -> None:
        self.url = make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.changes = 0  # grows with every transaction: what was read before it may be stale
        self.recent: dict[str, tuple[float, Any]] = {}  # what was read of late, and when
        self._turn = threading.RLock()
        self._writer: Connection | None = None
        self._current: ContextVar[Connection | None] = ContextVar("connection", default=None)
        self._engine = create_engine(
            self.url,
            json_serializer=dump or _dump,
            json_deserializer=load,
            pool_size=16,
            pool_use_lifo=True,  # the one used last still holds the pages
            max_overflow=48,
        )
        if self.sqlite:
            event.listen(self._engine, "connect", _set_up_sqlite)
        # A reader never begins: SQLite's connections do so only when told, and being told twice
        # costs more than the question.
        alone = {} if self.sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._reader = self._engine.execution_options(**alone)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection; what is written is kept whole or not at all.

        Raises `Unavailable`, its target FULL, where the disk has no room for it.
        """
        current = self._current.get()
        if current is not None:
            yield current
            return
        with _room(), self._writing() as connection:
            token = self._current.set(connection)
            try:
                if self.sqlite:
                    connection.exec_driver_sql("begin immediate")
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            finally:
                self._current.reset(token)
            self.changes += 1

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Yield a connection to write with.

        SQLite's is always the same: each other one would find what it remembers
        of the file outdated, and read it again.
        """
        if not self.sqlite:
            with self._engine.connect() as connection:
                yield connection
            return
        with self._turn:
            if self._writer is None:
                self._writer = self._engine.connect()
            yield self._writer

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection to ask with; inside a transaction, that transaction's."""
        current = self._current.get()
        if current is not None:
            yield current
            return
        with self._reader.connect() as connection:
            yield connection

    def rows(self, query: Any) -> Sequence[Any]:
        with self.reading() as connection:
            return connection.execute(query).all()

    def row(self, query: Any, **given: Any) -> Any | None:
        """Return the first row; `given` are the values of the query's parameters."""
        with self.reading() as connection:
            return connection.execute(query, given).first()

    def migrate(self) -> None:
        """Bring the database to this version's shape, or refuse one that is newer."""
        try:
            found = self._revision()
        except DatabaseError as exc:
            if isinstance(exc, OperationalError):
                raise
            place = self.url.render_as_string()
            raise Invalid(f"{place} cannot be read: {exc.orig}", target="home") from exc
        if found == HEAD:
            return
        from finery.core import (
            migrations,  # Alembic takes a while to import: only when needed
        )

        if found is not None and found not in migrations.known():
            raise Invalid(
                f"the database {self.url.render_as_string()} is of a newer version of Finery "
                f"(revision {found}; this one knows up to {HEAD}): update Finery, or use "
                "another home",
                target="home",
            )
        migrations.upgrade(self._engine)

    def _revision(self) -> str | None:
        with self.reading() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(text("select version_num from alembic_version")).scalar()

    def close(self) -> None:
        with self._turn:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        self._engine.dispose()


def open_sqlite(path: Path) -> Store:
    return Store(sqlite_url(path))


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def page(items: Sequence[T], limit: int, marks: Sequence[str]) -> Page[T]:
    """Cut `items` (asked for with `limit + 1`) to a page; `marks` are theirs, in order."""
    if len(items) <= limit:
        return Page(list(items))
    return Page(list(items[:limit]), marks[limit - 1])


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=vars)  # vars: of a dataclass


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: the driver's guess is too late
    cursor = connection.cursor()
    cursor.execute("pragma journal_mode=wal")
    cursor.execute("pragma synchronous=normal")
    cursor.execute("pragma foreign_keys=on")
    cursor.execute("pragma busy_timeout=10000")
    cursor.close()


@contextmanager
def _room() -> Iterator[None]:
    """Say of a database that could not grow that the disk is full."""
    try:
        yield
    except OperationalError as exc:
        if not any(words in str(exc.orig) for words in _NO_ROOM):
            raise
        raise Unavailable(
            "the disk is full: nothing can be written down until there is room", target=FULL
        ) from exc
