"""The command line, as a user has it: a real server in a process of its own.

Nothing cheaper would do: locks, signals, ports and exit statuses are the
operating system's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from finery.config import DEFAULT_WORKSPACE
from finery.core import endpoints, jobs, references, workspaces
from finery.core import store as stores
from finery.core.files import Files
from finery.core.workspaces import Workspace

FINERY = Path(sys.executable).with_name("finery")


def finery(*words, **given) -> subprocess.CompletedProcess[str]:
    return subprocess.run([FINERY, *words], capture_output=True, text=True, timeout=300, **given)


class Server:
    running: list[subprocess.Popen[str]] = []

    def __init__(self, home: Path, *flags: str) -> None:
        self.home = home
        command = [FINERY, "up", "--home", home, "--port", "0", "--tls-port", "0", *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, **pipes)
        self.running.append(self.process)
        self.said = self.process.stdout.readline()

    def end(self, number=signal.SIGTERM) -> str:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=120)
        return errors


@pytest.fixture(autouse=True)
def nothing_left():
    """A server that a failed test has left would fail another one too."""
    before = [*Server.running]
    yield
    for process in Server.running[len(before) :]:
        if process.poll() is None:
            process.kill()
        process.communicate()
    Server.running[:] = before


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("home"), "--models", "tiny")
    assert made.said.startswith("ready: "), made.process.stderr.read()
    yield made
    made.end()


def test_help_imports_nothing_heavy():
    code = "import sys, finery.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    heavy = "print([m for m in ('torch', 'mlflow', 'fastapi', 'sqlalchemy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]")


def test_serving_imports_neither_torch_nor_mlflow(server):
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "mlflow" not in maps and "pandas" not in maps


def test_the_environment_points_every_official_client_here(server):
    found = json.loads(finery("env", "--home", server.home, "--json").stdout)
    http, https = server.said.split()[1:3]
    assert found["ARM_CLOUD_METADATA_URL"].startswith(https)
    assert found["OPENAI_BASE_URL"] == f"{http}/openai/v1"
    with urllib.request.urlopen(f"{http}/metadata/endpoints") as answer:
        # The SDK takes the cloud as its own only if this text is within the metadata address.
        assert (
            json.load(answer)[0]["resourceManager"].rstrip("/") in found["ARM_CLOUD_METADATA_URL"]
        )
    lines = finery("env", "--home", server.home).stdout.splitlines()
    assert all(line.startswith("export ") for line in lines) and len(lines) == len(found)


def test_run_gives_the_environment_and_the_commands_own_exit_status(server):
    code = "import os, sys; sys.exit(7 if os.environ['AZURE_ML_WORKSPACE'] == 'main' else 1)"
    assert finery("run", "--home", server.home, "--", sys.executable, "-c", code).returncode == 7
    done = finery("run", "--home", server.home, "--", "no-such-program")
    assert (done.returncode, "no-such-program" in done.stderr) == (1, True)
    assert finery("run", "--home", server.home).returncode == 2


def test_config_is_what_the_sdk_reads(server):
    found = json.loads(finery("config", "--home", server.home).stdout)
    assert set(found) == {"subscription_id", "resource_group", "workspace_name"}


def test_a_second_server_on_the_same_home_says_why_not(server):
    done = finery("up", "--home", server.home, "--port", "0", "--tls-port", "0")
    assert done.returncode == 1
    assert f"process {server.process.pid}" in done.stderr


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = finery("up", "--home", tmp_path, "--port", port, "--tls-port", "0")
    assert done.returncode == 1
    assert port in done.stderr and "--port" in done.stderr


def test_a_killed_server_comes_back_where_its_jobs_look_for_it(tmp_path):
    first = Server(tmp_path)
    first.end(signal.SIGKILL)
    with socket.socket() as other:  # only one of its two ports is still free
        other.bind(("127.0.0.1", int(first.said.split()[2].rpartition(":")[2])))
        other.listen()
        second = Server(tmp_path)
    second.end()
    assert second.said.split()[1] == first.said.split()[1]
    assert second.said.split()[2] != first.said.split()[2]


@pytest.mark.parametrize(
    "words", [["up", "--port", "70000"], ["up", "--models", "huge"], ["dance"], []]
)
def test_wrong_words_end_with_status_2(words):
    assert finery(*words).returncode == 2


def test_without_a_server_the_environment_is_refused(tmp_path):
    done = finery("env", "--home", tmp_path)
    assert done.returncode == 1
    assert "finery up" in done.stderr


def test_a_server_that_is_gone_is_not_taken_for_the_process_that_has_its_number(tmp_path):
    with socket.socket() as closed:  # bound and not listening: nothing answers there
        closed.bind(("127.0.0.1", 0))
        http = f"http://127.0.0.1:{closed.getsockname()[1]}"
        gone = {"pid": os.getpid(), "http": http, "https": http}
        (tmp_path / "server.json").write_text(json.dumps(gone))
        done = finery("env", "--home", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no server runs" in done.stderr


def test_a_home_of_a_newer_version_is_refused(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "finery.db")) as database, database:
        database.execute("create table alembic_version (version_num text)")
        database.execute("insert into alembic_version values ('9999')")
    done = finery("up", "--home", tmp_path, "--port", "0", "--tls-port", "0")
    assert done.returncode == 1
    assert "newer version of Finery" in done.stderr and "9999" in done.stderr


def test_look_ups_are_tables_for_people_and_json_for_programs(server):
    assert "stand-in" in finery("model", "list", "--home", server.home).stdout
    models = json.loads(finery("model", "list", "--home", server.home, "--json").stdout)
    assert "Phi-3-mini-4k-instruct" in [model["name"] for model in models]
    assert json.loads(finery("job", "list", "--home", server.home, "--json").stdout) == []
    done = finery("job", "show", "nobody", "--home", server.home)
    assert (done.returncode, done.stderr.strip()) == (1, "finery: no job named 'nobody'")


def test_a_job_is_shown_with_where_its_outputs_lie(tmp_path):
    kept = stores.open_sqlite(tmp_path / "finery.db")
    kept.migrate()
    subscription, group, name = DEFAULT_WORKSPACE
    mine = Workspace(id="w", subscription=subscription, group=group, name=name)
    workspaces.create(kept, mine)
    place = tmp_path / "files" / "w" / "workspaceblobstore" / "o"
    place.mkdir(parents=True)
    outputs = {"model": "file:workspaceblobstore/o", "later": "file:workspaceblobstore/p"}
    spec, told = jobs.Command(command="true"), ["this machine has 0"]
    job = jobs.Job(name="j", workspace="w", spec=spec, outputs=outputs, warnings=told)
    jobs.create(kept, replace(job, reused="before"))
    jobs.create(kept, replace(job, name="unbuilt"))
    log = references.artifacts("unbuilt", "system_logs/environment.log").removeprefix("file:")
    datastore, _, path = log.partition("/")
    built = Files(tmp_path / "files", kept).path("w", datastore, path)
    built.parent.mkdir(parents=True)
    built.write_text("no such package\n")
    kept.close()
    shown = finery("job", "show", "j", "--home", tmp_path).stdout
    assert f"model: {place.resolve()}" in shown
    assert "later: file:workspaceblobstore/p" in shown
    assert "{" not in shown and "[" not in shown
    assert "the result of before was kept" in finery("job", "logs", "j", "--home", tmp_path).stdout
    # A job that has written nothing itself: how its environment was built.
    assert finery("job", "logs", "unbuilt", "--home", tmp_path).stdout == "no such package\n"


def test_an_imported_model_is_registered_with_its_files(server, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    assert finery("model", "import", folder, "--name", "m", "--home", server.home).returncode == 1
    (folder / "config.json").write_text("{}")
    done = finery("model", "import", folder, "--name", "m", "--home", server.home)
    assert done.returncode == 1 and "there are no weights" in done.stderr
    (folder / "model.safetensors").touch()
    done = finery("model", "import", folder, "--name", "../m", "--home", server.home)
    assert done.returncode == 1 and "cannot be a name" in done.stderr
    assert not [*server.home.glob("files/*/*/imported/*")]
    done = finery("model", "import", folder, "--name", "m", "--home", server.home, "--json")
    assert json.loads(done.stdout) == [{"name": "m", "version": "1"}]


def test_the_home_is_for_its_owner_alone(server):
    assert server.home.joinpath("admin.key").stat().st_mode & 0o077 == 0
    for path in ("server.json", "finery.db", "tls/key.pem", "tls/ca.key"):
        assert server.home.joinpath(path).stat().st_mode & 0o077 == 0, path


def test_doctor_says_what_is_here():
    found = json.loads(finery("doctor", "--json").stdout)
    assert found["cpus"] >= 1 and found["packages"]["torch"].startswith("2.13.0")


def test_an_endpoint_s_logs_are_shown_and_its_traffic_goes_back(tmp_path):
    kept = stores.open_sqlite(tmp_path / "finery.db")
    kept.migrate()
    subscription, group, name = DEFAULT_WORKSPACE
    mine = Workspace(id="w", subscription=subscription, group=group, name=name)
    workspaces.create(kept, mine)
    endpoints.create(kept, endpoints.Endpoint(name="ep", workspace="w"))
    made = endpoints.Deployment(
        endpoint="ep", name="blue", workspace="w", spec=endpoints.Serving(model="m")
    )
    endpoints.deploy(kept, made)
    for traffic in ({"blue": 100}, {}):
        endpoints.update(kept, replace(endpoints.get(kept, "ep"), traffic=traffic))
    folder = tmp_path / "deployments" / made.id / made.process(0)
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("one\ntwo\nthree\n")

    shown = finery("endpoint", "logs", "ep", "--lines", "2", "--home", tmp_path)
    assert shown.stdout == "==> blue (creating) <==\ntwo\nthree\n"
    for words, said in (
        (("logs", "ep", "-d", "bleu"), "no deployment 'bleu' of endpoint 'ep' (it has: blue)"),
        (("rollback", "ep", "-d", "bleu", "--no-wait"), "of endpoint 'ep' (it has: blue)"),
        (("logs", "epp", "-d", "blue"), "no endpoint named 'epp'"),
        (("rollback", "epp", "-d", "blue", "--no-wait"), "no endpoint named 'epp'"),
    ):
        misspelled = finery("endpoint", *words, "--home", tmp_path)
        assert (misspelled.returncode, misspelled.stdout) == (1, "")
        assert said in misspelled.stderr
    listed = finery("endpoint", "list", "--json", "--home", tmp_path)
    assert json.loads(listed.stdout)[0]["status"] == "stopped"
    assert "no endpoint answers: no server runs on the home" in listed.stderr
    (tmp_path / "processes" / made.process(0)).mkdir(parents=True)
    (folder / "serve.json").touch()
    listed = finery("endpoint", "list", "--home", tmp_path)
    assert "left running" in listed.stdout
    back = finery("endpoint", "rollback", "ep", "--json", "--home", tmp_path)
    was = {"endpoint": "ep", "traffic": {"blue": 100}, "mirror": {}}
    assert json.loads(back.stdout) == [{**was, "from_traffic": {}, "from_mirror": {}}]
    assert endpoints.get(kept, "ep").traffic == {"blue": 100}
    never = finery("endpoint", "rollback", "ep", "-d", "blue", "--no-wait", "--home", tmp_path)
    assert (never.returncode, "has run nothing before" in never.stderr) == (1, True)
    kept.close()


def test_a_job_outlives_its_server_and_down_ends_it(tmp_path, until):
    first = Server(tmp_path)
    kept = stores.open_sqlite(tmp_path / "finery.db")
    workspace = workspaces.get(kept, *DEFAULT_WORKSPACE).id
    spec = jobs.Command(command="echo $$ > pid; sleep 300")
    jobs.create(kept, jobs.Job(name="long", workspace=workspace, spec=spec))
    pid_file = tmp_path / "jobs" / "long" / "pid"
    until(lambda: pid_file.exists() and pid_file.read_text().strip())
    pid = int(pid_file.read_text())

    until(lambda: jobs.get(kept, "long").status == "running")
    assert "left running: 1 job" in first.end()
    os.kill(pid, 0)  # still there
    second = Server(tmp_path)
    os.kill(pid, 0)
    second.end(signal.SIGKILL)
    os.kill(pid, 0)  # kill -9 of the server changes nothing either

    third = Server(tmp_path)
    done = finery("down", "--home", tmp_path)
    assert "job long: cancelled" in done.stdout, done.stderr
    _, errors = third.process.communicate(timeout=120)
    assert "left running" not in errors  # `down` ends what the server leaves
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert jobs.get(kept, "long").status == "cancelled"
    kept.close()
