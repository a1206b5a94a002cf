"""A store and files of their own for each test of the core."""

from __future__ import annotations

import pytest

from finery.core import store as stores
from finery.core.files import Files


@pytest.fixture
def store(tmp_path):
    kept = stores.open_sqlite(tmp_path / "finery.db")
    kept.migrate()
    yield kept
    kept.close()


@pytest.fixture
def files(store, tmp_path):
    return Files(tmp_path / "files", store)
