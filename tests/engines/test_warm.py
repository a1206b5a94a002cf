"""What the warm parent promises: its children are as if started cold, and it may die at any time.

Real processes, since forking one is the thing; the parent imports a small module
in place of the training stack, but for the one test that says what the stack does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finery.core.compute import Process, Report
from finery.engines import leftovers, local, proc, warm
from finery.engines.local import LocalEngine

Until = Callable[..., object]
Run = Callable[..., Process]


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to the warm parent starts cold when a test says so, however slow we are."""
    monkeypatch.setattr(local, "PATIENCE", 600.0)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    made = LocalEngine(tmp_path / "home", grace=0.3, stack="json,wave")
    yield made
    for directory in (tmp_path / "home" / "processes").glob("*/"):
        made.stop(directory.name)
    made.close()


@pytest.fixture
def ready(engine: LocalEngine, until: Until) -> LocalEngine:
    engine.warm_up()
    until(engine._warm.ready)
    return engine


@pytest.fixture
def a_module(tmp_path: Path) -> Run:
    """A program as `python -m job` in a folder of its own."""

    def make(text: str, id: str = "p1", arguments: tuple[str, ...] = (), **env: str) -> Process:
        folder = tmp_path / id
        folder.mkdir(exist_ok=True)
        (folder / "job.py").write_text("import sys; warm = 'wave' in sys.modules\n" + text)
        command = [sys.executable, "-m", "job", *arguments]
        return Process(
            id=id, command=command, cwd=folder, log=tmp_path / f"{id}.txt", env=env, warm=True
        )

    return make


def end_of(engine: LocalEngine, until: Until, id: str = "p1") -> Report:
    until(lambda: engine.report(id).state == "exited")
    return engine.report(id)


def long_waiting(engine: LocalEngine, id: str = "p1") -> None:
    """Make the wish for a process older than anyone's patience, once."""
    os.utime(engine.home / id / "process.json", (0, 0))


def gone(pid: int) -> bool:
    fields = proc.stat(pid)
    return not fields or fields[0] == "Z"


@pytest.fixture
def frozen(ready: LocalEngine, until: Until) -> Iterator[int]:
    """The warm parent, stopped together with the keeper that it has ready; goes on afterwards."""
    parent = ready._warm._pid
    assert parent
    until(lambda: proc.children(parent))
    stopped = {pid: proc.started(pid) for pid in [parent, *proc.children(parent)]}
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    yield parent
    for pid, start in stopped.items():
        leftovers.tell(pid, start, signal.SIGCONT)


SEEN = """
import os, signal
print(warm, __name__, sys.argv[0] == __file__, sys.argv[1:], sys.path[0] == os.getcwd())
print(os.environ.get("GIVEN"), os.environ["RANK"], os.getsid(0) == os.getpid() == os.getpgid(0))
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), sorted(os.listdir("/proc/self/fd")))
print(sys.stdin.read() == "", "OPENBLAS_NUM_THREADS" in os.environ)
"""


def test_a_process_started_warm_sees_what_one_started_cold_sees(
    ready: LocalEngine, a_module: Run, until: Until
) -> None:
    ready.start(a_module(SEEN, arguments=("--a", "b"), GIVEN="x"))
    assert end_of(ready, until).exit_code == 0
    ready.start(a_module(SEEN, id="p2", arguments=("--a", "b"), GIVEN="x", PYTHONHASHSEED="0"))
    end_of(ready, until, "p2")
    warmly, coldly = ready.log("p1").decode(), ready.log("p2").decode()
    assert warmly.startswith("True __main__ True ['--a', 'b'] True\nx 0 True\n")
    assert coldly.startswith("False "), "what is read at the start cannot be given to a fork"
    assert warmly.removeprefix("True ") == coldly.removeprefix("False ")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("print('fine')", 0, "fine"),
        ("sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('a reason')", 1, "a reason"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import atexit; atexit.register(print, 'last')", 0, "last"),
        ("import threading; threading.Timer(0.05, print, ['late']).start()", 0, "late"),
    ],
)
def test_it_ends_as_an_interpreter_would(
    text: str, code: int, said: str, ready: LocalEngine, a_module: Run, until: Until
) -> None:
    ready.start(a_module("assert warm\n" + text))
    assert end_of(ready, until).exit_code == code
    assert said in ready.log("p1").decode()
    assert "warm.py" not in ready.log("p1").decode(), "a traceback shows the program's frames"


def test_the_first_process_does_not_wait_for_the_parent(
    engine: LocalEngine, a_module: Run, until: Until
) -> None:
    engine.start(a_module("print(warm)"))
    end_of(engine, until)
    assert engine.log("p1") == b"False\n"
    until(engine._warm.ready)
    engine.start(a_module("print(warm)", id="p2"))
    end_of(engine, until, "p2")
    assert engine.log("p2") == b"True\n"


def test_when_the_parent_dies_its_processes_go_on_and_the_next_starts_cold(
    ready: LocalEngine, a_module: Run, until: Until, tmp_path: Path
) -> None:
    ready.start(
        a_module("import os, time\nprint(warm)\nwhile not os.path.exists('go'): time.sleep(0.01)")
    )
    until(lambda: ready.log("p1") == b"True\n")
    assert ready._warm._pid
    os.kill(ready._warm._pid, signal.SIGKILL)
    until(lambda: not ready._warm.ready())
    ready.start(a_module("print('ran', warm)", id="p2"))
    assert end_of(ready, until, "p2").exit_code == 0
    assert ready.log("p2") == b"ran False\n"
    (tmp_path / "p1" / "go").touch()
    assert end_of(ready, until).exit_code == 0


def test_when_the_parent_is_stuck_the_process_starts_cold_and_only_once(
    ready: LocalEngine,
    frozen: int,
    a_module: Run,
    until: Until,
) -> None:
    keeping = proc.children(frozen)
    ready.start(a_module("print('ran', warm)"))
    assert ready.report("p1").state == "starting"
    ready._handed.clear()  # else the parent would be ended, and could not come back to life
    long_waiting(ready)
    end_of(ready, until)
    for pid in [frozen, *keeping]:
        os.kill(pid, signal.SIGCONT)
    ready.start(a_module("print('next', warm)", id="p2"))
    end_of(ready, until, "p2")
    assert ready.log("p1") == b"ran False\n"
    assert ready.log("p2") == b"next True\n"


def test_a_stuck_parent_is_ended(
    ready: LocalEngine,
    frozen: int,
    a_module: Run,
    until: Until,
) -> None:
    ready.start(a_module("print('ran', warm)"))
    long_waiting(ready)
    end_of(ready, until)
    assert gone(frozen)


def test_when_its_keeper_is_killed_nothing_that_was_forked_runs_on(
    ready: LocalEngine, a_module: Run, until: Until
) -> None:
    text = """
import os, time
if os.fork() == 0:
    os.setsid()  # out of reach of its group: only the mark finds it
print(os.getpid(), flush=True)
time.sleep(600)
"""
    ready.start(a_module(text))
    until(lambda: len(ready.log("p1").split()) == 2)
    begun = local._read(ready.home / "p1" / "started.json")
    os.kill(begun["pid"], signal.SIGKILL)
    assert end_of(ready, until).exit_code is None
    until(lambda: all(gone(int(pid)) for pid in ready.log("p1").split()))


def test_the_parent_ends_when_it_has_had_nothing_to_do(
    tmp_path: Path, until: Until, a_module: Run
) -> None:
    engine = LocalEngine(tmp_path / "home", idle=0.1, stack="json")
    engine.warm_up()
    pid = engine._warm._pid
    assert pid
    until(lambda: gone(pid))
    engine.start(a_module("print(warm)"))
    assert end_of(engine, until).exit_code == 0
    engine.close()


SERVER = """
import sys, time
from pathlib import Path
from finery.core.compute import Process
from finery.engines.local import LocalEngine
home = Path(sys.argv[1])
engine = LocalEngine(home, stack="wave")
engine.warm_up()
while not engine._warm.ready():
    time.sleep(0.01)
command = [sys.executable, "-m", "job"]
engine.start(Process(id="p1", command=command, cwd=home, log=home / "log", warm=True))
while not engine.log("p1"):
    time.sleep(0.01)
print(engine._warm._pid, flush=True)
time.sleep(600)
"""


def test_the_parent_ends_with_its_server_and_the_process_does_not(
    engine: LocalEngine, until: Until
) -> None:
    home = engine.home.parent
    home.mkdir()
    text = "import sys, os, time\nprint('wave' in sys.modules)\nwhile not os.path.exists('go'): time.sleep(0.01)"
    (home / "job.py").write_text(text)
    command = [sys.executable, "-c", SERVER, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout
        parent = int(server.stdout.readline())
        server.kill()
    until(lambda: gone(parent))
    assert engine.report("p1").state == "alive"
    assert engine.log("p1") == b"True\n"
    (home / "go").touch()
    assert end_of(engine, until).exit_code == 0


def test_only_a_module_of_our_own_environment_can_run_warm() -> None:
    assert warm.can_run([sys.executable, "-m", "finery.recipes.finetune", "--x"])
    assert warm.can_run(["python", "-m", "job"])
    assert not warm.can_run(["/usr/bin/python3", "-m", "job"])
    assert not warm.can_run(["python", "job.py"])
    assert not warm.can_run(["bash", "-c", "python -m job"])


def test_the_training_stack_is_warm_without_a_thread_and_its_children_differ(
    tmp_path: Path, until: Until, a_module: Run
) -> None:
    # The whole stack, which takes seconds: that importing it starts no thread is a fact
    # about those libraries which nothing smaller shows.
    engine = LocalEngine(tmp_path / "home")
    engine.warm_up()
    until(engine._warm.ready, seconds=300)
    assert os.listdir(f"/proc/{engine._warm._pid}/task") == [str(engine._warm._pid)]
    text = """
assert {"torch", "transformers", "trl", "peft", "datasets", "mlflow"} <= set(sys.modules)
import numpy, torch
print(torch.get_num_threads(), numpy.random.random())
"""
    for id in ("p1", "p2"):
        engine.start(a_module(text, id=id, OMP_NUM_THREADS="1"))
        assert end_of(engine, until, id).exit_code == 0, engine.log(id)
    said = [engine.log(id).split() for id in ("p1", "p2")]
    assert said[0][0] == said[1][0] == b"1"
    assert said[0][1] != said[1][1]
    engine.close()
