"""Credentials for one endpoint."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from finery.core import ids, tickets
from finery.core.endpoints import Endpoint
from finery.core.workspaces import Keys

NOW = ids.now()
ENDPOINT = Endpoint(name="a", workspace="ws", keys={"primary": "p", "secondary": "s"})


@pytest.fixture
def keys(tmp_path) -> Keys:
    return Keys(tmp_path)


def test_a_ticket_is_valid_until_it_ends(keys: Keys):
    ticket = tickets.issue(keys, ENDPOINT, seconds=60, now=NOW)
    assert tickets.valid(keys, ENDPOINT, ticket, now=NOW)
    assert not tickets.valid(keys, ENDPOINT, ticket, now=NOW + timedelta(seconds=61))


def test_a_ticket_is_for_one_endpoint_and_ends_with_its_key(keys: Keys):
    ticket = tickets.issue(keys, ENDPOINT, seconds=60, now=NOW)
    assert not tickets.valid(keys, replace(ENDPOINT, name="b"), ticket, now=NOW)
    made_anew = replace(ENDPOINT, keys={"primary": "q", "secondary": "s"})
    assert not tickets.valid(keys, made_anew, ticket, now=NOW)


@pytest.mark.parametrize("text", ["", "ticket", "ticket.1", "ticket.9999999999.x", "ticket.é.é"])
def test_what_was_not_issued_is_not_valid(keys: Keys, text: str):
    assert not tickets.valid(keys, ENDPOINT, text, now=NOW)


def test_an_end_that_was_put_off_is_not_valid(keys: Keys):
    mark, ends, signature = tickets.issue(keys, ENDPOINT, seconds=60, now=NOW).split(".")
    later = f"{mark}.{int(ends) + 1000}.{signature}"
    assert not tickets.valid(keys, ENDPOINT, later, now=NOW)
