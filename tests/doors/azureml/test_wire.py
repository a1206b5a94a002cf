"""Azure Resource Manager's manners: words, routes, errors, pages."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from finery.core import errors, status
from finery.core.errors import Invalid, NotSupported
from finery.doors import http
from finery.doors.azureml import wire

from .conftest import WS


@pytest.mark.parametrize(
    "table, machine",
    [
        (wire.JOB_STATUS, status.JOB),
        (wire.DEPLOYMENT, status.DEPLOYMENT),
        (wire.ENDPOINT, status.ENDPOINT),
    ],
)
def test_every_status_has_a_word(table, machine):
    assert set(table) == set(machine)


def test_every_failure_has_a_code_and_a_status():
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    assert kinds == set(wire.CODES) == set(http.STATUS)


def test_paths_match_in_any_case(client: TestClient):
    assert client.get(WS.upper() + "/DataStores").status_code == 200
    assert client.get(WS.lower() + "/datastores/").status_code == 200


def test_any_api_version_is_taken(client: TestClient):
    for version in ("2021-10-01", "2025-12-01", "2099-01-01-preview"):
        assert client.get(WS, params={"api-version": version}).status_code == 200


@pytest.mark.parametrize(
    "path", [WS, f"{WS}/models", f"{WS}/computes/c", "/subscriptions/s", "/mferp/x", f"{WS}/nope"]
)
def test_nobody_gets_anything_without_a_credential(anyone: TestClient, path: str):
    answer = anyone.get(path)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "AuthenticationFailed"


def test_an_operation_that_is_not_supported_is_named(client: TestClient):
    answer = client.post(f"{WS}/models/m/versions/1/package", json={})
    assert answer.status_code == 501
    assert "POST models/m/versions/1" in answer.json()["error"]["message"]


def test_a_body_that_is_no_object_is_refused_in_the_same_dialect(client: TestClient):
    answer = client.put(f"{WS}/models/m/versions/1", json=[1])
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "UserError"


def test_a_list_goes_on_where_the_page_before_it_ended(client: TestClient):
    for name in "abc":
        client.put(f"{WS}/data/{name}", json={"properties": {"dataType": "uri_file"}})
    page = client.get(f"{WS}/data", params={"$top": 2, "api-version": "1"}).json()
    assert [item["name"] for item in page["value"]] == ["a", "b"]
    rest = client.get(page["nextLink"]).json()
    assert [item["name"] for item in rest["value"]] == ["c"] and "nextLink" not in rest


@pytest.mark.parametrize("query", [{"$top": "many"}, {"listViewType": "Some"}])
def test_a_page_that_makes_no_sense_is_refused(client: TestClient, query):
    assert client.get(f"{WS}/data", params=query).status_code == 400


def test_a_field_that_is_set_and_unknown_is_refused_by_name():
    wire.refuse_unknown({"a": 1, "b": None, "c": [], "d": False}, ("a",), "thing")
    with pytest.raises(NotSupported, match="thing: the field 'e'") as failed:
        wire.refuse_unknown({"e": "x"}, ("a",), "thing")
    assert failed.value.target == "e"


def test_words_are_read_in_any_case_and_others_refused():
    assert wire.word({"low_priority": "LowPriority"}, "lowpriority", field="tier") == "low_priority"
    with pytest.raises(Invalid, match="must be one of LowPriority"):
        wire.word({"low_priority": "LowPriority"}, "spot", field="tier")


def test_tags_are_texts():
    assert wire.texts({"a": 1, "b": True, "c": None, "d": "x"}, "tags") == {
        "a": "1",
        "b": "true",
        "d": "x",
    }
