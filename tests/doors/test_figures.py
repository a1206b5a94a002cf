"""From counts to figures, with a way in and a ledger that a test makes up."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from finery.core import endpoints
from finery.core import store as stores
from finery.core.endpoints import Deployment, Endpoint, Serving
from finery.doors.figures import Figures
from finery.doors.metering import Line


class House:
    """One deployment; what was kept of it, and what happens to it in a test."""

    def __init__(self, store: stores.Store) -> None:
        self.store = store
        endpoints.create(store, Endpoint(name="ep", workspace="w"))
        self.blue = endpoints.deploy(
            store, Deployment(endpoint="ep", name="blue", workspace="w", spec=Serving(model="m"))
        )
        self.line: Line | None = None
        self.told: dict[str, str] = {}
        self.points: list[dict[str, float]] = []
        self.closed: list[set[str]] = []
        self.closes = True
        self.now = self.blue.created_at
        self.figures = Figures(store, self, self, instances=self._instances)

    async def _instances(self, deployment: Deployment) -> dict[str, str]:
        return self.told

    def seen(self, deployment: str) -> Line | None:
        return self.line

    def forget(self, kept: set[str]) -> None:
        self.kept = kept

    def log(self, deployment: Deployment, figures: dict[str, float], *, at: object) -> None:
        self.points.append(figures)

    def close(self, kept: set[str]) -> bool:
        self.closed.append(kept)
        return self.closes

    def look(self, *answers: tuple[int, float]) -> dict[str, float] | None:
        """Let ten seconds go by with these answers; return the point that was kept."""
        for status, seconds in answers:
            self.line = self.line or Line()
            self.line.meter.answered(status, seconds)
        self.now += timedelta(seconds=10)
        before = len(self.points)
        asyncio.run(self.figures.look(now=self.now))
        return self.points[-1] if len(self.points) > before else None


@pytest.fixture
def house(tmp_path):
    store = stores.open_sqlite(tmp_path / "finery.db")
    store.migrate()
    yield House(store)
    store.close()


def test_a_point_says_how_much_was_asked_and_how_well_it_was_answered(house):
    point = house.look(*[(200, 0.01)] * 90, *[(200, 0.05)] * 8, (424, 0.2), (503, 1.0))
    assert point["requests_per_second"] == 10
    assert point["errors_per_second"] == 0.2
    assert (point["latency_p50_ms"], point["latency_p95_ms"]) == (10, 50)
    assert point["latency_p99_ms"] == 1000
    assert (point["queue"], point["running"], point["instances"]) == (0, 0, 0)


def test_tokens_are_those_that_the_instances_have_counted_since(house):
    house.told = {"a": 'finery_tokens_total{kind="prompt"} 100\n', "b": "finery_tokens_total 50"}
    assert house.look((200, 0.1))["tokens_per_second"] == 15
    house.told = {"a": "finery_tokens_total 200"}
    assert house.look((200, 0.1))["tokens_per_second"] == 5
    house.told = {"c": "finery_tokens_total 3"}  # another process, which counts anew
    assert house.look((200, 0.1))["tokens_per_second"] == 0


def test_nothing_is_kept_of_a_deployment_that_nobody_calls(house):
    assert house.look() is None
    assert house.look((200, 0.1)) is not None
    assert house.look() == {
        "requests_per_second": 0,
        "errors_per_second": 0,
        "tokens_per_second": 0,
        "running": 0,
        "queue": 0,
        "instances": 0,
    }, "one point says that the calls have ceased"
    assert house.look() is None
    assert house.look((200, 0.1))["requests_per_second"] == 0.1


def test_what_is_kept_of_deleted_deployments_is_ended_once(house):
    house.closes = False  # not possible yet
    house.look()
    house.closes = True
    for _ in range(3):
        house.look()
    endpoints.move(house.store, endpoints.move(house.store, house.blue, "deleting"), "gone")
    for _ in range(3):
        house.look()
    assert house.closed == [{house.blue.id}, {house.blue.id}, set()]
    assert house.kept == set()
