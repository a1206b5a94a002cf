"""Which interpreter an environment means."""

import sys
from pathlib import Path

import pytest

from finery.core.errors import NotSupported
from finery.engines import environments


def test_a_curated_environment_is_our_own_interpreter():
    assert environments.interpreter("sklearn-1.5", {"kind": "curated"}) == Path(sys.executable)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("conda", "conda file"),
        ("build", "build context"),
        ("image", "Docker image"),
        ("", "nothing"),
    ],
)
def test_what_would_have_to_be_built_is_refused_by_name(kind, said):
    with pytest.raises(NotSupported, match=f"'mine'.*{said}"):
        environments.interpreter("mine", {"kind": kind})
