"""The loop over deployments, with an engine in memory: no process is started."""

from __future__ import annotations

import errno
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from finery.core import assets, endpoints, instances, rollback
from finery.core.assets import Asset
from finery.core.compute import Capacity, Report
from finery.core.endpoints import Deployment, Endpoint
from finery.core.errors import Conflict, Invalid, Unavailable
from finery.core.scaling import Load, Scaling
from finery.core.serving import Probe, Serving
from finery.core.store import EVENTS, FULL
from finery.core.upkeep import Upkeep
from finery.core.workspaces import Keys


class FakeTraffic:
    """What the way in says; a test makes it up."""

    def __init__(self) -> None:
        self.at_work: dict[str, int] = {}  # requests, by process
        self.asked = Load()

    def load(self, deployment: str) -> Load:
        return self.asked

    def busy(self, process: str) -> int:
        return self.at_work.get(process, 0)


class House:
    """The upkeep of one endpoint, `chat`, with what a test does to it."""

    def __init__(self, store, files, home, engine, environments) -> None:
        self.environments = environments
        self.store, self.files, self.home, self.engine = store, files, home, engine
        self.now = time.time()
        self.traffic = FakeTraffic()
        self.well = True  # what instances say when they are probed
        self.unwell = ""  # the end of the addresses that are not well
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
            traffic=self.traffic,
            answers=self._answers,
            clock=lambda: self.now,
        )

    def _answers(self, address: str, timeout: float) -> bool:
        self.probed.append(address)
        return self.well and not address.endswith(self.unwell or "-")

    def deploy(self, **spec) -> Deployment:
        given = Deployment(
            endpoint="chat",
            name="blue",
            workspace="w",
            spec=Serving(**{"model": "file:blob/model", **spec}),
        )
        made = endpoints.deploy(self.store, given)
        self.now = max(self.now, self.blue.changed_at.timestamp())  # however slow we are
        return made

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
        for instance in range(self.blue.count):
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


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (3, "", "exit status 3"),
        (-11, "", "ended by signal 11: Segmentation fault"),
        (134, "loading", "loading (exit status 134)"),
    ],
)
def test_an_instance_that_ends_without_a_reason_is_told_of_by_its_exit_status(
    house, engine, code, said, why
):
    blue = house.deploy()
    house.tick()
    engine.exits(blue.process(0), code, said=said)
    house.tick()
    assert house.blue.error["message"] == f"instance 0 ended before it answered: {why}"


@pytest.mark.parametrize(
    ("code", "known"),
    [(None, {"lost": True, "reason": "lost: its keeper was killed"}), (-9, {})],
    ids=["lost", "killed"],
)
def test_an_instance_that_was_killed_before_it_answered_is_started_again(
    house, engine, code, known
):
    blue = house.deploy()
    house.tick()
    engine.exits(blue.process(0), code, **known)
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
        "no model 'm' version '1' in the registry 'w'",
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
    assert instances.failure(house.blue).endswith("bad weights; revision 1 goes on answering")
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


@pytest.mark.parametrize("end", ["updating", "failed"])
def test_the_revision_that_answers_is_looked_after_while_the_next_one_does_not(house, engine, end):
    old = house.up(instances=2)
    new = house.deploy(instances=2, env={"v": "2"})
    house.tick()
    if end == "failed":
        engine.exits(new.process(0), 1)
        house.tick()
    engine.exits(old.process(0), 1)
    house.tick(3)
    assert (house.blue.status, [*house.blue.addresses]) == (end, [old.process(1)])
    earlier = house.blue.earlier
    assert earlier.process(0) != old.process(0)
    assert engine.started[earlier.process(0)].env.get("v") is None
    engine.answers(earlier.process(0))
    house.restart()
    house.tick(2)
    assert {*house.blue.addresses} == {earlier.process(0), old.process(1)}
    if end == "updating":
        house.answer()
        house.tick(2)
        assert {*engine.alive} == {new.process(0), new.process(1)}
        assert house.blue.earlier is None


def test_what_was_before_is_not_woken_by_a_deployment_that_always_falls(house, engine):
    house.up()
    house.deploy(env={"v": "2"})
    house.tick()
    house.answer()
    fall(house, engine, 6)
    house.tick(3)
    assert (house.blue.status, engine.alive) == ("failed", [])


def test_going_back_brings_up_what_answered_before(house, engine, store):
    house.up()
    house.deploy(env={"v": "2"})
    house.tick()
    house.answer()
    rollback.deployment(store, "chat", "blue")
    house.tick()
    house.answer()
    assert (house.blue.status, house.blue.spec.env, house.blue.revision) == ("ready", {}, 3)


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


@pytest.mark.parametrize("fallen", [0, 1])
def test_what_answers_after_a_failed_change_of_numbers_is_looked_after(house, engine, fallen):
    old = house.up(instances=2)
    house.deploy(instances=3)
    house.tick()
    engine.exits(house.blue.process(2), 1, said="no room for another")
    house.tick(2)
    engine.exits(old.process(fallen), 1)
    house.restart()
    house.tick(3)
    other = old.process(1 - fallen)
    assert (house.blue.status, [*house.blue.addresses]) == ("failed", [other])
    assert instances.failure(house.blue).endswith("; what was there goes on answering")
    (again,) = {*engine.alive} - {other}
    engine.answers(again)
    house.tick(2)
    assert {*house.blue.addresses} == {other, again}
    assert "no room for another" in house.blue.error["message"]
    house.deploy(instances=2)
    house.tick()
    house.answer()
    assert (house.blue.status, {*engine.alive}) == ("ready", {*house.blue.addresses})


# -- trouble that passes ---------------------------------------------------------------

PASSING = [
    OSError(errno.ENOSPC, "No space left on device", "/home"),
    Unavailable("the environment 'e' could not be built: the index does not answer"),
]


@pytest.mark.parametrize("trouble", PASSING)
def test_what_falls_during_trouble_that_passes_is_replaced_after_it(house, engine, trouble):
    old = house.up(instances=2)
    house.environments.trouble = trouble
    engine.exits(old.process(0), 1)
    house.tick(4)
    assert (house.blue.status, [*house.blue.addresses]) == ("ready", [old.process(1)])
    engine.exits(old.process(1), 1)
    for _ in range(10):
        house.now += 60
        house.tick(2)
    assert (house.blue.status, house.blue.addresses) == ("unhealthy", {})
    house.environments.trouble = None
    house.now += 60
    house.tick()
    house.answer()
    assert (house.blue.status, len(house.blue.addresses)) == ("ready", 2)


def test_between_attempts_there_is_a_pause_that_grows(house, engine):
    old = house.up()
    house.environments.trouble = PASSING[1]
    engine.exits(old.process(0), 1)
    house.tick()
    tried = []
    for _ in range(200):
        before = len(house.environments.asked)
        house.tick()
        tried += [house.now] * (len(house.environments.asked) > before)
        house.now += 1
    pauses = [round(later - earlier) for earlier, later in zip(tried, tried[1:], strict=False)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_trouble_that_does_not_pass_fails_the_deployment_in_the_end_and_says_why(house, engine):
    old = house.up()
    house.environments.trouble = PASSING[1]
    engine.exits(old.process(0), 1)
    for _ in range(80):
        house.now += 60
        house.tick()
    assert house.blue.status == "failed"
    assert "could not be started: the environment 'e'" in house.blue.error["message"]


def test_trouble_that_does_not_pass_by_itself_fails_it_at_once(house, engine):
    old = house.up()
    house.environments.trouble = Invalid("no package named nothing")
    engine.exits(old.process(0), 1)
    house.tick(2)
    assert (house.blue.status, house.blue.error["message"]) == (
        *("failed", "no package named nothing"),
    )


@pytest.mark.parametrize("trouble", [*PASSING, Invalid("its model is gone")])
def test_trouble_with_the_revision_before_does_not_fail_the_new_one(house, engine, trouble):
    old = house.up()
    house.deploy(env={"v": "2"})
    house.tick()
    house.environments.trouble = trouble
    engine.exits(old.process(0), 1)
    house.tick(4)
    assert (house.blue.status, house.blue.error) == ("updating", None)
    house.answer()
    assert (house.blue.status, [*house.blue.addresses]) == ("ready", [house.blue.process(0)])


def test_a_disk_that_cannot_be_read_for_a_while_fails_nothing_that_answers(
    house, engine, monkeypatch
):
    old = house.up()
    monkeypatch.setattr("finery.core.upkeep._PAUSE", 0)
    with monkeypatch.context() as ill:
        ill.setattr(engine, "report", lambda id: (_ for _ in ()).throw(PASSING[0]))
        house.tick(3)
    assert (house.blue.status, house.blue.addresses) == ("ready", old.addresses)
    house.tick()
    assert house.blue.status == "ready"


def test_a_deployment_that_is_well_is_not_looked_at_at_every_tick(house, engine, monkeypatch):
    house.up()
    monkeypatch.setattr("finery.core.upkeep._STEADY", 1000)
    looks, report = [], engine.report
    monkeypatch.setattr(engine, "report", lambda id: looks.append(id) or report(id))
    house.upkeep.tick(woken=False)
    house.upkeep.settle()
    assert not looks
    house.tick()  # it was asked for
    assert looks


def test_code_that_is_copied_for_an_instance_keeps_no_server_that_ends(house, engine):
    code = house.files.path("w", "blob", "code")
    code.mkdir(parents=True)
    (code / "score.py").write_text("")
    house.deploy(code="file:blob/code", script="score.py")
    house.upkeep._over.set()
    house.tick()
    assert (house.blue.status, engine.started) == ("creating", {})


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
    assert f"{old.addresses[old.process(0)]}/health/live" in house.probed
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


def test_an_instance_that_is_not_ready_gets_no_requests_and_is_not_restarted(house, engine, until):
    probe = Probe(initial_delay=0, period=0, failure_threshold=2, success_threshold=3)
    old = house.up(readiness=probe, instances=2, liveness=Probe(initial_delay=1000))
    until(lambda: len(house.blue.addresses) == 2 or house.tick())
    first = old.process(0)
    house.unwell = f"{first}/health/ready"
    until(lambda: first not in house.blue.addresses or house.tick())
    house.tick(3)
    assert (house.blue.status, [*house.blue.addresses]) == ("ready", [old.process(1)])
    assert (engine.stopped, house.blue.restarts) == ([], {})
    house.unwell = ""
    until(lambda: first in house.blue.addresses or house.tick())
    assert house.blue.process(0) == first


def test_an_instance_may_have_to_say_more_than_once_that_it_is_ready(house, engine, until):
    blue = house.deploy(readiness=Probe(initial_delay=500, period=0, success_threshold=3))
    house.tick()
    engine.answers(blue.process(0))
    until(lambda: house.blue.status == "ready" or house.tick())
    assert {*house.probed} == {f"http://{blue.process(0)}/health/ready"}
    assert len(house.probed) >= 2, "that it came up is one of three"


def test_an_instance_that_is_up_early_does_not_wait_for_the_probes_delay(house):
    slow = Probe(initial_delay=500, period=100)
    assert house.up(liveness=slow, readiness=slow).status == "ready"


# -- environments ----------------------------------------------------------------------


def test_patience_does_not_count_while_the_environment_is_built(house, engine, environments):
    environments.building = True
    house.deploy()
    house.tick()
    house.now += 10_000
    house.tick()
    assert (house.blue.status, engine.started) == ("creating", {})
    environments.building, environments.warnings = False, ("no conda here",)
    engine_start = engine.start

    def start(process):
        engine_start(process)
        engine.reports[process.id] = Report(state="alive", started_at=house.now)

    engine.start = start
    house.tick(2)
    house.now += 300
    house.answer()
    assert (house.blue.status, house.blue.warnings) == ("ready", ["no conda here"])


def test_an_environment_that_cannot_be_built_leaves_the_revision_before_at_work(
    house, engine, environments
):
    old = house.up()
    environments.trouble = Invalid("no package named nope")
    house.deploy(env={"v": "2"})
    house.tick(2)
    assert (house.blue.status, house.blue.addresses) == ("failed", old.addresses)
    assert house.blue.error["message"] == "no package named nope"
    assert engine.alive == [old.process(0)]


def test_a_model_with_no_code_and_no_environment_is_what_says_where_it_runs(
    house, store, environments
):
    model = assets.create(
        store, Asset(scope="w", kind="model", name="iris", location="file:blob/model")
    )
    old = house.up(model=model.ref)
    assert environments.asked[-1] == ("iris", True)
    environments.trouble = Unavailable("the environment of the model 'iris': no index answers")
    house.deploy(model=model.ref, env={"v": "2"})
    house.tick(2)
    assert (house.blue.status, house.blue.addresses) == ("failed", old.addresses)
    assert "no index answers" in house.blue.error["message"]
    environments.trouble = None
    curated = assets.create(store, Asset(scope="w", kind="environment", name="curated"))
    house.deploy(model=model.ref, environment=curated.ref)
    house.tick()
    assert environments.asked[-1] == ("curated", True)
    coded = Serving(model=model.ref, code="file:blob/code", script="score.py")
    assert instances.environment(store, replace(house.blue, spec=coded)) is None


def test_a_step_that_takes_long_holds_up_no_other_deployment(house, engine, store, until):
    go, start = threading.Event(), engine.start

    def slow(process):
        if house.blue.id in process.id:
            go.wait()
        start(process)

    engine.start = slow
    house.deploy()
    green = replace(house.blue, id="green", name="green")
    endpoints.deploy(store, green)
    house.upkeep.tick()
    try:
        until(lambda: house.upkeep.tick() and green.process(0) in engine.started)
        assert [*engine.started] == [green.process(0)]
    finally:
        go.set()
    house.upkeep.settle()
    assert house.blue.process(0) in engine.started


# -- draining --------------------------------------------------------------------------


def test_the_revision_before_ends_only_when_its_requests_are_answered(house, engine):
    old = house.up().process(0)
    house.traffic.at_work[old] = 1
    house.deploy(env={"v": "2"})
    house.tick()
    house.answer()
    house.tick(3)
    assert old not in house.blue.addresses
    assert engine.alive == [old, house.blue.process(0)]
    del house.traffic.at_work[old]
    house.tick()
    assert engine.alive == [house.blue.process(0)]


def test_a_deleted_deployment_answers_what_it_was_asked_before_it_ends(house, engine, store):
    blue = house.up()
    house.traffic.at_work[blue.process(0)] = 2
    endpoints.delete_deployment(store, "chat", "blue")
    house.tick(3)
    assert (house.blue.addresses, engine.alive) == ({}, [blue.process(0)])
    house.traffic.at_work.clear()
    house.tick(2)
    assert (engine.alive, endpoints.find_deployment(store, "chat", "blue")) == ([], None)


def test_a_process_that_is_never_done_is_ended_after_the_longest_request(
    house, engine, monkeypatch
):
    old = house.up().process(0)
    house.traffic.at_work[old] = 1
    house.deploy(env={"v": "2"})
    house.tick()
    house.answer()
    later = time.monotonic() + 36  # a request's 5.5 s, and 30 s of grace
    monkeypatch.setattr("finery.core.upkeep.time.monotonic", lambda: later)
    house.tick()
    assert engine.alive == [house.blue.process(0)]


def test_an_instance_that_went_and_comes_back_is_another_process(house, engine):
    old = house.up(instances=2)
    house.deploy(instances=1)
    house.tick(2)
    house.deploy(instances=2)
    house.tick()
    assert house.blue.process(0) == old.process(0)
    assert house.blue.process(1) != old.process(1)
    house.answer()
    assert sorted(engine.alive) == sorted([house.blue.process(0), house.blue.process(1)])


# -- scaling ---------------------------------------------------------------------------


def seconds(house, times, *, load):
    """Let time go by with so many requests under way."""
    for _ in range(times):
        house.now += 1
        house.traffic.asked = Load(load, house.traffic.asked.sum + load)
        house.tick()
        for instance in range(house.blue.count):
            if not house.engine.report(house.blue.process(instance)).address:
                house.engine.answers(house.blue.process(instance))
        house.tick()


def test_it_grows_with_its_load_and_shrinks_when_that_has_been_low_for_a_while(house, engine):
    rule = Scaling(least=1, most=3, target=50)
    house.up(scaling=rule, max_concurrent_requests=2)
    seconds(house, 2, load=3)
    assert (house.blue.count, len(house.blue.addresses), engine.stopped) == (3, 3, [])
    seconds(house, 8, load=1)
    assert house.blue.count == 3
    seconds(house, 5, load=1)
    assert (house.blue.count, len(engine.alive)) == (1, 1)
    said = [row.reason for row in house.store.rows(select(EVENTS)) if "scaled" in row.reason]
    assert said[0].startswith("scaled from 1 to 3") and said[1].startswith("scaled from 3 to 1")


def test_down_to_none_and_up_again_when_somebody_calls(house, engine):
    house.up(scaling=Scaling(least=0, most=2))
    seconds(house, 12, load=0)
    assert (house.blue.status, house.blue.count, engine.alive) == ("ready", 0, [])
    house.traffic.asked = Load(1, house.traffic.asked.sum)
    house.tick(2)
    house.answer()
    assert (house.blue.status, len(house.blue.addresses)) == ("ready", 1)


def test_what_its_load_asked_for_outlives_the_server(house, engine):
    house.up(scaling=Scaling(least=1, most=3))
    seconds(house, 2, load=3)
    house.restart()
    house.tick(3)
    assert (house.blue.count, len(engine.alive)) == (3, 3)


def test_a_new_revision_has_as_many_instances_as_the_one_before(house, engine):
    house.up(scaling=Scaling(least=0, most=3))
    seconds(house, 2, load=2)
    house.deploy(scaling=Scaling(least=0, most=3), env={"v": "2"})
    house.tick()
    assert house.blue.count == 3
    house.answer()
    assert (house.blue.status, len(house.blue.addresses)) == ("ready", 3)


# -- logs ------------------------------------------------------------------------------


def write_log(house, id, text):
    folder = house.home / "deployments" / house.blue.id / id
    (folder / "log.txt").write_text(text)


def test_logs_are_of_every_instance_and_of_the_one_that_was_replaced(house, engine):
    old = house.up(instances=2)
    write_log(house, old.process(0), "1\n2\n3\nout of memory\n")
    write_log(house, old.process(1), "fine\n")
    engine.exits(old.process(0), 1)
    house.tick(3)
    write_log(house, house.blue.process(0), "again\n")
    assert instances.logs(house.home, house.blue, lines=2).splitlines() == [
        "Instance 0, before it was replaced:",
        "3",
        "out of memory",
        "Instance 0:",
        "again",
        "Instance 1:",
        "fine",
    ]


def test_logs_of_one_instance_need_no_heading_and_end_with_what_went_wrong(house, engine):
    blue = house.deploy()
    house.tick()
    write_log(house, blue.process(0), "bad weights\n")
    engine.exits(blue.process(0), 1, said="bad weights")
    house.tick()
    said = instances.logs(house.home, house.blue, lines=9)
    why = "The deployment failed: instance 0 ended before it answered: bad weights"
    assert said == f"bad weights\n{why}\n"


def test_logs_are_those_of_the_environment_while_it_is_built(house, environments):
    environments.building = True
    blue = house.deploy()
    house.tick()
    folder = house.home / "deployments" / blue.id / blue.process(0)
    (folder / "environment.log").write_text("resolving\nno such package\n")
    assert instances.logs(house.home, blue, lines=1) == "no such package\n"


def test_many_updates_leave_the_logs_of_a_few(house, engine):
    house.up()
    for turn in range(12):
        house.deploy(env={"v": str(turn)})
        house.tick()
        house.answer()
        house.tick()
    assert len(house.folders()) == 9, "eight that ended, and the one at work"
    assert (len(engine.alive), house.upkeep._leaving) == (1, {})
    assert {id for id, _ in house.upkeep.watches} == {house.blue.process(0)}


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
