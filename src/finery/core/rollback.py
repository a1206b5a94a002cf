"""One call to undo the last change: of an endpoint's traffic, or of what a deployment runs.

What was before is in their rows; going back is a change too, so that going
back twice leads to where one was.
"""

from __future__ import annotations

from dataclasses import replace

from finery.core import endpoints, serving
from finery.core.endpoints import Deployment, Endpoint
from finery.core.errors import Conflict
from finery.core.store import Store


def traffic(store: Store, name: str) -> Endpoint:
    """Give the traffic (and its mirror) back the shares that it had before the last change."""
    with store.transaction():
        endpoint = endpoints.get(store, name)
        if not endpoint.before:
            raise Conflict(
                f"the traffic of endpoint {name!r} was never changed: nothing to go back to",
                target=name,
            )
        return endpoints.update(store, replace(endpoint, **endpoint.before))


def deployment(store: Store, endpoint: str, name: str) -> Deployment:
    """Ask for what a deployment ran, and what answered, before it was last changed."""
    with store.transaction():
        found = endpoints.get_deployment(store, endpoint, name)
        if not found.before:
            raise Conflict(
                f"deployment {name!r} has run nothing before: there is nothing to go back to",
                target=name,
            )
        return endpoints.deploy(store, replace(found, spec=serving.read(found.before["spec"])))
