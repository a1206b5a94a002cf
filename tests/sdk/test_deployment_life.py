"""A deployment while it is called: updated, scaled, killed, rolled back, with the official SDK.

Real instances under real load: what is promised is that no caller notices, and
nothing less than callers can say so.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from azure.ai.ml import MLClient
from azure.ai.ml.entities import (
    KubernetesOnlineDeployment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
    TargetUtilizationScaleSettings,
)
from azure.identity import DefaultAzureCredential

Until = Callable[..., Any]
ENVIRONMENT = "azureml://registries/azureml/environments/minimal-py312-inference/labels/latest"
SCRIPT = """
import json, os, time
def init():
    print("process", os.getpid(), "is", os.environ["BY"], flush=True)
    if os.environ["BY"] == "bad":
        raise RuntimeError("these weights are of no use")
def run(data):
    time.sleep(json.loads(data).get("sleep", 0.02))
    return {"by": os.environ["BY"], "pid": os.getpid()}
"""


class Callers:
    """Some that call again and again while a test does something, and what they were answered."""

    def __init__(self, uri: str, key: str, *, sleep: float = 0.02, count: int = 3) -> None:
        self.uri, self.headers = uri, {"Authorization": f"Bearer {key}"}
        self.body = json.dumps({"sleep": sleep})
        self.went: Counter[str] = Counter()
        self.bad: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def _run(self) -> None:
        with requests.Session() as session:
            while not self._over.is_set():
                try:
                    answer = session.post(self.uri, self.body, headers=self.headers, timeout=180)
                except requests.RequestException as error:
                    self.bad.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.went[answer.json()["by"]] += 1
                else:
                    self.bad.append(f"{answer.status_code} {answer.text}")

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(190)


class Life:
    """An endpoint with a deployment `blue` that gets all traffic."""

    def __init__(self, ml: MLClient, folder: Path) -> None:
        self.ml, self.folder, self.name = ml, folder, f"life-{uuid.uuid4().hex[:12]}"
        self.model = ml.models.create_or_update(
            Model(name="sdk-life", path=folder / "model", type="custom_model")
        )
        ml.begin_create_or_update(ManagedOnlineEndpoint(name=self.name)).wait()
        self.deploy("blue", by="one")
        self.share(blue=100)
        self.key = ml.online_endpoints.get_keys(self.name).primary_key
        self.uri = ml.online_endpoints.get(self.name).scoring_uri

    def deploy(
        self, name: str, *, by: str, kind: Any = ManagedOnlineDeployment, **more: Any
    ) -> Any:
        settings = OnlineRequestSettings(
            max_concurrent_requests_per_instance=2,
            request_timeout_ms=60_000,
            max_queue_wait_ms=60_000,
        )
        usual: dict[str, Any] = {
            "model": self.model.id,
            "environment": ENVIRONMENT,
            "code_path": str(self.folder / "src"),
            "scoring_script": "score.py",
            "environment_variables": {"BY": by},
            "instance_type": "Standard_DS3_v2",
            "instance_count": 1,
            "request_settings": settings,
        }
        wanted = kind(name=name, endpoint_name=self.name, **{**usual, **more})
        return self.ml.begin_create_or_update(wanted).result()

    def alone(self, *, by: str) -> None:
        """Have `blue` run this and get all traffic, whatever another test has left."""
        if self.ml.online_endpoints.get(self.name).traffic != {"blue": 100}:
            self.share(blue=100)
        if self.call()["by"] != by:
            self.deploy("blue", by=by)

    def share(self, **traffic: int) -> None:
        endpoint = self.ml.online_endpoints.get(self.name)
        endpoint.traffic = traffic
        self.ml.begin_create_or_update(endpoint).wait()

    def call(self, **headers: str) -> Any:
        shown = {"Authorization": f"Bearer {self.key}"}
        shown |= {name.replace("_", "-"): value for name, value in headers.items()}
        answer = requests.post(self.uri, '{"sleep": 0}', headers=shown, timeout=180)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def callers(self, **given: Any) -> Callers:
        return Callers(self.uri, self.key, **given)

    def counts(self) -> dict[str, float]:
        shown = {"Authorization": f"Bearer {self.key}"}
        text = requests.get(self.uri.replace("/score", "/metrics"), headers=shown, timeout=60).text
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}


@pytest.fixture(scope="module")
def life(ml: MLClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    folder = tmp_path_factory.mktemp("life")
    for path, text in (("src/score.py", SCRIPT), ("model/weights.bin", "w")):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    made = Life(ml, folder)
    yield made
    ml.online_endpoints.begin_delete(made.name).wait()


def test_updates_and_scaling_fail_no_request(life: Life, until: Until):
    life.alone(by="one")
    with life.callers() as callers:
        until(lambda: callers.went["one"])
        life.deploy("blue", by="two")
        life.deploy("blue", by="two", instance_count=2)
        until(lambda: callers.went["two"] > 50)
        life.deploy("blue", by="two", instance_count=1)
    assert callers.bad == []


def test_an_update_that_fails_leaves_what_answered_at_work(life: Life, until: Until):
    life.alone(by="two")
    with life.callers() as callers:
        until(lambda: callers.went["two"])
        with pytest.raises(Exception, match="these weights are of no use"):
            life.deploy("blue", by="bad")
    assert (callers.bad, {*callers.went}) == ([], {"two"})
    assert "these weights are of no use" in life.ml.online_deployments.get_logs(
        "blue", life.name, lines=50
    )
    life.deploy("blue", by="two")


def test_an_instance_or_its_keeper_that_is_killed_costs_no_request(life: Life, until: Until):
    life.alone(by="two")
    for victim in ("instance", "keeper"):
        pid = life.call()["pid"]
        with life.callers(sleep=0.1) as callers:
            until(lambda: callers.went["two"] > 5)
            os.kill(pid if victim == "instance" else _parent(pid), signal.SIGKILL)
            until(lambda: life.call()["pid"] != pid)  # noqa: B023
        assert callers.bad == []
    log = life.ml.online_deployments.get_logs("blue", life.name, lines=500)
    assert "Instance 0, before it was replaced:" in log
    own = f'endpoint="{life.name}",deployment="blue"'
    assert life.counts()[f"finery_endpoint_instance_restarts_total{{{own}}}"] >= 2


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_traffic_moves_without_a_failed_request_and_goes_back_in_one_call(life: Life, until: Until):
    life.alone(by="two")
    life.deploy("green", by="green")
    with life.callers() as callers:
        life.share(blue=90, green=10)
        until(lambda: callers.went["green"] > 5)
        life.share(blue=0, green=100)
        until(lambda: callers.went["green"] > 50)
        token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token
        base = life.ml.online_endpoints.get(life.name).id
        address = os.environ["ARM_CLOUD_METADATA_URL"].split("/metadata")[0]
        answer = requests.post(
            f"{address}{base}/rollback?api-version=2024-10-01",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
    assert callers.bad == []
    shares = life.ml.online_endpoints.get(life.name).traffic
    assert {name: share for name, share in shares.items() if share} == {"blue": 90, "green": 10}
    went = Counter(life.call()["by"] for _ in range(100))
    assert went["green"] == 10


def test_instances_come_with_the_load_and_all_go_without_it(life: Life, until: Until):
    rule = TargetUtilizationScaleSettings(
        min_instances=0, max_instances=2, polling_interval=1, target_utilization_percentage=50
    )
    made = life.deploy("auto", by="auto", kind=KubernetesOnlineDeployment, scale_settings=rule)
    assert (made.scale_settings.min_instances, made.scale_settings.max_instances) == (0, 2)

    def count() -> int:
        got = life.ml.online_deployments.get("auto", life.name)
        assert got.provisioning_state == "Succeeded"
        return int(got.properties["finery.instances"])

    callers = life.callers(sleep=0.3)
    callers.headers["azureml-model-deployment"] = "auto"
    with callers:
        until(lambda: count() == 2)
    assert callers.bad == []
    until(lambda: count() == 0)
    assert life.call(azureml_model_deployment="auto")["by"] == "auto"


def test_how_it_was_called_is_in_mlflow(life: Life, until: Until):
    life.deploy("green", by="green")
    life.call(azureml_model_deployment="green")
    life.call(azureml_model_deployment="blue")

    def runs() -> Any:
        found = mlflow.search_runs(
            experiment_names=[f"endpoints/{life.name}"], output_format="list"
        )
        return {run.data.tags["finery.deployment"]: run for run in found}

    def told(name: str) -> Any:
        run = runs().get(name)
        return run if run and run.data.metrics.get("latency_p95_ms") else None

    blue = until(lambda: told("blue"))
    assert blue.info.status == "RUNNING"
    assert blue.data.tags["finery.model"] == "sdk-life"
    assert "requests_per_second" in blue.data.metrics
    until(lambda: told("green"))
    life.share(blue=100)
    life.ml.online_deployments.begin_delete("green", life.name).wait()
    until(lambda: runs()["green"].info.status == "FINISHED")
