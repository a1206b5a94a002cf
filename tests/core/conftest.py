"""A store and files of their own for each test of the core.

The database is SQLite, or the PostgreSQL one that FINERY_TEST_DATABASE names:
everything in its schema `public` is dropped for each test.
"""

from __future__ import annotations

import os

import pytest
from sqlalchemy import text

from finery.core import store as stores
from finery.core.files import Files
from finery.core.store import Store


@pytest.fixture
def store(tmp_path):
    kept = _postgres() or stores.open_sqlite(tmp_path / "finery.db")
    kept.migrate()
    yield kept
    kept.close()


@pytest.fixture
def files(store, tmp_path):
    return Files(tmp_path / "files", store)


def _postgres() -> Store | None:
    url = os.environ.get("FINERY_TEST_DATABASE")
    if not url:
        return None
    kept = Store(url)
    with kept.transaction() as connection:
        connection.execute(text("drop schema public cascade"))
        connection.execute(text("create schema public"))
    return kept
