"""What a serving process answers, with a hand-written scorer, over loopback in this process.

A real socket, because the host speaks HTTP itself; no process and no model.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from finery.serving import script, wire, workers
from finery.serving.contract import Told
from finery.serving.routes import Host, plain
from finery.serving.spec import Spec
from finery.serving.wire import Answer, Refusal

from .loopback import answering

Story = Callable[[httpx.AsyncClient], Awaitable[None]]


def play(
    story: Story,
    score: Callable[[bytes], bytes] | None = None,
    *,
    scorer: wire.Scorer | None = None,
    secret: str = "",
    **spec: Any,
) -> Host:
    """Tell a story of requests to a host that serves `score`; nothing is late unless it says so."""
    spec = {"request_timeout_ms": 60_000, "max_queue_wait_ms": 60_000, **spec}
    made: list[Host] = []

    async def whole() -> None:
        document = Spec(kind="pyfunc", model="models/m", **spec)
        serves = scorer or plain(score or echo)
        host = Host(document, scorer=serves, secret=secret, deployment="blue")
        made.append(host)
        async with answering(host) as client:
            async with asyncio.timeout(120):
                await story(client)

    asyncio.run(whole())
    return made[0]


def echo(body: bytes) -> bytes:
    return b'"' + body + b'"'


def test_a_score_is_answered_with_its_identifier_and_deployment() -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/score", content=b"hi", headers={"x-ms-request-id": "mine"})
        assert (answer.status_code, answer.json()) == (200, "hi")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-ms-request-id"] == "mine"
        assert answer.headers["azureml-model-deployment"] == "blue"
        made = await client.post("/score", content=b"hi")
        assert len(made.headers["x-ms-request-id"]) == 36
        long = await client.post("/score", content=b"hi", headers={"x-ms-request-id": "a" * 101})
        assert long.status_code == 431

    play(story, echo)


def test_everything_but_health_needs_the_secret() -> None:
    async def story(client: httpx.AsyncClient) -> None:
        for path in ("/health", "/health/live", "/health/ready"):
            assert (await client.get(path)).text == "Healthy"
        for method, path in (("GET", "/"), ("POST", "/score"), ("GET", "/nowhere")):
            assert (await client.request(method, path)).status_code == 401
            wrong = await client.request(method, path, headers={"x-finery-secret": "s3cre"})
            assert wrong.status_code == 401
        right = await client.get("/", headers={"x-finery-secret": "s3cret"})
        assert right.text == "Healthy"

    play(story, echo, secret="s3cret")


def test_what_is_not_there_is_said_to_be_so() -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.get("/nowhere")
        assert answer.status_code == 404
        assert answer.json() == {
            "error": {"code": "NotFound", "message": "there is nothing at /nowhere"}
        }
        assert (await client.get("/score")).status_code == 405
        chat = await client.post("/v1/chat/completions", json={})
        assert chat.status_code == 404, "only a chat model completes chats"

    play(story, echo)


def test_a_model_that_fails_is_500_and_says_why_for_the_way_in_to_make_it_424() -> None:
    def broken(body: bytes) -> bytes:
        raise script.failed(KeyError("image"), "run()")

    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/score", content=b"{}")
        assert answer.status_code == 500
        assert answer.json()["error"] == {
            "code": "ModelError",
            "message": "run() failed: KeyError: 'image'",
        }
        assert answer.headers["ms-azureml-model-error-reason"] == "run() failed: KeyError: 'image'"
        assert "x-finery-refused" not in answer.headers

    play(story, broken)


def test_what_a_model_does_not_take_is_its_own_answer_and_a_limit_is_ours() -> None:
    def choosy(body: bytes) -> bytes:
        raise wire.invalid("missing", target="input_data")

    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/score", content=b"{}")
        assert answer.status_code == 400 and "x-finery-refused" not in answer.headers
        assert answer.headers["ms-azureml-model-error-reason"] == "input_data: missing"
        large = await client.post("/score", content=b"x" * 101)
        assert (large.status_code, large.headers["x-finery-refused"]) == (413, "True")

    play(story, choosy, max_body_bytes=100)


def test_a_script_that_tries_to_end_the_process_does_not() -> None:
    def leaving(body: bytes) -> bytes:
        raise SystemExit(3)

    async def story(client: httpx.AsyncClient) -> None:
        for _ in range(2):  # the second needs the thread of the first
            answer = await client.post("/score")
            assert answer.status_code == 500
            assert "SystemExit: 3" in answer.json()["error"]["message"]

    play(story, leaving)


def test_a_body_that_is_too_large_is_413() -> None:
    async def chunks() -> Any:
        for _ in range(3):
            yield b"x" * 50

    async def story(client: httpx.AsyncClient) -> None:
        assert (await client.post("/score", content=b"x" * 100)).status_code == 200
        declared = await client.post("/score", content=b"x" * 101)
        streamed = await client.post("/score", content=chunks())
        assert declared.status_code == streamed.status_code == 413
        assert "100 bytes" in declared.json()["error"]["message"]

    play(story, echo, max_body_bytes=100)


def test_a_packed_body_is_refused_rather_than_misread() -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/score", content=b"x", headers={"content-encoding": "gzip"})
        assert answer.status_code == 415

    play(story, echo)


class Slow:
    """A scorer that waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls = 0

    def __call__(self, body: bytes) -> bytes:
        self.calls += 1
        assert self.go.wait(120)
        return b"1"


async def told(client: httpx.AsyncClient, line: bytes) -> None:
    """Wait until the host says this of itself; `play` sees to it that this ends."""
    while line + b"\n" not in (await client.get("/metrics")).content:
        pass


class Clock:
    """The time as the workers see it: it goes on when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(workers, "time", made)
    return made


def test_probes_are_answered_while_a_script_runs() -> None:
    slow = Slow()

    async def story(client: httpx.AsyncClient) -> None:
        running = asyncio.ensure_future(client.post("/score"))
        while not slow.calls:
            await asyncio.sleep(0)
        assert (await client.get("/health")).status_code == 200
        assert not running.done()
        slow.go.set()
        assert (await running).status_code == 200

    play(story, slow)


def test_a_place_that_does_not_come_free_is_429_and_a_late_answer_408(clock: Clock) -> None:
    slow = Slow()

    async def story(client: httpx.AsyncClient) -> None:
        first = asyncio.ensure_future(client.post("/score"))
        while not slow.calls:
            await asyncio.sleep(0)
        second = asyncio.ensure_future(client.post("/score"))
        await told(client, b"finery_queue 1")
        clock.now += 0.1
        waited = await second
        assert waited.status_code == 429
        assert waited.headers["retry-after"] == "1"
        assert "within 50 ms" in waited.json()["error"]["message"]
        clock.now += 0.3
        late = await first
        assert late.status_code == 408
        assert "within 300 ms" in late.json()["error"]["message"]
        # The script cannot be stopped: its place is taken until it returns.
        third = asyncio.ensure_future(client.post("/score"))
        await told(client, b"finery_queue 1")
        clock.now += 0.1
        assert (await third).status_code == 429
        slow.go.set()
        await told(client, b"finery_running 0")
        assert (await client.post("/score")).status_code == 200
        assert slow.calls == 2, "what was refused was never run"

    play(story, slow, request_timeout_ms=300, max_queue_wait_ms=50)


def test_a_full_queue_is_429_at_once() -> None:
    slow = Slow()

    async def story(client: httpx.AsyncClient) -> None:
        running = [asyncio.ensure_future(client.post("/score")) for _ in range(2)]
        await told(client, b"finery_queue 1")
        refused = await client.post("/score")
        assert refused.status_code == 429
        assert "1 are waiting" in refused.json()["error"]["message"]
        slow.go.set()
        assert [one.status_code for one in await asyncio.gather(*running)] == [200, 200]

    play(story, slow, max_queued_requests=1)


def test_as_many_run_at_once_as_the_settings_allow() -> None:
    meet = threading.Barrier(3, timeout=60)

    def together(body: bytes) -> bytes:
        meet.wait()
        return b"1"

    async def story(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(client.post("/score") for _ in range(3)))
        assert [one.status_code for one in answers] == [200] * 3

    play(story, together, max_concurrent_requests=3)


def test_many_callers_all_get_their_own_answer() -> None:
    async def story(client: httpx.AsyncClient) -> None:
        bodies = [str(number).encode() for number in range(200)]
        answers = await asyncio.gather(*(client.post("/score", content=b) for b in bodies))
        assert [one.content for one in answers] == [echo(body) for body in bodies]

    host = play(story, echo, max_concurrent_requests=4)
    assert (host.workers.running, host.workers.waiting) == (0, 0)  # type: ignore[union-attr]


def test_a_request_is_one_line_of_the_log_and_says_nothing_of_its_content(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/score", content=b"private", headers={"authorization": "Bearer key"})
        await client.get("/health")

    play(story, echo)
    out = capsys.readouterr().out
    (line,) = [json.loads(line) for line in out.splitlines()]
    assert {k: line[k] for k in ("event", "method", "path", "status", "bytes")} == {
        "event": "request",
        "method": "POST",
        "path": "/score",
        "status": 200,
        "bytes": 9,
    }
    assert "private" not in out and "key" not in out


def test_the_counts_and_the_description_are_there() -> None:
    def picky(body: bytes) -> bytes:
        if body == b"bad":
            raise wire.invalid("is missing", target="input")
        return b"1"

    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/score")
        bad = await client.post("/score", content=b"bad")
        assert bad.json()["error"] == {
            "code": "BadRequest",
            "message": "input: is missing",
            "target": "input",
        }
        await client.get("/made-up")
        text = (await client.get("/metrics")).text
        assert 'finery_requests_total{status="200"} 1\n' in text
        assert 'finery_requests_total{status="400"} 1\n' in text
        assert 'status="404"' not in text, "only what is meant for the model is counted"
        assert 'finery_request_seconds_bucket{le="+Inf"} 2\n' in text
        assert "finery_request_seconds_count 2\n" in text
        assert "finery_running 0\n" in text and "finery_queue 0\n" in text
        described = (await client.get("/swagger.json")).json()
        assert described["info"]["title"] == "m"
        assert set(described["paths"]) == {"/", "/score"}
        assert (await client.get("/swagger.json?version=2")).status_code == 404

    play(story, picky)


def test_our_own_mistake_is_500_with_its_kind() -> None:
    def wrong(body: bytes) -> bytes:
        raise RuntimeError("ours")

    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/score")
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "RuntimeError: ours"

    play(story, wrong)


def test_a_refusal_of_the_scorer_is_the_answer() -> None:
    def refusing(body: bytes) -> bytes:
        raise Refusal(418, "Teapot", "short and stout")

    async def story(client: httpx.AsyncClient) -> None:
        assert (await client.post("/score")).status_code == 418

    play(story, refusing)


def poured(*parts: bytes | Exception) -> wire.Scorer:
    """A scorer whose answer is made while it is sent."""

    def pieces() -> Iterator[bytes]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    return lambda exchange: Answer(200, [(b"content-type", wire.TEXT)], b"", pieces())


def test_what_fails_before_its_first_piece_is_an_error_and_later_a_broken_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = Told(500, "m", failed=True, why="KeyError")

    async def early(client: httpx.AsyncClient) -> None:
        answer = await client.post("/score")
        assert (answer.status_code, answer.json()) == (500, {"message": "m"})

    async def late(client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/score")

    async def never(client: httpx.AsyncClient) -> None:
        assert (await client.post("/score")).content == b"onetwo"

    play(early, scorer=poured(broken))
    play(late, scorer=poured(b"one", broken))
    play(never, scorer=poured(b"one", b"", b"two"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["status"], one["bytes"]) for one in lines] == [(500, 16), (500, 3), (200, 6)]


def test_an_answer_in_pieces_that_takes_too_long_breaks_off(clock: Clock) -> None:
    go = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"one"
        go.wait(120)
        yield b"two"

    async def story(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/score") as answer:
            assert answer.status_code == 200
            clock.now += 1
            with pytest.raises(httpx.RemoteProtocolError):
                await answer.aread()
        go.set()

    scorer: wire.Scorer = lambda exchange: Answer(200, [], b"", pieces())  # noqa: E731
    play(story, scorer=scorer, request_timeout_ms=200)


def test_a_caller_who_leaves_the_queue_is_not_run_and_the_queue_is_told() -> None:
    slow = Slow()

    async def story(client: httpx.AsyncClient) -> None:
        running = asyncio.ensure_future(client.post("/score"))
        while not slow.calls:
            await asyncio.sleep(0)
        leaves = asyncio.ensure_future(client.post("/score"))
        await told(client, b"finery_queue 1")
        await told(client, b"finery_running 1")
        leaves.cancel()
        await told(client, b"finery_queue 0")
        slow.go.set()
        assert (await running).status_code == 200
        assert slow.calls == 1

    play(story, slow)


def test_memory_that_runs_out_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    def large(body: bytes) -> bytes:
        raise MemoryError("500 megapixels")

    async def story(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            answer = await client.post("/score")
            assert answer.status_code == 500
            assert answer.json()["error"]["message"] == "MemoryError: 500 megapixels"

    play(story, large)
    assert "MemoryError" in capsys.readouterr().err
