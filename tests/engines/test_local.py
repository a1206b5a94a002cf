"""What the local engine promises.

Every test here starts real processes: locks, groups, signals and deaths are the
thing itself, and a fake would only repeat what we believe of them.  They are
shells, so each takes a few hundredths of a second.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finery.core.compute import Process, Report
from finery.core.errors import Invalid, Unavailable
from finery.engines import leftovers, local, proc
from finery.engines.local import LocalEngine

Make = Callable[..., Process]
Until = Callable[..., object]


def end_of(engine: LocalEngine, until: Until, id: str = "p1") -> Report:
    until(lambda: engine.report(id).state == "exited")
    return engine.report(id)


def running(engine: LocalEngine, until: Until, id: str = "p1") -> Path:
    until(lambda: engine.report(id).state == "alive")
    return engine.home / id


def pids_in(file: Path) -> list[int]:
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def gone(pid: int) -> bool:
    fields = proc.stat(pid)
    return not fields or fields[0] == "Z"


def test_a_process_leaves_its_exit_code_its_log_and_its_times(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    before = time.time()
    engine.start(a_process("echo out; echo err >&2; exit 3"))
    end = end_of(engine, until)
    assert (end.exit_code, end.timed_out, end.reason) == (3, False, "")
    assert end.started_at and end.ended_at
    assert before <= end.started_at <= end.ended_at <= time.time()
    assert engine.log("p1") == b"out\nerr\n"


def test_the_log_can_be_followed_from_where_it_was_left(
    engine: LocalEngine, a_process: Make, until: Until, tmp_path: Path
) -> None:
    engine.start(a_process("echo one; until [ -e more ]; do sleep 0.01; done; echo two"))
    until(lambda: engine.log("p1") == b"one\n")
    (tmp_path / "more").touch()
    end_of(engine, until)
    assert engine.log("p1", 4) == b"two\n"
    assert engine.log("p1", 400) == b""
    assert engine.log("p1", -4) == b"two\n"
    assert engine.log("p1", -400) == b"one\ntwo\n"
    assert engine.log("never") == b""


def test_a_second_start_does_nothing(
    engine: LocalEngine, a_process: Make, until: Until, tmp_path: Path
) -> None:
    engine.start(a_process("echo ran >> count"))
    engine.start(a_process("echo ran >> count"))
    end_of(engine, until)
    engine.start(a_process("echo again >> count"))
    assert (tmp_path / "count").read_text() == "ran\n"


def test_many_starts_at_once_run_it_once(
    engine: LocalEngine, a_process: Make, until: Until, tmp_path: Path
) -> None:
    others = [LocalEngine(engine.home.parent) for _ in range(4)]
    process = a_process("echo ran >> count; sleep 0.2")
    threads = [threading.Thread(target=e.start, args=[process]) for e in [engine, *others] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end_of(engine, until)
    until(lambda: all(not e._keepers for e in others if e._reap() is None))  # all have left
    assert (tmp_path / "count").read_text() == "ran\n"


SERVER = """
import sys, time
from pathlib import Path
from finery.core.compute import Process
from finery.engines.local import LocalEngine
home, line = Path(sys.argv[1]), sys.argv[2]
engine = LocalEngine(home)
engine.start(Process(id="p1", command=["bash", "-c", line], cwd=home.parent, log=home / "log"))
print("started", flush=True)
time.sleep(600)
"""


def test_a_process_outlives_a_killed_server_and_its_end_is_noticed(
    engine: LocalEngine, until: Until, tmp_path: Path
) -> None:
    line = "until [ -e go ]; do sleep 0.01; done; echo ran >> count; exit 7"
    command = [sys.executable, "-c", SERVER, str(engine.home.parent), line]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as server:
        assert server.stdout and server.stdout.readline() == b"started\n"
        os.killpg(server.pid, signal.SIGKILL)  # at once: its keeper may not even have begun
    running(engine, until)
    (tmp_path / "go").touch()
    assert end_of(engine, until).exit_code == 7
    assert (tmp_path / "count").read_text() == "ran\n"


def test_a_wish_written_by_a_server_that_died_before_it_sent_a_keeper_is_carried_out(
    engine: LocalEngine, a_process: Make, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_send_keeper", lambda directory: None)
        engine.start(a_process("exit 5"))
    assert engine.report("p1").state == "starting"
    os.utime(engine.home / "p1" / "process.json", (0, 0))  # a wish that waits for long
    assert end_of(engine, until).exit_code == 5


def test_a_process_stopped_before_it_began_never_runs(
    engine: LocalEngine, a_process: Make, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_send_keeper", lambda directory: None)
        engine.start(a_process("echo ran"))
    engine.stop("p1")
    engine.start(a_process("echo ran"))
    end = end_of(engine, until)
    assert (end.exit_code, end.reason) == (-signal.SIGTERM, "stopped before it began")
    assert engine.log("p1") == b""


FAMILY = "echo $$ > pids; sleep 600 & echo $! >> pids; setsid bash -c 'echo $$ >> pids; sleep 600' & wait"


def test_when_its_keeper_is_killed_nothing_of_it_runs_on(
    engine: LocalEngine, a_process: Make, until: Until, tmp_path: Path
) -> None:
    engine.start(a_process(FAMILY))
    until(lambda: len(pids_in(tmp_path / "pids")) == 3)
    begun = json.loads((engine.home / "p1" / "started.json").read_text())
    os.kill(begun["pid"], signal.SIGKILL)
    end = end_of(engine, until)
    assert (end.exit_code, end.lost, end.reason) == (None, True, "lost: its keeper was killed")
    until(lambda: all(gone(pid) for pid in pids_in(tmp_path / "pids")))
    assert engine.report("p1") == end, "what was said once holds"


def test_a_guard_ends_the_ranks_of_a_killed_keeper_even_when_no_server_looks(
    engine: LocalEngine, a_process: Make, until: Until, tmp_path: Path
) -> None:
    engine.start(a_process("echo $$ > pids; sleep 600 & echo $! >> pids; wait"))
    until(lambda: len(pids_in(tmp_path / "pids")) == 2)
    running(engine, until)
    begun = json.loads((engine.home / "p1" / "started.json").read_text())
    os.kill(begun["pid"], signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in pids_in(tmp_path / "pids")))


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of the engine's."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as made:
        yield made
        made.kill()


def test_a_number_that_was_used_again_is_left_alone(
    engine: LocalEngine, a_process: Make, until: Until, stranger: subprocess.Popen[bytes]
) -> None:
    engine.start(a_process("sleep 600"))
    directory = running(engine, until)
    begun = json.loads((directory / "started.json").read_text())
    forged = [{"rank": 0, "pid": stranger.pid, "start": proc.started(stranger.pid) - 1}]
    (directory / "ranks.json").write_text(json.dumps(forged))
    os.kill(begun["pid"], signal.SIGKILL)
    end_of(engine, until)
    leftovers.tell(stranger.pid, proc.started(stranger.pid) - 1, signal.SIGKILL)
    assert stranger.poll() is None
    leftovers.tell(stranger.pid, proc.started(stranger.pid), signal.SIGKILL)
    assert stranger.wait(60) == -signal.SIGKILL


def test_after_a_restart_of_the_machine_it_is_lost_and_no_number_is_trusted(
    engine: LocalEngine, a_process: Make, until: Until, stranger: subprocess.Popen[bytes]
) -> None:
    engine.start(a_process("true"))
    end_of(engine, until)
    directory = engine.home / "p1"
    begun = json.loads((directory / "started.json").read_text())
    until(lambda: gone(begun["pid"]))
    (directory / "exit.json").unlink()  # as if the power had gone before it was written
    (directory / "started.json").write_text(json.dumps(begun | {"boot": "another"}))
    same = [{"rank": 0, "pid": stranger.pid, "start": proc.started(stranger.pid)}]
    (directory / "ranks.json").write_text(json.dumps(same))
    end = engine.report("p1")
    assert (end.state, end.exit_code) == ("exited", None)
    assert end.reason == "lost: the machine was restarted"
    assert stranger.poll() is None


def test_stop_asks_first(engine: LocalEngine, a_process: Make, until: Until) -> None:
    line = "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.01; done"
    engine.start(a_process(line, grace=60))
    until(lambda: engine.log("p1"))
    engine.stop("p1")
    end = end_of(engine, until)
    assert (end.exit_code, end.reason) == (4, "stopped")
    assert engine.log("p1").endswith(b"bye\n")
    engine.stop("p1")  # gone already is fine
    engine.stop("never")


def test_stop_insists_after_the_grace_period(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    engine.start(a_process("trap '' TERM; echo up; while :; do sleep 0.01; done"))
    until(lambda: engine.log("p1"))
    engine.stop("p1")
    assert end_of(engine, until, "p1").exit_code == -signal.SIGKILL


def test_a_process_past_its_time_is_ended_and_says_so(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    engine.start(a_process("sleep 600", timeout=0.2, grace=60))
    end = end_of(engine, until)
    assert (end.exit_code, end.timed_out) == (-signal.SIGTERM, True)
    assert end.reason == "ran past its 0.2 s"


def test_ranks_are_told_apart_and_each_has_its_log(
    engine: LocalEngine, a_process: Make, until: Until, tmp_path: Path
) -> None:
    line = "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR; echo $MASTER_PORT"
    engine.start(a_process(line, ranks=2))
    assert end_of(engine, until).exit_code == 0
    logs = [(tmp_path / f"p1_process_0{rank}.txt").read_text().split() for rank in (0, 1)]
    assert [log[:5] for log in logs] == [
        ["0", "0", "2", "2", "127.0.0.1"],
        ["1", "1", "2", "2", "127.0.0.1"],
    ]
    assert logs[0][5] == logs[1][5] and int(logs[0][5]) > 0
    assert engine.log("p1").startswith(b"0 0 2")


def test_one_rank_that_fails_ends_the_others_and_is_the_reason(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    engine.start(a_process("if [ $RANK = 1 ]; then exit 9; fi; exec sleep 600", ranks=3))
    end = end_of(engine, until)
    assert (end.exit_code, end.reason) == (9, "rank 1 ended with 9")


def test_what_a_process_leaves_in_the_background_ends_with_it(
    engine: LocalEngine, a_process: Make, until: Until, tmp_path: Path
) -> None:
    line = "sleep 600 & echo $! > pids; setsid sleep 600 & echo $! >> pids; exit 0"
    engine.start(a_process(line))
    assert end_of(engine, until).exit_code == 0
    assert len(pids_in(tmp_path / "pids")) == 2
    until(lambda: all(gone(pid) for pid in pids_in(tmp_path / "pids")))


def test_no_secret_of_the_server_reaches_a_process_or_others_on_this_machine(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    engine.start(a_process("env", env={"TOKEN": "given", "OMP_NUM_THREADS": "1"}, cpus=2))
    end_of(engine, until)
    seen = dict(line.split("=", 1) for line in engine.log("p1").decode().splitlines())
    assert "FINERY_SECRET" not in seen and "s3cret" not in seen.values()
    assert seen["TOKEN"] == "given"
    assert seen["OMP_NUM_THREADS"] == "1"
    assert seen["OMP_WAIT_POLICY"] == "PASSIVE"
    assert seen["CUDA_VISIBLE_DEVICES"] == ""
    assert seen["FINERY_PROCESS_DIR"] == str(engine.home / "p1")
    assert (engine.home / "p1").stat().st_mode & 0o777 == 0o700
    assert (engine.home / "p1" / "process.json").stat().st_mode & 0o777 == 0o600


def test_nothing_the_server_has_open_is_open_in_a_process(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    inlet, outlet = os.pipe()
    os.set_inheritable(outlet, True)
    try:
        engine.start(a_process("exec ls /proc/self/fd"))
        end_of(engine, until)
    finally:
        os.close(inlet)
        os.close(outlet)
    assert engine.log("p1").split() == [b"0", b"1", b"2", b"3"]  # the last is the folder listed


def test_python_is_our_own_unless_told_otherwise(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    engine.start(a_process("command -v python"))
    end_of(engine, until)
    assert engine.log("p1").decode().strip() == str(Path(sys.executable).parent / "python")


def test_a_command_that_is_not_there_says_so_in_the_log(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    engine.start(a_process("", command=["no-such-program"]))
    assert end_of(engine, until).exit_code == 127
    assert b"cannot run no-such-program" in engine.log("p1")


def test_a_process_over_its_memory_is_ended_and_says_so(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    hungry = "import time; held = bytearray(b'x') * (80 << 20); print('up'); time.sleep(600)"
    command = [sys.executable, "-S", "-c", hungry]
    engine.start(a_process("", command=command, memory=40 << 20))
    end = end_of(engine, until)
    said = json.loads((engine.home / "p1" / "limits.json").read_text())
    if said["memory"] == "watched":
        assert "more than its 40 MiB" in end.reason
    assert end.exit_code in (-signal.SIGTERM, -signal.SIGKILL)


def test_a_serving_process_says_where_it_answers(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    engine.start(a_process("echo http://127.0.0.1:1234 > $FINERY_PROCESS_DIR/address; sleep 600"))
    until(lambda: engine.report("p1").address == "http://127.0.0.1:1234")
    engine.stop("p1")
    assert end_of(engine, until).address is None


def test_what_has_ended_can_be_forgotten(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    engine.start(a_process("true"))
    end_of(engine, until)
    engine.forget("p1")
    assert engine.report("p1").state == "unknown"
    engine.forget("p1")
    assert engine.log("p1") == b""


def test_what_is_forgotten_while_it_runs_is_dropped_when_it_ends(
    engine: LocalEngine, a_process: Make, until: Until
) -> None:
    engine.start(a_process("sleep 600"))
    running(engine, until)
    engine.forget("p1")
    assert engine.report("p1").state == "alive"
    engine.stop("p1")
    until(lambda: not (engine.home / "p1").exists())
    assert engine.report("p1").state == "unknown"


def test_a_server_killed_while_it_forgets_does_not_run_it_again(
    engine: LocalEngine, a_process: Make, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.start(a_process("true"))
    end_of(engine, until)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before this
        engine.forget("p1")
    monkeypatch.setattr(engine, "_send_keeper", lambda directory: pytest.fail("started again"))
    monkeypatch.setattr(local, "PATIENCE", 0.0)
    for name in ("exit.json", "started.json"):  # or after a part of it
        (engine.home / "p1" / name).unlink()
        assert engine.report("p1").state != "starting"
    engine.forget("p1")
    assert not (engine.home / "p1").exists()


def test_what_cannot_be_is_refused(engine: LocalEngine, a_process: Make) -> None:
    with pytest.raises(Invalid):
        engine.report("../elsewhere")
    with pytest.raises(Invalid, match="no devices"):
        engine.start(a_process("true", gpus=(99,)))
    assert engine.report("p1").state == "unknown"


def test_a_home_that_cannot_be_written_is_an_error_of_its_own(
    a_process: Make, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "processes").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot write"):
        LocalEngine(tmp_path / "home").start(a_process("true"))
