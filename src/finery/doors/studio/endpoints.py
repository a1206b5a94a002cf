"""What an endpoint's page shows: its deployments, how they are, and how it is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finery.core import endpoints, instances
from finery.core.endpoints import Deployment, Endpoint
from finery.core.probing import Watch
from finery.core.serving import Probe
from finery.doors.http import House, Seen
from finery.doors.studio import calling, environments, places
from finery.doors.studio.environments import Environment
from finery.doors.studio.places import Place

_LINES = 40  # of each instance's log
_LONGEST = 20_000  # characters of a deployment's log
_FEW = 20  # requests, of which a share says nothing

# What a status means, to whoever has not read the documentation.
MEANS = {
    "creating": "It is coming up for the first time.",
    "ready": "It answers.",
    "unhealthy": "It is up, but does not answer as it should.",
    "updating": "A change of it is on its way.",
    "failed": "It could not come up as it was asked to.",
    "deleting": "It is being taken down.",
}
_SERVES = {
    "chat": "a chat model, without code",
    "table": "an MLflow model, without code",
    "": "a model that is not there",
}


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A process that answers, or should."""

    number: int
    ready: bool
    restarts: int
    live: str  # what its probes said last
    fit: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A deployment."""

    of: Deployment
    means: str
    share: int
    mirrored: int
    model: Place | None
    serves: str
    environment: Environment
    names: Sequence[str]  # of its environment variables
    instances: Sequence[Instance]
    before: int  # instances of the revision before, which answers meanwhile
    seen: Seen | None
    pace: str  # how long its answers took
    log: str


def shown(house: House, endpoint: Endpoint, *, key: bool) -> dict[str, Any]:
    """Return all that an endpoint's page shows; its key only where `key` asks for it."""
    kept = endpoints.deployments(house.store, endpoint.name)
    asked = max(kept, key=lambda one: endpoint.traffic.get(one.name, 0), default=None)
    secret = endpoint.keys.get("primary", "") if key and endpoint.auth == "key" else ""
    return {
        "endpoint": endpoint,
        "says": _says(endpoint, kept),
        "address": f"{house.http}/endpoints/{endpoint.name}/score",
        "deployments": [_deployment(house, endpoint, one) for one in kept],
        "ways": calling.ways(house, endpoint, asked, key=secret) if asked else None,
        "key": secret,
        "refresh": not key and any(_moves(one) for one in kept),
    }


def _says(endpoint: Endpoint, kept: Sequence[Deployment]) -> tuple[str, str]:
    """Say in a word and a sentence whether whoever calls gets an answer."""
    if endpoint.status == "deleting":
        return "deleting", "It is being taken down."
    if not kept:
        return "unhealthy", "Nothing answers here yet: it has no deployment."
    asked = [one for one in kept if endpoint.traffic.get(one.name)]
    if not asked:
        return "unhealthy", "It is up, but no deployment gets its traffic: set the traffic first."
    silent = [one.name for one in asked if not one.addresses and one.count]
    if not silent:
        return "ready", "It answers."
    which = f"{' and '.join(silent)} {'do' if len(silent) > 1 else 'does'} not answer"
    if len(silent) < len(asked):
        return "unhealthy", f"It answers some of those who call: {which}."
    coming = any(one.status in ("creating", "updating") for one in asked)
    return (
        ("creating", "It is coming up.") if coming else ("failed", f"Nobody is answered: {which}.")
    )


def _deployment(house: House, endpoint: Endpoint, one: Deployment) -> Shown:
    what = calling.kind(house, one)
    own = instances.processes(one)
    log, seen = house.instance_logs(one, _LINES), house.seen(one.id)
    return Shown(
        of=one,
        means=MEANS[one.status],
        share=endpoint.traffic.get(one.name, 0),
        mirrored=endpoint.mirror.get(one.name, 0),
        model=places.place(one.spec.model) if one.spec.model else None,
        serves=_SERVES.get(what, f"a scoring script, {one.spec.script}"),
        environment=environments.of_deployment(house, one, chat=what == "chat"),
        names=sorted(one.spec.env),
        instances=[_instance(house, one, number) for number in range(one.count)],
        before=sum(id not in own for id in one.addresses),
        seen=seen,
        pace=_pace(seen) if seen else "",
        log=log[-_LONGEST:].strip(),
    )


def _pace(seen: Seen) -> str:
    """Say how long answers took.  Shares are known by the bound of a bucket alone: at most so."""
    if not seen.requests or seen.mean is None:
        return ""
    said = [f"{places.lasting(seen.mean)} on average"]
    if seen.requests >= _FEW and seen.half and seen.half < seen.mean:
        said.append(f"at most {places.lasting(seen.half)} for half of them")
    if seen.requests >= _FEW and seen.most:
        said.append(f"at most {places.lasting(seen.most)} for 95 of 100")
    return "; ".join(said)


def _instance(house: House, one: Deployment, number: int) -> Instance:
    id = one.process(number)
    probes = house.probes(id)
    return Instance(
        number=number,
        ready=id in one.addresses,
        restarts=one.restarts.get(str(number), 0),
        live=_last(probes.get("live"), one.spec.liveness),
        fit=_last(probes.get("ready"), one.spec.readiness),
    )


def _last(watch: Watch | None, probe: Probe) -> str:
    """Say what a probe has said last; a dash while it was not asked."""
    if watch is None:
        return "–"
    if not watch.opposed:
        return "yes" if watch.well else "no"
    if watch.well:
        return f"yes; it missed the last {watch.opposed} of {probe.failure_threshold} allowed"
    return f"no; {watch.opposed} of {probe.success_threshold} answers that it needs"


def _moves(one: Deployment) -> bool:
    """Say whether the page will look different soon."""
    if one.status == "failed":
        return False
    return one.status in ("creating", "updating", "deleting") or len(one.addresses) < one.count
