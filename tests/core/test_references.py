"""Whose work an asset is, by how it was registered."""

import pytest

from finery.core import references
from finery.core.assets import Asset


@pytest.mark.parametrize(
    ("location", "made_by", "job"),
    [
        ("file:workspaceblobstore/x", "tuning/model", "tuning"),
        (references.artifacts("tuning", "outputs"), "", "tuning"),
        (references.output("tuning", "model"), "", "tuning"),
        ("job:tuning/model", "", "tuning"),
        ("file:workspaceblobstore/uploads/models/x", "", ""),
        ("file:workspaceartifactstore/mlflow/x", "", ""),
        ("", "", ""),
    ],
)
def test_a_job_is_known_by_where_it_left_a_model(location, made_by, job):
    asset = Asset(scope="w", kind="model", name="m", location=location, made_by=made_by)
    assert references.maker(asset) == job
