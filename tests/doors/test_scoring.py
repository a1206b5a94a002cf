"""The way in to deployed models, over real connections to made-up instances.

Sockets are real because what is tested is made of them: streams, callers that
leave, instances that are lost.  No process is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from finery.core import endpoints, ids, tickets
from finery.core import store as stores
from finery.core import workspaces as core_workspaces
from finery.core.compute import Capacity
from finery.core.endpoints import Deployment, Endpoint, Serving
from finery.core.files import Files
from finery.core.scaling import Scaling
from finery.core.workspaces import Caller, Keys, Workspace
from finery.doors import answering
from finery.doors.http import House
from finery.doors.scoring import Scoring
from finery.doors.traffic import Shares

MAX_BODY = 3 * 2**20


class Instance:
    """An instance that says what it was asked; a body `hold` is not answered until `go`."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.left = 0  # callers that went away before they were answered
        self.go = threading.Event()
        self.address = ""
        self.metrics = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/metrics":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return await send({"type": "http.response.body", "body": self.metrics})
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = scope["query_string"].decode()
        asked = {"path": scope["path"], "query": query, "headers": headers, "size": 0}
        self.asked.append(asked)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            asked["size"] += len(message.get("body", b""))
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if body == b"hold" and not await self._held(receive):
            return
        if scope["path"] == "/stream":
            return await self._stream(send)
        # `says 404`: that is its model's status; `refuses 429`: as a limit of ours; `refused 429`:
        # as one of an earlier release.
        said = body.split()
        status = int(said[1]) if said[:1] in ([b"says"], [b"refuses"], [b"refused"]) else 200
        answer = json.dumps({"size": len(body), "path": scope["path"]}).encode()
        start = [(b"content-type", b"application/json"), (b"azureml-model-deployment", b"wrong")]
        if body.startswith(b"refuses"):
            start.append((b"x-finery-refused", b"True"))
        if body.startswith(b"says"):
            start.append((b"x-ms-run-fn-exec-ms", b"0.1"))
        if body == b"raise":
            status = 500
            start += [(b"x-ms-run-function-failed", b"True")]
            start += [(b"ms-azureml-model-error-reason", b"KeyError: 'image'")]
        await send({"type": "http.response.start", "status": status, "headers": start})
        await send({"type": "http.response.body", "body": answer})

    async def _held(self, receive: Any) -> bool:
        gone = asyncio.ensure_future(receive())
        while not self.go.is_set():
            done, _ = await asyncio.wait({gone}, timeout=0.005)
            if done:
                self.left += 1
                return False
        gone.cancel()
        return True

    async def _stream(self, send: Any) -> None:
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        while not self.go.is_set():
            await asyncio.sleep(0.005)
        await send({"type": "http.response.body", "body": b"data: 2\n\n", "more_body": False})


class Running:
    """The door and two deployments, `blue` and `green`, of endpoint `ep`."""

    def __init__(self, door: Scoring, address: str, blue: Instance, green: Instance) -> None:
        self.door, self.house = door, door.house
        self.address, self.blue, self.green = address, blue, green
        house = self.house
        self.key = endpoints.get(house.store, "ep").keys["primary"]
        self.client = httpx.Client(base_url=f"{address}/endpoints/ep", timeout=240)

    def post(self, path: str = "score", content: Any = b"{}", **headers: str) -> httpx.Response:
        sent = {"authorization": f"Bearer {self.key}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(f"/{path}", content=content, headers=sent)

    def to(self, deployment: str, content: Any = b"{}", path: str = "score") -> httpx.Response:
        return self.post(path, content, azureml_model_deployment=deployment)

    def share(self, *, mirror: dict[str, int] | None = None, **traffic: int) -> None:
        endpoint = endpoints.get(self.house.store, "ep")
        changed = replace(endpoint, traffic=traffic, mirror=mirror or {})
        endpoints.update(self.house.store, changed)

    def limit(self, **changed: Any) -> None:
        blue = endpoints.get_deployment(self.house.store, "ep", "blue")
        changed_spec = replace(blue.spec, **changed)
        moved = endpoints.deploy(self.house.store, replace(blue, spec=changed_spec))
        endpoints.move(self.house.store, moved, "ready", addresses={"b-0": self.blue.address})


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    database = stores.open_sqlite(tmp_path / "finery.db")
    stores.metadata.create_all(database._engine)
    core_workspaces.create(database, Workspace(id="ws", subscription="s", group="g", name="w"))
    endpoints.create(database, Endpoint(name="ep", workspace="ws"))
    yield House(
        store=database,
        files=Files(tmp_path / "files", database),
        keys=Keys(tmp_path),
        http="http://localhost:8480",
        https="https://localhost:8443",
        wake=lambda: None,
        log=lambda _, __: b"",
        capacity=lambda: Capacity(cpus=1, memory=1, gpus=0),
        default_workspace=("s", "g", "w"),
    )
    database.close()


@pytest.fixture
def running(house: House) -> Iterator[Running]:
    blue, green = Instance(), Instance()
    door = Scoring(house, max_body=MAX_BODY)

    async def entry(scope: Any, receive: Any, send: Any) -> None:  # as app.py has it
        app = door.telling if scope["path"] == "/metrics" else door
        await app(scope, receive, send)

    with served(entry, blue, green) as (address, blue.address, green.address):
        for name, instance in (("blue", blue), ("green", green)):
            # Nothing is late unless a test says so, however long this machine stands still.
            late = {"request_timeout_ms": 60_000, "max_queue_wait_ms": 60_000}
            spec = Serving(code="c", script="score.py", max_concurrent_requests=8, **late)
            made = endpoints.deploy(
                house.store, Deployment(endpoint="ep", name=name, workspace="ws", spec=spec)
            )
            addresses = {f"{name[0]}-0": instance.address}
            endpoints.move(house.store, made, "ready", addresses=addresses)
        running = Running(door, address, blue, green)
        yield running
        blue.go.set()
        green.go.set()
        running.client.close()


class served:
    """Serve applications on ports of their own, in one thread and on one loop."""

    def __init__(self, *apps: Any) -> None:
        self.apps = apps

    def __enter__(self) -> list[str]:
        self.sockets = [_listening() for _ in self.apps]
        self.servers = [
            uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", access_log=False))
            for app in self.apps
        ]
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.thread.start()
        return [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in self.sockets]

    async def _run(self) -> None:
        pairs = zip(self.servers, self.sockets, strict=True)
        await asyncio.gather(*(server._serve([sock]) for server, sock in pairs))

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.should_exit = server.force_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


def _listening() -> socket.socket:
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delay on
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


# -- who may ---------------------------------------------------------------------------


def test_a_key_lets_in_with_or_without_its_bearer(running: Running):
    secondary = endpoints.get(running.house.store, "ep").keys["secondary"]
    for shown in (f"Bearer {running.key}", running.key, f"bearer {secondary}"):
        answer = running.post(azureml_model_deployment="blue", authorization=shown)
        assert answer.status_code == 200


def test_a_key_of_openai_s_kind_lets_in_too(running: Running):
    answer = running.client.post(
        "/score", headers={"api-key": running.key, "azureml-model-deployment": "blue"}
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer wrong", "Bearer a.b.c", "Bearer \xe9.\xe9"]
)
def test_a_missing_or_wrong_key_is_refused(running: Running, shown: str):
    headers = {b"authorization": shown.encode("latin-1")} if shown else {}
    answer = running.client.post("/score", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert running.blue.asked == running.green.asked == []


def test_whoever_may_act_in_the_workspace_may_call(running: Running):
    keys, now = running.house.keys, ids.now()

    def token(workspace: str) -> str:
        return keys.mint(Caller(name="u", workspace=workspace), audience="a", seconds=60, now=now)

    blue = {"azureml_model_deployment": "blue"}
    assert running.post(authorization=f"Bearer {keys.admin}", **blue).status_code == 200
    assert running.post(authorization=f"Bearer {token('ws')}", **blue).status_code == 200
    refused(running.post(authorization=f"Bearer {token('other')}", **blue), 403)


def test_an_endpoint_with_tokens_takes_tokens_and_no_keys(running: Running):
    store = running.house.store
    endpoint = endpoints.update(store, replace(endpoints.get(store, "ep"), auth="token"))
    ticket = tickets.issue(running.house.keys, endpoint, seconds=60, now=ids.now())
    shown = {"authorization": f"Bearer {ticket}", "azureml_model_deployment": "blue"}
    assert running.post(**shown).status_code == 200
    refused(running.to("blue"), 401)


def test_who_has_no_credential_does_not_learn_which_endpoints_exist(running: Running):
    for name, status in (("ep", 401), ("nope", 401)):
        assert httpx.post(f"{running.address}/endpoints/{name}/score").status_code == status
    shown = {"authorization": f"Bearer {running.house.keys.admin}"}
    missing = httpx.post(f"{running.address}/endpoints/nope/score", headers=shown)
    assert "nope" in refused(missing, 404)


def test_the_instance_gets_its_secret_and_never_the_caller_s_key(running: Running):
    running.to("blue")
    headers = running.blue.asked[0]["headers"]
    assert headers["x-finery-secret"] == running.house.keys.derived("serving", "b-0")
    assert running.key not in str(headers)


# -- where to --------------------------------------------------------------------------


def test_a_deployment_is_chosen_by_name_and_says_so(running: Running):
    answer = running.to("green")
    assert answer.headers["azureml-model-deployment"] == "green"
    assert answer.headers["x-ms-request-id"] == running.green.asked[0]["headers"]["x-ms-request-id"]
    assert "red" in refused(running.to("red"), 404)


def test_without_traffic_a_deployment_must_be_named(running: Running):
    assert "set its traffic" in refused(running.post(), 404)


def test_traffic_is_shared_exactly_and_changes_at_once(running: Running):
    running.share(blue=90, green=10)
    went = Counter(running.post().headers["azureml-model-deployment"] for _ in range(100))
    assert went == {"blue": 90, "green": 10}
    running.share(green=100)
    assert running.post().headers["azureml-model-deployment"] == "green"


@pytest.mark.parametrize(
    "shares", [{"a": 90, "b": 10}, {"a": 33, "b": 33, "c": 34}, {"a": 1, "b": 99}]
)
def test_after_any_number_of_requests_each_has_had_its_share(shares: dict[str, int]):
    turns, went = Shares(), Counter[str]()
    for turn in range(1, 1001):
        went[turns.next(shares)] += 1
        assert all(abs(went[name] - turn * share / 100) < 1 for name, share in shares.items())
    assert went == {name: share * 10 for name, share in shares.items()}


def test_every_path_and_query_goes_through(running: Running):
    shown = {"authorization": running.key, "azureml-model-deployment": "blue"}
    assert running.client.get("/swagger.json?version=3", headers=shown).status_code == 200
    assert running.to("blue", path="v1/chat/completions").status_code == 200
    assert [asked["path"] for asked in running.blue.asked] == [
        "/swagger.json",
        "/v1/chat/completions",
    ]
    assert running.blue.asked[0]["query"] == "version=3"


def test_a_deployment_that_is_not_up_says_what_it_is(running: Running):
    store = running.house.store
    spec = Serving(model="file:m")
    endpoints.deploy(store, Deployment(endpoint="ep", name="new", workspace="ws", spec=spec))
    assert "it is creating" in refused(running.to("new"), 503)


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """An address at which nothing answers, and at which nobody else can begin to."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{kept.getsockname()[1]}"


def test_an_instance_that_is_lost_is_said_to_be(running: Running, until: Callable[..., Any]):
    running.limit(request_timeout_ms=100)
    with nobody() as address:
        place(running, b_0=address)
        # Should we stand still while it is asked, its time is over: that is said too.
        until(lambda: "lost" in running.to("blue").json()["error"]["message"])
        assert "lost" in refused(running.to("blue"), 503)


def test_an_instance_that_takes_no_connection_is_tried_a_few_times(
    running: Running, monkeypatch: Any
):
    monkeypatch.setattr("finery.doors.scoring._DOWN", 0.01)
    with nobody() as address:
        place(running, b_0=address)
        assert "lost" in refused(running.to("blue"), 503)
    blue = endpoints.get_deployment(running.house.store, "ep", "blue")
    seen = running.door.seen(blue.id)
    assert seen and seen.meter.retried == 4


def test_requests_go_to_the_least_busy_instance(running: Running, until: Callable[..., Any]):
    store = running.house.store
    blue = endpoints.get_deployment(store, "ep", "blue")
    both = {"b-0": running.blue.address, "b-1": running.green.address}
    endpoints.place(store, blue, addresses=both, restarts={})
    with ThreadPoolExecutor() as pool:
        held = pool.submit(running.to, "blue", b"hold")
        until(lambda: running.blue.asked or running.green.asked)
        busy, free = running.blue, running.green
        if free.asked:
            busy, free = free, busy
        for _ in range(3):
            assert running.to("blue").status_code == 200
        assert (len(busy.asked), len(free.asked)) == (1, 3)
        busy.go.set()
        assert held.result().status_code == 200


# -- instances that are lost -----------------------------------------------------------


class Breaking:
    """An instance that reads each request and then breaks the connection off."""

    def __enter__(self) -> Breaking:
        self.asked = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def _run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                if not connection.recv(65536):
                    return
                self.asked += 1

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self.listener.getsockname()):
            pass
        self.thread.join(20)
        self.listener.close()


def place(running: Running, **addresses: str) -> None:
    store = running.house.store
    blue = endpoints.get_deployment(store, "ep", "blue")
    found = {name.replace("_", "-"): address for name, address in addresses.items()}
    endpoints.place(store, blue, addresses=found)


@pytest.fixture
def shy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What broke a connection off is left alone for longer than a test takes."""
    monkeypatch.setattr("finery.doors.scoring._SHAKY", 600.0)


def test_a_request_whose_instance_was_lost_is_answered_by_another(running: Running, shy: None):
    with Breaking() as broken:
        place(running, b_0=broken.address, b_1=running.blue.address)
        answers = [running.to("blue", b"x" * 2_000_000) for _ in range(3)]
        assert [answer.json()["size"] for answer in answers] == [2_000_000] * 3
        assert (broken.asked, len(running.blue.asked)) == (1, 3), "it is left alone for a while"


def test_a_request_that_may_have_been_read_is_sent_again_once_only(running: Running):
    with Breaking() as one, Breaking() as two, Breaking() as three:
        place(running, b_0=one.address, b_1=two.address, b_2=three.address)
        assert "lost" in refused(running.to("blue"), 503)
        assert one.asked + two.asked + three.asked == 2


def test_a_body_in_pieces_is_not_sent_again_once_it_has_begun(running: Running, monkeypatch: Any):
    monkeypatch.setattr("finery.doors.scoring._AT_ONCE", 1000)
    with Breaking() as broken:
        place(running, b_0=broken.address, b_1=running.blue.address)
        assert running.to("blue", b"x" * 100_000).status_code == 503
        assert running.blue.asked == []


def test_a_body_in_pieces_goes_elsewhere_where_nobody_takes_it(running: Running, monkeypatch: Any):
    monkeypatch.setattr("finery.doors.scoring._AT_ONCE", 1000)
    with nobody() as address:
        place(running, b_0=address, b_1=running.blue.address)
        assert running.to("blue", b"x" * 100_000).json()["size"] == 100_000


def test_a_request_waits_for_what_takes_the_place_of_its_instance(running: Running, shy: None):
    woken = threading.Event()
    object.__setattr__(running.house, "wake", woken.set)
    with Breaking() as broken, ThreadPoolExecutor() as pool:
        place(running, b_0=broken.address)
        call = pool.submit(running.to, "blue")
        assert woken.wait(60), "the supervisor is told to look"
        place(running)
        late = pool.submit(running.to, "blue")
        place(running, b_1=running.blue.address)
        assert (call.result().status_code, late.result().status_code) == (200, 200)
        assert broken.asked == 1


def test_the_first_call_of_a_deployment_without_instances_waits_for_one(
    running: Running, until: Callable[..., Any]
):
    woken = threading.Event()
    object.__setattr__(running.house, "wake", woken.set)
    running.limit(max_queue_wait_ms=0, scaling=Scaling(least=0, most=1))
    blue = endpoints.get_deployment(running.house.store, "ep", "blue")
    endpoints.scale(running.house.store, blue, 0, reason="a test")
    place(running)
    with ThreadPoolExecutor() as pool:
        call = pool.submit(running.to, "blue")
        assert woken.wait(60)
        assert until(lambda: running.door.load(blue.id).now) == 1
        place(running, b_1=running.blue.address)
        assert call.result().status_code == 200
    until(lambda: running.door.load(blue.id).now == 0)


def test_a_look_that_fails_does_not_keep_who_waits_from_the_instance_that_comes(
    running: Running, until: Callable[..., Any], monkeypatch: Any
):
    running.limit(max_queue_wait_ms=0, scaling=Scaling(least=0, most=1))
    blue = endpoints.get_deployment(running.house.store, "ep", "blue")
    endpoints.scale(running.house.store, blue, 0, reason="a test")
    place(running)
    looks, find = [], running.door._directory.find

    async def failing(name: str) -> Any:
        looks.append(name)
        if 1 < len(looks) < 5:
            raise OSError("the database is locked")
        return await find(name)

    monkeypatch.setattr(running.door._directory, "find", failing)
    with ThreadPoolExecutor() as pool:
        call = pool.submit(running.to, "blue")
        until(lambda: len(looks) >= 5)
        place(running, b_1=running.blue.address)
        assert call.result().status_code == 200


def test_who_waits_for_an_instance_that_does_not_come_is_told_so(running: Running):
    running.limit(request_timeout_ms=50, max_queue_wait_ms=0)
    place(running)
    assert "no instance that answers" in refused(running.to("blue"), 503)


def test_an_instance_is_busy_until_its_last_answer_is_whole(
    running: Running, until: Callable[..., Any]
):
    shown = {"authorization": running.key, "azureml-model-deployment": "blue"}
    with running.client.stream("POST", "/stream", content=b"{}", headers=shown) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "data: 1"
        place(running)  # it gets no more requests
        assert running.door.busy("b-0") == 1
        running.blue.go.set()
        assert [line for line in lines if line] == ["data: 2"]
    until(lambda: running.door.busy("b-0") == 0)


# -- limits ----------------------------------------------------------------------------


def test_a_full_queue_is_said_to_be_full(running: Running, until: Callable[..., Any]):
    running.limit(max_concurrent_requests=1, max_queue_wait_ms=50)
    with ThreadPoolExecutor() as pool:
        held = pool.submit(running.to, "blue", b"hold")
        until(lambda: running.blue.asked)
        answer = running.to("blue")
        assert "within 50 ms" in refused(answer, 429)
        assert answer.headers["retry-after"] == "1"
        running.blue.go.set()
        assert held.result().status_code == 200
    until(lambda: running.door.busy("b-0") == 0)
    assert running.to("blue").status_code == 200


def test_who_waits_gets_the_place_that_comes_free(running: Running, until: Callable[..., Any]):
    running.limit(max_concurrent_requests=1, max_queue_wait_ms=60_000)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(running.to, "blue", b"hold") for _ in range(4)]
        until(lambda: running.blue.asked)
        assert len(running.blue.asked) == 1
        running.blue.go.set()
        assert [call.result().status_code for call in calls] == [200] * 4


def test_an_answer_that_takes_too_long_is_given_up(running: Running, until: Callable[..., Any]):
    running.limit(request_timeout_ms=20)

    def left() -> int:  # again, should its time have been over before the instance was asked
        assert "within 20 ms" in refused(running.to("blue", b"hold"), 408)
        return running.blue.left

    until(left)
    running.limit(request_timeout_ms=60_000)
    assert running.to("blue").status_code == 200


def test_a_caller_that_leaves_is_not_worked_for(running: Running, until: Callable[..., Any]):
    running.limit(max_concurrent_requests=1)
    place = httpx.URL(running.address)
    lines = ["POST /endpoints/ep/score HTTP/1.1", "host: x", f"authorization: {running.key}"]
    lines += ["azureml-model-deployment: blue", "content-length: 4", "", "hold"]
    with socket.create_connection((place.host, place.port)) as hasty:
        hasty.sendall("\r\n".join(lines).encode())
        until(lambda: running.blue.asked)
    until(lambda: running.blue.left == 1)
    assert running.to("blue").status_code == 200  # its place is free again


# -- bytes -----------------------------------------------------------------------------


def test_an_answer_is_passed_on_as_it_comes(running: Running):
    headers = {"authorization": running.key, "azureml-model-deployment": "blue"}
    with running.client.stream("POST", "/stream", content=b"{}", headers=headers) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        lines = answer.iter_lines()
        assert next(lines) == "data: 1"
        running.blue.go.set()
        assert [line for line in lines if line] == ["data: 2"]


def test_a_large_body_is_not_read_before_there_is_a_place_for_it(running: Running, monkeypatch):
    monkeypatch.setattr("finery.doors.scoring._AT_ONCE", 1000)
    asked: list[int] = []

    async def receive() -> Any:
        asked.append(1)
        return {"type": "http.request", "body": b"x" * 2000, "more_body": False}

    async def send(_: Any) -> None: ...

    headers = [(b"content-length", b"2000")]
    scope = {"path": "/endpoints/ep/score", "query_string": b"", "headers": headers}
    body = asyncio.run(running.door._body(answering.read(scope, receive, send)))
    assert not isinstance(body, bytes)
    assert not asked


def test_a_large_body_is_passed_on_as_it_comes(running: Running):
    body = b"x" * (MAX_BODY - 1)
    assert running.to("blue", body).json()["size"] == len(body)
    pieces = (b"x" * 50_000 for _ in range(50))
    assert running.to("blue", pieces).json()["size"] == 2_500_000


def test_what_is_held_of_a_body_in_pieces_counts_until_it_is_sent_on(
    running: Running, until: Callable[..., Any], monkeypatch: Any
):
    monkeypatch.setattr("finery.doors.scoring._AT_ONCE", 100_000)
    running.limit(max_concurrent_requests=1, max_queue_wait_ms=60_000)
    with ThreadPoolExecutor() as pool:
        held = pool.submit(running.to, "blue", b"hold")
        until(lambda: running.blue.asked)
        waits = pool.submit(running.to, "blue", (b"x" * 50_000 for _ in range(50)))
        # What a server may have read ahead (its own buffer, one read of the socket) comes on top.
        until(lambda: 100_000 < running.door._held < 1_000_000)
        running.blue.go.set()
        assert held.result().status_code == 200
        assert waits.result().json()["size"] == 2_500_000
    until(lambda: running.door._held == 0)


def test_what_is_held_of_a_body_that_is_refused_is_let_go(
    running: Running, until: Callable[..., Any], monkeypatch: Any
):
    monkeypatch.setattr("finery.doors.scoring._AT_ONCE", 100_000)
    running.limit(max_concurrent_requests=1, max_queue_wait_ms=50)
    with ThreadPoolExecutor() as pool:
        held = pool.submit(running.to, "blue", b"hold")
        until(lambda: running.blue.asked)
        refused(running.to("blue", (b"x" * 50_000 for _ in range(5))), 429)
        until(lambda: running.door._held == len(b"hold"))
        running.blue.go.set()
        assert held.result().status_code == 200
    until(lambda: running.door._held == 0)


@pytest.mark.parametrize("pieces", [1, 80])
def test_a_body_that_is_too_large_is_refused(running: Running, pieces: int):
    body: Any = b"x" * (MAX_BODY + 1)
    if pieces > 1:
        body = (b"x" * 50_000 for _ in range(pieces))
    answer = running.to("blue", body)
    assert str(MAX_BODY) in refused(answer, 413)
    assert answer.headers["connection"] == "close"  # else the rest would be read all the same


@pytest.mark.parametrize("status", [302, 400, 401, 404, 408, 418, 422, 424, 429, 500, 503])
def test_what_a_model_says_outside_2xx_is_424_as_on_azure_with_its_status_and_body(
    running: Running, status: int
):
    answer = running.to("blue", b"says %d" % status)
    assert answer.status_code == 424
    assert answer.headers.get_list("ms-azureml-model-error-statuscode") == [str(status)]
    assert answer.headers["ms-azureml-model-error-reason"] == "model_error"
    assert answer.json() == {"size": 8, "path": "/score"}


@pytest.mark.parametrize("status", [400, 408, 413, 429, 503])
def test_what_an_instance_refuses_for_us_stays_what_it_is(running: Running, status: int):
    answer = running.to("blue", b"refuses %d" % status)
    assert answer.status_code == status
    assert not {"x-finery-refused", "ms-azureml-model-error-statuscode"} & {*answer.headers}


@pytest.mark.parametrize("status", [400, 408, 413, 429])
def test_so_does_what_an_instance_refuses_that_an_earlier_server_began(
    running: Running, status: int
):
    """It runs on under the next server, and marks nothing."""
    assert running.to("blue", b"refused %d" % status).status_code == status


def test_where_another_process_has_the_address_the_instance_is_lost(running: Running):
    """It knows another secret: that is no word on the caller's key."""
    assert "is another" in refused(running.to("blue", b"refuses 401"), 503)
    assert running.to("blue").status_code == 200


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_what_a_model_says_within_2xx_goes_through(running: Running, status: int):
    answer = running.to("blue", b"says %d" % status)
    assert answer.status_code == status
    assert "ms-azureml-model-error-statuscode" not in answer.headers


def test_an_answer_without_a_body_is_one_at_424_too(running: Running):
    answer = running.to("blue", b"says 304")
    assert (answer.status_code, answer.content) == (424, b"")


def test_a_script_that_raised_is_424_and_says_what_it_was(running: Running):
    answer = running.to("blue", b"raise")
    assert answer.status_code == 424
    assert answer.headers["ms-azureml-model-error-statuscode"] == "500"
    assert answer.headers["ms-azureml-model-error-reason"] == "KeyError: 'image'"


def test_errors_below_v1_are_what_openai_s_clients_read(running: Running):
    error = running.to("red", path="v1/chat/completions").json()["error"]
    assert error["type"] == "invalid_request_error" and "red" in error["message"]


# -- copies ----------------------------------------------------------------------------


def test_copies_go_to_the_mirror_and_never_touch_the_answer(
    running: Running, until: Callable[..., Any]
):
    running.share(blue=100, mirror={"green": 50})
    went = {
        running.post(content=b"says 500").headers["azureml-model-deployment"] for _ in range(10)
    }
    assert went == {"blue"}
    until(lambda: len(running.green.asked) == 5)
    assert len(running.blue.asked) == 10
    green = endpoints.get_deployment(running.house.store, "ep", "green").id
    until(lambda: running.door.seen(green).meter.answers == {424: 5})


def test_a_mirror_that_hangs_holds_nobody_up(running: Running, until: Callable[..., Any]):
    running.share(blue=100, mirror={"green": 50})
    running.blue.go.set()
    for _ in range(4):
        assert running.post(content=b"hold").status_code == 200
    until(lambda: len(running.green.asked) == 2)


def test_a_mirror_that_fails_or_is_lost_touches_no_answer(running: Running):
    with Breaking() as broken:
        store = running.house.store
        green = endpoints.get_deployment(store, "ep", "green")
        endpoints.place(store, green, addresses={"g-0": broken.address})
        running.share(blue=100, mirror={"green": 50})
        assert {running.post().status_code for _ in range(10)} == {200}


def test_copies_that_a_mirror_is_too_slow_for_are_dropped_and_counted(
    running: Running, until: Callable[..., Any], monkeypatch: Any
):
    monkeypatch.setattr("finery.doors.scoring._MIRRORED_EACH", 2)
    running.share(blue=100, mirror={"green": 50})
    running.blue.go.set()
    assert {running.post(content=b"hold").status_code for _ in range(10)} == {200}
    until(lambda: len(running.green.asked) == 2)
    green = endpoints.get_deployment(running.house.store, "ep", "green")
    seen = running.door.seen(green.id)
    assert seen and (seen.meter.copies, seen.meter.dropped) == (2, 3)


# -- counts ----------------------------------------------------------------------------


def samples(text: str) -> dict[str, float]:
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_what_was_asked_is_told_in_prometheus_text(running: Running):
    running.share(blue=90, green=10)
    for content in (b"{}", b"{}", b"says 400"):
        running.to("blue", content)
    answer = running.client.get("/metrics", headers={"authorization": running.key})
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    told, blue = samples(answer.text), 'endpoint="ep",deployment="blue"'
    assert told[f'finery_endpoint_requests_total{{{blue},code="200"}}'] == 2
    assert told[f'finery_endpoint_requests_total{{{blue},code="424"}}'] == 1
    assert told[f'finery_endpoint_request_seconds_bucket{{{blue},le="+Inf"}}'] == 3
    assert told[f"finery_endpoint_request_seconds_count{{{blue}}}"] == 3
    assert told[f"finery_endpoint_instances_ready{{{blue}}}"] == 1
    assert told[f"finery_endpoint_traffic_percent{{{blue}}}"] == 90
    assert told[f"finery_endpoint_running{{{blue}}}"] == 0
    types = [line for line in answer.text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len({*types})


def test_what_instances_tell_of_themselves_is_passed_on_with_their_labels(
    running: Running, monkeypatch: Any
):
    monkeypatch.setattr("finery.doors.telling._WAIT", 60.0)
    said = b"# HELP finery_tokens_total of chat\n# TYPE finery_tokens_total counter\n"
    said += b'finery_tokens_total{kind="prompt"} 7\nnonsense\nfinery_up 1\n'
    running.blue.metrics = said
    place(running, **{"deployment_x_1_0_2": running.blue.address})
    answer = running.client.get("/metrics", headers={"authorization": running.key})
    own = 'endpoint="ep",deployment="blue",instance="1-0-2"'
    told = samples(answer.text)
    assert told[f'finery_tokens_total{{{own},kind="prompt"}}'] == 7
    assert told[f"finery_up{{{own}}}"] == 1
    assert "nonsense" not in answer.text


def test_counts_of_one_endpoint_are_for_its_callers_and_of_all_for_the_administrator(
    running: Running,
):
    url = f"{running.address}/endpoints/ep/metrics"
    assert httpx.get(url).status_code == 401
    url = f"{running.address}/metrics"
    assert httpx.get(url, headers={"authorization": f"Bearer {running.key}"}).status_code == 401
    shown = {"authorization": f"Bearer {running.house.keys.admin}"}
    told = httpx.get(url, headers=shown)
    assert 'finery_endpoint_instances_ready{endpoint="ep",deployment="blue"} 1' in told.text


@pytest.mark.parametrize(("workspace", "told"), [("ws", True), ("another", False)])
def test_an_administrator_of_one_workspace_is_told_of_its_endpoints_only(
    running: Running, workspace: str, told: bool
):
    caller = Caller(name="somebody", workspace=workspace)
    keys, now = running.house.keys, ids.now()
    token = keys.mint(caller, audience="https://ml.azure.com", seconds=60, now=now)
    answer = httpx.get(f"{running.address}/metrics", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    assert ('endpoint="ep"' in answer.text) is told


def test_other_methods_than_get_and_post_are_refused_to_those_who_may_call(running: Running):
    shown = {"authorization": f"Bearer {running.key}"}
    answer = running.client.put("/score", content=b"{}", headers=shown)
    assert "GET and POST" in refused(answer, 405)
    assert answer.headers["allow"] == "GET, POST"
    assert running.client.put("/score", content=b"{}").status_code == 401


def test_what_goes_wrong_in_the_door_itself_is_said_without_its_reason(running, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr("finery.doors.traffic.choose", broken)
    said = refused(running.post(), 500)
    assert "its log says what" in said and "secret" not in said
