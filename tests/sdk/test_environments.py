"""Environments of one's own with the official SDK: what is asked for is what runs.

The packages are wheels that the test writes into the build context, so that no
index is asked.  Each build starts a process, and nothing less shows that jobs
and deployments get what was built.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import (
    BuildContext,
    CodeConfiguration,
    Environment,
    Job,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    OnlineRequestSettings,
)

Ended = Callable[[MLClient, str], Any]
TAIL = "python -c 'import sixpence, sys; print(sixpence.version, sys.prefix)'"


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with one package of one line, in two versions."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        info = f"sixpence-{version}.dist-info"
        files = {
            "sixpence.py": f"version = {version!r}\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: sixpence\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(folder / f"sixpence-{version}-py3-none-any.whl", "w") as packed:
            for path, said in files.items():
                packed.writestr(path, said)
    return folder


def context(folder: Path, wheels: Path, *, more: str = "") -> Environment:
    folder.mkdir()
    for wheel in wheels.iterdir():
        (folder / wheel.name).write_bytes(wheel.read_bytes())
    (folder / "Dockerfile").write_text(
        "FROM python:3.11\nRUN apt-get install -y git\nCOPY . /wheels\n"
        f"RUN pip install --no-index --find-links /wheels sixpence==1.0\nENV MODE=quiet\n{more}"
    )
    return Environment(build=BuildContext(path=str(folder)))


def std_log(ml: MLClient, job: Job, folder: Path) -> str:
    ml.jobs.download(job.name, download_path=str(folder), all=True)
    return next(folder.rglob("std_log.txt")).read_text()


def test_a_job_runs_with_what_its_context_installs_and_is_told_of_the_rest(
    ml: MLClient, wheels: Path, tmp_path: Path, ended: Ended
) -> None:
    environment = context(tmp_path / "context", wheels)
    line = TAIL + "; echo mode $MODE"
    job = ended(ml, ml.jobs.create_or_update(command(command=line, environment=environment)).name)
    assert job.status == "Completed", job.properties
    version, prefix, *rest = std_log(ml, job, tmp_path / "got").split()
    assert version == "1.0" and "/environments/" in prefix and rest == ["mode", "quiet"]
    warnings = job.properties["finery.warnings"]
    assert "Dockerfile line 2: apt-get install -y git" in warnings
    log = next((tmp_path / "got").rglob("system_logs/environment.log")).read_text()
    assert "sixpence==1.0" in log


def test_a_package_that_does_not_exist_fails_the_job_with_the_cause(
    ml: MLClient, tmp_path: Path, ended: Ended
) -> None:
    file = tmp_path / "conda.yml"
    pip = {"pip": ["--no-index", "no-such-package==7.1"]}
    file.write_text(json.dumps({"dependencies": ["python=3.11", pip]}))
    environment = Environment(image="mcr.microsoft.com/azureml/openmpi4.1.0", conda_file=str(file))
    made = ml.jobs.create_or_update(command(command="true", environment=environment))
    job = ended(ml, made.name)
    assert job.status == "Failed"
    assert "no-such-package" in job.properties["finery.error"]
    ml.jobs.download(job.name, download_path=str(tmp_path / "got"), all=True)
    log = next((tmp_path / "got").rglob("environment.log")).read_text()
    assert "no-such-package" in log


def test_a_dockerfile_that_cannot_be_read_fails_the_job_with_its_line(
    ml: MLClient, wheels: Path, tmp_path: Path, ended: Ended
) -> None:
    environment = context(tmp_path / "context", wheels, more="RUN pip install -r nowhere.txt\n")
    made = ml.jobs.create_or_update(command(command="true", environment=environment))
    job = ended(ml, made.name)
    assert job.status == "Failed"
    assert "Dockerfile line 6" in job.properties["finery.error"], job.properties["finery.error"]
    assert "nowhere.txt" in job.properties["finery.error"]


def test_a_deployment_serves_from_an_environment_of_its_own(
    ml: MLClient, name: str, wheels: Path, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "score.py").write_text(
        "import sixpence, sys\n\ndef init():\n    pass\n\ndef run(data):\n"
        "    return [sixpence.version, sys.prefix]\n"
    )
    ml.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name=name)).result()
    try:
        made = ml.online_deployments.begin_create_or_update(
            ManagedOnlineDeployment(
                name="blue",
                endpoint_name=name,
                environment=context(tmp_path / "context", wheels),
                code_configuration=CodeConfiguration(code=str(code), scoring_script="score.py"),
                instance_type="Standard_DS3_v2",
                instance_count=1,
                request_settings=OnlineRequestSettings(
                    request_timeout_ms=60_000, max_queue_wait_ms=60_000
                ),
            )
        ).result()
        assert made.provisioning_state == "Succeeded"
        request = tmp_path / "request.json"
        request.write_text("{}")
        answer = ml.online_endpoints.invoke(name, request_file=str(request), deployment_name="blue")
        version, prefix = json.loads(answer)
        assert version == "1.0" and "/environments/" in prefix and prefix != sys.prefix
    finally:
        ml.online_endpoints.begin_delete(name)
