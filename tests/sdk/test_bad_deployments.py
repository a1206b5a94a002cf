"""What deployments and requests that cannot work get: the cause, and nothing left behind.

Beside each of them a good deployment serves and must go on.  Processes are
real, because what is counted before and after are processes, folders of the
home and files; environments are asked of the package index, which refuses
them.  What a bad picture gets is in the tests of the scripts that read pictures.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import (
    BuildContext,
    CodeConfiguration,
    Environment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
)
from azure.ai.ml.exceptions import JobException
from azure.core.exceptions import HttpResponseError

CURATED = "azureml://registries/azureml/environments/minimal-py312-inference/labels/latest"
IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu20.04:latest"
NOWHERE = "finery-no-such-package-9f3b"
GOOD = """
import base64, json
def init(): pass
def run(data):
    given = json.loads(data)
    if "image" in given:
        return len(base64.b64decode(given["image"], validate=True))
    return {"length": len(given["question"])}
"""

KEPT = ("processes", "deployments", "jobs", "environments")
REMEMBERED = re.compile(r"environments/\w+(\.failed)?\.(log|json)|processes/environment-\w+")

Until = Callable[..., Any]


@dataclass(frozen=True)
class Census:
    """What there is of a home: processes by their words, folders and files by their paths."""

    processes: frozenset[str]
    kept: frozenset[str]


def census(home: Path) -> Census:
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = os.readlink(place / "cwd")
        except OSError:  # it ended while we looked, or is none of ours
            continue
        at_work = any(Path(where).is_relative_to(home / name) for name in KEPT)
        kept_by_us = str(home) in words and " up " not in words and "warm" not in words
        if at_work or kept_by_us:  # a process that waits to be forked from is neither
            found.add(f"{place.name}: {words}in {where}")
    kept = {str(path) for name in KEPT for path in (home / name).glob("*")}
    return Census(frozenset(found), frozenset(kept))


def instances(home: Path) -> set[str]:
    """Return the instances of deployments that there are processes of."""
    found = "\n".join(census(home).processes)
    return set(re.findall(r"deployment-\w+-\d+-\d+-\d+", found))


def left(home: Path, before: Census) -> set[str]:
    """Return what is new of folders and files, but for what tells why a build failed."""
    found = {str(Path(path).relative_to(home)) for path in census(home).kept - before.kept}
    return {path for path in found if not REMEMBERED.fullmatch(path)}


@pytest.fixture(scope="module")
def home(server: None) -> Path:
    return Path(os.environ["REQUESTS_CA_BUNDLE"]).parents[1]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a folder with a `score.py` that says what is given."""

    def made(text: str) -> str:
        folder = tmp_path_factory.mktemp("code")
        (folder / "score.py").write_text(text)
        return str(folder)

    return made


@pytest.fixture(scope="module")
def endpoint(ml: MLClient, scripts: Callable[[str], str]) -> Iterator[ManagedOnlineEndpoint]:
    """An endpoint whose deployment `good` has all the traffic."""
    name = f"bad-{uuid.uuid4().hex[:10]}"
    made = ml.begin_create_or_update(ManagedOnlineEndpoint(name=name)).result()
    ml.begin_create_or_update(deployment(name, "good", scripts(GOOD))).result()
    made.traffic = {"good": 100}
    yield ml.begin_create_or_update(made).result()
    ml.online_endpoints.begin_delete(name).wait()


def deployment(endpoint: str, name: str, code: str, **more: Any) -> ManagedOnlineDeployment:
    usual: dict[str, Any] = {
        "instance_type": "Standard_DS3_v2",
        "instance_count": 1,
        "environment": CURATED,
    }
    usual["request_settings"] = OnlineRequestSettings(
        request_timeout_ms=60_000, max_queue_wait_ms=60_000
    )
    what = CodeConfiguration(code=code, scoring_script="score.py")
    return ManagedOnlineDeployment(
        name=name, endpoint_name=endpoint, code_configuration=what, **{**usual, **more}
    )


def post(ml: MLClient, endpoint: ManagedOnlineEndpoint, body: Any) -> requests.Response:
    key = ml.online_endpoints.get_keys(endpoint.name).primary_key
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(endpoint.scoring_uri, headers=headers, data=data, timeout=180)


def serves(ml: MLClient, endpoint: ManagedOnlineEndpoint) -> bool:
    answer = post(ml, endpoint, {"question": "four"})
    return answer.status_code == 200 and answer.json() == {"length": 4}


# -- what cannot be brought up -------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    said: str  # in the error
    logged: str = ""  # in the deployment's log; empty: the same
    script: str = GOOD
    conda: list[Any] = field(default_factory=list)
    dockerfile: str = ""


PIP = ["python=3.11", "pip"]
BAD = {
    "raises at import": Bad("No module named 'no_such'", "import no_such", "import no_such\n"),
    "raises in init": Bad(
        "the weights are wet",
        'raise OSError("the weights are wet")',
        script='def init():\n    raise OSError("the weights are wet")\ndef run(data): pass\n',
    ),
    "is no Python": Bad("SyntaxError", script="def init(:\n"),
    "has no run": Bad("run", script="def init(): pass\n"),
    "a package that is nowhere": Bad(NOWHERE, conda=[*PIP, {"pip": [f"{NOWHERE}==1.0"]}]),
    "a conflict of pins": Bad("six==1.16.0", conda=[*PIP, "six=1.16.0", {"pip": ["six==1.17.0"]}]),
    "a Dockerfile that is none": Bad("line 2", dockerfile="FROM python:3.11\n!! what is this\n"),
    "a Dockerfile that fails": Bad(
        NOWHERE, dockerfile=f"FROM python:3.11\nRUN pip install {NOWHERE}==2.0\n"
    ),
}


def environment(bad: Bad, folder: Path) -> Environment | str:
    if bad.conda:
        (folder / "conda.yaml").write_text(json.dumps({"dependencies": bad.conda}))
        return Environment(conda_file=folder / "conda.yaml", image=IMAGE)
    if bad.dockerfile:
        (folder / "context").mkdir()
        (folder / "context" / "Dockerfile").write_text(bad.dockerfile)
        return Environment(build=BuildContext(path=folder / "context"))
    return CURATED


# What a conflict is told, a job below shows; a build upon our own packages takes its time.
SLOW = ("a conflict of pins", "a Dockerfile that fails")


@pytest.mark.parametrize(
    "which",
    [pytest.param(which, marks=[pytest.mark.slow] * (which in SLOW)) for which in BAD],
)
def test_a_deployment_that_cannot_be_says_why_and_leaves_nothing(
    ml: MLClient,
    endpoint: ManagedOnlineEndpoint,
    scripts: Callable[[str], str],
    home: Path,
    tmp_path: Path,
    until: Until,
    which: str,
) -> None:
    bad, before = BAD[which], census(home)
    wanted = environment(bad, tmp_path)
    asked = deployment(endpoint.name, "bad", scripts(bad.script), environment=wanted)
    with pytest.raises(HttpResponseError) as caught:  # the SDK reads the script before it goes
        ml.begin_create_or_update(asked, skip_script_validation=True).result()
    assert bad.said in caught.value.message
    assert ml.online_deployments.get("bad", endpoint.name).provisioning_state == "Failed"
    log = ml.online_deployments.get_logs("bad", endpoint.name, lines=200)
    assert (bad.logged or bad.said) in log
    assert serves(ml, endpoint)

    ml.online_deployments.begin_delete("bad", endpoint.name).wait()
    until(lambda: census(home).processes <= before.processes and not left(home, before))


@pytest.mark.parametrize("which", ["raises in init", "a package that is nowhere"])
def test_a_change_that_cannot_be_leaves_what_served(
    ml: MLClient,
    endpoint: ManagedOnlineEndpoint,
    scripts: Callable[[str], str],
    home: Path,
    tmp_path: Path,
    until: Until,
    which: str,
) -> None:
    bad, before = BAD[which], instances(home)
    wanted = environment(bad, tmp_path)
    changed = deployment(endpoint.name, "good", scripts(bad.script), environment=wanted)
    with pytest.raises(HttpResponseError, match=bad.said):
        ml.begin_create_or_update(changed).result()
    assert serves(ml, endpoint) and before <= instances(home)
    ml.begin_create_or_update(deployment(endpoint.name, "good", scripts(GOOD))).result()
    assert ml.online_deployments.get("good", endpoint.name).provisioning_state == "Succeeded"
    assert serves(ml, endpoint)
    until(lambda: len(instances(home)) == 1)


def test_a_job_whose_environment_cannot_be_fails_with_the_reason(
    ml: MLClient, home: Path, tmp_path: Path, until: Until, capfd: pytest.CaptureFixture[str]
) -> None:
    before = census(home)
    wanted = environment(BAD["a conflict of pins"], tmp_path)
    job = command(command="echo never", environment=wanted, instance_count=1)
    sent = ml.jobs.create_or_update(job)
    with pytest.raises(JobException) as raised:
        ml.jobs.stream(sent.name)
    assert "six==1.16.0" in str(raised.value)
    assert ml.jobs.get(sent.name).status == "Failed"
    until(lambda: census(home).processes <= before.processes)
    until(lambda: left(home, before) <= {f"jobs/{sent.name}"})


def test_a_model_that_is_not_there_is_refused_where_it_is_named(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, scripts: Callable[[str], str], name: str
) -> None:
    nowhere = "azureml://datastores/workspaceblobstore/paths/no/such/folder"
    with pytest.raises(HttpResponseError, match="nothing is at 'no/such/folder'"):
        ml.models.create_or_update(Model(name=name, path=nowhere, type="custom_model"))
    for model in (f"azureml:{name}:1", f"azureml:{name}@latest"):
        with pytest.raises(HttpResponseError, match=f"no model '{name}'"):
            asked = deployment(endpoint.name, "bad", scripts(GOOD), model=model)
            ml.begin_create_or_update(asked).result()
    assert [one.name for one in ml.online_deployments.list(endpoint.name)] == ["good"]
    assert serves(ml, endpoint)


# -- requests ------------------------------------------------------------------------------------


def test_what_run_raises_is_424_with_the_reason_and_the_next_call_is_answered(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, until: Until
) -> None:
    def told(said: str) -> bool:
        return said in ml.online_deployments.get_logs("good", endpoint.name, lines=60)

    for body, said in (
        ({"image": "this is !! no base64"}, "binascii.Error"),
        ({"neither": 1}, "KeyError"),
        (b"no JSON", "JSONDecodeError"),
    ):
        answer = post(ml, endpoint, body)
        assert answer.status_code == 424
        assert answer.headers["ms-azureml-model-error-statuscode"] == "500"
        until(lambda: told(said))  # noqa: B023
    assert serves(ml, endpoint)


def test_a_question_of_a_hundred_thousand_characters_is_passed_on_whole(
    ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    assert post(ml, endpoint, {"question": "é" * 100_000}).json() == {"length": 100_000}


@pytest.mark.parametrize("declared", [True, False])
def test_a_gigabyte_is_refused_before_it_is_read(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, declared: bool
) -> None:
    """With its length said it costs nothing; without, no more than the most that is allowed."""
    key = ml.online_endpoints.get_keys(endpoint.name).primary_key
    to = urlsplit(endpoint.scoring_uri)
    size, piece = 2**30, bytes(2**20)
    length = f"Content-Length: {size}" if declared else "Transfer-Encoding: chunked"
    head = (
        f"POST {to.path} HTTP/1.1\r\nHost: {to.netloc}\r\nAuthorization: Bearer {key}\r\n{length}"
    )
    sent, answer = 0, b""
    with connect(to) as wire:
        wire.sendall(f"{head}\r\n\r\n".encode())
        try:
            while sent < size:
                wire.sendall(piece if declared else b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
        except OSError:  # it hung up on us, and may have answered before that
            pass
        wire.settimeout(60)
        try:
            answer = wire.recv(65536)
        except OSError:
            pass
    assert sent < 200 * 2**20
    assert answer.startswith(b"HTTP/1.1 413")
    assert serves(ml, endpoint)


def connect(to: Any) -> socket.socket:
    plain = socket.create_connection((to.hostname, to.port), timeout=60)
    if to.scheme == "http":
        return plain
    context = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
    return context.wrap_socket(plain, server_hostname=to.hostname)


def test_a_gigabyte_that_waits_for_leave_is_told_413(
    ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    key = ml.online_endpoints.get_keys(endpoint.name).primary_key
    to = urlsplit(endpoint.scoring_uri)
    head = f"POST {to.path} HTTP/1.1\r\nHost: {to.netloc}\r\nAuthorization: Bearer {key}\r\n"
    with connect(to) as wire:
        wire.sendall(f"{head}Content-Length: {2**30}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert wire.recv(65536).startswith(b"HTTP/1.1 413")
