"""Services of jobs in Azure's words.  What runs them is not asked here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from finery.core import jobs
from finery.core.errors import Failure, Invalid, NotSupported
from finery.core.jobs import Command, Job
from finery.core.services import State
from finery.core.work import Service
from finery.doors.azureml import services
from finery.doors.http import House

SENT: dict[str, Any] = {
    "board": {
        "jobServiceType": "TensorBoard",
        "nodes": {"nodesValueType": "All"},
        "properties": {"logDir": "outputs/events", "note": "mine"},
    },
    "lab": {"jobServiceType": "JupyterLab", "port": 8890, "endpoint": "http://old", "status": "x"},
    "code": {"jobServiceType": "VSCode"},
    "Studio": {"jobServiceType": "Studio", "endpoint": "http://here"},
    "Tracking": {"endpoint": "http://here"},
}
MEANT = {
    "board": Service(
        kind="tensorboard", folder="outputs/events", nodes="all", properties={"note": "mine"}
    ),
    "lab": Service(kind="jupyterlab", port=8890),
    "code": Service(kind="vscode"),
}
STATES = {
    "board": State(status="running", endpoint="http://127.0.0.1:6006/", port=6006),
    "lab": State(status="failed", error="it is not there"),
    "code": State(
        status="running", endpoint="http://127.0.0.1:7000/", port=7000, password="secret"
    ),
}


@pytest.fixture
def house(home: House) -> Iterator[House]:
    yield replace(home, services=lambda job: STATES)


@pytest.fixture
def job(house: House) -> Job:
    spec = Command(command="run", services=services.services_in(SENT))
    jobs.create(house.store, Job(name="j", workspace="ws", spec=spec))
    return jobs.get(house.store, "j")


def test_what_is_asked_for_is_kept_and_read_back(job: Job) -> None:
    assert isinstance(job.spec, Command)
    assert job.spec.services == MEANT


def test_a_job_tells_of_its_services_so_that_it_can_be_sent_again(house: House, job: Job) -> None:
    told = services.services_out(house, job)
    assert services.services_in(told) == MEANT
    assert told["board"]["endpoint"] == "http://127.0.0.1:6006/"
    assert told["lab"]["errorMessage"] == "it is not there"
    assert [one["status"] for one in told.values()] == ["Running", "Failed", "Running"]
    assert "secret" not in str(told)


def test_the_instances_of_a_node_tell_what_opens_them(house: House, job: Job) -> None:
    first = services.instances_out(house, job, "0")
    assert (first["board"]["type"], first["board"]["port"]) == ("TensorBoard", 6006)
    assert first["code"]["properties"] == {"password": "secret"}
    assert first["lab"]["error"]["error"]["message"] == "it is not there"
    assert first["lab"]["port"] == 8890
    assert [*services.instances_out(house, job, "1")] == ["board"]
    with pytest.raises(Invalid):
        services.instances_out(house, job, "x")


def test_a_job_without_services_has_none(house: House) -> None:
    job = Job(name="k", workspace="ws", spec=Command(command="run"))
    assert services.services_out(house, job) == services.instances_out(house, job, "0") == {}


@pytest.mark.parametrize(
    ("sent", "kind", "why"),
    [
        ({"shell": {"jobServiceType": "SSH"}}, NotSupported, "'shell': SSH .* Log in"),
        ({"ray": {"jobServiceType": "RayDashboard"}}, NotSupported, "'ray'.*RayDashboard"),
        ({"own": {"jobServiceType": "Custom", "port": 1}}, NotSupported, "'own'.*Custom"),
        ({"a": {"jobServiceType": "VSCode", "key": 1}}, NotSupported, "key"),
        ({"a": {"jobServiceType": "VSCode", "port": "x"}}, Invalid, "a whole number"),
        ({"a": {"jobServiceType": "VSCode", "port": 22}}, Invalid, "port 22"),
        ({"Studio": {"jobServiceType": "VSCode"}}, Invalid, "of that name already"),
        ({"a": "b"}, Invalid, "services.a must be an object"),
        (["a"], Invalid, "services must be an object"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(sent: Any, kind: type[Failure], why: str) -> None:
    with pytest.raises(kind, match=why):
        services.services_in(sent)


def test_only_command_jobs_of_their_own_have_services() -> None:
    services.refuse({"Studio": {}}, "job")
    with pytest.raises(NotSupported, match="jobs.train: the service 'board'"):
        services.refuse({"board": {"type": "TensorBoard"}}, "jobs.train")
