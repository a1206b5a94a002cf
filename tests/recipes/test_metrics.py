"""Metrics reach both runs once, and a tracking server that is gone costs a warning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finery.recipes import metrics
from finery.recipes.metrics import Reporter

Until = Callable[..., Any]


class Tracking:
    """Takes batches as the client does; fails as often as told."""

    def __init__(self, *, failures: int = 0, failing: str = "") -> None:
        self.failures, self.failing = failures, failing
        self.points: list[tuple[str, str, float, int]] = []
        self.params: list[tuple[str, str, str]] = []
        self.tags: dict[tuple[str, str], str] = {}
        self.calls = 0
        self.files: list[tuple[str, str, str]] = []
        self.full = False

    def log_artifact(self, run: str, path: str, folder: str) -> None:
        if self.full:
            raise OSError("no room for pictures")
        self.files.append((run, path, folder))

    def log_batch(self, run: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
        self.calls += 1
        if self.failures and self.failing in ("", run):
            self.failures -= 1
            raise ConnectionError("nobody answers\nat all")
        self.points += [(run, m.key, m.value, m.step) for m in metrics]
        self.params += [(run, p.key, p.value) for p in params]
        self.tags.update({(run, t.key): t.value for t in tags})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "INTERVAL", 0.01)


def test_each_metric_reaches_both_runs_once() -> None:
    tracking = Tracking()
    reporter = Reporter(client=tracking, runs=["step", "root"])
    reporter.describe(params={"rate": 0.1}, tags={"score": 1})
    reporter.log({"loss": 2.0, "note": "text", "flag": True, "bad": float("nan")}, step=1)
    reporter.log({"loss": 3.0, "other": 1}, step=1)
    reporter.close()
    wanted = [
        (run, key, value, 1)
        for run in ("step", "root")
        for key, value in (("loss", 2.0), ("other", 1.0))
    ]
    assert sorted(tracking.points) == sorted(wanted)
    assert tracking.params == [("step", "rate", "0.1")]
    assert tracking.tags == {("step", "score"): "1", ("root", "score"): "1"}


def test_a_file_reaches_both_runs_once_and_one_that_fails_holds_up_no_number(
    until: Until, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = Tracking()
    reporter = Reporter(client=tracking, runs=["step", "root"])
    reporter.file(Path("sheet.png"), "samples")
    until(lambda: len(tracking.files) == 2)
    assert tracking.files == [(run, "sheet.png", "samples") for run in ("step", "root")]
    tracking.full = True
    reporter.file(Path("other.png"), "samples")
    reporter.log({"loss": 1.0}, step=1)
    reporter.close()
    assert sorted(tracking.points) == [("root", "loss", 1.0, 1), ("step", "loss", 1.0, 1)]
    assert capsys.readouterr().out.count("no room for pictures") == 1


def test_a_run_that_failed_gets_its_own_again_and_the_other_nothing_twice(until: Until) -> None:
    tracking = Tracking(failures=2, failing="root")
    reporter = Reporter(client=tracking, runs=["step", "root"])
    reporter.log({"loss": 2.0}, step=1)
    until(lambda: len(tracking.points) == 2)
    reporter.close()
    assert sorted(tracking.points) == [("root", "loss", 2.0, 1), ("step", "loss", 2.0, 1)]


def test_many_points_go_in_few_calls() -> None:
    tracking = Tracking()
    reporter = Reporter(client=tracking, runs=["step"])
    for step in range(2500):
        reporter.log({"loss": 1.0}, step=step)
    reporter.close()
    assert len(tracking.points) == 2500
    assert tracking.calls < 250


def test_a_server_that_is_gone_costs_a_warning(
    capsys: pytest.CaptureFixture[str], until: Until
) -> None:
    tracking = Tracking(failures=10**6)
    reporter = Reporter(client=tracking, runs=["step"])
    reporter.log({"loss": 2.0}, step=1)
    until(lambda: tracking.calls)
    reporter.close(wait=5)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "warning: MLflow cannot be reached: nobody answers"
    assert said[-1] == "warning: 1 metrics did not reach MLflow (nobody answers)"


def test_without_runs_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "FINERY_ROOT_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    reporter = Reporter()
    reporter.log({"loss": 1.0}, step=1)
    assert reporter.thread is None
    reporter.close()


def test_the_environment_names_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_RUN_ID", "a")
    monkeypatch.setenv("FINERY_ROOT_RUN_ID", "b")
    assert list(Reporter().waiting) == ["a", "b"]
    monkeypatch.setenv("FINERY_ROOT_RUN_ID", "a")
    assert list(Reporter().waiting) == ["a"]
    monkeypatch.setenv("RANK", "1")
    assert list(Reporter().waiting) == []


def test_the_line_says_how_far_how_well_how_fast_and_how_long() -> None:
    line = metrics.line(
        {"loss": 1.25, "learning_rate": 5e-6}, step=45, steps=90, speed=5123.4, left=3725
    )
    assert (
        line
        == " 50% ██████████░░░░░░░░░░ 45/90  loss 1.2500  learning_rate 5.00e-06  5,123 tok/s  1:02:05 left"
    )
