"""The official clients against a real server, in an environment that cannot import Finery.

A server of its own is started for the session (`finery up --models tiny`, on
free ports): nothing less shows that the SDK's own deserializers, its uploads
and its certificate checks take what we answer.  Under `finery run`, or with
FINERY_SDK_SERVER_HOME naming the home of a running server, that one is used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml import MLClient
from azure.identity import DefaultAzureCredential

FINERY = Path(__file__).parents[2] / ".venv" / "bin" / "finery"


@pytest.fixture(scope="session", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    assert importlib.util.find_spec("finery") is None, "the clients' environment has Finery in it"
    if "ARM_CLOUD_METADATA_URL" in os.environ:
        yield
        return
    if given := os.environ.get("FINERY_SDK_SERVER_HOME"):
        _enter(Path(given))
        yield
        return
    home = tmp_path_factory.mktemp("home")
    process = _start(home)
    try:
        _enter(home)
        yield
    finally:
        subprocess.run([FINERY, "down", "--home", home], check=False, capture_output=True)
        process.kill()
        process.wait()


def _start(home: Path) -> subprocess.Popen[str]:
    ports = ["--port", "0", "--tls-port", "0"]
    with (home.parent / "server.log").open("w") as log:
        process = subprocess.Popen(
            [FINERY, "up", "--home", home, *ports, "--models", "tiny"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready:"), (home.parent / "server.log").read_text()
    return process


def _enter(home: Path) -> None:
    """Take on the environment that `finery env` gives for the server of a home."""
    said = subprocess.run(
        [FINERY, "env", "--home", home, "--json"], check=True, capture_output=True, text=True
    )
    os.environ.update(json.loads(said.stdout))


@pytest.fixture(scope="session")
def credential(server: None) -> DefaultAzureCredential:
    return DefaultAzureCredential()


@pytest.fixture(scope="session")
def ml(credential: DefaultAzureCredential) -> MLClient:
    """The default workspace.  Nothing is asked twice: an answer that fails, fails."""
    return MLClient(
        credential,
        os.environ["AZURE_SUBSCRIPTION_ID"],
        os.environ["AZURE_RESOURCE_GROUP"],
        os.environ["AZURE_ML_WORKSPACE"],
        retry_total=0,
    )


@pytest.fixture(scope="session")
def registry(credential: DefaultAzureCredential) -> MLClient:
    return MLClient(credential, registry_name="azureml", retry_total=0)


@pytest.fixture(scope="session")
def until() -> Callable[..., object]:
    """Ask again and again until the answer is true, and return it; fail after `seconds`.

    They only bound how long a failure takes: a machine may stand still for a while.
    """

    def wait(condition: Callable[[], object], seconds: float = 120) -> object:
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"not within {seconds} s; the last: {answer!r}"
            time.sleep(0.05)
        return answer

    return wait


@pytest.fixture(scope="session")
def ended(until: Callable[..., Any]) -> Callable[[MLClient, str], Any]:
    """Wait for a job's end, and return the job."""
    final = ("Completed", "Failed", "Canceled")

    def wait(ml: MLClient, name: str) -> Any:
        return until(lambda: (job := ml.jobs.get(name)).status in final and job, seconds=300)

    return wait


class Screen(io.StringIO):
    """What is written, and a file that is made as soon as a word is among it."""

    def __init__(self, word: str, file: Path) -> None:
        super().__init__()
        self.word, self.file = word, file

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.word in self.getvalue():
            self.file.touch()
        return written


@pytest.fixture
def streamed() -> Callable[..., str]:
    """Stream a job and return what was shown; `file` is made once `word` was.

    Of a job that has ended the SDK shows nothing: one that waits for the file has not.
    """

    def stream(ml: MLClient, name: str, *, word: str, file: Path) -> str:
        with contextlib.redirect_stdout(Screen(word, file)) as screen:
            ml.jobs.stream(name)
        return screen.getvalue()

    return stream


@pytest.fixture
def name() -> str:
    """A name that nobody has used."""
    return f"n{uuid.uuid4().hex[:12]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file in it that no other test has."""
    made = tmp_path / "folder"
    made.mkdir()
    (made / "a.jsonl").write_text(json.dumps({"id": uuid.uuid4().hex}) + "\n")
    return made
