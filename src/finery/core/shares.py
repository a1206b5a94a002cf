"""Whether an endpoint's shares of the traffic, and of its mirror, are ones that can be.

The rows that hold them are in `endpoints.py`; which request goes where is the way in's to say.
"""

from __future__ import annotations

from collections.abc import Mapping

from finery.core.errors import Conflict, Invalid

Shares = Mapping[str, int]  # percent, by the name of a deployment


def check(endpoint: str, known: Mapping[str, bool], *, traffic: Shares, mirror: Shares) -> None:
    """Raise `Invalid` for shares of what is not there, or that do not add up.

    `known`: the endpoint's deployments, and of each whether it has come up.
    """
    for field, shares in (("traffic", traffic), ("mirror", mirror)):
        for name, percent in shares.items():
            if name not in known:
                raise Invalid(
                    f"{field} names the deployment {name!r}, which endpoint {endpoint!r} does "
                    "not have",
                    target=field,
                )
            if not 0 <= percent <= 100:
                raise Invalid(f"{field} of {name!r} is not 0 to 100", target=field)
    if sum(traffic.values()) not in (0, 100):
        raise Invalid("the traffic shares must add up to 0 or 100", target="traffic")
    if sum(mirror.values()) > 50:
        raise Invalid("at most 50 % of the traffic can be mirrored", target="mirror")


def check_move(known: Mapping[str, bool], *, before: Shares, after: Shares) -> None:
    """Raise `Conflict` where callers who are answered would be sent to what has not come up."""
    if not any(known.get(name) for name, percent in before.items() if percent):
        return
    for name, percent in after.items():
        if percent > before.get(name, 0) and not known[name]:
            raise Conflict(
                f"deployment {name!r} does not answer yet: it can have traffic once it does",
                target=name,
            )
