"""Which environments there are so far."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from finery.core.errors import NotSupported
from finery.engines import environments


def test_a_curated_environment_is_our_own_interpreter() -> None:
    environment = {"name": "acft-hf-nlp-gpu", "curated": True, "image": "somewhere/image"}
    assert environments.interpreter(environment) == Path(sys.executable)


@pytest.mark.parametrize("field", ["conda_file", "build", "image"])
def test_what_would_have_to_be_built_is_refused_by_name(field: str) -> None:
    with pytest.raises(NotSupported, match=f"mine is made from {field}"):
        environments.interpreter({"name": "mine", field: {"some": "thing"}})
