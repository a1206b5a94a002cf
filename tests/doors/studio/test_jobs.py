"""What a job's page shows of what it was asked to do, and of what became of it."""

from __future__ import annotations

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
    platform, browser, put_job, environment, wrote
):
    job = put_job("built", spec=Command(command="true", environment=environment))
    page = browser.get("/studio/jobs/built").text
    assert "<dt>Metrics</dt><dd>none yet</dd>" in page
    assert "tools, version 1: the packages of a conda file, asked for on the image ubuntu" in page
    assert "is made ready when the job" in page and "six==1.16.0" in page
    assert "me:pw" not in page and 'http-equiv="refresh"' in page

    job = jobs.move(platform.store, job, "preparing")
    assert "is being made ready" in browser.get("/studio/jobs/built").text
    wrote("built", "system_logs/environment.log", "Installing <six>\n")
    page = browser.get("/studio/jobs/built").text
    assert "is being built" in page and "Installing &lt;six&gt;" in page

    job = jobs.move(platform.store, job, "running")
    assert 'href="/mlflow/jobs/built"' in browser.get("/studio/jobs/built").text
    wrote("built", "user_logs/std_log.txt", "epoch 1 & more\n")
    page = browser.get("/studio/jobs/built").text
    assert "epoch 1 &amp; more" in page and "on the image ubuntu; ready" in page
    assert "Installing" not in page


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
