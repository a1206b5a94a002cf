"""The pages in general: who may see them, what lists show, what is said where nothing is."""

from __future__ import annotations

import re

import pytest

from finery.core import ids, jobs
from finery.core.workspaces import Caller

BELOW = ["", "/jobs", "/jobs/x", "/endpoints", "/endpoints/x", "/what/ever"]


def test_a_visitor_is_sent_to_the_log_in_page_and_back(visitor):
    assert visitor.get("/studio").headers["location"] == "/login?next=/studio"
    answer = visitor.post("/login", data={"key": "wrong", "next": "/studio/jobs/j"})
    asked = visitor.get("/studio/jobs?after=7&x=%26").headers["location"]
    assert asked == "/login?next=/studio/jobs%3Fafter%3D7%26x%3D%2526"
    assert 'value="/studio/jobs?after=7&amp;x=%26"' in visitor.get(asked).text
    assert "not this server" in answer.text and "set-cookie" not in answer.headers
    assert 'value="/studio/jobs/j"' in answer.text


@pytest.mark.parametrize("elsewhere", ["https://example.org", "//example.org", "/\\example.org"])
def test_who_logs_in_is_never_sent_elsewhere(platform, visitor, elsewhere):
    key = (platform.settings.home / "admin.key").read_text()
    answer = visitor.post("/login", data={"key": key, "next": elsewhere})
    assert answer.headers["location"] == "/studio"


def test_the_overview_lists_jobs_and_the_catalog(browser, put_job):
    put_job("listed", display_name="<b>bold</b>")
    page = browser.get("/studio").text
    assert 'href="/studio/jobs/listed"' in page and "Phi-3-mini-4k-instruct" in page
    assert "&lt;b&gt;bold" in page and "<b>bold" not in page
    assert "--models tiny" in page
    assert re.search(r'<time datetime="[-0-9]+T[:0-9]+[+]00:00">[^<]+ UTC</time>', page)
    assert "A stand-in for microsoft/Phi-3-mini-4k-instruct." in page


def test_logging_out_ends_it(browser):
    assert browser.get("/studio").status_code == 200
    browser.post("/logout")
    assert browser.get("/studio").status_code == 303


@pytest.mark.parametrize("below", BELOW)
def test_nobody_sees_a_page_without_logging_in(visitor, below):
    answer = visitor.get(f"/studio{below}")
    assert (answer.status_code, answer.headers["location"][:13]) == (303, "/login?next=/")


@pytest.mark.parametrize("below", BELOW)
def test_a_job_s_own_token_opens_no_page(platform, visitor, workspace, below):
    caller = Caller(name="j", role="job", workspace=workspace)
    token = platform.keys.mint(caller, audience="mlflow", seconds=60, now=ids.now())
    visitor.cookies.set("finery", token)
    assert visitor.get(f"/studio{below}").status_code == 403
    assert visitor.post("/studio/endpoints/x").status_code == 403


@pytest.mark.parametrize("path", ["/studio/jobs/nobody", "/studio/endpoints/none", "/studio/what"])
def test_where_nothing_is_a_page_says_so_and_leads_back(browser, path):
    answer = browser.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "Nothing is here" in answer.text and 'href="/studio"' in answer.text
    assert 'http-equiv="refresh"' not in answer.text


def test_what_is_wrong_with_an_address_is_a_page_too_and_escaped(browser):
    answer = browser.get("/studio/jobs", params={"after": "<b>x</b>"})
    assert answer.status_code == 400 and answer.headers["content-type"].startswith("text/html")
    assert "<b>x" not in answer.text
    assert browser.post("/studio/jobs").status_code == 405


def test_a_page_that_fails_says_that_the_log_has_more_and_nothing_else(browser, monkeypatch):
    def broken(*given, **more):
        raise RuntimeError("a secret detail")

    monkeypatch.setattr("finery.doors.studio.jobs.listed", broken)
    answer = browser.get("/studio/jobs")
    assert answer.status_code == 500 and "Something went wrong" in answer.text
    assert "secret detail" not in answer.text


def test_jobs_are_listed_page_by_page(browser, put_job, monkeypatch):
    monkeypatch.setattr("finery.doors.studio.jobs.MOST", 2)
    monkeypatch.setattr("finery.doors.studio.pages._NEWEST", 2)
    for number in range(3):
        put_job(f"paged_{number}")
    first = browser.get("/studio/jobs").text
    assert first.index("/studio/jobs/paged_2") < first.index("/studio/jobs/paged_1")
    assert "/studio/jobs/paged_0" not in first
    older = first.partition('href="/studio/jobs?after=')[2].partition('"')[0]
    second = browser.get(f"/studio/jobs?after={older}").text
    assert "/studio/jobs/paged_0" in second and "/studio/jobs/paged_1" not in second
    assert 'href="/studio/jobs">Newest' in second
    assert browser.get("/studio/jobs?after=1").text.count("No older job") == 1
    assert 'href="/studio/jobs">All jobs' in browser.get("/studio").text


def test_no_page_runs_a_script_or_is_kept(browser, put_job):
    put_job("strict", spec=jobs.Command(command="<script>alert(1)</script>"))
    for path in ("/login", "/studio", "/studio/jobs", "/studio/jobs/strict", "/studio/what"):
        answer = browser.get(path)
        assert "<script" not in answer.text
        policy = answer.headers["content-security-policy"]
        assert "script-src 'none'" in policy and "default-src 'self'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert "http" not in "".join(answer.text.partition("<main>")[0].split("http-equiv"))
