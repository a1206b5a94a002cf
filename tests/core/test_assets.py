"""Named, versioned, immutable things."""

from dataclasses import replace

import pytest

from finery.core import assets, workspaces
from finery.core.assets import Asset
from finery.core.errors import AlreadyExists, Invalid, NotFound
from finery.core.workspaces import Workspace


def model(**given):
    return Asset(kind="model", **{"scope": "w", "name": "m", "location": "file:s/a", **given})


def test_versions_are_numbered_when_none_is_given(store):
    assert [assets.create(store, model()).version for _ in range(3)] == ["1", "2", "3"]


def test_numbers_go_on_after_the_highest_that_was_given(store):
    assets.create(store, model(version="41"))
    assert assets.create(store, model()).version == "42"


def test_the_same_again_is_the_same_with_its_texts_brought_up_to_date(store):
    assets.create(store, model(version="1", description="old"))
    again = assets.create(store, model(version="1", description="new", tags={"a": "b"}))
    assert (again.description, again.tags) == ("new", {"a": "b"})
    assert len(assets.versions(store, "w", "model", "m").items) == 1


def test_a_version_never_changes_its_bytes(store):
    assets.create(store, model(version="1"))
    with pytest.raises(AlreadyExists, match="never changes"):
        assets.create(store, model(version="1", location="file:s/b"))


def test_the_same_bytes_elsewhere_are_the_same(store):
    assets.create(store, model(version="1", hash="h"))
    again = assets.create(store, model(version="1", hash="h", location="file:s/b"))
    assert again.location == "file:s/a"


def test_one_job_makes_one_version(store):
    first = assets.create(store, model(made_by="job/out"))
    assert assets.create(store, model(made_by="job/out")).version == first.version
    assert assets.create(store, model(made_by="other/out")).version == "2"


def test_latest_is_the_newest_that_is_not_archived(store):
    assets.create(store, model(version="9"))
    newest = assets.create(store, model(version="8"))
    assert assets.get(store, "w", "model", "m").version == "8"
    assets.update(store, replace(newest, archived=True))
    assert assets.get(store, "w", "model", "m").version == "9"


def test_archiving_a_name_archives_its_versions_and_back(store):
    assets.create(store, model())
    name = assets.find_name(store, "w", "model", "m")
    assets.update_name(store, replace(name, archived=True))
    assert assets.find(store, "w", "model", "m") is None
    assert assets.names(store, "w", "model").items == []
    assets.update_name(store, replace(name, archived=False))
    assert assets.find(store, "w", "model", "m") is not None


def test_versions_of_an_unknown_name_are_not_found(store):
    with pytest.raises(NotFound, match="no model 'nobody'"):
        assets.versions(store, "w", "model", "nobody")


def test_a_version_that_is_not_there_is_answered_with_the_newest(store):
    assets.create(store, model(version="2"))
    with pytest.raises(NotFound, match="no model 'm' version '7' in .*; the newest is '2'"):
        assets.get(store, "w", "model", "m", "7")


def test_a_name_that_is_not_there_is_answered_with_those_like_it(store):
    mine = Workspace(id="w", subscription="s", group="g", name="main")
    workspaces.create(store, mine)
    for scope, name in (("w", "jokes"), ("w", "chat"), ("w", "x" * 200), ("azureml", "joker")):
        assets.create(store, model(scope=scope, name=name))
    assets.create(store, model(name="jokey", anonymous=True))
    with pytest.raises(NotFound) as there:
        assets.get(store, "w", "model", "joke", "1")
    assert str(there.value) == "no model 'joke' version '1' in the workspace 'main'; it has 'jokes'"
    with pytest.raises(
        NotFound, match="no model 'joke' in the registry 'azureml'; it has 'joker'$"
    ):
        assets.versions(store, "azureml", "model", "joke")
    for name in ("phi", "jokes" * 1000):
        with pytest.raises(NotFound, match="in the workspace 'main'$"):
            assets.get(store, "w", "model", name)


def test_another_workspace_sees_nothing(store):
    assets.create(store, model())
    assert assets.find(store, "other", "model", "m") is None


@pytest.mark.parametrize("version", ["a/b", "../1", "x" * 65, " "])
def test_a_version_that_cannot_be_one_is_refused(store, version):
    with pytest.raises(Invalid):
        assets.create(store, model(version=version))


def test_a_stage_is_kept_and_is_a_way_to_choose(store):
    staged = assets.create(store, model(version="1", stage="Staging"))
    assets.create(store, model(version="2"))
    assert assets.get(store, "w", "model", "m", "1").stage == "Staging"
    assert [one.version for one in assets.versions(store, "w", "model", "m").items] == ["2", "1"]
    chosen = assets.versions(store, "w", "model", "m", stage="Staging", limit=1)
    assert ([one.version for one in chosen.items], chosen.next) == (["1"], None)
    assert assets.create(store, model(version="1")).stage == "Staging", "not said is not changed"
    assets.update(store, replace(staged, stage=""))
    assert assets.get(store, "w", "model", "m", "1").stage == ""


def test_every_version_of_a_kind_is_listed_newest_first_in_pages(store):
    for name, version in (("a", "1"), ("b", "1"), ("a", "2")):
        assets.create(store, model(name=name, version=version, archived=name == "b"))
    assets.create(store, Asset(scope="w", kind="data", name="other", location="file:s/a"))
    assets.create(store, Asset(scope="x", kind="model", name="other", location="file:s/a"))
    first = assets.every_version(store, "w", "model", limit=2)
    rest = assets.every_version(store, "w", "model", after=first.next, limit=2)
    found = [(one.name, one.version) for one in (*first.items, *rest.items)]
    assert found == [("a", "2"), ("b", "1"), ("a", "1")]
    assert rest.next is None
