"""The real MLflow server, loaded into this process on first use.

MLflow offers no public way to be part of another application.  What we lean on
instead (environment variables that its own command line sets, module globals
that hold its stores) is all in this file, and `tests/doors/mlflow` fails when
a new MLflow changes it.  Who may call is `access.py`; nothing here checks.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PREFIX = "/mlflow"

# MLflow reads these from the environment and from nowhere else, some of them at each request.
_SETTINGS = {
    "_MLFLOW_STATIC_PREFIX": PREFIX,
    "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # what it says goes to the server's own log
    "MLFLOW_SERVER_ALLOWED_HOSTS": "*",  # access.py has checked the host by then
}

_turn = threading.Lock()


@dataclass(frozen=True)
class Embedded:
    app: App
    runs: Any  # MLflow's store of experiments, runs, metrics, traces and logged models
    engine: Any  # the SQLAlchemy engine under it


def load(
    url: str,
    files: Path,
    stores: Callable[[str], tuple[Any, Any]],
    *,
    broken: Callable[[Exception], tuple[int, dict[str, str]]],
) -> Embedded:
    """Load the server, with its data at the database `url` and its artifacts below `files`.

    `stores` makes the run store and the model registry for the url.  MLflow
    keeps them in module globals, so one process serves one home at a time:
    the one that was loaded last.  `broken` words what MLflow does not catch.
    """
    with _turn:
        os.environ.update(_SETTINGS)
        os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = files.as_uri()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its use of a deprecated WSGI adapter is its own
            served: Any = importlib.import_module("mlflow.server.fastapi_app")
        _word_crashes(importlib.import_module("mlflow.server").app, broken)
        handlers: Any = importlib.import_module("mlflow.server.handlers")
        tracking: Any = importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        registered: Any = importlib.import_module("mlflow.store.model_registry.sqlalchemy_store")
        url = _apart(url)
        engine = tracking.SqlAlchemyStore._get_or_create_engine(url)
        registered.SqlAlchemyStore._engine_map[url] = engine
        _hasten(engine)
        runs, registry = stores(url)
        handlers._tracking_store = runs
        handlers._model_registry_store = registry
        handlers._artifact_repo = None  # made anew from the destination above
        return Embedded(app=served.app, runs=runs, engine=engine)


def unloaded(url: str) -> Any:
    """Return an engine to read what earlier servers left at `url`; None where none was."""
    sqlalchemy = importlib.import_module("sqlalchemy")
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() == "postgresql":
        url = _in_schema(parsed)
    elif not Path(parsed.database or "").is_file():
        return None
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)


def _word_crashes(flask: Any, broken: Callable[[Exception], tuple[int, dict[str, str]]]) -> None:
    """Answer in MLflow's words where it would show a page of HTML.  Once in a process."""
    if flask.error_handler_spec[None][None]:
        return
    exceptions = importlib.import_module("werkzeug.exceptions")

    def crashed(exc: Exception) -> Any:
        if isinstance(exc, exceptions.HTTPException):
            return exc
        status, said = broken(exc)
        return said, status

    flask.register_error_handler(Exception, crashed)


def _apart(url: str) -> str:
    """Keep MLflow's tables in a schema of their own: its migrations and ours share a table name."""
    sqlalchemy = importlib.import_module("sqlalchemy")
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() != "postgresql":
        return url
    engine = sqlalchemy.create_engine(parsed)
    with engine.begin() as connection:
        connection.exec_driver_sql("create schema if not exists mlflow")
    engine.dispose()
    return _in_schema(parsed)


def _in_schema(url: Any) -> str:
    url = url.update_query_dict({"options": "-csearch_path=mlflow"})
    return str(url.render_as_string(hide_password=False))


def _hasten(engine: Any) -> None:
    """Give SQLite a write-ahead log: MLflow leaves it at a flush to disk for each metric."""
    if engine.dialect.name != "sqlite":
        return
    event = importlib.import_module("sqlalchemy").event
    if not event.contains(engine, "connect", _set_up_sqlite):
        event.listen(engine, "connect", _set_up_sqlite)
        engine.dispose()  # the connection it was tried with


def _set_up_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("pragma journal_mode=wal")
    cursor.execute("pragma synchronous=normal")
    cursor.execute("pragma busy_timeout=20000")
    cursor.close()
