"""Sweep jobs over the wire, and sweeps as steps.  Nothing runs here."""

from __future__ import annotations

import math
from typing import Any

import pytest
from starlette.testclient import TestClient

from finery.core import jobs
from finery.core.jobs import Input, Pipeline, Sweep
from finery.core.work import Stopping
from finery.doors.azureml import sweeps
from finery.doors.http import House

from .conftest import WS
from .test_jobs import COMPONENT, Put, client, put, refused  # noqa: F401  (fixtures)

DEEP = {"kind": "net", "width": ["quniform", [8, 64, 8]]}
SPACE = {"lr": ["loguniform", [-6, -1]], "model": ["choice", [["tree", 2, DEEP]]]}
SWEEP: dict[str, Any] = {
    "properties": {
        "jobType": "Sweep",
        "searchSpace": SPACE,
        "samplingAlgorithm": {
            **{"samplingAlgorithmType": "Random", "rule": "sobol"},
            **{"seed": 3, "logbase": 10},
        },
        "limits": {
            **{"jobLimitsType": "Sweep", "maxTotalTrials": 4, "maxConcurrentTrials": 2},
            **{"timeout": "PT7200S", "trialTimeout": "PT60S"},
        },
        "earlyTermination": {"policyType": "Bandit", "slackFactor": 0.1, "delayEvaluation": 2},
        "objective": {"goal": "Maximize", "primaryMetric": "acc"},
        "trial": {
            "command": "try ${{search_space.lr}} ${{search_space.model}} ${{inputs.epochs}}",
            "environmentId": "env@latest",
            "environmentVariables": {"A": "b"},
            "distribution": {"distributionType": "PyTorch", "processCountPerInstance": 2},
        },
        "resources": {"instanceCount": 1, "shmSize": "4g"},
        "inputs": {"epochs": {"jobInputType": "literal", "value": "3"}},
        "outputs": {"made": {"jobOutputType": "uri_folder", "assetName": "kept"}},
        "computeId": f"{WS}/computes/cpu",
        "isArchived": False,
    }
}


def test_a_sweep_is_written_down_in_our_words(put: Put, home: House):  # noqa: F811
    assert put(SWEEP).status_code == 201
    sweep = jobs.get(home.store, "j").spec
    assert isinstance(sweep, Sweep)
    assert sweep.space == {
        "lr": ["loguniform", [-6, -1]],
        "model": ["choice", ["tree", 2, DEEP]],
    }
    assert (sweep.rule, sweep.seed, sweep.logbase) == ("sobol", 3, 10)
    assert (sweep.most, sweep.at_once, sweep.timeout, sweep.trial.timeout) == (4, 2, 7200, 60)
    assert sweep.stopping == Stopping(rule="bandit", factor=0.1, delay=2)
    assert (sweep.metric, sweep.goal) == ("acc", "maximize")
    trial = sweep.trial
    assert trial.command == "try ${{inputs.lr}} ${{inputs.model}} ${{inputs.epochs}}"
    assert (trial.ranks, trial.shm_size, trial.env) == (2, "4g", {"A": "b"})
    assert (trial.inputs, trial.outputs["made"].asset) == ({"epochs": Input(value="3")}, "kept")


def test_a_sweep_comes_back_as_it_went(put: Put, client: TestClient):  # noqa: F811
    put(SWEEP)
    shown = client.get(f"{WS}/jobs/j").json()["properties"]
    sent = SWEEP["properties"]
    for field in ("jobType", "searchSpace", "limits", "objective"):
        assert shown[field] == sent[field]
    assert shown["samplingAlgorithm"] == {**sent["samplingAlgorithm"], "rule": "Sobol"}
    assert shown["trial"]["command"] == sent["trial"]["command"]
    assert shown["earlyTermination"]["slackFactor"] == 0.1
    # Sent again, as the SDK does to change a tag, it is the same job.
    assert put(SWEEP, tags={"t": "1"}).json()["properties"]["tags"] == {"t": "1"}
    refused(put(SWEEP, trial__command="another"), 409)


def test_the_best_trial_is_shown_as_clients_look_for_it(
    put: Put,  # noqa: F811
    client: TestClient,  # noqa: F811
    home: House,
):
    put(SWEEP)
    jobs.update(home.store, "j", reused="j_1", properties={"finery.score": "0.5", "own": "x"})
    shown = client.get(f"{WS}/jobs/j").json()["properties"]["properties"]
    assert (shown["best_child_run_id"], shown["score"], shown["own"]) == ("j_1", "0.5", "x")
    assert "azureml.isreused" not in shown
    put(SWEEP, properties={**shown, "score": "9", "finery.score": "9"})
    assert jobs.get(home.store, "j").properties == {"finery.score": "0.5", "own": "x"}


@pytest.mark.parametrize(
    "field, value, target",
    [
        ("searchSpace", {}, "search_space"),
        ("searchSpace", {"lr": ["lognormalish", [0, 1]]}, "search_space.lr"),
        ("searchSpace", {"lr": 7}, "search_space.lr"),
        ("searchSpace", {"not a name": ["uniform", [0, 1]]}, "search_space.not a name"),
        ("searchSpace", {"lr": ["uniform", [0, 1]]}, "inputs.model"),
        ("samplingAlgorithm", {"samplingAlgorithmType": "Magic"}, "sampling_algorithm"),
        ("samplingAlgorithm__rule", "halton", "sampling_algorithm"),
        ("samplingAlgorithm__logbase", -1, "sampling_algorithm.logbase"),
        ("objective", {"goal": "Maximize"}, "objective.primary_metric"),
        ("objective__goal", "explain", "objective.goal"),
        ("limits__maxTotalTrials", 100000, "limits.max_total_trials"),
        ("limits__maxTotalTrials", "many", "limits.max_total_trials"),
        ("earlyTermination", {"policyType": "Bandit"}, "early_termination"),
        ("trial__command", "", "command"),
        ("trial__environmentId", "nowhere@latest", "environmentId"),
        ("resources__shmSize", "plenty", "resources.shm_size"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_by_the_field(
    put: Put,  # noqa: F811
    field: str,
    value: Any,
    target: str,
):
    assert refused(put(SWEEP, **{field: value}))[0] == target


def test_what_azure_would_refuse_is_warned_of(put: Put, home: House):  # noqa: F811
    assert put(SWEEP, samplingAlgorithm={"samplingAlgorithmType": "Bayesian"}).status_code == 201
    first, second = jobs.get(home.store, "j").warnings
    assert "Azure's Bayesian sampling takes only choice" in first and "lr" in first
    assert "early_termination" in second


def deep(levels: int) -> list[Any]:
    return ["choice", [[{"x": deep(levels - 1)}]]] if levels else ["uniform", [0, 1]]


@pytest.mark.parametrize(
    "values",
    [
        {"lr": deep(7)},
        {"lr": ["choice", [[{"a b": 1}]]]},
        {"lr": ["choice", [[10**30]]]},
        {"lr": ["uniform", [0, 10**30]]},
        {"lr": ["choice", "abc"]},
        {"lr": ["choice", [None]]},
        {"lr": ["randint", [None]]},
        {"lr": {"type": "uniform", "from": 1}},
        {f"x{n}": ["uniform", [0, 1]] for n in range(500)},
    ],
)
def test_a_hostile_space_is_refused_and_nothing_breaks(put: Put, values: Any):  # noqa: F811
    model = {"model": SPACE["model"]}
    answer = put(SWEEP, searchSpace={**values, **model})
    assert answer.status_code in (201, 400, 501), answer.text


@pytest.mark.parametrize("seed", [10**30, -5, "x"])
def test_any_seed_is_taken_or_refused(put: Put, seed: Any):  # noqa: F811
    assert put(SWEEP, samplingAlgorithm__seed=seed).status_code in (201, 400)


STEP = {
    "type": "sweep",
    "trial": {"componentId": COMPONENT},
    "inputs": {"data": {"job_input_type": "literal", "value": "${{parent.inputs.data}}"}},
    "outputs": {"out": {"value": "${{parent.outputs.best}}", "type": "literal"}},
    "search_space": {
        "n": {"type": "randint", "upper": 9},
        "kind": {"type": "choice", "values": ["x", "y"]},
    },
    "sampling_algorithm": {"type": "random", "rule": "random", "seed": 4, "logbase": math.e},
    "objective": {"goal": "minimize", "primary_metric": "loss"},
    "limits": {"max_total_trials": 3, "max_concurrent_trials": 1, "trial_timeout": 60},
    "early_termination": {
        **{"policy_type": "MedianStopping", "delay_evaluation": 1, "evaluation_interval": 1},
    },
}
WITH_STEP: dict[str, Any] = {
    "properties": {
        "jobType": "Pipeline",
        "inputs": {
            "data": {
                "jobInputType": "uri_folder",
                "uri": "azureml://datastores/workspaceblobstore/paths/data",
            },
        },
        "outputs": {"best": {"jobOutputType": "uri_folder"}},
        "jobs": {"tune": STEP},
    }
}


def test_a_step_may_be_a_sweep_and_comes_back_as_it_went(
    put: Put,  # noqa: F811
    client: TestClient,  # noqa: F811
    home: House,
):
    answer = put(WITH_STEP)
    assert answer.status_code == 201, answer.text
    pipeline = jobs.get(home.store, "j").spec
    assert isinstance(pipeline, Pipeline)
    step = pipeline.steps["tune"]
    assert step.sweep is not None and step.timeout == 60
    assert step.sweep["space"] == {"n": ["randint", [9]], "kind": ["choice", ["x", "y"]]}
    shown = client.get(f"{WS}/jobs/j").json()["properties"]["jobs"]["tune"]
    for field in ("trial", "search_space", "sampling_algorithm", "objective", "limits"):
        assert shown[field] == STEP[field]
    assert shown["early_termination"]["policy_type"] == "MedianStopping"


def test_a_step_cannot_try_what_its_component_does_not_have(put: Put):  # noqa: F811
    space = {"nothing": {"type": "uniform", "min_value": 0, "max_value": 1}}
    target, said = refused(put(WITH_STEP, jobs__tune__search_space=space))
    assert (target, "has no input 'nothing'" in said) == ("jobs.tune.search_space.nothing", True)


def test_a_space_is_read_in_both_spellings():
    spelled = {"lr": {"type": "normal", "mu": 1, "sigma": 2}, "m": STEP["search_space"]["kind"]}
    listed = {"lr": ["normal", [1, 2]], "m": ["choice", [["x", "y"]]]}
    assert sweeps.space_in(spelled) == sweeps.space_in(listed)
