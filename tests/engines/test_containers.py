"""A process in a container, with a program in Docker's place that writes down what it is told.

There is no container engine where the tests run.  What is shown here is what
ours is told, and that an end of any kind takes the container away.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_docker
import pytest

from finery.core.compute import Process
from finery.core.errors import Unavailable
from finery.engines import containers, proc
from finery.engines.local import LocalEngine

Make = Callable[..., Process]
Until = Callable[..., object]


@pytest.fixture
def bin(tmp_path: Path) -> Path:
    return fake_docker.install(tmp_path / "bin").parent


@pytest.fixture
def engine(tmp_path: Path, bin: Path) -> Iterator[LocalEngine]:
    surroundings = {
        "PATH": f"{bin}:{os.environ['PATH']}",
        "HOME": "/home/someone",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": "/cache",
        "DOCKER_HOST": "unix:///somewhere",
        "FINERY_SECRET": "s3cret",
    }
    made = LocalEngine(tmp_path / "home", surroundings=surroundings, grace=0.3, stack="json")
    yield made
    for directory in (tmp_path / "home" / "processes").glob("*/"):
        made.stop(directory.name)
    made.close()


def words(bin: Path, verb: str) -> list[str]:
    return next(call for call in fake_docker.told(bin) if call[0] == verb)


def values(call: list[str], flag: str) -> list[str]:
    return [value for word, value in zip(call, call[1:], strict=False) if word == flag]


def ended(engine: LocalEngine, until: Until) -> int | None:
    until(lambda: engine.report("p1").state == "exited")
    return engine.report("p1").exit_code


def test_the_exit_code_and_the_log_come_through(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    engine.start(a_process("echo $IMAGE $RANK; exit 7", image="python:3.12"))
    assert ended(engine, until) == 7
    assert engine.log("p1") == b"python:3.12 0\n"


def test_its_variables_are_in_a_private_file_and_not_on_the_command_line(
    engine: LocalEngine, a_process: Make, bin: Path, until: Until
) -> None:
    env = {"TOKEN": "hunter2", "LINES": "one\ntwo", "LD_PRELOAD": "a\nb"}
    engine.start(a_process("env", image="i", env=env))
    assert ended(engine, until) == 0
    seen = engine.log("p1").decode()
    assert "TOKEN=hunter2" in seen and "LINES=one\ntwo" in seen and "HF_HUB_OFFLINE=1" in seen
    assert "FINERY_SECRET" not in seen and "/home/someone" not in seen and "HF_HOME" not in seen
    assert "LD_PRELOAD" not in seen  # it would have changed the client, outside of the container
    assert "hunter2" not in json.dumps(fake_docker.told(bin))
    file = Path(values(words(bin, "run"), "--env-file")[0])
    assert file.stat().st_mode & 0o077 == 0
    client = json.loads((engine.home / "p1" / "process.json").read_text())["env"]
    assert client["DOCKER_HOST"] == "unix:///somewhere" and "TOKEN" not in client


def test_it_sees_its_folders_and_neither_database_nor_keys(
    engine: LocalEngine, a_process: Make, bin: Path, tmp_path: Path, until: Until
) -> None:
    (tmp_path / "work.inputs").mkdir()
    (tmp_path / "work").mkdir()
    engine.start(a_process("true", image="i", cwd=tmp_path / "work"))
    ended(engine, until)
    home = tmp_path / "home"
    shown = {Path(one.split(":")[0]) for one in values(words(bin, "run"), "--volume")}
    ours = {home / "files", home / "processes" / "p1", tmp_path / "work", tmp_path / "work.inputs"}
    assert shown == {*ours, containers.PACKAGE}
    assert all(one.endswith(":ro") for one in values(words(bin, "run"), "--volume")
               if one.startswith(str(containers.PACKAGE)))  # fmt: skip
    user = values(words(bin, "run"), "--user")
    assert user == [f"{os.getuid()}:{os.getgid()}"]


def test_limits_and_shared_memory_are_the_containers(
    engine: LocalEngine, a_process: Make, bin: Path, until: Until
) -> None:
    engine.start(a_process("true", image="i", memory=1 << 30, cpus=2, shm_size=5 << 20))
    ended(engine, until)
    call = words(bin, "run")
    assert values(call, "--memory") == [str(1 << 30)] and values(call, "--cpus") == ["2"]
    assert values(call, "--shm-size") == [str(5 << 20)]


def test_each_rank_is_a_container_and_they_share_memory(
    engine: LocalEngine, a_process: Make, bin: Path, tmp_path: Path, until: Until
) -> None:
    engine.start(a_process("echo $RANK of $WORLD_SIZE", image="i", ranks=2))
    assert ended(engine, until) == 0
    runs = [call for call in fake_docker.told(bin) if call[0] == "run"]
    assert sorted(values(call, "--name")[0] for call in runs) == ["finery-p1-0", "finery-p1-1"]
    assert all(values(call, "--ipc") == ["host"] for call in runs)
    assert (tmp_path / "p1_process_01.txt").read_text() == "1 of 2\n"


def test_its_engine_is_looked_for_once_and_again_after_it_has_failed(
    engine: LocalEngine, a_process: Make, bin: Path, until: Until
) -> None:
    def code(id: str) -> int | None:
        engine.start(a_process("exit 3", id, image="i"))
        until(lambda: engine.report(id).state == "exited")
        return engine.report(id).exit_code

    assert (code("p1"), code("p2")) == (3, 3) and fake_docker.looked(bin) == 1
    (bin / "running").unlink()
    assert code("p3") == 125 and b"Cannot connect" in engine.log("p3")
    with pytest.raises(Unavailable, match="neither Docker nor Podman is running"):
        code("p4")
    (bin / "running").touch()
    assert code("p5") == 3 and fake_docker.looked(bin) == 3


def test_devices_are_named_to_docker_and_counted_anew_inside() -> None:
    assert containers._devices("/usr/bin/docker", ["2", "3"]) == ["--gpus", '"device=2,3"']
    assert containers._devices("/usr/bin/podman", ["2"]) == ["--device", "nvidia.com/gpu=2"]


@pytest.mark.parametrize("how", ["stop", "kill its keeper"])
def test_an_end_of_any_kind_takes_the_container_away(
    engine: LocalEngine, a_process: Make, bin: Path, until: Until, how: str
) -> None:
    # It heeds no signal, and it is no child of the client: only its removal ends it.
    engine.start(a_process("trap '' TERM; while :; do sleep 0.1; done", image="i"))
    pid = int(until(lambda: _text(bin / "finery-p1-0.pid")))
    begun = json.loads((engine.home / "p1" / "started.json").read_text())
    if how == "stop":
        engine.stop("p1")
    else:
        os.kill(begun["pid"], signal.SIGKILL)
    ended(engine, until)
    until(lambda: not proc.stat(pid) or proc.stat(pid)[0] == "Z")
    assert words(bin, "rm") == ["rm", "--force", "finery-p1-0"]


def test_without_a_running_engine_it_says_what_to_do(
    engine: LocalEngine, a_process: Make, bin: Path
) -> None:
    (bin / "running").unlink()
    with pytest.raises(Unavailable, match="neither Docker nor Podman is running: start it"):
        engine.start(a_process("true", image="i"))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
