"""What a job's page shows of what it was asked to do, and of what became of it."""

from __future__ import annotations

import math
import os
import re

import pytest

from finery.core import assets, jobs, references, services
from finery.core.assets import Asset
from finery.core.jobs import Command, Input, Output
from finery.core.services import State


def test_a_job_is_shown_with_its_outputs_warnings_and_whose_result_it_has(browser, put_job):
    put_job("before")
    put_job(
        "shown",
        reused="before",
        warnings=["this machine has 0"],
        outputs={"model": "file:workspaceblobstore/azureml/before/model"},
    )
    page = browser.get("/studio/jobs/shown").text
    assert 'href="/studio/jobs/before"' in page
    assert '<a href="/studio/jobs/before">workspaceblobstore/azureml/before/model</a>' in page
    assert "this machine has 0" in page


def test_a_sweep_shows_what_its_trials_tried_and_which_is_the_best(browser, put_job):
    space = {"lr": ["choice", [0.1, 0.2]]}
    sweep = jobs.Sweep(trial=jobs.Command(command="x"), space=space, metric="loss")
    put_job("swept", spec=sweep, reused="swept_0")
    tried = jobs.Command(command="x", inputs={"lr": jobs.Input(value="0.125")})
    score = {"finery.score": "0.75"}
    put_job("swept_0", spec=tried, parent="swept", properties=score)
    page = browser.get("/studio/jobs/swept").text
    assert "Best trial" in page and 'href="/studio/jobs/swept_0"' in page
    assert "<td>0.125</td>" in page and "<td>0.75</td>" in page


def test_a_job_s_page_leads_to_its_services(browser, put_job, monkeypatch):
    put_job("served")
    found = {
        "lab": State(status="running", endpoint="http://127.0.0.1:1/lab?token=t"),
        "code": State(status="running", endpoint="http://127.0.0.1:2/", password="p"),
        "board": State(status="failed", error="not there"),
    }
    monkeypatch.setattr(services, "states", lambda engine, job, *, home: found)
    page = browser.get("/studio/jobs/served").text
    assert '"http://127.0.0.1:1/lab?token=t" rel="noreferrer">http://127.0.0.1:1/lab</a>' in page
    assert "password <code>p</code>" in page
    assert "<dt>board</dt><dd>failed: not there</dd>" in page


def test_all_that_a_job_was_asked_to_do_is_shown_but_for_what_is_secret(browser, put_job):
    spec = Command(
        command="python train.py --rate 0.1 --hub-token hf_abcdefghijklmnopqrst <b>&",
        env={"HF_TOKEN": "hf_secretsecretsecret", "EPOCHS": "3417"},
        inputs={
            "rows": Input(value="asset:data/w/letters/7", type="uri_folder", mode="ro_mount"),
            "rate": Input(value="0.125"),
            "api_key": Input(value="letmein"),
            "far": Input(value="https://user:pw@store.example/rows?sig=abcdef", type="uri_file"),
            "base": Input(value="job:earlier/model", type="uri_folder"),
        },
        outputs={"model": Output(asset="greeter", version="2"), "log": Output()},
        distribution="pytorch",
        ranks=2,
        nodes=3,
        shm_size="2g",
        timeout=60,
    )
    put_job("asked", spec=spec, tags={"owner": "Maria", "secret": "xyzzy"}, description="Why not")
    page = browser.get("/studio/jobs/asked").text
    for shown in (
        "python train.py --rate 0.1 --hub-token [hidden] &lt;b&gt;&amp;",
        "<code>EPOCHS</code>, <code>HF_TOKEN</code>",
        "letters, version 7",
        "uri folder (ro mount)",
        "0.125",
        "https://store.example/rows",
        '<a href="/studio/jobs/earlier">model of earlier</a>',
        "greeter, version 2",
        "not there yet",
        "2 processes on each of 3 nodes, set up for PyTorch",
        "ends after 60 s; 2g of shared memory",
        "<dt>owner</dt><dd>Maria</dd>",
        "Why not",
        "It waits for its turn.",
    ):
        assert shown in page, shown
    for hidden in ("hf_", "3417", "letmein", "sig=", "user:pw", "xyzzy"):
        assert hidden not in page, hidden


def test_a_value_is_shown_as_it_is_whatever_it_looks_like(browser, put_job):
    texts = ["http://[x", "asset:x", "job:asked/model", "file:x", "${{x}}"]
    given = {f"text_{number}": Input(value=text) for number, text in enumerate(texts)}
    put_job("valued", spec=Command(command="true", inputs=given))
    answer = browser.get("/studio/jobs/valued")
    assert answer.status_code == 200
    for text in texts:
        assert f'<td class="long">{text}</td>' in answer.text


def test_a_value_that_looks_like_a_place_keeps_its_secrets(browser, put_job):
    given = {"text": Input(value="file:password=letmein https://me:pw@h.example/x?sig=abcdef")}
    put_job("placed", spec=Command(command="true", inputs=given))
    page = browser.get("/studio/jobs/placed").text
    assert "https://[hidden]@h.example/x?sig=[hidden]" in page and "letmein" not in page


@pytest.fixture(scope="module")
def environment(platform, workspace):
    conda = "dependencies:\n- pip:\n  - six==1.16.0\n  - --index-url=https://me:pw@index.example\n"
    spec = {"kind": "conda", "conda": conda, "image": "ubuntu"}
    asset = Asset(scope=workspace, kind="environment", name="tools", type="user", spec=spec)
    return assets.create(platform.store, asset).ref


@pytest.fixture
def wrote(platform, workspace):
    """Write into a job's folder as its keeper does."""

    def write(name, path, text):
        place = references.artifacts(name, path).removeprefix("file:")
        file = platform.files.path(workspace, *place.split("/", 1))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


def test_an_environment_is_shown_while_it_is_built_and_afterwards(
    platform, browser, put_job, environment, wrote, monkeypatch
):
    job = put_job("built", spec=Command(command="true", environment=environment))
    monkeypatch.setitem(vars(platform.house), "containers", lambda: "docker")
    page = browser.get("/studio/jobs/built").text
    assert "<dt>Metrics</dt><dd>none yet</dd>" in page
    assert "tools, version 1: the packages of a conda file, asked for on the image ubuntu" in page
    assert "is made ready when the job" in page and "six==1.16.0" in page
    assert "me:pw" not in page and 'http-equiv="refresh"' in page

    job = jobs.move(platform.store, job, "preparing")
    assert "is being made ready" in browser.get("/studio/jobs/built").text
    wrote("built", "system_logs/environment.log", "Installing <six>\n")
    page = browser.get("/studio/jobs/built").text
    assert "<summary>The log of its building" not in page and "environment ready" not in page
    assert "is being built" in page and "Installing &lt;six&gt;" in page

    job = jobs.move(platform.store, job, "running")
    assert 'href="/mlflow/jobs/built"' in browser.get("/studio/jobs/built").text
    wrote("built", "user_logs/std_log.txt", "epoch 1 & more\n")
    page = browser.get("/studio/jobs/built").text
    assert "epoch 1 &amp; more" in page and "on the image ubuntu; ready" in page
    folded = page.partition("<summary>The log of its building</summary>")[2]
    assert "Installing &lt;six&gt;" in folded.partition("</details>")[0]
    assert "The building of its environment" not in page
    assert " ms to get its environment ready</dd>" in page


@pytest.mark.parametrize(("client", "said"), [("", True), ("podman", False), (None, False)])
def test_an_image_that_is_not_used_is_not_passed_over(
    platform, workspace, browser, put_job, environment, monkeypatch, client, said
):
    monkeypatch.setitem(vars(platform.house), "containers", lambda: client)
    image = Asset(
        scope=workspace,
        kind="environment",
        name=f"image-{client}",
        spec={"kind": "image", "image": "u"},
    )
    for number, ref in enumerate((environment, assets.create(platform.store, image).ref)):
        name = f"imaged-{client}-{number}"
        put_job(name, spec=Command(command="true", environment=ref))
        page = browser.get(f"/studio/jobs/{name}").text
        assert ("which is not used here: no Docker or Podman; is made" in page) == said
        assert "the image u" in page


def test_the_files_of_a_job_are_listed_with_where_they_are_fetched(
    workspace, browser, put_job, wrote
):
    put_job("leaving")
    assert "Outputs" not in browser.get("/studio/jobs/leaving").text
    wrote("leaving", "outputs/a/<b> 1.html", "<script>")
    for odd in ("1#2.txt", "50%.txt", os.fsdecode(b"\xff.txt")):  # MLflow refuses to hand them out
        wrote("leaving", f"outputs/{odd}", "")
    wrote("leaving", "outputs/rows.txt", "x" * 2048)
    wrote("leaving-2", "outputs/another.txt", "")
    page = browser.get("/studio/jobs/leaving").text
    assert '>a/&lt;b&gt; 1.html</a></td><td class="whole">8 bytes</td>' in page
    assert '>rows.txt</a></td><td class="whole">2.0 KiB</td>' in page
    for odd in ("1#2.txt", "50%.txt", "\ufffd.txt"):
        assert f'<td class="long">{odd}</td><td class="whole">0 bytes</td>' in page
    assert "another.txt" not in page and "There are more" not in page
    addresses = re.findall(r'<td class="long"><a href="(/mlflow/api[^"]+)"', page)
    folder = f"/mlflow/api/2.0/mlflow-artifacts/artifacts/{workspace}/workspaceartifactstore"
    assert addresses == [
        f"{folder}/ExperimentRun/dcid.leaving/outputs/{path}"
        for path in ("a/%3Cb%3E%201.html", "rows.txt")
    ]
    browser.cookies.clear()  # MLflow itself is loaded for nobody here: its own tests fetch files
    for address in addresses:
        assert browser.get(address, headers={"host": "127.0.0.1"}).status_code == 401


def test_of_many_files_some_are_listed(browser, put_job, wrote, monkeypatch):
    monkeypatch.setattr("finery.doors.studio.left._FILES", 2)
    put_job("many")
    for number in range(3):
        wrote("many", f"outputs/{number}.txt", "")
    page = browser.get("/studio/jobs/many").text
    assert "1.txt" in page and "2.txt" not in page and "There are more" in page


def test_a_job_that_left_nothing_says_so_and_one_that_reused_shows_the_other_s(
    platform, browser, put_job, wrote
):
    job = jobs.move(platform.store, put_job("empty"), "preparing")
    for status in ("running", "finalizing", "completed"):
        job = jobs.move(platform.store, job, status)
    assert "It has left no file in its folder" in browser.get("/studio/jobs/empty").text
    wrote("empty", "outputs/late.txt", "")
    put_job("again", reused="empty")
    assert "/dcid.empty/outputs/late.txt" in browser.get("/studio/jobs/again").text


def test_the_models_registered_of_a_job_are_linked(platform, workspace, browser, put_job):
    put_job("making")
    given = [
        ("kept", {"made_by": "making/model", "location": "file:elsewhere/x"}),
        ("left", {"location": references.artifacts("making", "outputs/model")}),
        ("named", {"location": references.output("making", "model")}),
        ("pointed", {"location": "job:making/model"}),
        ("foreign", {"location": references.artifacts("making-2", "outputs/model")}),
    ]
    for name, place in given:
        assets.create(platform.store, Asset(scope=workspace, kind="model", name=name, **place))
    page = browser.get("/studio/jobs/making").text
    for name in ("kept", "left", "named", "pointed"):
        assert f'<a href="/mlflow/#/models/{name}">{name}, version 1</a>' in page
    assert "foreign" not in page


def test_the_last_metrics_of_a_job_are_shown(platform, browser, put_job, monkeypatch):
    put_job("measured")
    values = {f"metric_{number:02}": number / 3 for number in range(21)}
    monkeypatch.setitem(vars(platform.house), "metrics", lambda job, most: {"nan": math.nan})
    assert "<code>nan</code> nan" in browser.get("/studio/jobs/measured").text
    monkeypatch.setitem(vars(platform.house), "metrics", lambda job, most: values)
    page = browser.get("/studio/jobs/measured").text
    assert "<code>metric_01</code> 0.333333" in page
    assert "metric_19" in page and "metric_20" not in page and "; more " in page


def test_an_environment_that_cannot_be_built_says_so_with_its_log(
    platform, browser, put_job, environment, wrote
):
    job = put_job("unbuilt", spec=Command(command="true", environment=environment))
    job = jobs.move(platform.store, job, "preparing")
    wrote("unbuilt", "system_logs/environment.log", "no such package\n")
    jobs.move(platform.store, job, "failed", error="it could not be built")
    page = browser.get("/studio/jobs/unbuilt").text
    assert "; could not be built" in page and "no such package" in page
    assert 'role="alert">it could not be built' in page
    assert 'http-equiv="refresh"' not in page


def test_a_job_that_never_ran_needed_no_environment(platform, browser, put_job, environment):
    put_job("never", spec=Command(command="true", environment=environment))
    jobs.cancel(platform.store, "never")
    page = browser.get("/studio/jobs/never").text
    assert "was not needed: the job never ran" in page and "nothing: it never ran" in page


def test_the_logs_of_several_ranks_are_told_apart(browser, put_job, wrote):
    put_job("ranked")
    for rank in range(2):
        wrote("ranked", f"user_logs/std_log_process_{rank:02}.txt", f"I am {rank}\n")
    page = browser.get("/studio/jobs/ranked").text
    assert "==&gt; std_log_process_01 &lt;==\nI am 1" in page


def test_what_a_job_refers_to_may_be_gone(browser, put_job):
    put_job("lost", spec=Command(command="true", environment="asset:environment/w/gone/1"))
    assert "gone, version 1: it is not there any more" in browser.get("/studio/jobs/lost").text


def test_a_pipeline_has_steps_and_no_command(browser, put_job):
    put_job("piped", spec=jobs.Pipeline(inputs={"rows": Input(value="seven")}))
    put_job("piped_1", parent="piped", display_name="first <step>")
    page = browser.get("/studio/jobs/piped").text
    assert "first &lt;step&gt;" in page and "seven" in page and "What it runs" not in page
