"""The pages, as a browser without scripts gets them; nothing is started."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from finery import app
from finery.config import Settings
from finery.core import jobs, services, workspaces
from finery.core.services import State


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    settings = Settings(home=tmp_path_factory.mktemp("home"), models="tiny")
    made = app.create(settings, http="http://127.0.0.1:1", https="https://127.0.0.1:2")
    yield made
    made.close()


@pytest.fixture
def visitor(platform):
    with TestClient(platform.asgi, follow_redirects=False) as made:
        yield made


@pytest.fixture
def browser(platform, visitor):
    key = (platform.settings.home / "admin.key").read_text()
    assert visitor.post("/login", data={"key": key}).headers["location"] == "/studio"
    return visitor


@pytest.fixture(scope="module")
def workspace(platform):
    return workspaces.get(platform.store, *platform.house.default_workspace).id


def put_job(platform, workspace, name, **given):
    given = {"spec": jobs.Command(command="true"), **given}
    job = jobs.Job(name=name, workspace=workspace, **given)
    return jobs.create(platform.store, job)


def test_a_visitor_is_sent_to_the_log_in_page_and_back(visitor):
    assert visitor.get("/studio").headers["location"] == "/login?next=/studio"
    answer = visitor.post("/login", data={"key": "wrong", "next": "/studio/jobs/j"})
    assert "not this server" in answer.text and "set-cookie" not in answer.headers
    assert 'value="/studio/jobs/j"' in answer.text


@pytest.mark.parametrize("elsewhere", ["https://example.org", "//example.org", "/\\example.org"])
def test_who_logs_in_is_never_sent_elsewhere(platform, visitor, elsewhere):
    key = (platform.settings.home / "admin.key").read_text()
    answer = visitor.post("/login", data={"key": key, "next": elsewhere})
    assert answer.headers["location"] == "/studio"


def test_the_overview_lists_jobs_and_the_catalog(platform, browser, workspace):
    put_job(platform, workspace, "listed", display_name="<b>bold</b>")
    page = browser.get("/studio").text
    assert 'href="/studio/jobs/listed"' in page and "Phi-3-mini-4k-instruct" in page
    assert "&lt;b&gt;bold" in page and "<b>bold" not in page
    assert "--models tiny" in page
    assert "A stand-in for microsoft/Phi-3-mini-4k-instruct." in page


def test_a_job_is_shown_with_its_outputs_warnings_and_whose_result_it_has(
    platform, browser, workspace
):
    put_job(platform, workspace, "before")
    put_job(
        platform,
        workspace,
        "shown",
        reused="before",
        warnings=["this machine has 0"],
        outputs={"model": "file:workspaceblobstore/azureml/before/model"},
    )
    page = browser.get("/studio/jobs/shown").text
    assert 'href="/studio/jobs/before"' in page
    assert '<a href="/studio/jobs/before">workspaceblobstore/azureml/before/model</a>' in page
    assert "this machine has 0" in page


def test_a_sweep_shows_what_its_trials_tried_and_which_is_the_best(platform, browser, workspace):
    space = {"lr": ["choice", [0.1, 0.2]]}
    sweep = jobs.Sweep(trial=jobs.Command(command="x"), space=space, metric="loss")
    put_job(platform, workspace, "swept", spec=sweep, reused="swept_0")
    tried = jobs.Command(command="x", inputs={"lr": jobs.Input(value="0.125")})
    score = {"finery.score": "0.75"}
    put_job(platform, workspace, "swept_0", spec=tried, parent="swept", properties=score)
    page = browser.get("/studio/jobs/swept").text
    assert "Best trial" in page and 'href="/studio/jobs/swept_0"' in page
    assert "<td>0.125</td>" in page and "<td>0.75</td>" in page


def test_a_job_that_is_not_there_is_not_found(browser):
    assert browser.get("/studio/jobs/nobody").status_code == 404


def test_logging_out_ends_it(browser):
    assert browser.get("/studio").status_code == 200
    browser.post("/logout")
    assert browser.get("/studio").status_code == 303


def test_a_job_s_page_leads_to_its_services(platform, browser, workspace, monkeypatch):
    put_job(platform, workspace, "served")
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
