"""HTTP on real sockets of this machine, before an application that echoes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop

from finery.serving.connection import MAX_HEAD, PATIENCE, Listener
from finery.serving.wire import Answer, Exchange, Refusal
from finery.serving.workers import Workers

LIMIT = 1_000_000
# The one that serves, and the one that serves where the first is not installed.
LOOPS = (uvloop.new_event_loop, asyncio.new_event_loop)
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


class Echo:
    """Answers with what it was sent; /late waits to be let go, /pieces comes in pieces."""

    def __init__(self) -> None:
        self.handled: list[Exchange] = []
        self.gone = 0
        self.late: list[Exchange] = []

    def admit(self, exchange: Exchange, length: int) -> int:
        if exchange.path == "/forbidden":
            raise Refusal(401, "Unauthorized", "no")
        return LIMIT

    def handle(self, exchange: Exchange) -> None:
        self.handled.append(exchange)
        if exchange.path == "/late":
            self.late.append(exchange)
            exchange.gone = self.left
        elif exchange.path == "/pieces":
            exchange.begin(200, [(b"content-type", b"text/plain")])
            exchange.write(b"one")
            exchange.write(b"two")
            exchange.end()
        else:
            exchange.answer(200, b"%d:" % len(exchange.body) + bytes(exchange.body[:5]))

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        exchange.answer(refusal.status, refusal.message.encode())

    def left(self) -> None:
        self.gone += 1


Story = Callable[[Reader, Writer, Echo], Awaitable[None]]


def play(story: Story) -> None:
    async def whole() -> None:
        application = Echo()
        listener = Listener(application)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(listener.connect, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        try:
            async with asyncio.timeout(120):
                await story(reader, writer, application)
        finally:
            writer.close()
            server.close()
            await listener.close(1)

    for loop_factory in LOOPS:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(whole())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until it holds; `play` sees to it that this ends."""
    while not condition():
        await asyncio.sleep(0.001)


async def answer(reader: Reader, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
    """The next answer; of one to HEAD there is only the head."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:-2])
    body = b""
    if headers.get("transfer-encoding") == "chunked" and not head:
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif not head:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(lines[0].split()[1]), headers, body


def request(path: str, body: bytes = b"", *, method: str = "POST", more: str = "") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\n{more}content-length: {len(body)}\r\n\r\n".encode()
        + body
    )


def test_requests_that_are_sent_ahead_are_answered_in_turn() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(request("/late", b"a") + request("/b", b"bb") + request("/c"))
        await until(lambda: echo.late)
        writer.write(request("/d", b"dddd"))
        await asyncio.sleep(0)
        assert [one.path for one in echo.handled] == ["/late"]
        echo.late[0].answer(200, b"at last")
        assert [(await answer(reader))[2] for _ in range(4)] == [
            b"at last",
            b"2:bb",
            b"0:",
            b"4:dddd",
        ]

    play(story)


@pytest.mark.parametrize("size", [0, 1, 16_000, 16_384, 300_000, LIMIT])
def test_a_body_arrives_whole_however_it_is_cut(size: int) -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        body = bytes(range(256)) * (size // 256 + 1)
        sent = request("/", body[:size])
        for at in range(0, len(sent), 70_000):
            writer.write(sent[at : at + 70_000])
            await asyncio.sleep(0)
        await answer(reader)
        assert echo.handled[0].body == body[:size]
        chunks = [body[at : min(at + 9_999, size)] for at in range(0, size, 9_999)]
        writer.write(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n")
        await answer(reader)
        assert echo.handled[1].body == body[:size]

    play(story)


def test_a_byte_at_a_time_is_a_request_too() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        for one in b"\r\n" + request("/a%20b?c=%20", b"xyz", more="X-Name:  v \r\n"):
            writer.write(bytes([one]))
            await asyncio.sleep(0)
        assert (await answer(reader))[2] == b"3:xyz"
        asked = echo.handled[0]
        assert (asked.path, asked.query, asked.header(b"x-name")) == ("/a b", b"c=%20", b"v")

    play(story)


def test_a_gigabyte_is_refused_before_it_is_sent() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(
            b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1073741824\r\n\r\n"
        )
        status, headers, body = await answer(reader)
        assert status == 413 and str(LIMIT) in body.decode()
        assert headers["connection"] == "close"
        assert await reader.read() == b"" and not echo.handled

    play(story)


def test_a_gigabyte_that_is_sent_anyway_is_not_read() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 1073741824\r\n\r\n")
        sent, piece = 0, b"x" * 2**20
        with pytest.raises(ConnectionError):
            while sent < 1024:
                writer.write(piece)
                await writer.drain()
                sent += 1
        assert sent < 64, "mebibytes, most of them in the kernel's buffers"
        assert not echo.handled

    play(story)


def test_chunks_without_end_are_refused_at_the_limit() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(LIMIT // 100_000 + 1):
            writer.write(b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000))
        assert (await answer(reader))[0] == 413
        assert not echo.handled

    play(story)


def test_who_may_not_call_is_told_without_being_read() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(b"POST /forbidden HTTP/1.1\r\ncontent-length: 900000\r\n\r\n")
        assert (await answer(reader))[0] == 401

    play(story)


def test_a_client_that_waits_for_leave_gets_it() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert (await answer(reader))[2] == b"2:ok"

    play(story)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_HEAD // 6 + 2), 431),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * MAX_HEAD + b"\r\n\r\n", 431),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 505),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(sent: bytes, status: int) -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(sent)
        assert (await answer(reader))[0] == status
        assert await reader.read() == b"" and not echo.handled

    play(story)


def test_a_request_behind_chunks_in_the_same_piece_is_not_smuggled_in() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        first = b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        writer.write(first + request("/b"))
        assert (await answer(reader))[2] == b"1:x"
        assert await reader.read() == b""
        assert [one.path for one in echo.handled] == ["/a"]

    play(story)


def test_chunks_behind_an_offer_to_upgrade_are_not_taken_for_a_request() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        inner = request("/smuggled")
        offer = "connection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n"
        writer.write(f"POST /a HTTP/1.1\r\n{offer}\r\n".encode())
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner))
        assert (await answer(reader))[0] == 400
        assert await reader.read() == b"" and not echo.handled

    play(story)


def test_however_much_is_sent_ahead_little_of_it_is_held() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        count = 5_000
        writer.write(request("/") * count)
        held = 0
        for _ in range(count):
            assert (await answer(reader))[2] == b"0:"
            held = max(held, len(echo.handled[-1].line._rest))  # type: ignore[attr-defined]
        assert 0 < held < 64_000 < len(request("/")) * count

    play(story)


def test_a_head_that_drips_does_not_hold_its_connection() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(request("/"))
        await answer(reader)
        connection: Any = echo.handled[0].line
        writer.write(b"GET / ")
        await until(lambda: connection._rest)
        began = connection._since
        writer.write(b"HTTP/1.1\r\n")
        await until(lambda: len(connection._rest) > 6)
        connection.look(began + PATIENCE + 0.001)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await answer(reader)

    play(story)


def test_an_answer_in_pieces_for_each_version_of_http() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(request("/pieces"))
        assert (await answer(reader))[2] == b"onetwo"
        writer.write(request("/pieces", method="HEAD"))
        assert (await answer(reader, head=True))[0] == 200
        writer.write(b"POST /pieces HTTP/1.0\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert body == b"onetwo" and b"chunked" not in head

    play(story)


def test_head_has_a_length_and_no_body() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(request("/", b"abc", method="HEAD") + request("/", b"abc"))
        status, headers, _ = await answer(reader, head=True)
        assert (status, headers["content-length"]) == (200, "5")
        assert (await answer(reader))[2] == b"3:abc"

    play(story)


def test_a_client_that_leaves_is_noticed_and_a_late_answer_harms_nobody() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(request("/late"))
        await until(lambda: echo.late)
        writer.transport.abort()
        await until(lambda: echo.gone)
        echo.late[0].answer(200, b"nobody reads this")

    play(story)


def test_silence_ends_a_connection_but_not_a_long_answer() -> None:
    async def story(reader: Reader, writer: Writer, echo: Echo) -> None:
        writer.write(request("/late"))
        await until(lambda: echo.late)
        connection: Any = echo.late[0].line
        connection.look(time.monotonic() + 1000)
        echo.late[0].answer(200, b"there")
        assert (await answer(reader))[2] == b"there"
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf")
        await until(lambda: connection._exchange and connection._body)
        heard = connection._since
        connection.look(heard + PATIENCE - 1)
        assert connection in connection._listener.connections
        connection.look(heard + PATIENCE + 1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await answer(reader)

    play(story)


class Poured:
    """Serves one endless answer through `Workers`."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = False
        self.ended: list[object] = []
        self.workers = Workers(self.score, self.done, places=1, queue=1, wait=120, time=120)
        self.workers.start()

    def admit(self, exchange: Exchange, length: int) -> int:
        return LIMIT

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        raise AssertionError(refusal)

    def handle(self, exchange: Exchange) -> None:
        self.workers.submit(exchange)

    def done(self, exchange: Exchange, result: object) -> None:
        self.ended.append(result)

    def score(self, exchange: Exchange) -> Answer:
        return Answer(200, [], b"", self.parts())

    def parts(self) -> Iterator[bytes]:
        try:
            while True:
                self.made += 1
                yield b"x" * 100_000
        finally:
            self.closed = True


def test_an_answer_is_made_no_faster_than_it_is_read_and_ends_with_its_reader() -> None:
    async def whole() -> None:
        application = Poured()
        listener = Listener(application)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(listener.connect, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(request("/"))
        await reader.readuntil(b"\r\n\r\n")
        made, still = 0, 0
        async with asyncio.timeout(120):
            while still < 20:  # until it has stood still for a fifth of a second
                made, still = application.made, still + 1 if application.made == made else 0
                await asyncio.sleep(0.01)
            assert made < 400, "pieces, most of them in the kernel's buffers"
            writer.transport.abort()
            await until(lambda: application.closed and application.ended)
        (why,) = application.ended
        assert isinstance(why, Refusal) and why.status == 499
        server.close()
        await listener.close(1)
        application.workers.stop()

    asyncio.run(whole())
