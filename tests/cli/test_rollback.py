"""Going back on the command line, in this process: a database, and a port for the server to be at."""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finery import cli
from finery.config import DEFAULT_WORKSPACE
from finery.core import endpoints, instances, workspaces
from finery.core import store as stores
from finery.core.endpoints import Deployment, Serving
from finery.core.workspaces import Workspace


class Home:
    """A home whose deployment `blue` ran model `good`, and now runs `bad`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = stores.open_sqlite(place / "finery.db")
        self.store.migrate()
        subscription, group, name = DEFAULT_WORKSPACE
        mine = Workspace(id="w", subscription=subscription, group=group, name=name)
        workspaces.create(self.store, mine)
        endpoints.create(self.store, endpoints.Endpoint(name="ep", workspace="w"))
        for model in ("good", "bad"):
            asked = Deployment(
                endpoint="ep", name="blue", workspace="w", spec=Serving(model=model, instances=2)
            )
            self.up(endpoints.deploy(self.store, asked))

    @property
    def blue(self) -> Deployment:
        return endpoints.get_deployment(self.store, "ep", "blue")

    def up(self, made: Deployment, *, instances: int = 2) -> None:
        """Do as the supervisor does once they answer."""
        addresses = {made.process(one): f"http://127.0.0.1:{one + 1}" for one in range(instances)}
        if instances < made.count:
            endpoints.place(self.store, made, addresses=addresses)
        else:
            endpoints.move(self.store, made, "ready", addresses=addresses, before=self.ended(made))

    @staticmethod
    def ended(made: Deployment) -> dict[str, Any]:
        return {**made.before, "answers": False} if made.before else {}


@pytest.fixture
def home(tmp_path: Path):
    made = Home(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def server(home: Home):
    """What says that a server runs: this process, and a port that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = "http://{}:{}".format(*listening.getsockname())
        said = {"pid": os.getpid(), "http": address}
        (home.place / "server.json").write_text(json.dumps(said))
        yield listening


class Asking(threading.Thread):
    """`finery endpoint rollback ep -d blue`, while the test does what the server does."""

    def __init__(self, home: Home, *more: str) -> None:
        super().__init__(daemon=True)
        self.words = ["endpoint", "rollback", "ep", "-d", "blue", "--home", str(home.place), *more]
        self.status = -1
        self.start()

    def run(self) -> None:
        self.status = cli.main(self.words)

    def ended(self) -> int:
        self.join(20)
        assert not self.is_alive()
        return self.status


def test_it_waits_until_the_former_version_answers_and_tells_how_far_it_is(
    home: Home, server, until, capsys
):
    asking = Asking(home, "--json")
    until(lambda: home.blue.status == "updating")
    assert home.blue.spec.model == "good"
    told = ""

    def tells(said: str) -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return said in told

    until(lambda: tells("blue: going back to its former version: 0 of 2 instances answer"))
    assert "what answered until now still does" in told
    home.up(home.blue, instances=1)
    until(lambda: tells("1 of 2 instances answer"))
    assert asking.is_alive()
    home.up(home.blue)
    assert asking.ended() == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert (said.pop("deployment"), said.pop("status")) == ("blue", "ready")
    assert said == {"from_revision": 2, "to_revision": 1, "as_revision": 3, "differs": ["model"]}
    assert "from revision 2 back to what revision 1 ran, as revision 3" in told


def test_the_building_of_an_environment_is_told(home: Home, server, until, capsys):
    asking, told = Asking(home), ""
    until(lambda: home.blue.status == "updating")
    place = instances.place(home.place, home.blue, 0)
    instances.build_log(place).write_text("installing\n")

    def tells() -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return "its environment is being built" in told

    until(tells)
    home.up(home.blue)
    assert asking.ended() == 0


def test_one_that_does_not_come_up_ends_in_failure_with_the_cause(
    home: Home, server, until, capsys
):
    asking = Asking(home)
    until(lambda: home.blue.status == "updating")
    error = {"message": "instance 0 does not come up: no such model", "target": "blue"}
    endpoints.move(home.store, home.blue, "failed", error=error)
    assert asking.ended() == 1
    said = capsys.readouterr()
    assert "no such model; revision 2 goes on answering" in said.err
    assert "finery endpoint logs ep -d blue" in said.err and not said.out


@pytest.mark.parametrize(
    ("done", "said"),
    [("changed", "was changed again"), ("deleted", "was deleted")],
)
def test_what_is_asked_of_it_meanwhile_ends_the_waiting(
    home: Home, server, until, capsys, done: str, said: str
):
    asking = Asking(home)
    until(lambda: home.blue.status == "updating")
    if done == "deleted":
        endpoints.delete_deployment(home.store, "ep", "blue")
    else:
        with home.store.transaction():
            endpoints.move(home.store, home.blue, "failed", error={"message": "no"})
            third = replace(home.blue, spec=replace(home.blue.spec, model="third"))
            endpoints.deploy(home.store, third)
    assert asking.ended() == 1
    assert said in capsys.readouterr().err


def test_a_server_that_ends_meanwhile_is_not_waited_for(
    home: Home, server, until, capsys, monkeypatch
):
    monkeypatch.setattr("finery.cli.rollback._SERVER", 1)
    asking = Asking(home)
    until(lambda: home.blue.status == "updating")
    (home.place / "server.json").unlink()
    assert asking.ended() == 1
    assert "no server runs" in capsys.readouterr().err


def test_without_a_server_nothing_is_changed_unless_nobody_waits(home: Home, capsys):
    assert Asking(home).ended() == 1
    assert "--no-wait" in capsys.readouterr().err
    assert home.blue.spec.model == "bad"
    assert Asking(home, "--no-wait").ended() == 0
    assert home.blue.spec.model == "good" and home.blue.status == "updating"
    assert "updating" in capsys.readouterr().out


def test_a_second_time_leads_to_where_one_was(home: Home, server, capsys):
    for model, to in (("good", "1"), ("bad", "2"), ("good", "3")):
        assert Asking(home, "--no-wait").ended() == 0
        home.up(home.blue)
        assert home.blue.spec.model == model
        assert f"back to what revision {to} ran" in capsys.readouterr().err


def test_a_failed_update_is_never_what_one_goes_back_to(home: Home, server, capsys):
    asked = replace(home.blue, spec=replace(home.blue.spec, model="worse", instances=3))
    worse = endpoints.deploy(home.store, asked)
    endpoints.move(home.store, worse, "failed", error={"message": "no"})
    assert Asking(home, "--no-wait", "--json").ended() == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert (said["from_revision"], said["to_revision"]) == (3, 2)
    assert said["differs"] == ["model", "instances"]
    home.up(home.blue)
    assert home.blue.spec.model == "bad"
    assert Asking(home, "--no-wait").ended() == 1
    assert "runs what it ran before already" in capsys.readouterr().err


def test_one_that_ran_nothing_before_says_so(home: Home, server, capsys):
    fresh = Deployment(endpoint="ep", name="green", workspace="w", spec=Serving(model="m"))
    endpoints.deploy(home.store, fresh)
    words = ["endpoint", "rollback", "ep", "-d", "green", "--home", str(home.place)]
    assert cli.main(words) == 1
    assert "has run nothing before" in capsys.readouterr().err
