"""What an environment becomes."""

import sys

import pytest

from finery.core.assets import Asset
from finery.core.compute import Report
from finery.core.errors import Invalid
from finery.engines.environments import Environments


class NoEngine:
    """Nothing is to be built."""

    def report(self, id: str) -> Report:
        raise AssertionError(id)


def named(name: str, **spec) -> Asset:
    return Asset(scope="w", kind="environment", name=name, version="1", spec=spec)


@pytest.fixture
def environments(tmp_path):
    return Environments(tmp_path, engine=NoEngine(), locate=lambda scope, place: tmp_path / place)


def test_a_curated_environment_is_our_own_interpreter(environments):
    found = environments.runtime(named("sklearn-1.5", kind="curated"), serving=False)
    assert (found.python, found.own, found.image) == (sys.executable, True, "")


def test_an_image_alone_is_our_own_interpreter_and_the_job_is_told(environments):
    found = environments.runtime(named("mine", kind="image", image="python:3.11"), serving=False)
    assert (found.python, found.own) == (sys.executable, True)
    assert "python:3.11" in found.warnings[0]


def test_what_cannot_be_made_from_is_refused_by_name(environments):
    with pytest.raises(Invalid, match="'mine'.*nothing"):
        environments.runtime(named("mine", kind=""), serving=False)
