"""The keeper's own corners: a disk that is full, a file that is run, a group that is made.

What it does to real processes is in `test_local.py`.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finery.engines import keeper, limits

ASKED = {
    "cwd": "/",
    "env": {"PATH": os.environ["PATH"]},
    "ranks": 1,
    "cpus": None,
    "memory": None,
    "timeout": None,
    "grace": 1.0,
    "name": "finery-test",
}


def test_it_runs_as_a_file_with_nothing_but_an_interpreter(tmp_path: Path) -> None:
    # A process, because the promise is about starting one.
    asked = ASKED | {"command": ["sh", "-c", "echo $RANK"], "logs": [str(tmp_path / "log")]}
    (tmp_path / "process.json").write_text(json.dumps(asked))
    command = [sys.executable, "-I", "-S", str(keeper.__file__), str(tmp_path)]
    for _ in range(2):  # the second finds that it ran already
        subprocess.run(command, check=True, timeout=60)
    assert json.loads((tmp_path / "exit.json").read_text())["code"] == 0
    assert (tmp_path / "log").read_text() == "0\n"


def test_the_end_is_written_once_a_full_disk_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = iter([True, True, False])

    def fsync(file: int) -> None:
        if next(full, False):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    keeper.last_word(str(tmp_path), json.dumps({"code": 3}), pause=0.0)
    assert json.loads((tmp_path / "exit.json").read_text()) == {"code": 3}
    assert capsys.readouterr().err.count("No space left") == 2


def test_the_last_word_on_a_forgotten_process_is_not_waited_for(tmp_path: Path) -> None:
    keeper.last_word(str(tmp_path / "forgotten"), "{}", pause=60.0)


def test_the_room_for_the_end_is_taken_before_the_start_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keeper, "record", record)
    with pytest.raises(OSError, match="No space"):
        keeper.claim(str(tmp_path))
    assert (tmp_path / "exit.part").stat().st_size == keeper.RESERVED
    assert not (tmp_path / "started.json").exists(), "so that it may still be started"


def test_limits_say_what_holds_and_what_does_not() -> None:
    said = limits.told(ASKED | {"cpus": 2.0, "memory": 1024}, None)
    assert (said["cpus"], said["memory"]) == ("threads", "watched")
    assert "not enforced" in said["said"] and "every second" in said["said"]
    assert limits.told(ASKED | {"cpus": 2.0}, "/group")["cpus"] == "cgroup"
    assert limits.told(ASKED, None)["memory"] == "none asked"


def test_a_folder_that_is_no_control_group_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").touch()
    assert limits.enclose(ASKED | {"memory": 1024}, str(tmp_path)) is None
    assert not list(tmp_path.glob("finery-*"))


def test_a_control_group_gets_the_limits_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder that fills itself as the kernel's do: real ones are ours to make only here and there.
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None:
        pytest.skip("this machine has no control groups of version 2")
    parent = tmp_path / own.strip("/")
    parent.mkdir(parents=True, exist_ok=True)
    (parent / "cgroup.subtree_control").touch()
    made = os.mkdir

    def mkdir(path: str) -> None:
        made(path)
        for name in ("memory.max", "memory.oom.group", "cpu.max"):
            (Path(path) / name).touch()

    monkeypatch.setattr(os, "mkdir", mkdir)
    group = limits.enclose(ASKED | {"memory": 1024, "cpus": 1.5}, str(tmp_path))
    assert group == str(parent / "finery-test")
    assert (parent / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert Path(group, "memory.max").read_text() == "1024"
    assert Path(group, "cpu.max").read_text() == "150000 100000"
    assert not limits.ran_out(group)
    Path(group, "memory.events").write_text("oom 1\noom_kill 1\n")
    assert limits.ran_out(group)
