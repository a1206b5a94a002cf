"""`finery bench endpoint`: what is counted, what is shown, and where it is kept.

The arithmetic runs against a server of ten lines in this process.  One test
has a real server, a job and a deployment: that a run lies beside the model it
measured is only so when MLflow's own pages find it there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy
import pytest

from finery.cli import bench, measuring, recording
from finery.cli.measuring import Progress, Target
from finery.cli.recording import Subject
from finery.config import DEFAULT_WORKSPACE
from finery.core import assets, endpoints, jobs, workspaces
from finery.core import store as stores
from finery.core.endpoints import Deployment, Endpoint, Serving
from finery.core.jobs import Command, Job, Output

FINERY = Path(sys.executable).with_name("finery")
SCRIPT = "import json\ndef init(): pass\ndef run(data): return json.loads(data)['x']\n"


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [0.0, 10.0], [7.0], [1, 2, 3, 4, 9.5]])
@pytest.mark.parametrize("percent", [0, 50, 95, 99, 100])
def test_percentiles_are_those_of_numpy(values, percent):
    expected = numpy.percentile(values, percent)
    assert measuring.percentile(values, percent) == pytest.approx(expected)


class Scripted(BaseHTTPRequestHandler):
    """Answers with the status that its turn has; 0 breaks the connection off."""

    protocol_version = "HTTP/1.1"
    seen: list[bytes] = []
    statuses: dict[int, int] = {}
    usual = 200

    def do_POST(self):
        self.seen.append(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.statuses.get(len(self.seen), self.usual)
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "4")
        self.send_header("azureml-model-deployment", "blue")
        self.end_headers()
        self.wfile.write(b"said")

    def log_message(self, *_): ...


@pytest.fixture
def target(monkeypatch):
    monkeypatch.setattr(Scripted, "seen", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/endpoints/e/score"
        yield Target(address=address, headers={}, body=b'{"x": 1}')
        server.shutdown()
        thread.join()


def measure(target, threads, requests):
    progress = Progress(threads * requests)
    return measuring.measure(target, threads, requests=requests, progress=progress)


def test_every_thread_sends_all_its_requests(target):
    measured = measure(target, 3, 5)
    row = measured.row
    assert Scripted.seen == [b'{"x": 1}'] * 15
    assert (row.threads, row.errors, measured.answered_by) == (3, 0, {"blue": 15})
    assert row.throughput == pytest.approx(15 / row.duration)
    assert 0 < row.avg_sec <= row.p95_sec <= row.p99_sec <= row.duration
    assert row.std_sec == pytest.approx(numpy.std(measured.times))


def test_a_failed_call_is_counted_and_is_in_no_time(target, monkeypatch):
    monkeypatch.setattr(Scripted, "statuses", {2: 424, 3: 0, 5: 424})
    measured = measure(target, 1, 6)
    assert (measured.row.errors, len(measured.times)) == (3, 3)
    assert measured.failed == {"424 said": 2, "no answer: RemoteDisconnected": 1}
    assert measured.row.throughput == pytest.approx(3 / measured.row.duration)


def test_without_one_answer_there_are_no_times_and_no_next_row(target, monkeypatch):
    monkeypatch.setattr(Scripted, "usual", 503)
    args = bench_words("--threads", "2,4", "--requests", "3", "--warmup", "2")
    [only] = bench._measure(args, target)
    assert (only.row.threads, only.row.errors, only.row.avg_sec) == (2, 6, None)
    assert len(Scripted.seen) == 2 + 6


def bench_words(*words):
    parser = argparse.ArgumentParser()
    bench.add(parser.add_subparsers())
    return parser.parse_args(["bench", "endpoint", "e", "--request-file", "r", *words])


def test_a_long_run_says_how_long_it_takes(capsys):
    now = iter([0.0, 10.0, *(10.0 + 10 * done for done in range(1, 100))])
    progress = Progress(10, every=30, clock=lambda: next(now))
    progress.row("2 threads")
    for _ in range(4):
        progress.tick()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("2 threads: 3 of 10 requests, about ")


@pytest.mark.parametrize("ending", recording.FORMATS)
def test_the_picture_is_a_picture(target, tmp_path, ending):
    rows = [measure(target, threads, 4) for threads in (1, 2)]
    subject = Subject(endpoint="e", deployments=["blue"], model="m", version="1")
    recording.draw(tmp_path / "new" / f"p{ending}", subject, rows)
    drawn = (tmp_path / "new" / f"p{ending}").read_bytes()
    assert drawn.startswith(b"\x89PNG") or (b"<svg" in drawn and len(drawn) > 5000)


# -- beside the model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory, until):
    """A server with a job that made a model, and an endpoint `e` that serves it."""
    home = tmp_path_factory.mktemp("home")
    command = [FINERY, "up", "--home", home, "--port", "0", "--tls-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline().startswith("ready:")
            prepare(home, until)
            yield home
        finally:
            subprocess.run([FINERY, "down", "--home", home], check=False, capture_output=True)
            server.kill()


def prepare(home, until):
    store = stores.open_sqlite(home / "finery.db")
    workspace = workspaces.get(store, *DEFAULT_WORKSPACE).id
    making = "mkdir -p ${{outputs.tuned}}; echo flavors > ${{outputs.tuned}}/MLmodel"
    output = Output(type="mlflow_model", asset="m")
    spec = Command(command=making, outputs={"tuned": output})
    jobs.create(store, Job(name="training", workspace=workspace, spec=spec, experiment="tries"))
    code = home / "files" / workspace / "workspaceblobstore" / "code"
    code.mkdir(parents=True)
    (code / "score.py").write_text(SCRIPT)
    until(lambda: jobs.get(store, "training").final, 600)
    model = assets.get(store, workspace, "model", "m")
    endpoints.create(store, Endpoint(name="e", workspace=workspace, auth="token"))
    serving = Serving(code="file:workspaceblobstore/code", script="score.py", model=model.ref)
    serving = replace(serving, request_timeout_ms=60_000, max_queue_wait_ms=60_000)
    blue = Deployment(endpoint="e", name="blue", workspace=workspace, spec=serving)
    endpoints.deploy(store, blue)
    until(lambda: endpoints.get_deployment(store, "e", "blue").status == "ready", 300)
    store.close()


def run_bench(home, folder, body, *words):
    (folder / "r.json").write_text(json.dumps(body))
    command = [FINERY, "bench", "endpoint", "e", "--request-file", folder / "r.json", *words]
    env = {**os.environ, "MPLCONFIGDIR": str(folder)}
    command += ["--home", home, "--requests", "4", "--threads", "1,2", "-d", "blue"]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)


def mlflow(home, path, body=None):
    said = subprocess.run([FINERY, "env", "--json", "--home", home], capture_output=True)
    env = json.loads(said.stdout)
    url = f"{env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}"
    headers = {"Authorization": f"Bearer {env['MLFLOW_TRACKING_TOKEN']}"}
    headers |= {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=240) as answer:
        return json.load(answer)


def test_a_benchmark_lies_below_the_run_of_its_model_and_on_the_models_page(home, tmp_path):
    done = run_bench(home, tmp_path, {"x": 1})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [*bench.HEADINGS] and len(lines) == 3
    [picture] = home.glob("benchmarks/e-*.png")
    assert f"picture: {picture}" in done.stderr

    source = mlflow(home, "runs/get?run_id=training")["run"]["info"]
    id = done.stderr.partition("/runs/")[2].partition("?")[0]
    run = mlflow(home, f"runs/get?run_id={id}")["run"]
    told = {one["key"]: one["value"] for one in run["data"]["params"]}
    tags = {one["key"]: one["value"] for one in run["data"]["tags"]}
    assert run["info"]["experiment_id"] == source["experiment_id"]
    assert run["info"]["status"] == "FINISHED"
    assert tags["mlflow.parentRunId"] == "training" and "p99_sec" in tags["mlflow.note.content"]
    expected = {"endpoint": "e", "deployment": "blue", "model": "m", "model_version": "1"}
    setting = {"threads": "1,2", "requests": "4", "warmup": "1", "request_bytes": "8"}
    assert told == {**expected, **setting}
    points = mlflow(home, f"metrics/get-history?run_id={id}&metric_key=p95_sec")["metrics"]
    assert [point["step"] for point in points] == [1, 2]
    kept = mlflow(home, f"artifacts/list?run_id={id}")["files"]
    assert {one["path"] for one in kept} == {"benchmark.json", picture.name}

    wanted = {"experiment_ids": [source["experiment_id"]]}
    [model] = mlflow(home, "logged-models/search", wanted)["models"]
    on_page = {one["key"]: one["value"] for one in model["data"]["metrics"]}
    assert on_page["threads_2/throughput"] > 0 and on_page["threads_1/errors"] == 0


def test_an_endpoint_that_only_fails_is_an_exit_status_and_no_run(home, tmp_path):
    done = run_bench(home, tmp_path, {"y": 1})
    assert done.returncode == 1
    assert "4 x 424 KeyError: 'x'" in done.stderr and "no call of 'e' succ" in done.stderr
    assert "4 of 4 calls failed" in done.stderr and "logged:" not in done.stderr


def test_nothing_is_logged_where_nobody_wants_it(home, tmp_path):
    words = ("--no-log", "--json", "--plot", tmp_path / "p.svg")
    done = run_bench(home, tmp_path, {"x": 1}, *words)
    assert [row["errors"] for row in json.loads(done.stdout)] == [0, 0], done.stderr
    assert (tmp_path / "p.svg").exists() and "logged:" not in done.stderr
