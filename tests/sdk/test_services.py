"""The services of command jobs with the official `azure-ai-ml`.

A job really runs here, and what stands in for TensorBoard beside it: that it
answers where the SDK says, and is gone with its job, is what nothing smaller shows.
"""

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import (
    JupyterLabJobService,
    SshJobService,
    TensorBoardJobService,
    VsCodeJobService,
)
from azure.core.exceptions import HttpResponseError

ENVIRONMENT = "azureml://registries/azureml/environments/sklearn-1.5/labels/latest"
BOARD = """
import http.server, os, sys
given = dict(word.removeprefix("--").split("=") for word in sys.argv[1:])

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        lines = [given["logdir"], os.environ["SEEN"], *os.listdir(given["logdir"])]
        self.wfile.write("\\n".join([*lines, str("MLFLOW_TRACKING_TOKEN" in os.environ)]).encode())

http.server.HTTPServer((given["host"], int(given["port"])), Page).serve_forever()
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A job's code, with a program that takes the place of TensorBoard."""
    made = tmp_path / "code"
    (made / "tensorboard").mkdir(parents=True)
    (made / "tensorboard" / "main.py").write_text(BOARD)
    return made


def read(address: str) -> list[str]:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read().decode().splitlines()


def test_a_service_answers_beside_its_job_and_is_gone_with_it(
    ml: MLClient, code: Path, until: Callable[..., object]
) -> None:
    wanted = {
        "board": TensorBoardJobService(log_dir="outputs/events", nodes="all"),
        "lab": JupyterLabJobService(),
    }
    job = ml.create_or_update(
        command(
            command="mkdir outputs/events && touch outputs/events/one && while [ ! -e outputs/go ];"
            " do sleep 0.1; done",
            code=str(code),
            environment=ENVIRONMENT,
            environment_variables={"SEEN": "yes"},
            services=wanted,
        )
    )
    try:
        until(lambda: ml.jobs.show_services(job.name)["board"].status == "Running")
        found = ml.jobs.show_services(job.name)
        board = found["board"]
        assert (board.type, board.properties) == ("TensorBoard", {"logDir": "outputs/events"})
        assert board.endpoint == f"http://127.0.0.1:{board.port}/"

        def shown_there() -> list[str]:
            try:
                return read(board.endpoint)
            except OSError:  # the job has not made the folder yet
                return []

        until(lambda: shown_there() == ["outputs/events", "yes", "one", "False"])
        assert [*ml.jobs.show_services(job.name, node_index=1)] == ["board"]
        until(lambda: ml.jobs.show_services(job.name)["lab"].status == "Failed")
        lab = ml.jobs.show_services(job.name)["lab"]
        assert (lab.endpoint, "add the package jupyterlab" in lab.error) == (None, True)
        shown = ml.jobs.get(job.name)
        assert shown.services["board"].endpoint == board.endpoint
        assert shown.services["board"].log_dir == "outputs/events"
        assert "'lab' does not run: JupyterLab is not" in shown.properties["finery.warnings"]
    finally:
        ml.jobs.begin_cancel(job.name).result()
    assert ml.jobs.show_services(job.name)["board"].status == "Stopped"
    assert ml.jobs.get(job.name).services["board"].endpoint is None

    def gone() -> bool:
        try:
            read(board.endpoint)
        except urllib.error.URLError:
            return True
        return False

    until(gone)


def test_a_way_in_by_ssh_is_refused_with_what_to_use_instead(ml: MLClient) -> None:
    wanted = {
        "shell": SshJobService(ssh_public_keys="ssh-ed25519 AAAA"),
        "code": VsCodeJobService(),
    }
    with pytest.raises(HttpResponseError, match="SSH is not supported here.*vs_code"):
        ml.create_or_update(command(command="true", environment=ENVIRONMENT, services=wanted))
