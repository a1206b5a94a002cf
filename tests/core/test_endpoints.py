"""Endpoints, deployments, traffic, keys."""

from dataclasses import replace

import pytest
from alembic import command

from finery.core import endpoints, migrations, rollback
from finery.core import store as stores
from finery.core.endpoints import Deployment, Endpoint, Serving
from finery.core.errors import AlreadyExists, Conflict, Invalid


@pytest.fixture
def endpoint(store):
    return endpoints.create(store, Endpoint(name="chat", workspace="w"))


def deploy(store, name="blue", **spec):
    given = Deployment(endpoint="chat", name=name, workspace="w", spec=Serving(model="m", **spec))
    return endpoints.deploy(store, given)


def test_an_endpoint_has_two_keys_and_one_can_be_made_anew(store, endpoint):
    again = endpoints.regenerate(store, "chat", "primary")
    assert again.keys["primary"] != endpoint.keys["primary"]
    assert again.keys["secondary"] == endpoint.keys["secondary"]


def test_a_key_made_anew_takes_back_nothing_that_changes_at_the_same_time(
    store, endpoint, monkeypatch
):
    read, within = endpoints.get, []

    def get(store, name):
        within.append(store._current.get())
        return read(store, name)

    monkeypatch.setattr(endpoints, "get", get)
    endpoints.regenerate(store, "chat", "primary")
    assert within and None not in within, "it is read in the transaction that writes it"


def test_a_name_is_one_list_for_the_whole_server(store, endpoint):
    with pytest.raises(AlreadyExists):
        endpoints.create(store, Endpoint(name="chat", workspace="another"))


@pytest.mark.parametrize("traffic", [{"blue": 50}, {"green": 100}, {"blue": 120}, {"blue": -1}])
def test_odd_traffic_is_refused(store, endpoint, traffic):
    deploy(store)
    with pytest.raises(Invalid):
        endpoints.update(store, replace(endpoint, traffic=traffic))


def test_a_deployment_that_goes_takes_its_shares_along(store, endpoint):
    blue, green = deploy(store), deploy(store, "green")
    shares = {"traffic": {"blue": 0, "green": 100}, "mirror": {"blue": 10}}
    endpoints.update(store, replace(endpoint, **shares))
    going = endpoints.delete_deployment(store, "chat", "blue")
    left = endpoints.get(store, "chat")
    assert (left.traffic, left.mirror) == ({"green": 100}, {})
    with pytest.raises(Invalid, match="'blue'.* does not have"):
        endpoints.update(store, replace(left, traffic={"blue": 50, "green": 50}))
    endpoints.move(store, going, "gone")
    endpoints.update(store, replace(left, traffic={}))
    assert [one.id for one in endpoints.deployments(store, "chat")] == [green.id] != [blue.id]


def test_shares_of_what_is_gone_keep_nobody_from_changing_the_rest(store, endpoint):
    with store.transaction() as connection:  # as an earlier release left them
        connection.execute(endpoints.ENDPOINTS.update().values(traffic={"blue": 0}))
    old = endpoints.get(store, "chat")
    assert endpoints.update(store, replace(old, tags={"a": "b"})).traffic == {"blue": 0}
    assert endpoints.regenerate(store, "chat", "primary").keys != old.keys


def test_callers_who_are_answered_are_not_sent_to_what_has_not_come_up(store, endpoint):
    blue = deploy(store)
    first = endpoints.update(store, replace(endpoint, traffic={"blue": 100}))  # nobody is yet
    endpoints.move(store, blue, "ready", addresses={"one": "http://one"})
    green = deploy(store, "green")
    for shares in ({"green": 100}, {"blue": 90, "green": 10}):
        with pytest.raises(Conflict, match="'green' does not answer yet"):
            endpoints.update(store, replace(first, traffic=shares))
    endpoints.update(store, replace(first, traffic={"blue": 100, "green": 0}, mirror={"green": 9}))
    endpoints.move(store, green, "ready", addresses={})  # as one that its load has sent to none
    moved = endpoints.update(store, replace(first, traffic={"green": 100}))
    assert moved.traffic == {"green": 100}


def test_a_deployment_with_traffic_cannot_be_deleted(store, endpoint):
    deploy(store)
    endpoints.update(store, replace(endpoint, traffic={"blue": 100}))
    with pytest.raises(Conflict, match="set its traffic to 0 first"):
        endpoints.delete_deployment(store, "chat", "blue")


def test_a_change_of_what_it_runs_is_a_new_revision_with_processes_of_its_own(store, endpoint):
    first = endpoints.move(store, deploy(store), "ready")
    second = deploy(store, env={"a": "b"})
    assert (second.status, second.revision) == ("updating", 2)
    assert first.process(0) != second.process(0)


def test_a_change_of_how_many_instances_there_are_keeps_those_at_work(store, endpoint):
    first = endpoints.move(store, deploy(store), "ready")
    second = deploy(store, instances=2)
    assert (second.status, second.revision) == ("updating", 1)
    assert first.process(0) == second.process(0)
    failed = endpoints.move(store, second, "failed")
    assert deploy(store, instances=3).revision == failed.revision + 1


def test_a_change_of_its_texts_is_no_new_revision(store, endpoint):
    first = endpoints.move(store, deploy(store), "ready")
    again = endpoints.deploy(store, replace(first, tags={"a": "b"}))
    assert (again.status, again.revision, again.tags) == ("ready", 1, {"a": "b"})


def test_a_deleted_endpoint_is_gone_once_its_deployments_are(store, endpoint):
    blue = deploy(store)
    endpoints.delete(store, "chat")
    assert endpoints.get(store, "chat").status == "deleting"
    endpoints.move(store, endpoints.get_deployment(store, "chat", blue.name), "gone")
    assert endpoints.find(store, "chat") is None


def test_an_endpoint_without_deployments_is_gone_at_once(store, endpoint):
    endpoints.delete(store, "chat")
    assert endpoints.find(store, "chat") is None


def test_a_new_deployment_of_an_old_name_shares_no_process_with_it(store, endpoint):
    old = deploy(store)
    endpoints.delete_deployment(store, "chat", "blue")
    endpoints.move(store, endpoints.get_deployment(store, "chat", "blue"), "gone")
    assert deploy(store).process(0) != old.process(0)


# A deployment as the first release wrote it down.
FIRST = """
insert into deployments (id, endpoint, name, workspace, status, gone, spec, revision, restarts,
 addresses, warnings, description, tags, properties, created_at, changed_at, created_by, extras)
values ('i', 'chat', 'blue', 'w', 'ready', 0, '{"model": "m", "code": "", "script": "",
 "environment": "", "env": {}, "instances": 2, "size": "", "max_concurrent_requests": 1,
 "request_timeout_ms": 5000, "max_queue_wait_ms": 500,
 "liveness": {"failure_threshold": 3, "success_threshold": 1, "timeout": 2, "period": 10,
 "initial_delay": 10}, "readiness": {"failure_threshold": 30, "success_threshold": 1,
 "timeout": 2, "period": 10, "initial_delay": 10}}',
 1, '{}', '{}', '[]', '', '{}', '{}', 1.0, 1.0, '', '{}')
"""


def test_a_deployment_of_the_first_release_is_what_it_was(tmp_path):
    kept = stores.open_sqlite(tmp_path / "old.db")
    config = migrations._config()
    with kept._engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    with kept.transaction() as connection:
        connection.exec_driver_sql(FIRST)
    kept.migrate()
    blue = endpoints.get_deployment(kept, "chat", "blue")
    assert (blue.count, blue.spec.scaling, blue.falls, blue.earlier) == (2, None, 0, None)
    assert blue.spec.liveness.failure_threshold == 3
    kept.close()


def test_traffic_goes_back_to_what_it_was_before_the_last_change(store, endpoint):
    with pytest.raises(Conflict, match="nothing to go back to"):
        rollback.traffic(store, "chat")
    for name in ("blue", "green"):
        deploy(store, name)
    for traffic, mirror in (({"blue": 100}, {"green": 10}), ({"green": 100}, {})):
        changed = replace(endpoints.get(store, "chat"), traffic=traffic, mirror=mirror)
        endpoints.update(store, changed)
    endpoints.update(store, replace(endpoints.get(store, "chat"), tags={"a": "b"}))
    back = rollback.traffic(store, "chat")
    assert (back.traffic, back.mirror, back.tags) == ({"blue": 100}, {"green": 10}, {"a": "b"})
    assert rollback.traffic(store, "chat").traffic == {"green": 100}


def test_the_first_traffic_of_an_endpoint_is_not_undone_into_none(store, endpoint):
    deploy(store, "blue")
    endpoints.update(store, replace(endpoints.get(store, "chat"), traffic={"blue": 100}))
    with pytest.raises(Conflict, match="nothing to go back to"):
        rollback.traffic(store, "chat")
    assert endpoints.get(store, "chat").traffic == {"blue": 100}


def test_traffic_does_not_go_back_to_a_deployment_that_is_gone(store, endpoint):
    for name in ("blue", "green"):
        deploy(store, name)
    for share in ("blue", "green"):
        endpoints.update(store, replace(endpoints.get(store, "chat"), traffic={share: 100}))
    endpoints.delete_deployment(store, "chat", "blue")
    endpoints.move(store, endpoints.get_deployment(store, "chat", "blue"), "gone")
    with pytest.raises(Invalid, match="'blue'"):
        rollback.traffic(store, "chat")
    assert endpoints.get(store, "chat").traffic == {"green": 100}
