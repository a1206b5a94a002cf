"""Services of a job, with an engine in memory: no process is started."""

from __future__ import annotations

import pytest

from finery.core import ids, jobs, services
from finery.core.compute import Report
from finery.core.errors import Invalid, Unavailable
from finery.core.jobs import Command
from finery.core.work import Service

BOARD = f"service-board-{ids.derived('j')}"
LAB = f"service-lab-{ids.derived('j')}"


@pytest.fixture
def job(house):
    """A job with two services, begun."""
    wanted = {
        "board": Service(kind="tensorboard", folder="outputs/events"),
        "lab": Service(kind="jupyterlab", port=8890),
    }
    house.submit(spec=Command(command="run", env={"A": "b"}, timeout=90, services=wanted))
    house.tick()
    return jobs.get(house.store, "j")


@pytest.fixture
def states(house, engine):
    """What is told of the job's services."""
    return lambda: services.states(engine, jobs.get(house.store, "j"), home=house.home)


def test_services_start_after_the_job_in_its_folder_without_its_secrets(job, engine):
    assert list(engine.started) == ["job-j", BOARD, LAB]
    main, board = engine.started["job-j"], engine.started[BOARD]
    assert main.env["RUN"] == "j"  # of its tracking
    assert (board.env["A"], "RUN" in board.env) == ("b", False)
    assert board.cwd == main.cwd
    assert board.log == main.log.parents[1] / "system_logs" / "service_board.log"
    assert board.command[0] == "/usr/bin/python3"
    assert board.command[2:] == ["tensorboard", "0", "outputs/events"]
    assert engine.started[LAB].command[2:] == ["jupyterlab", "8890", "."]


def test_a_service_whose_job_is_called_like_another_s_service_has_an_id_of_its_own(house, engine):
    wanted = {"b": Service(kind="tensorboard")}
    house.submit("a", spec=Command(command="run", services=wanted))
    house.submit("service-b-a")
    house.submit("a-b", spec=Command(command="run", services=wanted))
    house.tick(2)
    assert len(engine.started) == 5


@pytest.mark.parametrize(
    ("code", "how", "status"),
    [(0, {}, "completed"), (1, {}, "failed"), (-15, {"timed_out": True}, "failed")],
)
def test_services_end_with_their_job_however_it_ends(job, house, engine, code, how, status):
    engine.exits("job-j", code, **how)
    house.tick(2)
    assert house.status() == status
    assert engine.stopped == [BOARD, LAB]
    assert engine.reports == {}


def test_services_end_with_a_cancelled_job(job, house, engine):
    jobs.cancel(house.store, "j")
    house.tick(2)
    assert house.status() == "cancelled"
    assert engine.reports == {}


def test_services_of_a_job_whose_process_is_lost_end(job, house, engine):
    del engine.reports["job-j"]
    house.tick()
    assert (house.status(), engine.reports) == ("failed", {})


def test_a_server_that_is_killed_between_starts_none_twice_and_leaves_none(house, engine):
    """The move to `running`, and later the end, is lost: both steps are done again."""
    spec = Command(command="run", services={"board": Service(kind="tensorboard")})
    house.submit(spec=spec)
    house.supervisor.engine = _Dying(engine)
    house.tick()
    assert (house.status(), engine.alive) == ("preparing", ["job-j", BOARD])
    house.restart()
    house.tick()
    assert (house.status(), engine.alive) == ("running", ["job-j", BOARD])
    engine.exits("job-j")
    house.tick()
    engine.stop(BOARD)  # as by the server that was killed then
    house.restart()
    house.tick(2)
    assert (house.status(), engine.reports) == ("completed", {})


class _Dying:
    """An engine whose server is killed after the last start."""

    def __init__(self, engine) -> None:
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def start(self, process) -> None:
        self._engine.start(process)
        if process.id == BOARD:
            raise KeyboardInterrupt


def test_a_program_that_is_not_there_is_one_warning_and_the_job_runs(job, house, engine, states):
    engine.exits(LAB, 1, said="JupyterLab is not in the job's environment: add it\n")
    house.tick(3)
    assert house.status() == "running"
    warning = "the service 'lab' does not run: JupyterLab is not in the job's environment: add it"
    assert jobs.get(house.store, "j").warnings == [warning]
    assert (states()["lab"].status, states()["board"].status) == ("failed", "waiting")
    assert "add it" in states()["lab"].error


def test_a_service_that_the_engine_cannot_start_is_a_warning(house, engine):
    class Full(_Dying):
        def start(self, process) -> None:
            if process.id == BOARD:
                raise Unavailable("no room")
            self._engine.start(process)

    house.supervisor.engine = Full(engine)
    house.submit(spec=Command(command="run", services={"board": Service(kind="tensorboard")}))
    house.tick()
    assert house.status() == "running"
    assert "'board' did not start: no room" in jobs.get(house.store, "j").warnings[0]


def test_a_service_that_answers_says_where_until_its_job_ends(job, house, engine, states):
    engine.reports[BOARD] = Report(state="alive", address="http://127.0.0.1:6006/")
    engine.reports[LAB] = Report(state="alive", address="http://127.0.0.1:8890/lab?token=a-B_c")
    board, lab = states()["board"], states()["lab"]
    assert (board.status, board.endpoint, board.port) == ("running", "http://127.0.0.1:6006/", 6006)
    assert (lab.endpoint, lab.password) == ("http://127.0.0.1:8890/lab?token=a-B_c", "")
    engine.exits("job-j")
    house.tick(2)
    assert [(state.status, state.endpoint) for state in states().values()] == [("ended", "")] * 2


def test_a_password_goes_beside_the_address(job, engine, states):
    engine.reports[LAB] = Report(state="alive", address="http://127.0.0.1:8890/#pass-word")
    assert states()["lab"].endpoint == "http://127.0.0.1:8890/"
    assert states()["lab"].password == "pass-word"


@pytest.mark.parametrize(
    "address",
    ["javascript:alert(1)", "http://elsewhere:80/", "http://127.0.0.1:80@evil/", "x" * 10_000],
)
def test_an_address_that_a_job_has_made_up_is_not_told(job, engine, states, address):
    engine.reports[BOARD] = Report(state="alive", address=address)
    assert (states()["board"].status, states()["board"].endpoint) == ("waiting", "")


def test_a_service_that_was_ended_from_within_has_not_failed(job, house, engine, states):
    engine.exits(LAB, 0)
    house.tick()
    assert (states()["lab"].status, jobs.get(house.store, "j").warnings) == ("ended", [])


@pytest.mark.parametrize(
    ("name", "service", "why"),
    [
        ("../up", Service(kind="tensorboard"), "cannot name a service"),
        ("a", Service(kind="tensorboard", port=80), "port 80 is not from 1024"),
        ("a", Service(kind="tensorboard", folder="${{outputs.x}}"), "a path in the job's folder"),
        ("a", Service(kind="tensorboard", folder="x" * 2000), "a path in the job's folder"),
    ],
)
def test_a_service_that_no_job_can_have_is_refused(name, service, why):
    with pytest.raises(Invalid, match=why):
        services.check({name: service})


def test_there_are_only_so_many_services():
    with pytest.raises(Invalid, match="may have 8 services"):
        services.check({str(number): Service(kind="tensorboard") for number in range(9)})
