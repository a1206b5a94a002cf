"""Who is calling, and where they may act."""

from datetime import timedelta

import pytest

from finery.core import ids, workspaces
from finery.core.errors import AlreadyExists, Forbidden, NotFound, Unauthenticated
from finery.core.workspaces import Caller, Keys, Workspace


def test_names_are_compared_without_case(store):
    workspaces.create(store, Workspace(subscription="S", group="Rg", name="Main"))
    assert workspaces.get(store, "s", "rg", "main").name == "Main"
    with pytest.raises(AlreadyExists):
        workspaces.create(store, Workspace(subscription="s", group="rg", name="main"))


def test_a_removed_workspace_is_not_found(store):
    made = workspaces.create(store, Workspace(subscription="s", group="g", name="n"))
    workspaces.remove(store, made, busy=False)
    with pytest.raises(NotFound):
        workspaces.get(store, "s", "g", "n")


def test_keys_are_for_their_owner_alone_and_stay(tmp_path):
    first = Keys(tmp_path)
    assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600
    assert Keys(tmp_path).admin == first.admin


def test_the_administrators_key_may_do_everything(tmp_path):
    keys = Keys(tmp_path)
    assert keys.caller(keys.admin, now=ids.now()).role == "administrator"


def test_a_token_says_who_calls_until_it_ends(tmp_path):
    keys, now = Keys(tmp_path), ids.now()
    caller = Caller(name="job-1", role="job", workspace="w")
    token = keys.mint(caller, audience="mlflow", seconds=60, now=now)
    assert keys.caller(token, now=now + timedelta(seconds=59)) == caller
    with pytest.raises(Unauthenticated, match="expired"):
        keys.caller(token, now=now + timedelta(seconds=61))


def test_a_caller_acts_in_its_own_workspace_only():
    caller = Caller(name="job-1", role="job", workspace="w")
    caller.need("w")
    with pytest.raises(Forbidden):
        caller.need("another")
    with pytest.raises(Forbidden):
        caller.need_administrator()


@pytest.mark.parametrize(
    "spoil",
    [
        str.swapcase,
        lambda t: t[:-2],
        lambda t: "x" + t,
        lambda t: "a.b.c",
        lambda t: "é",
        lambda t: "",
    ],
)
def test_a_token_that_was_touched_is_none(tmp_path, spoil):
    keys = Keys(tmp_path)
    token = keys.mint(Caller(name="a"), audience="x", seconds=60, now=ids.now())
    with pytest.raises(Unauthenticated):
        keys.caller(spoil(token), now=ids.now())


def test_another_home_does_not_know_the_token(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    token = Keys(tmp_path / "a").mint(Caller(name="a"), audience="x", seconds=60, now=ids.now())
    with pytest.raises(Unauthenticated):
        Keys(tmp_path / "b").caller(token, now=ids.now())
