"""One call to undo the last change: of an endpoint's traffic, or of what a deployment runs.

What was before is in their rows; going back is a change too, so that going
back twice leads to where one was.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from finery.core import endpoints, serving
from finery.core.endpoints import Deployment, Endpoint, Serving
from finery.core.errors import Conflict
from finery.core.store import Store


def traffic(store: Store, name: str) -> Endpoint:
    """Give the traffic (and its mirror) back the shares that it had before the last change.

    Raises `Conflict` where nobody had a share before: to undo the first shares
    is to answer no caller, which is asked for by a share of 0 and not by this.
    """
    with store.transaction():
        endpoint = endpoints.get(store, name)
        if not endpoint.before.get("traffic"):
            raise Conflict(
                f"the traffic of endpoint {name!r} has gone to no one else before: "
                "nothing to go back to",
                target=name,
            )
        return endpoints.update(store, replace(endpoint, **endpoint.before))


def deployment(store: Store, endpoint: str, name: str) -> Deployment:
    """Ask for what a deployment ran, and what answered, before it was last changed.

    An update that failed has never answered: going back from it leads to what
    answers, and what that had replaced is not known any more.  Raises `Conflict`
    where there is nothing to go back to.
    """
    with store.transaction():
        endpoints.get(store, endpoint)
        found = endpoints.get_deployment(store, endpoint, name)
        if not found.before:
            raise Conflict(
                f"deployment {name!r} has run nothing before: there is nothing to go back to",
                target=name,
            )
        before = serving.read(found.before["spec"])
        if before == found.spec and found.status == "ready":
            raise Conflict(
                f"deployment {name!r} runs what it ran before already: there is nothing else to "
                "go back to",
                target=name,
            )
        return endpoints.deploy(store, replace(found, spec=before))


def differs(one: Serving, other: Serving) -> list[str]:
    """Return the names of what two specs have not in common, never what is in them."""
    names = [field.name for field in fields(Serving)]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def answering(deployment: Deployment) -> dict[str, Any]:
    """Return what `before` is of a deployment whose own instances answer; else nothing.

    It has those that answer, and any in between that does not.
    """
    places = {deployment.process(n): n for n in range(deployment.count)}
    there = [n for id, n in places.items() if id in deployment.addresses]
    spec = replace(deployment.spec, instances=max(there, default=0) + 1, scaling=None)
    return endpoints.as_before(replace(deployment, spec=spec)) if there else {}
