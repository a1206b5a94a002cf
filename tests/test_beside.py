"""The program beside a job: it is run as a job's service is, with programs made for the test.

Each test starts it, since what it does is start another: nothing cheaper shows
which address, password and end that gives.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finery.core import services

SERVER = """
import http.server, json, os, sys
port = {port}
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps([sys.argv, {secret}]).encode())
http.server.HTTPServer(("127.0.0.1", int(port)), Page).serve_forever()
"""
BY_WORD = "next(word.split('=')[1] for word in sys.argv if '{}' in word)"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run it in a folder, with a folder of its process; what a test leaves is ended."""
    (tmp_path / "process").mkdir()
    (tmp_path / "bin").mkdir()
    running: list[subprocess.Popen[str]] = []

    def start(kind: str, port: int = 0, folder: str = ".") -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                [sys.executable, str(services.PROGRAM), kind, str(port), folder],
                cwd=tmp_path,
                env={
                    "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
                    "FINERY_PROCESS_DIR": f"{tmp_path}/process",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def module(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def answer(folder: Path, until: Callable[..., object]) -> tuple[str, str]:
    """Return the address that is written down, and what answers there."""
    until((folder / "process" / "address").exists)
    address = (folder / "process" / "address").read_text()
    with urllib.request.urlopen(address, timeout=60) as found:
        return address, found.read().decode()


def test_the_program_of_the_job_s_folder_answers_and_nothing_is_left_when_it_is_stopped(
    start: Start, tmp_path: Path, until: Callable[..., object]
) -> None:
    text = SERVER.format(port=BY_WORD.format("--port"), secret="None")
    module(tmp_path, "tensorboard/main.py", text)
    process = start("tensorboard", folder="-odd")
    address, said = answer(tmp_path, until)
    assert address.startswith("http://127.0.0.1:")
    assert '"--logdir=-odd"' in said
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM % 256
    assert [file.name for file in (tmp_path / "process").iterdir()] == ["address"]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=60)


def test_a_token_is_in_the_address_and_not_on_the_command_line(
    start: Start, tmp_path: Path, until: Callable[..., object]
) -> None:
    text = SERVER.format(
        port=BY_WORD.format("ServerApp.port="), secret="os.environ['JUPYTER_TOKEN']"
    )
    module(tmp_path, "jupyterlab/__main__.py", text)
    start("jupyterlab")
    address, said = answer(tmp_path, until)
    assert said.count(address.partition("/lab?token=")[2]) == 1  # as its variable
    assert oct((tmp_path / "process" / "address").stat().st_mode)[-3:] == "600"


def test_a_password_is_in_a_file_of_the_program_s_own(
    start: Start, tmp_path: Path, until: Callable[..., object]
) -> None:
    config = "open(sys.argv[1].split('=')[1]).read()"
    port = f"{config}.splitlines()[0].split(':')[-1]"
    program = tmp_path / "bin" / "code-server"
    program.write_text(f"#!{sys.executable}\n" + SERVER.format(port=port, secret=config))
    program.chmod(0o755)
    start("vscode")
    address, said = answer(tmp_path, until)
    password = address.partition("/#")[2]
    assert len(password) > 20
    assert f"password: {password}" in said.encode().decode("unicode_escape")
    assert said.count(password) == 1


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("tensorboard", "add the package tensorboard"),
        ("jupyterlab", "add the package jupyterlab"),
        ("vscode", "install code-server"),
    ],
)
def test_a_program_that_is_not_there_is_named_in_the_last_line(
    start: Start, kind: str, needed: str
) -> None:
    process = start(kind)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert needed in said.splitlines()[-1]


def test_a_port_that_somebody_has_is_named(start: Start, tmp_path: Path) -> None:
    module(tmp_path, "tensorboard/main.py", "")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("tensorboard", port=port)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"port {port} cannot be had (Address already in use)" in said
    assert not (tmp_path / "process" / "private").exists()
