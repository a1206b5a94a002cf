"""Sweep jobs, as Azure writes them and as we do: `sweep_in`, `sweep_out`.

A search space comes in two spellings: a job writes `["uniform", [0, 1]]`, a step
of a pipeline `{"type": "uniform", "min_value": 0, "max_value": 1}`; both are read
here.  Whether a sweep makes sense is the core's question (`core/sweeps.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from finery.core import ids, spaces, sweeps, work
from finery.core.errors import Invalid, NotSupported
from finery.core.jobs import Command, Job, Sweep
from finery.core.work import Stopping
from finery.core.workspaces import Workspace
from finery.doors.azureml import commands, durations, ports, wire
from finery.doors.http import House

FIELDS = (
    "searchSpace",
    "samplingAlgorithm",
    "limits",
    "earlyTermination",
    "objective",
    "trial",
    "inputs",
    "outputs",
    "resources",
)
RESULTS = (  # properties that a sweep has
    *("runTemplate", "primary_metric_config", "score"),
    *("best_child_run_id", "best_data_container_id", "best_metric_status"),
)
_TRIAL = ("codeId", "command", "environmentId", "environmentVariables", "distribution", "resources")
_LIMITS = (
    *("jobLimitsType", "type", "maxTotalTrials", "maxConcurrentTrials"),
    *("timeout", "trialTimeout"),
)
_POLICY = (
    *("policyType", "type", "delayEvaluation", "evaluationInterval"),
    *("slackFactor", "slackAmount", "truncationPercentage"),
)
_POLICIES = {
    "bandit": "Bandit",
    "median": "MedianStopping",
    "truncation": "TruncationSelection",
}
_SAMPLING = {"random": "Random", "sobol": "Random", "grid": "Grid", "bayesian": "Bayesian"}
_DEEPEST = 5  # choices inside of choices
_MOST = 1000  # trials, where no limit is given: Azure's own
# What Azure's Bayesian sampling takes; ours takes them all.
_BAYESIAN = ("choice", "uniform", "quniform")
_PLACE = re.compile(r"\$\{\{\s*search_space\.([^}\s]+?)\s*\}\}")


def sweep_in(
    house: House, workspace: Workspace, name: str, props: Mapping[str, Any]
) -> tuple[Sweep, dict[str, Any], list[str]]:
    """Return the sweep, what is only echoed, and what the user should be warned of."""
    trial = wire.mapping(props.get("trial"), "trial")
    wire.refuse_unknown(trial, _TRIAL, "trial")
    limits = ports.camels(props.get("limits"), "limits")
    command, extras, warnings = commands.command_in(
        house,
        workspace,
        name,
        {
            **trial,
            "command": trial_command(wire.text(trial.get("command"), "trial.command")),
            "inputs": props.get("inputs"),
            "outputs": props.get("outputs"),
            "resources": trial.get("resources") or props.get("resources"),
            "limits": {"timeout": limits.get("trialTimeout")},
        },
    )
    options = options_in(props)
    return Sweep(trial=command, **options), extras, [*warnings, *_warnings(options)]


def options_in(props: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of a sweep but its trial, as the fields of `core.work.Sweep`."""
    props = ports.camels(props, "sweep")
    objective = ports.camels(props.get("objective"), "objective")
    wire.refuse_unknown(objective, ("goal", "primaryMetric", "type"), "objective")
    goal = str(objective.get("goal") or "").lower()
    if goal not in ("maximize", "minimize"):
        raise Invalid(f"the goal is {goal!r}; it is maximize or minimize", target="objective.goal")
    sampling, policy = props.get("samplingAlgorithm"), props.get("earlyTermination")
    return {
        "space": space_in(props.get("searchSpace")),
        "metric": wire.text(objective.get("primaryMetric"), "objective.primaryMetric"),
        "goal": goal,
        **_sampling_in({"type": sampling} if isinstance(sampling, str) else sampling),
        **_limits_in(ports.camels(props.get("limits"), "limits")),
        "stopping": _policy_in({"type": policy} if isinstance(policy, str) else policy),
    }


def trial_command(text: str) -> str:
    """Return a trial's command as ours: what is sampled is an input like the others."""
    return _PLACE.sub(r"${{inputs.\1}}", text)


def sweep_out(workspace: Workspace, job: Job) -> dict[str, Any]:
    """Return what only sweep jobs have."""
    sweep = job.spec
    assert isinstance(sweep, Sweep)
    trial = commands.command_parts_out(workspace, sweep.trial, job.extras)
    resources = trial["resources"]
    for name in sweep.space:
        place = rf"\$\{{\{{\s*inputs\.{re.escape(name)}\s*\}}\}}"
        trial["command"] = re.sub(place, f"${{{{search_space.{name}}}}}", trial["command"])
    return {
        "trial": {key: trial[key] for key in _TRIAL},
        "resources": resources,
        "searchSpace": {name: distribution_out(value) for name, value in sweep.space.items()},
        "objective": {"goal": sweep.goal.capitalize(), "primaryMetric": sweep.metric},
        "samplingAlgorithm": _sampling_out(sweep),
        "limits": _limits_out(sweep),
        "earlyTermination": _policy_out(sweep.stopping),
    }


def step_out(component: str, sweep: Mapping[str, Any], timeout: float | None) -> dict[str, Any]:
    """Return what a step has that is a sweep, in the spelling of steps."""
    options = work.sweep_of(sweep, Command(command="", timeout=timeout))
    rule = "random" if options.rule == "sobol" else options.rule
    sampling: dict[str, Any] = {"type": rule}
    if rule == "random":
        sampling |= {"rule": options.rule, "seed": options.seed, "logbase": options.logbase}
    limits = {"max_total_trials": options.most, "max_concurrent_trials": options.at_once}
    times = {"timeout": options.timeout, "trial_timeout": timeout}
    node = {
        "type": "sweep",
        "trial": {"componentId": component},
        "search_space": {name: _spelled_out(value) for name, value in options.space.items()},
        "sampling_algorithm": {key: value for key, value in sampling.items() if value is not None},
        "objective": {"goal": options.goal, "primary_metric": options.metric},
        "limits": limits | {key: int(value) for key, value in times.items() if value},
    }
    if policy := _policy_out(options.stopping):
        snake = {re.sub(r"([A-Z])", r"_\1", key).lower(): value for key, value in policy.items()}
        node["early_termination"] = snake
    return node


def _spelled_out(distribution: list[Any]) -> dict[str, Any]:
    kind, given = distribution
    if kind != "choice":
        return {"type": kind, **dict(zip(spaces.KINDS[kind], given, strict=True))}
    values = [
        {
            key: _spelled_out(inner) if spaces.is_distribution(inner) else inner
            for key, inner in value.items()
        }
        if isinstance(value, Mapping)
        else value
        for value in given
    ]
    return {"type": kind, "values": values}


def results_out(job: Job) -> dict[str, str]:
    """Return what a sweep has found so far, as the properties that clients look for."""
    sweep = job.spec
    if not isinstance(sweep, Sweep):
        return {}
    config = {"name": sweep.metric, "goal": sweep.goal}
    found = {"runTemplate": "HyperDrive", "primary_metric_config": json.dumps(config)}
    if job.reused:
        found |= {
            "best_child_run_id": job.reused,
            "best_data_container_id": f"dcid.{job.reused}",
            "best_metric_status": "Succeeded",
            "score": job.properties.get(sweeps.SCORE, ""),
        }
    return found


def space_in(given: Any) -> dict[str, list[Any]]:
    """Return a search space as the core keeps it."""
    found = {}
    for name, distribution in wire.mapping(given, "search_space").items():
        ids.port(name, target=f"search_space.{name}")
        found[name] = _distribution_in(distribution, f"search_space.{name}")
    return found


def _distribution_in(given: Any, where: str, depth: int = 0) -> list[Any]:
    if depth > _DEEPEST:
        raise Invalid(f"{where}: choices in choices go {_DEEPEST} deep at most", target=where)
    kind, numbers = _split(given, where)
    if kind not in spaces.KINDS:
        raise Invalid(
            f"{where} is of type {kind!r}; these are known: {', '.join(spaces.KINDS)}",
            target=where,
        )
    if kind != "choice":
        return [kind, numbers]
    if len(numbers) == 1 and isinstance(numbers[0], list):
        numbers = numbers[0]
    return [kind, [_choice_in(value, f"{where}.{n}", depth) for n, value in enumerate(numbers)]]


def _split(given: Any, where: str) -> tuple[str, list[Any]]:
    """Return a distribution's kind and its numbers (or values), in either spelling."""
    if isinstance(given, Mapping):
        kind = str(given.get("type") or "").lower()
        names = spaces.KINDS.get(kind, ())
        wire.refuse_unknown(given, ("type", *(names or ("values",))), where)
        if kind == "choice":
            return kind, list(given.get("values") or [])
        return kind, [given.get(name) for name in names]
    if isinstance(given, list) and len(given) == 2 and isinstance(given[1], list):
        return str(given[0]).lower(), list(given[1])
    raise Invalid(f"{where} is {str(given)[:60]!r}, which is no distribution", target=where)


def _choice_in(value: Any, where: str, depth: int) -> Any:
    """Return a value of a choice; the distributions inside an object are read too."""
    if not isinstance(value, Mapping):
        return value
    found = {}
    for key, inner in value.items():
        here = f"{where}.{ids.port(key, target=where)}"
        drawn = _is_distribution(inner)
        found[key] = _distribution_in(inner, here, depth + 1) if drawn else inner
    return found


def _is_distribution(value: Any) -> bool:
    if isinstance(value, Mapping):
        return str(value.get("type")).lower() in spaces.KINDS
    return spaces.is_distribution(value)


def distribution_out(distribution: list[Any]) -> list[Any]:
    kind, given = distribution
    return [kind, [[_choice_out(value) for value in given]]] if kind == "choice" else distribution


def _choice_out(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        key: distribution_out(inner) if spaces.is_distribution(inner) else inner
        for key, inner in value.items()
    }


def _sampling_in(given: Any) -> dict[str, Any]:
    doc = ports.camels(given, "sampling_algorithm")
    known = ("samplingAlgorithmType", "type", "rule", "seed", "logbase")
    wire.refuse_unknown(doc, known, "sampling_algorithm")
    kind = str(doc.get("samplingAlgorithmType") or doc.get("type") or "").lower()
    if kind not in _SAMPLING:
        raise Invalid(
            f"the sampling algorithm is {kind!r}; it is one of {', '.join(sweeps.RULES)}",
            target="sampling_algorithm",
        )
    rule = str(doc.get("rule") or "random").lower()
    if rule not in ("random", "sobol"):
        raise Invalid(f"the rule is {rule!r}; it is random or sobol", target="sampling_algorithm")
    seed = doc.get("seed")
    return {
        "rule": rule if kind == "random" else kind,
        "seed": None if seed is None else ids.whole(str(seed), target="sampling_algorithm.seed"),
        "logbase": _logbase_in(doc.get("logbase")),
    }


def _logbase_in(given: Any) -> float:
    if given is None or str(given).lower() == "e":
        return math.e
    try:
        base = float(given)
    except (TypeError, ValueError):
        base = 0.0
    if not (0 < base < math.inf) or base == 1:
        raise Invalid(
            f"the logbase is {str(given)[:20]!r}; it is a number above 0 and not 1, or e",
            target="sampling_algorithm.logbase",
        )
    return base


def _sampling_out(sweep: Sweep) -> dict[str, Any]:
    doc: dict[str, Any] = {"samplingAlgorithmType": _SAMPLING[sweep.rule]}
    if sweep.rule in ("random", "sobol"):
        doc |= {"rule": sweep.rule.capitalize(), "seed": sweep.seed}
        if sweep.logbase != math.e:
            doc["logbase"] = sweep.logbase
    return doc


def _limits_in(doc: Mapping[str, Any]) -> dict[str, Any]:
    wire.refuse_unknown(doc, _LIMITS, "limits")
    most = _count(doc.get("maxTotalTrials"), "limits.max_total_trials", _MOST)
    at_once = _count(doc.get("maxConcurrentTrials"), "limits.max_concurrent_trials", most)
    timeout = doc.get("timeout")
    return {
        "most": most,
        "at_once": at_once,
        "timeout": durations.seconds_in(timeout, field="limits.timeout") if timeout else None,
    }


def _limits_out(sweep: Sweep) -> dict[str, Any]:
    times = {"timeout": sweep.timeout, "trialTimeout": sweep.trial.timeout}
    return {
        "jobLimitsType": "Sweep",
        "maxTotalTrials": sweep.most,
        "maxConcurrentTrials": sweep.at_once,
        **{key: durations.seconds_out(value) for key, value in times.items() if value},
    }


def _policy_in(given: Any) -> Stopping | None:
    doc = ports.camels(given, "early_termination")
    if not doc:
        return None
    wire.refuse_unknown(doc, _POLICY, "early_termination")
    said = str(doc.get("policyType") or doc.get("type") or "").replace("_", "").lower()
    rule = next((ours for ours, theirs in _POLICIES.items() if theirs.lower() == said), None)
    if rule is None:
        raise NotSupported(
            f"an early termination policy of type {said!r} is not supported here; these are: "
            f"{', '.join(_POLICIES.values())}",
            target="early_termination",
        )
    where = "early_termination"
    return Stopping(
        rule=rule,
        # The SDK sends 0 where nothing was said: each value is an interval.
        interval=_count(doc.get("evaluationInterval"), f"{where}.evaluation_interval", 1) or 1,
        delay=_count(doc.get("delayEvaluation"), f"{where}.delay_evaluation", 0),
        factor=_number(doc.get("slackFactor"), f"{where}.slack_factor"),
        amount=_number(doc.get("slackAmount"), f"{where}.slack_amount"),
        percent=_count(doc.get("truncationPercentage"), f"{where}.truncation_percentage", 0),
    )


def _policy_out(stopping: Stopping | None) -> dict[str, Any] | None:
    if stopping is None:
        return None
    doc: dict[str, Any] = {
        "policyType": _POLICIES[stopping.rule],
        "delayEvaluation": stopping.delay,
        "evaluationInterval": stopping.interval,
    }
    if stopping.rule == "bandit":
        slack = {"slackFactor": stopping.factor, "slackAmount": stopping.amount}
        doc |= {key: value for key, value in slack.items() if value}
    if stopping.rule == "truncation":
        doc["truncationPercentage"] = stopping.percent
    return doc


def _warnings(options: Mapping[str, Any]) -> list[str]:
    """Say what works here and would be refused by Azure."""
    if options["rule"] != "bayesian":
        return []
    beyond = [name for name, given in options["space"].items() if given[0] not in _BAYESIAN]
    found = []
    if beyond:
        found.append(
            f"search_space: Azure's Bayesian sampling takes only {', '.join(_BAYESIAN)}, which "
            f"{', '.join(beyond)} is not; here it works"
        )
    if options["stopping"]:
        found.append("early_termination: not with Azure's Bayesian sampling; here it works")
    return found


def _count(given: Any, field: str, default: int) -> int:
    return default if given is None else ids.whole(str(given), target=field)


def _number(given: Any, field: str) -> float:
    try:
        value = float(given or 0)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise Invalid(f"{field} is {str(given)[:20]!r}; it must be a number", target=field)
    return value
