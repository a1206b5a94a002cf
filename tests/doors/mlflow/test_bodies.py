"""What MLflow is given that it cannot take is refused in its own words, and no page of HTML."""

from __future__ import annotations

import pytest

API = "/mlflow/api/2.0/mlflow"
CREATE = f"{API}/experiments/create"


def said(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error_code"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"[" * 5000, b'{"name": NaN}', b"\xff"])
def test_what_is_no_json_object_is_refused(door, body) -> None:
    for path in (CREATE, f"{API}/runs/log-batch", f"{API}/runs/log-metric"):
        answer = door.client().post(
            path, content=body, headers={"content-type": "application/json"}
        )
        assert said(answer) == (400, "INVALID_PARAMETER_VALUE"), (path, answer.text)


def test_a_body_without_end_is_refused_before_it_is_held(door) -> None:
    endless = (b" " * 2**20 for _ in range(200))
    answer = door.client().post(CREATE, content=endless)
    assert answer.status_code == 413 and "MiB" in answer.json()["message"]


@pytest.mark.parametrize("value", [[None], {"a": 1}, [[]], {}])
def test_a_field_of_the_wrong_kind_is_the_callers_mistake(door, value) -> None:
    for path, body in (
        ("runs/search", {"experiment_ids": ["1"], "max_results": value}),
        ("runs/log-metric", {"run_id": "r", "key": "a", "value": 1.0, "timestamp": value}),
        ("runs/log-batch", {"run_id": "r", "params": [value]}),
    ):
        answer = door.client().post(f"{API}/{path}", json=body)
        assert 400 <= answer.status_code < 500, (path, answer.text)
        assert answer.json()["error_code"]


def test_half_a_host_name_is_no_host_name(door) -> None:
    for name in ("host", "origin"):
        answer = door.client().post(CREATE, json={}, headers={name: "http://["})
        assert said(answer) == (403, "PERMISSION_DENIED")
