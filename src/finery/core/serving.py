"""What a deployment runs, and when its instances count as well.

Only what is asked for: `endpoints.py` writes it down, `upkeep.py` makes it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finery.core.scaling import Scaling


@dataclass(frozen=True, kw_only=True)
class Probe:
    """When a deployment counts as well.  Times in seconds."""

    failure_threshold: int = 30
    success_threshold: int = 1
    timeout: float = 2
    period: float = 10
    initial_delay: float = 10


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a deployment runs."""

    model: str = ""  # a reference to a model
    code: str = ""  # a reference to a folder
    script: str = ""  # the scoring script in it
    environment: str = ""
    env: dict[str, str] = field(default_factory=dict)
    instances: int = 1
    size: str = ""
    max_concurrent_requests: int = 1  # per instance
    request_timeout_ms: int = 5000
    max_queue_wait_ms: int = 500
    liveness: Probe = Probe()
    readiness: Probe = Probe()
    scaling: Scaling | None = None  # None: always `instances` of them


def read(doc: Mapping[str, Any]) -> Serving:
    """Return what `dataclasses.asdict` once made of it."""
    rule = doc.get("scaling")
    return Serving(
        **{name: value for name, value in doc.items() if name not in _PARTS},
        liveness=Probe(**doc["liveness"]),
        readiness=Probe(**doc["readiness"]),
        scaling=Scaling(**rule) if rule else None,
    )


_PARTS = ("liveness", "readiness", "scaling")
