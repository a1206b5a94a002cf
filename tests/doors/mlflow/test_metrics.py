"""The quick way in for metrics: the same rows as MLflow's own, and everything else handed on."""

from __future__ import annotations

import json
import math

import pytest
from sqlalchemy import text

from finery.doors.mlflow import metrics
from finery.doors.mlflow.app import Mlflow

ONE, MANY = "/api/2.0/mlflow/runs/log-metric", "/api/2.0/mlflow/runs/log-batch"


def _body(**changes: object) -> bytes:
    metric = {"run_id": "r", "key": "loss", "value": 1.5, "timestamp": 7, "step": 3}
    return json.dumps({**metric, **changes}).encode()


def test_a_plain_metric_is_taken() -> None:
    expected = {"run": "r", "key": "loss", "value": 1.5, "timestamp": 7, "step": 3, "nan": False}
    assert metrics.rows_in(ONE, _body()) == [expected]
    batch = {"run_id": "r", "metrics": [json.loads(_body())], "params": [], "tags": []}
    assert metrics.rows_in(MANY, json.dumps(batch).encode()) == [expected]


def test_numbers_that_are_none_are_kept_as_mlflow_keeps_them() -> None:
    [nan] = metrics.rows_in(ONE, _body(value="NaN")) or []
    [less] = metrics.rows_in(ONE, _body(value="-Infinity")) or []
    assert (nan["value"], nan["nan"]) == (0.0, True)
    assert (less["value"], less["nan"]) == (-1.7976931348623157e308, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": ""},
        {"run_id": 5},
        {"key": ""},
        {"key": "a/../b"},
        {"key": "a*b"},
        {"key": "a" * 251},
        {"value": None},
        {"value": "1.5"},
        {"value": True},
        {"timestamp": -1},
        {"timestamp": "7"},
        {"timestamp": None},
        {"step": 1.5},
        {"model_id": "m-1"},
        {"dataset_name": "d"},
    ],
)
def test_what_is_not_plain_is_mlflows_to_judge(changes: dict[str, object]) -> None:
    assert metrics.rows_in(ONE, _body(**changes)) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"run_id": "r"}'])
def test_what_is_no_metric_is_mlflows_to_judge(body: bytes) -> None:
    assert metrics.rows_in(ONE, body) is None
    assert metrics.rows_in(MANY, body) is None


def test_a_batch_with_more_than_metrics_is_mlflows() -> None:
    batch = {"run_id": "r", "metrics": [json.loads(_body())], "params": [{"key": "a"}]}
    assert metrics.rows_in(MANY, json.dumps(batch).encode()) is None


POINTS = [
    ("loss", 1.0, 10, 1),
    ("loss", 0.5, 20, 2),
    ("loss", 0.9, 15, 0),  # late, and older
    ("loss", 0.5, 20, 2),  # twice the same
    ("loss", 0.7, 20, 2),  # the same step and time, a greater value
    ("loss", 0.1, 20, 2),
    ("other", math.nan, 1, 1),
    ("other", math.inf, 1, 1),
    ("negative", -1.0, 0, -5),
]


def _table(door, run: str) -> dict[str, list[tuple]]:
    found = {}
    for table in ("metrics", "latest_metrics"):
        query = f"select key, value, timestamp, step, is_nan from {table} where run_uuid = :run"
        with door.mlflow.load().engine.connect() as connection:
            rows = connection.execute(text(f"{query} order by 1, 4, 3, 2"), {"run": run})
            found[table] = [tuple(row) for row in rows]
    return found


def test_the_rows_are_those_that_mlflow_writes_itself(door) -> None:
    for name in ("quick-one", "quick-many", "by-mlflow"):
        door.mlflow.tracking.open(door.job(name))
    loaded = door.mlflow.load()
    from mlflow.entities import Metric

    for key, value, at, step in POINTS:
        loaded.runs.log_metric("by-mlflow", Metric(key, value, at, step))
    words = {math.inf: "Infinity"}
    bodies = [
        {"key": k, "value": "NaN" if v != v else words.get(v, v), "timestamp": t, "step": s}
        for k, v, t, s in POINTS
    ]
    client = door.client()
    for body in bodies:
        answer = client.post(f"/mlflow{ONE}", json={"run_id": "quick-one", **body})
        assert (answer.status_code, answer.json()) == (200, {})
    batch = {"run_id": "quick-many", "metrics": bodies}
    assert client.post(f"/mlflow{MANY}", json=batch).status_code == 200
    expected = _table(door, "by-mlflow")
    assert len(expected["metrics"]) == len(POINTS) - 1
    assert _table(door, "quick-one") == expected
    assert _table(door, "quick-many") == expected


def test_the_last_values_are_known_without_the_real_server(door, tmp_path) -> None:
    long = door.job("last-" + "x" * 40)  # longer than MLflow's own ids
    door.mlflow.tracking.open(long)
    points = [("b", 0.5), ("a", 1.0), ("c", math.nan), ("a", 2.0)]
    for step, (key, value) in enumerate(points):
        value = "NaN" if math.isnan(value) else value
        doc = {"run_id": long.name, "key": key, "value": value, "timestamp": 1, "step": step}
        assert door.client().post(f"/mlflow{ONE}", json=doc).status_code == 200
    assert repr(door.mlflow.last(long, 9)) == "{'a': 2.0, 'b': 0.5, 'c': nan}"
    later = Mlflow(door.house, door.house.files.root.parent, None)  # as after a start
    assert repr(later.last(long, 2)) == "{'a': 2.0, 'b': 0.5}" and not later.ready
    assert later.last(door.job("last-of-none"), 9) == {}
    new = Mlflow(door.house, tmp_path, None)
    assert new.last(long, 9) == {} and not (tmp_path / "mlflow").exists()
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").touch()  # its tables are still to be made
    assert new.last(long, 9) == {}


def test_plain_metrics_do_not_reach_the_real_server(door, monkeypatch) -> None:
    door.mlflow.tracking.open(door.job("not-reached"))
    loaded = door.mlflow.load()
    monkeypatch.setattr(loaded.runs, "log_metric", None)
    body = json.loads(_body(run_id="not-reached"))
    assert door.client().post(f"/mlflow{ONE}", json=body).status_code == 200


def test_a_run_that_is_not_there_or_deleted_is_refused_by_mlflow(door) -> None:
    client = door.client()
    answer = client.post(f"/mlflow{ONE}", json=json.loads(_body(run_id="nobody")))
    assert answer.status_code == 404
    assert answer.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    door.mlflow.tracking.open(door.job("is-deleted"))
    client.post("/mlflow/api/2.0/mlflow/runs/delete", json={"run_id": "is-deleted"})
    answer = client.post(f"/mlflow{ONE}", json=json.loads(_body(run_id="is-deleted")))
    assert answer.status_code == 400
    assert "deleted" in answer.json()["message"]


def test_a_value_that_mlflow_refuses_is_refused_in_its_words(door) -> None:
    door.mlflow.tracking.open(door.job("bad-value"))
    body = json.loads(_body(run_id="bad-value", key="a*b"))
    answer = door.client().post(f"/mlflow{ONE}", json=body)
    assert answer.status_code == 400
    assert "a*b" in answer.json()["message"]
