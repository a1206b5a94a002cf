"""Environments over time: nobody waits for another's, and what nothing uses goes.

Builds are processes of the engine's, as in `test_environments.py`, made by a program
in conda's or Docker's place that ends in no time.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import fake_docker
import pytest
from test_environments import SYSTEM, World, conda, had, named, world

from finery import cli
from finery.core.compute import Process
from finery.core.errors import Invalid
from finery.engines import aside, built, environments
from finery.engines.environments import Environments

Until = Callable[..., Any]
__all__ = ["world"]
DAY = 24 * 3600.0
EXITED = {"code": 1, "timed_out": False, "rank": None, "reason": "", "at": 1.0}  # as a keeper says


# Nobody waits for another's


def test_a_container_engine_that_hangs_keeps_nobody_waiting(
    world: World, until: Until, tmp_path: Path
) -> None:
    world.conda()
    docker = world.bin / "docker"
    docker.write_text("#!/bin/sh\necho $$ > $(dirname $0)/pid\nexec sleep 600\n")
    docker.chmod(0o755)
    server = world.server(patience=0.0)
    image = named("image", kind="image", image="python:3.12")
    assert server.runtime(image, serving=False) is None
    until((world.bin / "pid").exists)
    asset = conda("mine", SYSTEM.format(name="numpy"))
    assert had(server, until, asset, tmp_path / "log").python
    # In the end it counts as none, and while it is looked for again that is what is gone by.
    found = until(lambda: server.runtime(image, serving=False))
    assert "no container engine runs here" in found.warnings[0]
    (world.bin / "pid").unlink()
    server._look_at = 0.0
    assert server.runtime(image, serving=False) == found
    until((world.bin / "pid").exists)


def test_a_context_that_takes_long_to_read_keeps_nobody_waiting(
    world: World, until: Until, tmp_path: Path
) -> None:
    world.conda()
    (tmp_path / "Dockerfile").write_text("FROM x\n")
    go, reading = threading.Event(), threading.Event()

    def locate(scope: str, place: str) -> Path:
        reading.set()
        assert go.wait(120)
        return tmp_path

    server = world.server(patience=0.0)
    server.locate = locate
    context = named("context", kind="build")
    assert until(lambda: server.runtime(context, serving=False) or reading.is_set()) is True
    asset = conda("mine", SYSTEM.format(name="numpy"))
    assert had(server, until, asset, tmp_path / "log").python
    assert server.runtime(context, serving=False) is None
    go.set()
    assert until(lambda: server.runtime(context, serving=False)).own


def test_what_cannot_be_read_is_told_to_who_asks_again(world: World, until: Until) -> None:
    server = world.server(patience=0.0)

    def told() -> bool:
        try:
            return server.runtime(named("mine", kind=""), serving=False) is not None
        except Invalid:
            return True

    assert until(told) and until(told)


def test_only_so_many_answers_are_sought_at_once() -> None:
    go, asked = threading.Event(), aside.Aside(0.0)
    for n in range(aside.MOST):
        assert asked.answer(n, lambda: go.wait(120)) is None
    assert asked.answer("more", lambda: 1) is None and "more" not in asked._sought
    go.set()


def test_a_look_that_fails_is_not_the_last(
    world: World, until: Until, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (world.conda() / "wait").touch()
    server = world.server()
    asset = conda("mine", SYSTEM.format(name="numpy"))
    (pid,) = until(lambda: server.runtime(asset, serving=False) or world.begun())
    true, fails = world.engine.stop, threading.Event()

    def stop(id: str) -> None:
        if not fails.is_set():
            fails.set()
            raise OSError("no room left")
        true(id)

    world.engine.stop = stop  # type: ignore[method-assign]
    server.minding.ignored = 0.1
    until(lambda: not Path(f"/proc/{pid}").exists())
    until(lambda: not server.minding._minds)
    assert fails.is_set() and "was not looked at" in caplog.text


# An image that was removed


def test_an_image_that_was_pruned_is_built_again(
    world: World, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_docker.install(world.bin)
    server, asset = world.server(), named("a", kind="image", image="python:3.12")
    found = had(server, until, asset, tmp_path / "1")
    inspected = lambda: sum(call[0] == "image" for call in fake_docker.told(world.bin))  # noqa: E731
    before = inspected()
    for _ in range(20):  # not at each tick
        assert server.runtime(asset, serving=False) == found
    assert inspected() == before
    (world.bin / "images").unlink()
    assert world.server().runtime(asset, serving=False) is None
    assert had(world.server(), until, asset, tmp_path / "2") == found
    assert [call[0] for call in fake_docker.told(world.bin)].count("pull") == 2
    # Where the engine does not answer, nothing is known of the image: it is left as it is.
    (world.bin / "images").unlink()
    (world.bin / "running").unlink()
    server._looked.clear()
    assert server.runtime(asset, serving=False) == found


# What nothing uses


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def made(world: World, server: Environments, until: Until, name: str) -> Path:
    found = had(server, until, conda(name, SYSTEM.format(name=name)), world.tmp / f"{name}.txt")
    until(lambda: not [*world.home.glob("processes/environment-*")])  # its builder has ended
    return Path(found.python).parents[1]


def test_what_nothing_has_used_for_a_month_goes_and_what_is_used_stays(
    world: World, until: Until, tmp_path: Path
) -> None:
    world.conda()
    server = world.server()
    unused, asked, runs = (made(world, server, until, name) for name in ("a", "b", "c"))
    (runs / "lib" / "python3" / "site-packages").mkdir(parents=True)
    overlaid = server.apart(
        environments.Runtime(python=str(runs / "bin" / "python")), tmp_path / "layer"
    )
    assert overlaid.variables["FINERY_ENVIRONMENT"].startswith(str(runs))
    env = {**overlaid.env, **overlaid.variables}
    world.engine.start(
        Process(id="job-1", command=["sleep", "600"], cwd=tmp_path, log=tmp_path / "j", env=env)
    )
    for folder in (unused, asked, runs):
        age(folder / "ready.json", 31)
    assert server.runtime(conda("b", SYSTEM.format(name="b")), serving=False)  # used anew
    server.minding.tidy()
    there = {path.name for path in (world.home / "environments").iterdir() if path.is_dir()}
    assert there == {asked.name, runs.name}
    assert not [*(world.home / "environments").glob(f"{unused.name}*")]
    assert made(world, server, until, "a") == unused


def test_who_asked_for_what_is_built_is_listed_and_when_it_was_used(
    world: World, until: Until, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(*more: str) -> str:
        assert cli.main(["environment", "list", "--home", str(world.home), *more]) == 0
        return capsys.readouterr().out

    world.conda()
    world.home.mkdir(exist_ok=True)
    assert (listed(), listed("--json")) == ("nothing was built\n", "[]\n")
    server = world.server()
    folder = made(world, server, until, "a")
    same = named("b", kind="conda", conda=SYSTEM.format(name="a"))
    for one in (same, same, replace(same, name="x", anonymous=True)):
        assert world.server().runtime(one, serving=False)
        assert server.runtime(one, serving=False)
    age(folder / "ready.json", 2)
    (one,) = json.loads(listed("--json"))
    assert one["names"] == ["a:1", "b:1", "without a name"]
    then = datetime.fromisoformat(one["last_used"]).timestamp()
    assert abs(time.time() - 2 * DAY - then) < 120
    assert "a:1, b:1, without a name" in listed()
    built.remove(world.home, folder.name)
    assert made(world, server, until, "a") == folder
    assert [one.names for one in built.all(world.home)] == [("a:1",)]


def test_one_that_is_asked_for_while_others_are_tidied_away_stays(
    world: World, until: Until
) -> None:
    world.conda()
    folder = made(world, world.server(), until, "a")
    age(folder / "ready.json", 31)
    limits = {"before": time.time() - 30 * DAY, "half": time.time() - DAY}
    assert built.expired(world.home, **limits) == [folder.name]
    age(folder / "ready.json", 0)  # as being asked for does
    assert not built.put_aside(world.home, folder.name, **limits) and folder.exists()


def test_the_leftovers_of_builds_that_failed_go_after_a_day(world: World) -> None:
    place, processes = world.home / "environments", world.home / "processes"
    ended, half = processes / "environment-aa", place / "bb"
    half.mkdir(parents=True)
    ended.mkdir(parents=True)
    (ended / "exit.json").write_text(json.dumps(EXITED))
    for name in ("aa.json", "aa.log", "aa.failed.json", "cc.log"):
        (place / name).touch()
    (place / ".gone-dd").mkdir()
    world.server().minding.tidy()
    assert len([*place.iterdir()]) == 5 and ended.exists() and half.exists()  # a day it stays
    for path in (ended / "exit.json", half, *place.glob("*.*")):
        age(path, 1.1)
    (place / "cc.log").touch()
    world.server().minding.tidy()
    assert {path.name for path in place.iterdir()} == {"cc.log"} and not ended.exists()


def test_it_is_tidied_when_one_is_asked_for_and_then_once_an_hour(
    world: World, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    tidied: list[int] = []
    server = world.server()
    monkeypatch.setattr(server.minding, "tidy", lambda: tidied.append(1))
    image = named("mine", kind="image", image="python:3.11")
    for _ in range(3):
        assert server.runtime(image, serving=False)
    until(lambda: tidied)
    server.minding._tidy_at = 0.0
    assert server.runtime(image, serving=False)
    until(lambda: len(tidied) == 2)


def test_a_build_of_an_earlier_server_that_nobody_waits_for_any_more_is_stopped(
    world: World, until: Until, tmp_path: Path
) -> None:
    (world.conda() / "wait").touch()
    asset = conda("mine", SYSTEM.format(name="numpy"))
    first = world.server()
    (pid,) = until(lambda: first.runtime(asset, serving=False) or world.begun())
    first.minding.close()
    later = world.server(ignored=0.2)
    later.minding.begin()
    until(lambda: not Path(f"/proc/{pid}").exists())
    until(lambda: not [path for path in (world.home / "environments").iterdir() if path.is_dir()])
    until(lambda: not later.minding._minds)
    later.minding.close()


def test_one_that_somebody_waits_for_goes_on_under_the_next_server(
    world: World, until: Until, tmp_path: Path
) -> None:
    waits = world.conda() / "wait"
    waits.touch()
    asset = conda("mine", SYSTEM.format(name="numpy"))
    first = world.server()
    assert until(lambda: first.runtime(asset, serving=False) or world.begun())
    first.minding.close()
    later = world.server()
    later.minding.begin()
    assert later.runtime(asset, serving=False) is None
    until(lambda: later.minding._waited)
    waits.unlink()
    assert had(later, until, asset, tmp_path / "log").python
    assert len(world.begun()) == 1
    later.minding.close()


def test_an_idle_server_takes_away_what_builds_left_half_made_and_nothing_else(
    world: World, until: Until
) -> None:
    world.conda()
    whole = made(world, world.server(), until, "a")
    age(whole / "ready.json", 31)
    place, processes = world.home / "environments", world.home / "processes"
    killed, older = place / "bb", place / "cc"
    for folder in (killed, older, processes / "environment-bb", processes / "environment-dd"):
        folder.mkdir()
    for name in ("bb", "dd"):
        (processes / f"environment-{name}" / "process.json").write_text("{}")
        (processes / f"environment-{name}" / "exit.json").write_text(json.dumps(EXITED))
    (processes / "environment-dd" / "exit.json").rename(processes / "environment-dd" / "lost.json")
    (processes / "environment-dd" / "started.json").write_text(json.dumps({"at": 1.0}))
    for path in (older, processes / "environment-dd" / "lost.json"):
        age(path, 1.1)
    server = world.server()
    server.minding.begin()
    until(lambda: not killed.exists() and not older.exists())
    until(lambda: not (processes / "environment-dd").exists())
    assert whole.exists() and (whole / "ready.json").exists()
    server.minding.close()
