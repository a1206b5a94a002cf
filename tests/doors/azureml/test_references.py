"""Every way the SDK spells an id or a path, and the reference that it is."""

from __future__ import annotations

import pytest

from finery.core import assets, workspaces
from finery.core.assets import Asset
from finery.core.errors import Failure, Invalid, NotFound, NotSupported
from finery.core.workspaces import Workspace
from finery.doors.azureml import references
from finery.doors.http import House

from .conftest import WS, house_in

SHORT_WS = "azureml://subscriptions/s/resourcegroups/g/workspaces/w"
HERE = "https://testserver/blob"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One for all: these tests only read."""
    with house_in(tmp_path_factory.mktemp("home")) as house:
        yield house


@pytest.fixture(scope="module")
def workspace(home: House) -> Workspace:
    for scope, kind in (("ws", "data"), ("ws", "model"), ("azureml", "model")):
        for version in ("1", "2"):
            asset = Asset(scope=scope, kind=kind, name="n", version=version, location="file:d/x")
            assets.create(home.store, asset)
    workspaces.create(home.store, Workspace(id="ws2", subscription="s", group="g", name="other"))
    return workspaces.by_id(home.store, "ws")


@pytest.mark.parametrize(
    "text, ref",
    [
        ("azureml:n:1", "asset:data/ws/n/1"),
        ("n:1", "asset:data/ws/n/1"),
        ("azureml:n@latest", "asset:data/ws/n/2"),
        ("azureml:n", "asset:data/ws/n/2"),
        (f"{WS}/data/n/versions/1", "asset:data/ws/n/1"),
        (f"azureml:{WS}/data/n/versions/1", "asset:data/ws/n/1"),
        (f"azureml:{WS}/data/n/labels/latest", "asset:data/ws/n/2"),
        (f"{WS.lower()}/models/n/versions/1", "asset:model/ws/n/1"),
        (f"{SHORT_WS}/data/n/versions/1", "asset:data/ws/n/1"),
        ("azureml://locations/local/workspaces/ws/models/n/versions/1", "asset:model/ws/n/1"),
        ("azureml://models/n/versions/1", "asset:model/ws/n/1"),
        ("azureml://registries/azureml/models/n/versions/1", "asset:model/azureml/n/1"),
        ("azureml://registries/azureml/models/n/labels/latest", "asset:model/azureml/n/2"),
        ("azureml://datastores/workspaceblobstore/paths/a/b/", "file:workspaceblobstore/a/b"),
        ("azureml://datastores/workspaceblobstore/paths/", "file:workspaceblobstore"),
        (f"{SHORT_WS}/datastores/workspaceblobstore/paths/a", "file:workspaceblobstore/a"),
        ("azureml://jobs/j/outputs/o", "job:j/o"),
        ("azureml://jobs/j/outputs/o/paths/a/b", "job:j/o/a/b"),
        ("azureml://jobs/j/outputs/artifacts/paths/./outputs/", "job:j/artifacts/outputs"),
        ("azureml://jobs/j/outputs/artifacts/paths/outputs/m.bin", "job:j/artifacts/outputs/m.bin"),
        ("azureml://jobs/j/outputs/default", "job:j/artifacts"),
        ("runs:/j/model", "job:j/artifacts/model"),
        (f"{HERE}/ws/workspaceblobstore/a/b%20c?sv=1&sig=2", "file:workspaceblobstore/a/b c"),
        (
            f"{HERE}/ws.blob.core.windows.net/workspaceblobstore/a",
            "file:workspaceblobstore/a",
        ),
        (f"{HERE}/workspaceblobstore/LocalUpload/x/", "file:workspaceblobstore/LocalUpload/x"),
        ("wasbs://workspaceblobstore@testserver/blob/ws/a", "file:workspaceblobstore/a"),
        ("https://example.org/x.csv", "https://example.org/x.csv"),
    ],
)
def test_a_text_is_read_as_what_it_refers_to(home, workspace, text, ref):
    assert references.ref_in(home, workspace, text, kind="data") == ref


@pytest.mark.parametrize(
    "text, ref",
    [
        ("AzureML-n@latest", "asset:environment/azureml/AzureML-n/7"),
        ("azureml:AzureML-n@latest", "asset:environment/azureml/AzureML-n/7"),
        ("azureml:AzureML-n:7", "asset:environment/azureml/AzureML-n/7"),
        ("azureml:AzureML-n:3", "asset:environment/azureml/AzureML-n/7"),
        ("AzureML-n", "asset:environment/azureml/AzureML-n/7"),
        ("AzureML-mine@latest", "asset:environment/ws/AzureML-mine/1"),
    ],
)
def test_an_environment_of_the_registry_has_a_short_name(home, workspace, text, ref):
    for scope, name, version in (("azureml", "AzureML-n", "7"), ("ws", "AzureML-mine", "1")):
        asset = Asset(scope=scope, kind="environment", name=name, version=version)
        assets.create(home.store, asset)
    assert references.ref_in(home, workspace, text, kind="environment") == ref
    with pytest.raises(NotFound):
        references.ref_in(home, workspace, text, kind="data")


def test_one_version_of_a_curated_environment_stands_for_those_before_it(home, workspace):
    for scope in ("azureml", "ws"):
        asset = Asset(scope=scope, kind="environment", name="n", version="7")
        assets.create(home.store, asset)
    curated = "azureml://registries/azureml/environments/n/versions"
    ref = references.ref_in(home, workspace, f"{curated}/3", kind="environment")
    assert ref == "asset:environment/azureml/n/7"
    for other in (f"{curated}/8", f"{curated}/{'9' * 5000}", "azureml:n:3"):
        with pytest.raises(NotFound):
            references.ref_in(home, workspace, other, kind="environment")


@pytest.mark.parametrize(
    "text, kind",
    [
        ("azureml:n:3", NotFound),
        ("azureml:m", NotFound),
        ("azureml:n@best", NotFound),
        ("azureml://datastores/elsewhere/paths/a", NotFound),
        ("azureml://registries/ws/data/n/versions/1", NotFound),  # a workspace is no registry
        (f"{WS.replace('/w', '/gone')}/data/n/versions/1", Failure),
        (f"{WS.removesuffix('w')}other/data/n/versions/1", NotSupported),
        (f"{HERE}/ws2/workspaceblobstore/a", NotSupported),
        ("wasbs://c@account.blob.core.windows.net/a", NotSupported),
        ("azureml://datastores/workspaceblobstore/paths/../../x", Invalid),
        ("azureml://jobs/j/outputs/artifacts/paths/../x", Invalid),
        ("azureml://nonsense", Invalid),
        ("file:workspaceblobstore/a", Invalid),
        ("asset:data/ws/n/1", Invalid),
        ("./folder/file", Invalid),
        ("", Invalid),
    ],
)
def test_what_leads_nowhere_is_refused(home, workspace, text, kind):
    with pytest.raises(kind):
        references.ref_in(home, workspace, text, kind="data")


@pytest.mark.parametrize(
    "text, name",
    [
        ("gpu", "gpu"),
        ("azureml:gpu", "gpu"),
        (f"{WS}/computes/gpu", "gpu"),
        ("serverless", "serverless"),
        ("${{parent.inputs.compute}}", "${{parent.inputs.compute}}"),
        ("", ""),
    ],
)
def test_a_compute_is_named_in_any_form(text, name):
    assert references.compute_in(text) == name


@pytest.mark.parametrize(
    "ref",
    [
        "asset:data/ws/n/1",
        "asset:model/azureml/n/2",
        "file:workspaceblobstore/a/b",
        "job:j/o/a",
        "job:j/artifacts/outputs/x",
        "https://example.org/x",
    ],
)
def test_what_is_written_out_reads_back_as_itself(home, workspace, ref):
    text = references.uri_out(workspace, ref)
    assert references.ref_in(home, workspace, text, kind="model") == ref


def test_an_address_of_a_blob_reads_back(home, workspace):
    url = references.blob_url(home, "ws", "workspaceblobstore", "a/b")
    assert references.ref_in(home, workspace, url, kind="code") == "file:workspaceblobstore/a/b"
