"""Sweeps: what comes next, what is ended early, what is the best; no process is started."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from finery.core import assets, jobs, sweeps
from finery.core.assets import Asset
from finery.core.errors import Invalid
from finery.core.jobs import Command, Input, Output, Pipeline, Step
from finery.core.work import Stopping, Sweep

SWEEP = Sweep(
    trial=Command(
        command="try ${{inputs.x}} ${{outputs.made}}", outputs={"made": Output(asset="kept")}
    ),
    space={"x": ["choice", ["a", "b", "c"]]},
    metric="loss",
    goal="minimize",
    rule="grid",
    most=10,
    at_once=2,
)


@pytest.fixture
def paced(monkeypatch):
    """Sweeps are looked at whenever a test ticks."""
    monkeypatch.setattr("finery.core.exploring._PAUSE", 0.0)
    monkeypatch.setattr("finery.core.exploring._REST", 0)


@pytest.fixture
def house(house, paced):
    return house


def trials(house, parent="s"):
    return {child.name: child for child in jobs.children(house.store, parent)}


def statuses(house):
    return {name: child.status for name, child in trials(house).items()}


def ends(house, trial, *values, code=0):
    house.tracking.logged[trial] = {"loss": list(values)}
    house.engine.exits(f"job-{trial}", code)


def test_a_sweep_tries_every_value_two_at_a_time_and_keeps_the_best(house):
    house.submit("s", spec=SWEEP, experiment="e", tags={"t": "1"})
    house.tick(5)
    assert statuses(house) == {"s_0": "running", "s_1": "running"}
    first = trials(house)["s_0"]
    assert (first.experiment, first.root, first.tags) == ("e", "s", {"t": "1"})
    assert first.spec.inputs == {"x": Input(value="a")}
    assert house.engine.started["job-s_1"].command[-1].startswith("try b /")
    ends(house, "s_0", 3.0, 1.0, 2.0)
    house.tick(6)
    assert statuses(house) == {"s_0": "completed", "s_1": "running", "s_2": "running"}
    so_far = jobs.get(house.store, "s")
    assert (so_far.reused, so_far.properties[sweeps.SCORE]) == ("s_0", "1.0")
    ends(house, "s_1", 0.5)
    ends(house, "s_2", 7.0, code=1)
    house.tick(8)
    done = jobs.get(house.store, "s")
    assert (done.status, done.reused, done.properties[sweeps.SCORE]) == ("completed", "s_1", "0.5")
    assert done.outputs == trials(house)["s_1"].outputs
    assert {name: one.properties[sweeps.SCORE] for name, one in trials(house).items()} == {
        "s_0": "1.0",
        "s_1": "0.5",
        "s_2": "7.0",  # it failed: it is not the best whatever it logged
    }


def test_what_the_best_trial_has_made_is_registered_once(house, files):
    house.submit("s", spec=replace(SWEEP, most=1))
    house.tick(4)
    files.path("w", "workspaceblobstore", "azureml/s_0/made").joinpath("f").write_text("x")
    ends(house, "s_0", 1.0)
    house.tick(8)
    assert house.status("s") == "completed"
    kept = assets.get(house.store, "w", "data", "kept")
    assert kept.location == "file:workspaceblobstore/azureml/s_0/made"


def test_two_trials_never_write_to_one_place():
    output = Output(location="file:workspaceblobstore/there")
    spec = replace(SWEEP, trial=replace(SWEEP.trial, outputs={"made": output}))
    parent = jobs.Job(name="s", workspace="w", spec=spec)
    one = sweeps.trial(parent, [], None)
    two = sweeps.trial(parent, [one], None)
    places = [trial.spec.outputs["made"].location for trial in (one, two)]
    assert places == [f"file:workspaceblobstore/there/s_{n}" for n in (0, 1)]


@pytest.mark.parametrize("rule", ["random", "grid"])
def test_the_same_trial_is_proposed_after_an_interruption(rule):
    space = {"x": ["choice", list(range(50))]}
    parent = jobs.Job(name="s", workspace="w", spec=replace(SWEEP, space=space, rule=rule))
    found = [sweeps.trial(parent, [parent] * n, None) for n in range(20)]
    again = [sweeps.trial(parent, [parent] * n, None) for n in range(20)]
    assert [one.spec for one in found] == [one.spec for one in again]
    assert len({one.spec.inputs["x"].value for one in found}) > 10


def test_a_seed_makes_two_sweeps_the_same_and_no_seed_does_not():
    space = {"x": ["uniform", [0, 1]]}

    def drawn(name, seed):
        spec = replace(SWEEP, space=space, rule="random", seed=seed)
        return sweeps.trial(jobs.Job(name=name, workspace="w", spec=spec), [], None).spec.point

    assert drawn("s", 3) == drawn("t", 3) != drawn("s", 4)
    assert drawn("s", None) != drawn("t", None)


def test_a_sampler_is_told_what_the_rows_say_and_nothing_else(house):
    space = {"x": ["uniform", [0, 10]]}
    house.submit("s", spec=replace(SWEEP, space=space, rule="bayesian", at_once=1))
    house.tick(4)
    ends(house, "s_0", 4.0)
    house.restart()
    house.tick(6)
    assert house.sampler.told == [({"x": 0.5}, 4.0)]
    assert trials(house)["s_1"].spec.inputs["x"].value == "5.0"


def test_a_restart_between_any_two_steps_runs_nothing_twice(house):
    house.submit("s", spec=SWEEP)
    for _ in range(40):
        house.restart()
        house.tick()
        for id in house.engine.alive:
            ends(house, id.removeprefix("job-"), 1.0)
    assert statuses(house) == dict.fromkeys(["s_0", "s_1", "s_2"], "completed")
    assert (house.status("s"), len(house.engine.started)) == ("completed", 3)
    assert jobs.get(house.store, "s").reused == "s_0"  # of equals the first


def test_a_cancelled_sweep_cancels_its_trials(house):
    house.submit("s", spec=SWEEP)
    house.tick(5)
    jobs.cancel(house.store, "s")
    house.tick(6)
    assert house.status("s") == "cancelled"
    assert set(statuses(house).values()) == {"cancelled"} and not house.engine.alive


def test_a_sweep_past_its_time_is_cancelled_and_says_so(house, store):
    house.submit("s", spec=replace(SWEEP, timeout=60))
    house.tick(5)
    ends(house, "s_0", 1.0)
    house.tick(3)
    job = jobs.get(store, "s")
    jobs.update(store, "s", started_at=job.started_at - timedelta(seconds=61))
    house.tick(8)
    job = jobs.get(store, "s")
    assert (job.status, job.reused) == ("cancelled", "s_0")
    assert job.warnings == ["cancelled: it ran past its 60 s"]
    assert not house.engine.alive


def test_a_sweep_whose_trials_all_fail_fails_with_the_first_reason_and_gives_up(house):
    space = {"x": ["choice", list(range(100))]}
    house.submit("s", spec=replace(SWEEP, space=space, most=100))
    for _ in range(30):
        house.tick()
        for id in house.engine.alive:
            house.engine.exits(id, 1, said="no module named torch")
    assert house.status("s") == "failed"
    assert "s_0 failed: no module named torch" in house.error("s")
    assert f"given up after {len(trials(house))}" in house.error("s")
    assert len(trials(house)) < 10


def test_a_sweep_does_not_take_another_job_for_its_trial(house):
    house.submit("s_0")
    house.submit("s", spec=SWEEP)
    house.tick(5)
    assert house.status("s") == "failed"
    assert house.error("s") == "its trial cannot be called 's_0': another job is"


def test_a_metric_that_nobody_logs_is_said(house):
    house.submit("s", spec=replace(SWEEP, most=1))
    house.tick(4)
    house.engine.exits("job-s_0")
    house.tick(8)
    job = jobs.get(house.store, "s")
    assert (job.status, job.reused) == ("completed", None)
    assert "it has not logged the metric 'loss'" in job.warnings[0]


def step(store, **given):
    """A step that tries the input `x` of a component, and one that reads what the best has made."""
    port = {"type": "string", "optional": False}
    made = {"made": {"type": "uri_folder"}}
    tried = kept(store, "tried", "try ${{inputs.x}} ${{outputs.made}}", {"x": port}, made)
    data = {"d": {"type": "uri_folder", "optional": False}}
    reads = kept(store, "reads", "read ${{inputs.d}}", data, {})
    options = {key: value for key, value in vars(replace(SWEEP, most=2)).items() if key != "trial"}
    return Pipeline(
        steps={
            "tune": Step(component=tried, sweep=options),
            "read": Step(
                component=reads, inputs={"d": Input(value="${{parent.jobs.tune.outputs.made}}")}
            ),
        },
        **given,
    )


def kept(store, name, command, inputs, outputs):
    spec = {
        **{"kind": "command", "command": command, "code": "", "environment": "", "env": {}},
        **{"inputs": inputs, "outputs": outputs, "distribution": "", "ranks": "", "nodes": ""},
        **{"shm_size": "", "timeout": None, "deterministic": True},
    }
    return assets.create(store, Asset(scope="w", kind="component", name=name, spec=spec)).ref


def test_a_sweep_in_a_pipeline_gives_the_next_step_what_its_best_trial_has_made(house, store):
    house.submit("p", spec=step(store))
    house.tick(8)
    (tune,) = house.steps("p").values()
    assert (tune.step, tune.kind, tune.root) == ("tune", "sweep", "p")
    ends(house, f"{tune.name}_0", 2.0)
    ends(house, f"{tune.name}_1", 1.0)
    house.tick(16)
    read = house.steps("p")["read"]
    assert house.steps("p")["tune"].reused == f"{tune.name}_1"
    line = house.engine.started[f"job-{read.name}"].command[-1]
    assert line.endswith(f"/azureml/{tune.name}_1/made")
    house.engine.exits(f"job-{read.name}")
    house.tick(8)
    assert house.status("p") == "completed"


def test_a_cancelled_pipeline_cancels_the_trials_of_its_sweep(house, store):
    house.submit("p", spec=step(store))
    house.tick(8)
    jobs.cancel(store, "p")
    house.tick(12)
    assert house.status("p") == "cancelled" and not house.engine.alive


# -- early termination -----------------------------------------------------------------


def stopped(stopping, curves, *, goal="maximize", going=None):
    spec = replace(SWEEP, goal=goal, stopping=stopping)
    return sweeps.stopped(spec, curves, going or list(curves))


CURVES = {"a": [1.0, 2.0, 4.0], "b": [1.0, 1.5, 1.8], "c": [3.0, 3.5, 3.7]}


def test_a_bandit_ends_what_is_further_behind_than_the_slack():
    assert stopped(Stopping(rule="bandit", factor=0.2), CURVES) == ["b"]
    assert stopped(Stopping(rule="bandit", amount=0.1), CURVES) == ["b", "c"]
    assert stopped(Stopping(rule="bandit", amount=3), CURVES) == []


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
@pytest.mark.parametrize("best, near, far", [(-1.0, -1.05, -1.5), (1.0, 0.95, 0.5)])
def test_a_bandit_never_ends_the_leader_whatever_its_sign(goal, best, near, far):
    sign = 1 if goal == "maximize" else -1
    curves = {"best": [sign * best], "near": [sign * near], "far": [sign * far]}
    assert stopped(Stopping(rule="bandit", factor=0.1), curves, goal=goal) == ["far"]


def test_a_trial_is_looked_at_at_its_intervals_and_after_the_delay():
    slow = {"lead": [9.0] * 5, "late": [1.0] * 3}
    every = Stopping(rule="bandit", amount=1, interval=2)
    assert stopped(every, slow, going=["late"]) == ["late"]
    assert stopped(replace(every, delay=3), slow, going=["late"]) == []
    assert stopped(replace(every, interval=4), slow, going=["late"]) == []
    assert stopped(every, {"lead": [9.0], "late": [1.0, 1.0]}, going=["late"]) == []


def test_the_median_of_running_averages_is_the_bar():
    assert stopped(Stopping(rule="median"), CURVES) == ["b"]
    assert stopped(Stopping(rule="median"), {"only": [1.0]}) == []


def test_truncation_ends_a_share_of_the_worst():
    curves = {str(n): [float(n)] for n in range(10)}
    assert stopped(Stopping(rule="truncation", percent=20), curves) == ["0", "1"]
    assert stopped(Stopping(rule="truncation", percent=20), curves, going=["1", "9"]) == ["1"]
    assert stopped(Stopping(rule="truncation", percent=20), curves, goal="minimize") == ["8", "9"]


def test_what_is_no_number_is_behind_everything():
    curves = {"lost": [float("nan")] * 2, "b": [1.0, 1.0]}
    assert stopped(Stopping(rule="bandit", factor=0.5), curves) == ["lost"]


def test_a_trial_that_is_behind_is_really_ended(house):
    spec = replace(SWEEP, stopping=Stopping(rule="bandit", factor=0.1))
    house.submit("s", spec=spec)
    house.tick(5)
    house.tracking.logged = {"s_0": {"loss": [1.0]}, "s_1": {"loss": [5.0]}}
    house.tick(6)
    assert statuses(house) == {"s_0": "running", "s_1": "cancelled", "s_2": "running"}
    assert trials(house)["s_1"].warnings == ["ended early by the bandit policy"]


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed, target",
    [
        ({"space": {}}, "search_space"),
        ({"space": {"x": ["uniform", [0, 1]]}}, "search_space.x"),
        ({"metric": ""}, "objective.primary_metric"),
        ({"most": 0}, "limits.max_total_trials"),
        ({"at_once": 1001}, "limits.max_concurrent_trials"),
        ({"stopping": Stopping(rule="bandit")}, "early_termination"),
        ({"stopping": Stopping(rule="truncation", percent=0)}, "early_termination"),
        ({"trial": Command(command="x", inputs={"x": Input(value="1")})}, "search_space.x"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_with_the_field(changed, target):
    sweeps.check(SWEEP, "s")
    with pytest.raises(Invalid) as caught:
        sweeps.check(replace(SWEEP, **changed), "s")
    assert caught.value.target == target
