"""Jobs with the official `azure-ai-ml`, as the guides write them.

Jobs really run here: that a job's code, inputs and outputs arrive where the SDK
looks for them is what nothing smaller shows.
"""

# No postponed annotations: the pipeline decorator reads them.

import http.server
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from azure.ai.ml import Input, MLClient, Output, command, load_component
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import AmlCompute, Data, Model
from azure.ai.ml.exceptions import JobException
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential

Ended = Callable[[MLClient, str], Any]
ENVIRONMENT = "azureml://registries/azureml/environments/sklearn-1.5/labels/latest"
SCRIPT = """
import argparse, pathlib
parser = argparse.ArgumentParser()
for name in ("data", "number", "kind", "out"):
    parser.add_argument(f"--{name}")
given = parser.parse_args()
text = pathlib.Path(given.data)
text = "".join(file.read_text() for file in sorted(text.iterdir())) if text.is_dir() else text.read_text()
print("read", text, "number", given.number)
pathlib.Path("outputs").mkdir(exist_ok=True)
pathlib.Path("outputs", "left.txt").write_text("left behind")
if given.out:
    pathlib.Path(given.out).mkdir(parents=True, exist_ok=True)
    pathlib.Path(given.out, "made.txt").write_text(text + given.number)
"""
COMPONENT = """
$schema: https://azuremlschemas.azureedge.net/latest/commandComponent.schema.json
name: sdk_append
version: "1"
type: command
code: ./src
command: >-
  python append.py --data ${{inputs.data}} $[[--number ${{inputs.number}}]]
  --kind ${{inputs.kind}} --out ${{outputs.out}}
environment: ENVIRONMENT
inputs:
  data: {type: uri_folder}
  number: {type: integer, optional: true, min: 1, max: 9}
  kind: {type: string, enum: [x, y], default: x}
outputs:
  out: {type: uri_folder}
"""


@pytest.fixture(scope="module")
def ml() -> MLClient:
    client = MLClient(
        DefaultAzureCredential(),
        os.environ["AZURE_SUBSCRIPTION_ID"],
        os.environ["AZURE_RESOURCE_GROUP"],
        os.environ["AZURE_ML_WORKSPACE"],
        retry_total=0,
    )
    cluster = AmlCompute(name="sdk-jobs", size="Standard_DS3_v2", min_instances=0, max_instances=2)
    client.compute.begin_create_or_update(cluster).result()
    return client


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of code and data, as a user has it; it is the current one."""
    for path, text in (
        ("src/append.py", SCRIPT),
        ("data/a.txt", "a"),
        ("append.yml", COMPONENT.replace("ENVIRONMENT", ENVIRONMENT)),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job_of(text: str = "true", **more: Any) -> Any:
    return command(command=text, environment=ENVIRONMENT, compute="sdk-jobs", **more)


def graph(**changed: Any) -> Any:
    """A pipeline of a step, another that reads from it, and a pipeline inside."""
    append = load_component("append.yml")

    @pipeline(name="inner")
    def inner(data: Input(type="uri_folder"), number: int = 2):
        last = append(data=data, number=number)
        return {"out": last.outputs.out}

    @pipeline(name="outer")
    def outer(data: Input(type="uri_folder"), queue: str = "sdk-jobs", number: int = 4):
        first = append(data=data, number=number, kind="y")
        first.compute = queue
        second = append(data=first.outputs.out, number=1)
        third = inner(data=second.outputs.out, number=number)
        return {"middle": second.outputs.out, "end": third.outputs.out}

    made = outer(data=Input(type="uri_folder", path="data"), **changed)
    made.settings.default_compute = "sdk-jobs"
    made.settings.force_rerun = True
    made.settings.continue_on_step_failure = False
    return made


def test_a_command_job_runs_with_its_code_and_data_and_leaves_its_outputs(
    ml: MLClient, folder: Path, streamed: Callable[..., str]
):
    job = ml.jobs.create_or_update(
        command(
            code="./src",
            command="python append.py --data ${{inputs.data}} --number ${{inputs.number}} "
            f"--out ${{{{outputs.made}}}} && until [ -e '{folder}/seen' ]; do sleep 0.1; done",
            inputs={"data": Input(type="uri_folder", path="data"), "number": 3},
            outputs={"made": Output(type="uri_folder")},
            environment=ENVIRONMENT,
            compute="sdk-jobs",
            distribution={"type": "PyTorch", "process_count_per_instance": 1},
            tags={"a": "1"},
        ),
        experiment_name="sdk",
    )
    shown = streamed(ml, job.name, word="read a number 3", file=folder / "seen")
    assert "read a number 3" in shown
    done = ml.jobs.get(job.name)
    assert (done.status, done.experiment_name, done.compute) == ("Completed", "sdk", "sdk-jobs")
    assert done.inputs["number"]._data == "3"
    assert done.outputs["made"].path.endswith(f"/{job.name}/made")
    ml.jobs.download(job.name, download_path="got", all=True)
    assert Path("got/named-outputs/made/made.txt").read_text() == "a3"
    assert Path("got/artifacts/outputs/left.txt").read_text() == "left behind"
    assert "read a" in Path("got/artifacts/user_logs/std_log.txt").read_text()


def test_a_pipeline_runs_with_its_bindings_and_a_pipeline_inside(ml: MLClient, folder: Path):
    job = ml.jobs.create_or_update(graph(), experiment_name="sdk")
    ml.jobs.stream(job.name)
    done = ml.jobs.get(job.name)
    assert (done.status, list(done.jobs)) == ("Completed", ["first", "second", "third"])
    ml.jobs.download(job.name, download_path="got", output_name="end")
    assert Path("got/named-outputs/end/made.txt").read_text() == "a414"
    steps = {child.display_name: child.status for child in ml.jobs.list(parent_job_name=job.name)}
    assert steps == dict.fromkeys(["first", "second", "third"], "Completed")


def test_a_job_that_fails_says_so_when_it_is_streamed(ml: MLClient):
    job = ml.jobs.create_or_update(job_of("echo it is too hot; exit 3"))
    with pytest.raises(JobException):
        ml.jobs.stream(job.name)
    done = ml.jobs.get(job.name)
    assert done.status == "Failed"
    assert "it is too hot" in done.properties["finery.error"]


def test_a_job_is_cancelled(ml: MLClient):
    job = ml.jobs.create_or_update(job_of("sleep 600"))
    ml.jobs.begin_cancel(job.name).wait()
    assert ml.jobs.get(job.name).status == "Canceled"


@pytest.mark.parametrize(
    "changed, target",
    [({"number": 77}, "jobs.first.inputs.number"), ({"queue": "nowhere"}, "jobs.first.compute")],
)
def test_a_pipeline_that_cannot_work_is_refused_when_it_is_submitted(
    ml: MLClient, folder: Path, changed: dict[str, Any], target: str
):
    with pytest.raises(HttpResponseError) as caught:
        ml.jobs.create_or_update(graph(**changed))
    assert caught.value.status_code == 400
    assert caught.value.error.target == target


def test_an_unknown_job_is_not_found(ml: MLClient):
    with pytest.raises(ResourceNotFoundError):
        ml.jobs.get("no-such-job")


def test_texts_and_tags_change_and_the_archive_hides(ml: MLClient):
    tag = f"t{uuid.uuid4().hex[:8]}"
    job = ml.jobs.create_or_update(job_of(tags={tag: "1"}))
    job.tags["more"] = "2"
    job.display_name = "renamed"
    again = ml.jobs.create_or_update(job)
    assert (again.display_name, again.tags) == ("renamed", {tag: "1", "more": "2"})

    def listed(view: str) -> list[str]:
        return [one.name for one in ml.jobs.list(list_view_type=view, tag=tag)]

    ml.jobs.archive(job.name)
    assert (listed("ActiveOnly"), listed("ArchivedOnly")) == ([], [job.name])
    ml.jobs.restore(job.name)
    assert (listed("ActiveOnly"), listed("ArchivedOnly")) == ([job.name], [])


# What comes in and what goes out

SHOW = """
import json, os, pathlib
seen = {key.removeprefix("AZURE_ML_INPUT_"): text for key, text in os.environ.items()
        if key.startswith("AZURE_ML_INPUT_")}
copy = pathlib.Path(seen["copy"])
(copy / "a.txt").write_text("changed")
def read(text):
    path = pathlib.Path(text)
    return text if "://" in text else sorted(os.listdir(path)) if path.is_dir() else path.read_text()
pathlib.Path("outputs", "seen.json").write_text(json.dumps({k: read(v) for k, v in seen.items()}))
pathlib.Path(os.environ["AZURE_ML_OUTPUT_one"]).write_text("kept")
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a web server of its own hands out a file."""
    (tmp_path / "web.txt").write_text("from the web")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None: ...

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}/web.txt"
    served.shutdown()
    served.server_close()


def test_every_kind_of_input_arrives_as_what_it_was_asked_for(
    ml: MLClient, folder: Path, address: str, ended: Ended
):
    """One job with all of them: what each becomes is seen from inside."""
    Path("src/show.py").write_text(SHOW)
    tag = uuid.uuid4().hex[:8]
    data = ml.data.create_or_update(Data(name=f"d-{tag}", path="data", type="uri_folder"))
    model = ml.models.create_or_update(Model(name=f"m-{tag}", path="data", type="custom_model"))
    short = "azureml://datastores/" + data.path.split("/datastores/")[1]
    kept = f"one-{tag}"
    job = ml.jobs.create_or_update(
        command(
            code="./src",
            command="python show.py && echo ${{inputs.text}} ${{inputs.whole}} ${{inputs.part}} "
            "${{inputs.truth}} ${{inputs.direct}}",
            inputs={
                "local": Input(type="uri_file", path="data/a.txt"),
                "asset": Input(type="uri_folder", path=f"{data.name}@latest"),
                "short": Input(type="uri_folder", path=short),
                "long": Input(type="uri_file", path=data.path.rstrip("/") + "/a.txt"),
                "table": Input(type="mltable", path=short),
                "model": Input(type="custom_model", path=f"azureml:{model.name}:{model.version}"),
                "copy": Input(type="uri_folder", path=data.id, mode="download"),
                "direct": Input(type="uri_folder", path=data.id, mode="direct"),
                "web": Input(type="uri_file", path=address),
                "text": "words",
                "whole": 3,
                "part": 0.5,
                "truth": True,
            },
            outputs={"one": Output(type="uri_file", name=kept, version="7", mode="upload")},
            environment=ENVIRONMENT,
            compute="sdk-jobs",
        )
    )
    done = ended(ml, job.name)
    assert done.status == "Completed", done.properties
    ml.jobs.download(job.name, download_path="got", all=True)
    seen = json.loads(Path("got/artifacts/outputs/seen.json").read_text())
    assert seen.pop("direct") == data.path.rstrip("/")
    assert seen == {
        **dict.fromkeys(["asset", "short", "table", "model", "copy"], ["a.txt"]),
        **dict.fromkeys(["local", "long"], "a"),
        "web": "from the web",
    }
    log = Path("got/artifacts/user_logs/std_log.txt").read_text()
    assert "words 3 0.5 True azureml://subscriptions/" in log
    assert next(Path("got").rglob("named-outputs/one/**/one")).read_text() == "kept"
    assert ml.data.get(kept, version="7").type == "uri_file"
    assert done.inputs["direct"].mode == "direct"
    again = ml.jobs.create_or_update(
        job_of("cat ${{inputs.d}}/a.txt", inputs={"d": Input(path=data.id, type="uri_folder")})
    )
    assert ended(ml, again.name).status == "Completed"
    ml.jobs.download(again.name, download_path="again", all=True)
    assert Path("again/artifacts/user_logs/std_log.txt").read_text() == "a"  # only the copy changed


def test_a_file_that_was_to_be_kept_and_was_not_written_fails_the_job(ml: MLClient, ended: Ended):
    kept = {"one": Output(type="uri_file", name=f"never-{uuid.uuid4().hex[:8]}")}
    done = ended(ml, ml.jobs.create_or_update(job_of("true", outputs=kept)).name)
    assert (done.status, "has not written it" in done.properties["finery.error"]) == (
        "Failed",
        True,
    )


def test_what_a_job_saves_is_there_while_it_runs_and_after_it_is_cancelled(
    ml: MLClient, tmp_path: Path, until: Callable[..., Any]
):
    job = ml.jobs.create_or_update(job_of("echo half > outputs/step_20.txt; sleep 600"))

    def saved() -> list[str]:
        files = mlflow.MlflowClient().list_artifacts(job.name, "outputs")
        return [file.path for file in files]

    until(lambda: ml.jobs.get(job.name).status == "Running" and saved())
    assert saved() == ["outputs/step_20.txt"]
    half = Model(path=f"azureml://jobs/{job.name}/outputs/artifacts/paths/outputs", name="half")
    assert ml.models.create_or_update(half).version
    ml.jobs.begin_cancel(job.name).wait()
    ml.jobs.download(job.name, download_path=tmp_path, all=True)
    assert (tmp_path / "artifacts/outputs/step_20.txt").read_text() == "half\n"


def test_the_rank_that_fails_ends_the_others_and_its_last_words_are_the_jobs(
    ml: MLClient, tmp_path: Path, ended: Ended
):
    line = (  # the second ends the first: that one has spoken by then
        "echo node $NODE_RANK of $AZUREML_NODE_COUNT; touch spoke_$RANK; "
        "if [ $RANK = 1 ]; then until [ -e spoke_0 ]; do sleep 0.1; done; "
        "echo the second is ill; exit 5; fi; sleep 600"
    )
    job = ml.jobs.create_or_update(
        job_of(
            line,
            instance_count=2,
            distribution={"type": "PyTorch", "process_count_per_instance": 1},
        )
    )
    done = ended(ml, job.name)
    assert done.status == "Failed"
    said = "the second is ill (rank 1 ended with exit status 5)"
    assert done.properties["finery.error"] == said
    ml.jobs.download(job.name, download_path=tmp_path, all=True)
    logs = tmp_path / "artifacts" / "user_logs"
    assert (logs / "std_log_process_00.txt").read_text() == "node 0 of 2\n"
    assert (logs / "std_log_process_01.txt").read_text().startswith("node 1 of 2\n")
