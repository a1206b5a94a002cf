"""How fast metrics, runs and models go through the MLflow door, with the official client.

`python bench/tracking.py [--json] [--calls N] [--client PYTHON]`: a server of its
own in one process, the client in another (`--client`: an interpreter that has
`mlflow`; else this one).  Rates are wall time, and they include the client's
own work of about a millisecond a call; the server's processor time is beside
them.  On a busy machine believe the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from finery.core import assets, jobs, store, workspaces
from finery.core.assets import Asset
from finery.core.compute import Capacity
from finery.core.files import Files
from finery.core.jobs import Command, Job
from finery.core.workspaces import Keys, Workspace
from finery.doors.http import House
from finery.doors.mlflow.app import Mlflow

CLIENT = """
import json, sys, time
import mlflow
calls = int(sys.argv[1])

def say(name, count, begun):
    print(json.dumps([name, count, time.monotonic() - begun]), flush=True)
    sys.stdin.readline()

with mlflow.start_run() as run:
    mlflow.log_metric("warm", 0)
    say("(warm)", 1, time.monotonic())
    begun = time.monotonic()
    for step in range(calls):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
    say("log_metric, calls/s", calls, begun)
    begun = time.monotonic()
    for step in range(calls):
        mlflow.log_metrics({"a": step, "b": step, "c": step}, step=step)
    say("log_metrics of 3, calls/s", calls, begun)
    client = mlflow.MlflowClient()
    begun = time.monotonic()
    for part in range(10):
        points = [mlflow.entities.Metric("many", i, 1, part * 1000 + i) for i in range(1000)]
        client.log_batch(run.info.run_id, metrics=points)
    say("log_batch of 1000, points/s", 10_000, begun)
    begun = time.monotonic()
    for step in range(calls // 10):
        client.log_param(run.info.run_id, f"p{step}", step)
    say("log_param, calls/s (MLflow's own route)", calls // 10, begun)
    begun = time.monotonic()
    for step in range(calls // 10):
        client.get_run(run.info.run_id)
    say("get_run, calls/s (MLflow's own route)", calls // 10, begun)
    begun = time.monotonic()
    for step in range(calls // 10):
        client.search_model_versions("name = 'model-5'")
    say("search_model_versions, calls/s (50 models)", calls // 10, begun)
"""

Row = tuple[str, float, float | None]  # what, how much, the server's processor ms a call


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--json", action="store_true")
    words.add_argument("--calls", type=int, default=1000)
    words.add_argument("--client", default=sys.executable)
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder), asked.calls, asked.client))
    if asked.json:
        print(json.dumps({name: {"value": value, "cpu_ms": cpu} for name, value, cpu in rows}))
        return
    print(f"{'':48s} {'':>10s} {'server ms':>10s}")
    for name, value, cpu in rows:
        print(f"{name:48s} {value:10.4g} {'' if cpu is None else f'{cpu:10.2f}'}")


def measure(home: Path, calls: int, client: str) -> Iterator[Row]:
    house = _house(home)
    door = Mlflow(house, home, None)
    yield "memory before first use, MB", _memory(), None
    begun = time.monotonic()
    door.load()
    yield "first load, s", time.monotonic() - begun, None
    yield "memory after, MB", _memory(), None
    job = _job(house, "bench-0")
    env = door.tracking.open(job)
    begun = time.monotonic()
    for number in range(1, 51):
        door.tracking.open(_job(house, f"bench-{number}"))
    yield "opening a job's run, ms", (time.monotonic() - begun) / 50 * 1000, None
    _models(house, 50)
    port = int(house.http.rpartition(":")[2])
    server = uvicorn.Server(uvicorn.Config(door, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield from _client(client, calls, env)
    server.should_exit = True
    thread.join()


def _client(client: str, calls: int, env: dict[str, str]) -> Iterator[Row]:
    plain = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    process = subprocess.Popen(
        [client, "-c", CLIENT, str(calls)],
        env={**plain, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    before = time.process_time()
    for line in process.stdout:
        if line.startswith("["):
            name, count, seconds = json.loads(line)
            spent = time.process_time() - before
            if not name.startswith("("):
                requests = 10 if "log_batch" in name else count
                yield name, count / seconds, spent / requests * 1000
            before = time.process_time()
            process.stdin.write("\n")
            process.stdin.flush()
    if process.wait() != 0:
        raise SystemExit("the client failed: see above")


def _house(home: Path) -> House:
    kept = store.open_sqlite(home / "finery.db")
    kept.migrate()
    workspaces.create(kept, Workspace(subscription="s", group="g", name="w"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return House(
        store=kept,
        files=Files(home / "files", kept),
        keys=Keys(home),
        http=f"http://{address}",
        https=f"https://{address}",
        wake=lambda: None,
        log=lambda process, offset: b"",
        capacity=lambda: Capacity(),
        default_workspace=("s", "g", "w"),
    )


def _job(house: House, name: str) -> Job:
    workspace = workspaces.get(house.store, "s", "g", "w").id
    return jobs.create(house.store, Job(name=name, workspace=workspace, spec=Command(command="x")))


def _models(house: House, count: int) -> None:
    scope = workspaces.get(house.store, "s", "g", "w").id
    for number in range(count):
        location = f"file:workspaceblobstore/{number}"
        made = Asset(scope=scope, kind="model", name=f"model-{number}", location=location)
        assets.create(house.store, made)


def _memory() -> float:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
