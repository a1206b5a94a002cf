"""What an environment becomes."""

import sys

import pytest

from finery.core.assets import Asset
from finery.core.errors import NotSupported
from finery.engines.environments import Environments


def named(name: str, **spec) -> Asset:
    return Asset(scope="w", kind="environment", name=name, version="1", spec=spec)


def test_a_curated_environment_is_our_own_interpreter(tmp_path):
    found = Environments(tmp_path).runtime(named("sklearn-1.5", kind="curated"), serving=False)
    assert found is not None
    assert (found.python, found.own, found.image) == (sys.executable, True, "")


def test_what_cannot_be_made_from_is_refused_by_name(tmp_path):
    with pytest.raises(NotSupported, match="'mine'.*nothing"):
        Environments(tmp_path).runtime(named("mine", kind=""), serving=False)
