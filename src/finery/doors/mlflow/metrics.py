"""A quick way in for the two calls that a training loop makes at every step.

`runs/log-metric` and `runs/log-batch` with metrics alone are written here, in
one transaction, as the same rows and by the same rules as in MLflow's own
store.  Anything else about them (parameters, logged models, a run that is
gone, a value that MLflow would refuse) is handed on to the real server
untouched, which also words the errors.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

import anyio.to_thread
import orjson
from sqlalchemy import Connection, Engine, TextClause, text

from finery.doors.mlflow.embedded import Embedded, Message, Receive, Send

Row = dict[str, Any]

_ONE = "/api/2.0/mlflow/runs/log-metric"
_MANY = "/api/2.0/mlflow/runs/log-batch"
_LARGEST = 1_000_000  # bytes, and metrics in a batch: MLflow's own limits
_MOST = 1000
_KEY = re.compile(r"[\w.\- :]+(?:/[\w.\- :]+)*", re.A)
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FINITE = 1.7976931348623157e308  # what MLflow keeps for infinity
_NO_MORE = ("model_id", "dataset_name", "dataset_digest")

_ACTIVE = text("select 1 from runs where run_uuid = :run and lifecycle_stage = 'active'")
_ADD = text(
    "insert into metrics (key, value, timestamp, run_uuid, step, is_nan)"
    " values (:key, :value, :timestamp, :run, :step, :nan) on conflict do nothing"
)
_LATEST = text(
    "insert into latest_metrics (key, value, timestamp, run_uuid, step, is_nan)"
    " values (:key, :value, :timestamp, :run, :step, :nan)"
    " on conflict (key, run_uuid) do update set"
    " value = excluded.value, timestamp = excluded.timestamp,"
    " step = excluded.step, is_nan = excluded.is_nan"
    " where (excluded.step, excluded.timestamp, excluded.value)"
    " > (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)"
)

_LAST = text(
    "select key, value, is_nan from latest_metrics where run_uuid = :run order by key limit :most"
)

_turn = threading.Lock()  # SQLite lets one write at a time, and lets the others sleep: we queue


async def answer(
    inner: Embedded, method: str, path: str, receive: Receive, send: Send
) -> tuple[bool, Receive]:
    """Answer the request if it is one of ours; else return how to read its body again."""
    if method != "POST" or path not in (_ONE, _MANY):
        return False, receive
    body, again = await _read(receive)
    rows = rows_in(path, body)
    if not rows or not await anyio.to_thread.run_sync(write, inner, rows):
        return False, again
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})
    return True, again


def rows_in(path: str, body: bytes) -> list[Row] | None:
    """Return the rows that a request asks for, or None where MLflow should look at it itself."""
    if len(body) >= _LARGEST:
        return None
    try:
        doc = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(doc, dict) or not isinstance(run := doc.get("run_id"), str) or not run:
        return None
    if path == _ONE:
        row = _row(run, doc)
        return [row] if row else None
    metrics = doc.get("metrics")
    if doc.get("params") or doc.get("tags") or not isinstance(metrics, list):
        return None
    rows = [row for metric in metrics if (row := _row(run, metric))]
    return rows if len(rows) == len(metrics) <= _MOST else None


def write(inner: Embedded, rows: list[Row]) -> bool:
    """Write the metrics of one run; False, and nothing written, where the run takes none."""
    with _turn, inner.engine.begin() as connection:
        if connection.execute(_ACTIVE, {"run": rows[0]["run"]}).first() is None:
            return False
        _execute(connection, _ADD, rows)
        _execute(connection, _LATEST, _newest(rows))
    return True


def last(engine: Engine, run: str, most: int) -> dict[str, float]:
    """Return the last value of a run's metrics, the first so many of them by name."""
    with engine.connect() as connection:
        rows = connection.execute(_LAST, {"run": run, "most": most}).all()
    return {row.key: math.nan if row.is_nan else row.value for row in rows}


def _execute(connection: Connection, statement: TextClause, rows: list[Row]) -> None:
    connection.execute(statement, rows if len(rows) > 1 else rows[0])


def _newest(rows: Iterable[Row]) -> list[Row]:
    """Return the newest row of each key, in the order of the keys, as every writer locks them."""
    order: Callable[[Row], Any] = lambda row: (row["step"], row["timestamp"], row["value"])  # noqa: E731
    found = {row["key"]: row for row in sorted(rows, key=order)}
    return [found[key] for key in sorted(found)]


def _row(run: str, metric: Any) -> Row | None:
    if not isinstance(metric, dict) or any(metric.get(name) for name in _NO_MORE):
        return None
    key, at, step = metric.get("key"), metric.get("timestamp"), metric.get("step", 0)
    value: Any = metric.get("value")
    value = _WORDS.get(value, value) if isinstance(value, str) else value
    if not isinstance(key, str) or len(key) > 250 or not _key(key):
        return None
    if type(at) is not int or at < 0 or type(step) is not int or type(value) not in (int, float):
        return None
    nan = math.isnan(value)
    kept = 0.0 if nan else max(-_FINITE, min(_FINITE, float(value)))
    return {"run": run, "key": key, "value": kept, "timestamp": at, "step": step, "nan": nan}


def _key(key: str) -> bool:
    return _KEY.fullmatch(key) is not None and not {".", ".."} & set(key.split("/"))


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """Return the whole body, and a `receive` that gives it once more."""
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body"):
        messages.append(await receive())
    body = b"".join(message.get("body", b"") for message in messages)

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return body, again
