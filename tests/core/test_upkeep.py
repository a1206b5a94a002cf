"""The loop over deployments, with an engine in memory: no process is started."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from finery.core import assets, endpoints
from finery.core.assets import Asset
from finery.core.compute import Capacity, Report
from finery.core.endpoints import Deployment, Endpoint
from finery.core.errors import Conflict, Unavailable
from finery.core.serving import Probe, Serving
from finery.core.store import FULL
from finery.core.upkeep import Upkeep
from finery.core.workspaces import Keys


class House:
    """The upkeep of one endpoint, `chat`, with what a test does to it."""

    def __init__(self, store, files, home, engine, environments) -> None:
        self.environments = environments
        self.store, self.files, self.home, self.engine = store, files, home, engine
        self.now = time.time()
        self.well = True  # what instances say when they are probed
        self.probed: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Put another upkeep in the place of this one: all that it knew is lost."""
        self.upkeep = Upkeep(
            self.store,
            self.files,
            self.home,
            engine=self.engine,
            keys=Keys(self.home),
            environments=self.environments,
            kind=lambda model: "pyfunc",
            answers=self._answers,
            clock=lambda: self.now,
        )

    def _answers(self, address: str, timeout: float) -> bool:
        self.probed.append(address)
        return self.well

    def deploy(self, **spec) -> Deployment:
        given = Deployment(
            endpoint="chat",
            name="blue",
            workspace="w",
            spec=Serving(**{"model": "file:blob/model", **spec}),
        )
        return endpoints.deploy(self.store, given)

    @property
    def blue(self) -> Deployment:
        return endpoints.get_deployment(self.store, "chat", "blue")

    def tick(self, times=1) -> None:
        for _ in range(times):
            self.upkeep.tick()
            self.upkeep.settle()

    def up(self, **spec) -> Deployment:
        """Deploy, and let every instance answer."""
        self.deploy(**spec)
        self.tick()
        self.answer()
        return self.blue

    def answer(self) -> None:
        """Let every process that there should be answer, and tick twice."""
        for instance in range(self.blue.spec.instances):
            self.engine.answers(self.blue.process(instance))
        self.tick(2)

    def folders(self) -> set[str]:
        return {found.name for found in (self.home / "deployments").glob("*/*")}


@pytest.fixture
def house(store, files, tmp_path, engine, environments):
    endpoints.create(store, Endpoint(name="chat", workspace="w"))
    files.path("w", "blob", "model").mkdir(parents=True)
    return House(store, files, tmp_path, engine, environments)


# -- bringing up -----------------------------------------------------------------------


def test_a_deployment_is_ready_when_every_instance_answers(house, engine):
    blue = house.deploy(instances=2)
    house.tick()
    assert [*engine.started] == [blue.process(0), blue.process(1)]
    address = engine.answers(blue.process(0))
    house.tick()
    assert (house.blue.status, house.blue.addresses) == ("creating", {})
    other = engine.answers(blue.process(1))
    house.tick()
    assert house.blue.status == "ready"
    assert house.blue.addresses == {blue.process(0): address, blue.process(1): other}


def test_an_instance_gets_its_spec_its_secret_and_no_other(house, engine):
    house.deploy(env={"A": "b"}, request_timeout_ms=90)
    house.tick()
    (process,) = engine.started.values()
    document = json.loads(Path(process.command[-1]).read_text())
    assert document["kind"] == "pyfunc"
    assert document["request_timeout_ms"] == 90
    assert document["model"] == str(house.files.path("w", "blob", "model"))
    assert process.env["A"] == "b"
    assert process.env["FINERY_SERVING_SECRET"] == Keys(house.home).derived("serving", process.id)


def test_instances_see_one_gpu_each_where_there_are_any(house, engine):
    engine.machine = Capacity(cpus=4, memory=1, gpus=2)
    house.deploy(instances=2)
    house.tick()
    assert {process.gpus for process in engine.started.values()} == {(0,), (1,)}


@pytest.mark.parametrize(
    "last", ["no such model class", '{"event": "cannot be served", "error": "no such model class"}']
)
def test_an_instance_that_ends_before_it_answers_fails_the_deployment_and_says_why(
    house, engine, last
):
    blue = house.deploy(instances=2)
    house.tick()
    engine.exits(blue.process(1), 1, said=f"loading\n{last}\n")
    house.tick()
    assert house.blue.status == "failed"
    assert house.blue.error["message"] == "instance 1 ended before it answered: no such model class"
    assert engine.alive == []
    assert engine.log(blue.process(1)), "what it said can still be read"


def test_an_instance_that_was_lost_with_its_machine_is_started_again(house, engine):
    blue = house.deploy()
    house.tick()
    engine.exits(blue.process(0), None)
    house.tick(2)
    assert house.blue.status == "creating"
    assert engine.alive == [house.blue.process(0)] != [blue.process(0)]


def test_patience_with_an_instance_ends_and_names_it(house, engine):
    blue = house.deploy(instances=2, readiness=Probe(initial_delay=5, period=10))
    house.tick()
    engine.answers(blue.process(0))
    engine.logs[blue.process(1)] = b"still loading"
    house.now += 300
    house.tick()
    assert house.blue.status == "creating"
    house.now += 10
    house.tick()
    assert house.blue.status == "failed"
    why = "instance 1 was not ready within 305 s: still loading"
    assert house.blue.error["message"] == why
    assert engine.alive == []


def test_a_model_that_is_gone_fails_the_deployment(house, engine, store):
    asset = assets.create(
        store, Asset(scope="w", kind="model", name="m", location="file:blob/model")
    )
    house.deploy(model=asset.ref)
    assets.delete(store, asset)
    house.tick()
    assert (house.blue.status, house.blue.error["message"]) == (
        "failed",
        "no model 'm' version '1'",
    )


def test_a_full_disk_fails_the_deployment_and_leaves_the_others_alone(house, engine, store):
    house.deploy()
    green = replace(house.blue, id="green", name="green")
    endpoints.deploy(store, green)
    start = engine.start

    def full(process):
        if green.id not in process.id:
            raise OSError(errno.ENOSPC, "No space left on device", "/home")
        start(process)

    engine.start = full
    house.tick()
    assert house.blue.error["message"] == "No space left on device: /home"
    assert [*engine.started] == [green.process(0)]


def test_a_database_that_is_full_delays_a_deployment_and_fails_none(house, engine, monkeypatch):
    blue = house.deploy()
    house.tick()
    engine.answers(blue.process(0))

    def full(*_, **__):
        raise Unavailable("the disk is full", target=FULL)

    with monkeypatch.context() as patched:
        patched.setattr(endpoints, "move", full)
        patched.setattr("finery.core.upkeep._PAUSE", 0)
        house.tick()
    assert (house.blue.status, engine.alive) == ("creating", [blue.process(0)])
    house.tick()
    assert house.blue.status == "ready"


def test_what_was_asked_anew_while_it_came_up_is_what_comes_up(house, engine):
    old = house.deploy().process(0)
    house.tick()
    house.deploy(env={"new": "1"})
    house.tick(2)
    assert engine.alive == [house.blue.process(0)] != [old]
    house.answer()
    assert (house.blue.status, [*house.blue.addresses]) == ("ready", [house.blue.process(0)])
    assert old in engine.forgotten


def test_a_change_made_while_a_step_is_taken_is_not_lost(house, engine, store):
    """The supervisor looks, then writes: what a caller writes in between stays."""
    seen = house.deploy()
    house.deploy(env={"new": "1"})
    with pytest.raises(Conflict, match="was changed"):
        endpoints.move(store, seen, "ready", addresses={})
    assert house.blue.spec.env == {"new": "1"}


# -- updating --------------------------------------------------------------------------


def test_the_revision_before_answers_until_the_next_one_does_then_ends(house, engine):
    old = house.up()
    new = house.deploy(env={"v": "2"})
    house.tick(3)
    assert (house.blue.status, house.blue.addresses) == ("updating", old.addresses)
    assert engine.alive == [old.process(0), new.process(0)]
    house.answer()
    assert (house.blue.status, [*house.blue.addresses]) == ("ready", [new.process(0)])
    assert engine.alive == [new.process(0)]
    house.tick()
    assert engine.forgotten == {old.process(0)}


def test_the_revision_before_ends_even_if_the_server_is_killed_right_after(house, engine):
    old = house.up()
    house.deploy(env={"v": "2"})
    house.tick()
    engine.answers(house.blue.process(0))
    house.upkeep._sweep = lambda deployment: None  # killed before it came to that
    house.tick()
    assert old.process(0) in engine.alive
    house.restart()
    house.tick(2)
    assert engine.alive == [house.blue.process(0)]


def test_a_failed_update_leaves_the_revision_before_at_work(house, engine):
    old = house.up()
    new = house.deploy(env={"v": "2"})
    house.tick()
    engine.exits(new.process(0), 1, said="bad weights")
    house.tick(3)
    assert (house.blue.status, house.blue.addresses) == ("failed", old.addresses)
    assert "bad weights" in house.blue.error["message"]
    assert engine.alive == [old.process(0)]
    again = house.deploy(env={"v": "3"})
    house.tick()
    house.answer()
    assert (house.blue.status, house.blue.error) == ("ready", None)
    assert engine.alive == [again.process(0)]


@pytest.mark.parametrize("end", ["updating", "failed"])
def test_an_earlier_instance_that_ends_gets_no_more_requests(house, engine, end):
    old = house.up()
    new = house.deploy(env={"v": "2"})
    house.tick()
    if end == "failed":
        engine.exits(new.process(0), 1)
        house.tick()
    engine.exits(old.process(0), 1)
    house.tick()
    assert (house.blue.status, house.blue.addresses) == (end, {})


def test_more_instances_join_those_that_are_there(house, engine):
    old = house.up()
    house.deploy(instances=3)
    house.tick()
    assert [*engine.started] == [old.process(0), house.blue.process(1), house.blue.process(2)]
    assert house.blue.addresses == old.addresses
    house.answer()
    assert (house.blue.status, len(house.blue.addresses), engine.stopped) == ("ready", 3, [])


def test_fewer_instances_end_only_those_that_are_too_many(house, engine):
    old = house.up(instances=3)
    house.deploy(instances=1)
    house.tick(3)
    assert (house.blue.status, [*house.blue.addresses]) == ("ready", [old.process(0)])
    assert engine.alive == [old.process(0)]
    assert engine.forgotten == {old.process(1), old.process(2)}


def test_an_instance_that_cannot_be_added_leaves_those_that_are_there(house, engine):
    old = house.up()
    house.deploy(instances=2)
    house.tick()
    engine.exits(house.blue.process(1), 1)
    house.tick(2)
    assert (house.blue.status, house.blue.addresses) == ("failed", old.addresses)
    assert engine.alive == [old.process(0)]


def test_an_instance_that_falls_while_another_is_added_is_replaced(house, engine):
    old = house.up()
    house.deploy(instances=2)
    house.tick()
    engine.exits(old.process(0), 1)
    house.tick(2)
    assert house.blue.status == "updating"
    house.answer()
    assert house.blue.status == "ready"
    assert old.process(0) not in house.blue.addresses


# -- looking after ---------------------------------------------------------------------


def test_an_instance_that_falls_is_replaced_by_a_new_process_and_no_other_is(house, engine):
    old = house.up(instances=2)
    engine.exits(old.process(0), -11)
    house.tick(2)
    assert (house.blue.status, [*house.blue.addresses]) == ("ready", [old.process(1)])
    assert house.blue.process(0) != old.process(0)
    assert house.blue.process(1) == old.process(1)
    assert sorted(engine.alive) == sorted([house.blue.process(0), old.process(1)])
    house.answer()
    assert len(house.blue.addresses) == 2
    assert engine.forgotten == {old.process(0)}


def test_without_any_instance_it_is_unhealthy_until_one_answers_again(house, engine):
    old = house.up()
    engine.exits(old.process(0), 1)
    house.tick()
    assert (house.blue.status, house.blue.addresses) == ("unhealthy", {})
    house.tick()
    house.answer()
    assert (house.blue.status, [*house.blue.addresses]) == ("ready", [house.blue.process(0)])


def fall(house, engine, times, *, lived=1.0):
    for _ in range(times):
        id = house.blue.process(0)
        engine.exits(id, 1, said="out of memory", started_at=0.0, ended_at=lived)
        house.tick(2)
        if house.blue.status != "failed":
            house.answer()


def test_an_instance_that_always_falls_fails_the_deployment(house, engine):
    house.up()
    fall(house, engine, 5)
    assert house.blue.status == "ready"
    fall(house, engine, 1)
    assert house.blue.status == "failed"
    assert house.blue.error["message"] == "instance 0 fell 6 times: out of memory"
    house.tick(3)
    assert engine.alive == []


def test_falls_that_are_far_apart_are_not_a_row(house, engine):
    house.up()
    fall(house, engine, 9, lived=3600.0)
    assert house.blue.status == "ready"


def test_an_instance_that_always_falls_takes_no_other_with_it(house, engine):
    house.up(instances=2)
    other = house.blue.process(1)
    fall(house, engine, 6)
    assert (house.blue.status, [*house.blue.addresses]) == ("failed", [other])
    house.tick(2)
    assert engine.alive == [other]


def test_an_instance_that_does_not_answer_its_probe_is_replaced(house, engine, until):
    engine.obedient = False
    probe = Probe(initial_delay=0, period=0, failure_threshold=3)
    old = house.up(liveness=probe)
    until(lambda: house.probed or house.tick())
    house.well = False
    until(lambda: house.tick() or house.blue.restarts)
    assert house.probed[0] == f"{old.addresses[old.process(0)]}/health/live"
    assert len(house.probed) >= 4
    assert engine.stopped.count(old.process(0)) >= 1
    house.tick()
    assert house.blue.process(0) in engine.started
    assert house.blue.process(0) != old.process(0)


def test_a_replacement_that_never_answers_is_replaced_too(house, engine):
    old = house.up()
    engine.exits(old.process(0), 1)
    house.tick(2)
    second = house.blue.process(0)
    engine.reports[second] = Report(state="alive", started_at=house.now)
    house.now += 311
    house.tick(2)
    assert second in engine.stopped
    assert engine.alive == [house.blue.process(0)] != [second]


# -- the end ---------------------------------------------------------------------------


def test_a_deleted_deployment_leaves_nothing(house, engine, store):
    house.up(instances=2)
    engine.exits(house.blue.process(0), 1)
    house.tick(2)
    endpoints.delete_deployment(store, "chat", "blue")
    house.tick(2)
    assert endpoints.find_deployment(store, "chat", "blue") is None
    assert engine.reports == {}
    assert engine.forgotten == {*engine.started}
    assert house.folders() == set()


def test_a_deployment_is_there_until_its_processes_have_ended(house, engine, store):
    blue = house.up()
    engine.obedient = False
    endpoints.delete_deployment(store, "chat", "blue")
    house.tick(3)
    assert house.blue.status == "deleting"
    engine.exits(blue.process(0), -15)
    house.tick()
    assert endpoints.find_deployment(store, "chat", "blue") is None


def test_a_deployment_deleted_while_it_is_updated_leaves_neither_revision(house, engine, store):
    old = house.up()
    new = house.deploy(env={"v": "2"})
    house.tick()
    assert {*engine.alive} == {old.process(0), new.process(0)}
    endpoints.delete_deployment(store, "chat", "blue")
    house.tick(2)
    assert (engine.alive, engine.reports, house.folders()) == ([], {}, set())
    assert endpoints.find_deployment(store, "chat", "blue") is None


@pytest.mark.parametrize("status", ["creating", "ready", "unhealthy", "updating", "failed"])
def test_a_server_that_starts_again_goes_on_from_where_it_was(house, engine, status):
    house.deploy()
    house.tick()
    if status != "creating":
        house.answer()
    if status == "unhealthy":
        engine.exits(house.blue.process(0), 1)
        house.tick()
    if status in ("updating", "failed"):
        house.deploy(env={"v": "2"})
        house.tick()
    if status == "failed":
        engine.exits(house.blue.process(0), 1)
        house.tick()
    assert house.blue.status == status
    before = [*engine.started]
    house.restart()
    house.tick(3)
    assert house.blue.status == status
    fresh = [house.blue.process(0)] if status == "unhealthy" else []
    assert [*engine.started] == before + fresh
    if status != "failed":
        house.answer()
        assert (house.blue.status, [*house.blue.addresses]) == ("ready", [house.blue.process(0)])


def test_more_ticks_change_nothing(house, engine, store):
    house.up()
    before = house.blue, {**engine.reports}, store.changes
    house.tick(5)
    assert (house.blue, {**engine.reports}, store.changes) == before
