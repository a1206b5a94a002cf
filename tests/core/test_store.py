"""What the database is asked often is answered from an index, however much is in it."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from finery.core import assets, compute, endpoints, jobs, workspaces
from finery.core.assets import Asset
from finery.core.jobs import Command, Job, Queue


@pytest.fixture
def plans(store):
    """What SQLite says that it does for each statement sent after this: a list that grows."""
    if not store.sqlite:
        pytest.skip("the plans are SQLite's")
    found: list[tuple[str, str]] = []

    def before(connection, cursor, statement, parameters, context, executemany):
        if statement.lower().startswith(("select", "update")):
            asked = cursor.connection.cursor()
            asked.execute(f"explain query plan {statement}", parameters)
            found.append((statement, "; ".join(row[3] for row in asked.fetchall())))

    event.listen(store._engine, "before_cursor_execute", before)
    return found


def _versions(store):
    assets.create(store, Asset(scope="w", kind="model", name="n", location="file:s/p"))
    assets.versions(store, "w", "model", "n")


ASKED = {
    "a job": lambda store: jobs.find(store, "a"),
    "jobs": lambda store: jobs.list(store, "w"),
    "archived jobs": lambda store: jobs.list(store, "w", archived=True, after="9"),
    "jobs of a status": lambda store: jobs.list(store, "w", status="failed", archived=None),
    "a pipeline's steps": lambda store: jobs.list(store, "w", parent="p"),
    "children": lambda store: jobs.children(store, "p"),
    "unfinished jobs": jobs.unfinished,
    "active jobs": jobs.active,
    "queues": jobs.queues,
    "a queue": lambda store: jobs.waiting(store, Queue("w", "c", "command", 1), 8),
    "a busy workspace": lambda store: jobs.busy(store, "w"),
    "work done before": lambda store: jobs.same_work(store, "w", "f"),
    "a job's events": lambda store: jobs.events(store, "a"),
    "workspaces": lambda store: workspaces.list(store, subscription="s"),
    "names of assets": lambda store: assets.names(store, "w", "model"),
    "versions of an asset": _versions,
    "all versions of a kind": lambda store: assets.every_version(store, "w", "model", after="9"),
    "an asset": lambda store: assets.find(store, "w", "model", "n", "1"),
    "an asset by its hash": lambda store: assets.by_hash(store, "w", "model", "h"),
    "computes": lambda store: compute.list(store, "w"),
    "endpoints": lambda store: endpoints.list(store, "w"),
    "an endpoint": lambda store: endpoints.find(store, "e"),
    "deployments": lambda store: endpoints.deployments(store, "e"),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_question_is_answered_from_an_index(store, plans, what):
    ASKED[what](store)
    assert plans
    for statement, plan in plans:
        assert "SCAN" not in plan.replace("SCAN CONSTANT", ""), (plan, statement)


def test_the_newest_jobs_are_found_without_sorting_all(store, plans):
    jobs.list(store, "w")
    assert "TEMP B-TREE" not in plans[-1][1]


def test_the_queues_are_told_without_reading_a_job(store, plans):
    jobs.queues(store)
    assert "COVERING INDEX jobs_unfinished" in plans[-1][1]


def test_queues_come_in_the_order_of_their_oldest_job(store):
    for name, place in [("a", "one"), ("b", "two"), ("c", "one"), ("d", "")]:
        made = Job(name=name, workspace="w", compute=place, spec=Command(command="true"))
        jobs.create(store, made)
    found = jobs.queues(store)
    assert [queue.compute for queue in found] == ["one", "two", ""]
    assert [job.name for job in jobs.waiting(store, found[0], 8)] == ["a", "c"]
    assert [job.name for job in jobs.waiting(store, found[0], 1)] == ["a"]
    assert jobs.active(store) == []
