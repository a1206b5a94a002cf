"""kill -9 of the server while a deployment is called, and what its callers see of it.

Real processes, because what is tested is what the operating system leaves
behind: instances that go on, and a server that finds them again.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from finery import app
from finery.config import Settings
from finery.core import assets, endpoints, workspaces
from finery.core.assets import Asset
from finery.core.endpoints import Deployment, Endpoint, Serving

FINERY = Path(sys.executable).parent / "finery"
SCRIPT = """
import os
def init():
    pass
def run(data):
    return os.getpid()
"""


class Server:
    """`finery up` on a home with a deployment that was asked for before it started."""

    def __init__(self, home: Path) -> None:
        self.home, self.ports = home, ("0", "0")
        home.mkdir()
        self._ask()
        self.up()

    def _ask(self) -> None:
        platform = app.create(Settings(home=self.home, models="tiny"), http="", https="")
        store, files = platform.store, platform.files
        room = workspaces.get(store, *platform.house.default_workspace).id
        code = files.path(room, "workspaceblobstore", "code")
        code.mkdir(parents=True)
        (code / "score.py").write_text(SCRIPT)
        asset = Asset(scope=room, kind="code", name="code", location="file:workspaceblobstore/code")
        made = assets.create(store, asset)
        endpoints.create(
            store, Endpoint(name="ep", workspace=room, keys={"primary": "k", "secondary": "l"})
        )
        spec = Serving(code=made.ref, script="score.py", instances=2)
        # Nobody is refused because an instance stands still for a while.
        spec = replace(spec, request_timeout_ms=120_000, max_queue_wait_ms=120_000)
        endpoints.deploy(store, Deployment(endpoint="ep", name="blue", workspace=room, spec=spec))
        platform.close()

    def up(self) -> None:
        words = ["up", "--home", self.home, "--port", self.ports[0], "--tls-port", self.ports[1]]
        self.process = subprocess.Popen(
            [FINERY, *words, "--models", "tiny"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready:"), line
        http, https = line.split()[1:3]
        self.ports = (http.rsplit(":", 1)[1], https.rsplit(":", 1)[1])
        self.address = http

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def call(self) -> tuple[int, int]:
        """Return the status and the process that answered; 0 where nobody did."""
        headers = {"Authorization": "Bearer k", "azureml-model-deployment": "blue"}
        url = f"{self.address}/endpoints/ep/score"
        asked = urllib.request.Request(url, b"{}", headers)
        try:
            with urllib.request.urlopen(asked, timeout=240) as answer:
                return answer.status, int(json.load(answer))
        except urllib.error.HTTPError as error:
            return error.code, 0
        except (
            OSError,
            http.client.HTTPException,
        ):  # the latter: killed in the middle of an answer
            return 0, 0


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "home")
    yield made
    subprocess.run([FINERY, "down", "--home", made.home], check=False, capture_output=True)
    made.kill()


def test_a_server_killed_under_load_finds_its_instances_again_and_callers_only_ask_again(
    server, until
):
    until(lambda: server.call()[0] == 200)
    seen: Counter[int] = Counter()
    pids: set[int] = set()
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            status, pid = server.call()
            seen[status] += 1
            pids.add(pid)
            over.wait(0 if status else 0.05)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    until(lambda: len({*pids} - {0}) == 2 and seen[200] > 20)
    before = {*pids} - {0}
    server.kill()
    server.up()
    answered = seen[200]
    until(lambda: seen[200] > answered + 20)
    over.set()
    for caller in callers:
        caller.join()
    assert {*seen} == {0, 200}, "no caller was answered that it could not be served"
    assert {*pids} - {0} == before, "the instances are those from before"
