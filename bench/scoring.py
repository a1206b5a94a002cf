"""Our scoring host beside Azure's own, on the same script, in one run.

    python bench/scoring.py [--json] [--seconds 3] [--official .venv-inference/bin/python]

Small JSON and a 300 KB picture, 1 and 16 callers: requests per second, median and 99th
percentile of the time to the answer, processor time of the server for each request (what
neighbours do changes that little).  Rounds alternate between the two.  Then: how long a
probe takes while `run()` sleeps, spins or holds the interpreter for a second.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import uvloop

ROOT = Path(__file__).parent.parent
SCRIPT = """
import json, time
def init(): pass
def run(data):
    given = json.loads(data)["data"]
    if isinstance(given, dict) and "image" in given:
        return {"result": len(given["image"])}
    if isinstance(given, dict):
        if given["how"] == "sleeps":
            time.sleep(1)
        elif given["how"] == "spins":
            end = time.perf_counter() + 1
            while time.perf_counter() < end: pass
        else:  # one call into C that never lets go of the interpreter
            sorted(range(given["size"]), key=int.__neg__)
    return {"result": 3}
"""
SMALL = json.dumps({"data": [0.1 * number for number in range(10)]}).encode()
PICTURE = json.dumps(
    {"data": {"image": base64.b64encode(random.Random(0).randbytes(225_000)).decode()}}
).encode()
HEADERS = (
    b"host: x\r\ncontent-type: application/json\r\nuser-agent: bench\r\naccept: */*\r\n"
    b"x-ms-request-id: 0123456789abcdef0123456789abcdef\r\nx-finery-secret: s3cret\r\n"
)


class Figures(NamedTuple):
    """One round."""

    rate: float  # requests per second
    p50: float  # seconds
    p99: float
    cpu: float  # seconds of the server's processors for each request


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=2, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--official", default=str(ROOT / ".venv-inference/bin/python"))
    parser.add_argument("--only", choices=["ours", "official"])
    wanted = parser.parse_args()
    rows: list[tuple[str, float, str]] = []
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        code = Path(place)
        (code / "score.py").write_text(SCRIPT)
        servers = {}
        if wanted.only != "official":
            servers["ours"] = stack.enter_context(ours(code))
        if wanted.only != "ours" and Path(wanted.official).exists():
            servers["official"] = stack.enter_context(official(code, wanted.official))
        for name, body in (("small", SMALL), ("300 KB", PICTURE)):
            for callers in (1, 16):
                measured = rounds(servers, body, callers, wanted.rounds, wanted.seconds)
                for who, found in measured.items():
                    label = f"{who}: {name}, {callers} callers"
                    rows += [
                        (label, found.rate, "requests/s"),
                        (label, found.p50 * 1e3, "ms p50"),
                        (label, found.p99 * 1e3, "ms p99"),
                        (label, found.cpu * 1e6, "us of CPU per request"),
                    ]
        for who, (port, _) in servers.items():
            for how in ("sleeps", "spins", "holds on"):
                worst = asyncio.run(probed(port, how, "/health" if who == "ours" else "/"))
                rows.append((f"{who}: probe while run() {how}", worst * 1e3, "ms p99"))
    if wanted.json:
        print(json.dumps({f"{name} [{unit}]": value for name, value, unit in rows}))
    else:
        for name, value, unit in rows:
            print(f"{name:<44}{value:>12,.2f} {unit}")
    return 0


def rounds(
    servers: dict[str, tuple[int, int]], body: bytes, callers: int, count: int, seconds: float
) -> dict[str, Figures]:
    """The median round of each server; their rounds alternate."""
    found: dict[str, list[Figures]] = {who: [] for who in servers}
    for port, _ in servers.values():
        uvloop.run(load(port, body, callers, 0.3))
    for _ in range(count):
        for who, (port, pid) in servers.items():
            used = processor_time(pid)
            times, took = uvloop.run(load(port, body, callers, seconds))
            used = processor_time(pid) - used
            times.sort()
            p99 = times[int(len(times) * 0.99)]
            found[who].append(
                Figures(len(times) / took, statistics.median(times), p99, used / len(times))
            )
    return {
        who: Figures(*map(statistics.median, zip(*all, strict=True))) for who, all in found.items()
    }


class Caller(asyncio.Protocol):
    """Asks again as soon as it is answered; over a new connection where the server wants that."""

    def __init__(self, port: int, body: bytes, until: float, times: list[float]) -> None:
        head = b"POST /score HTTP/1.1\r\n" + HEADERS + b"content-length: %d\r\n\r\n" % len(body)
        self.asked, self.until, self.times, self.port = head + body, until, times, port
        self.loop = asyncio.get_running_loop()
        self.done = self.loop.create_future()
        self.heard = b""
        self.began = 0.0

    async def connect(self) -> None:
        self.began = time.perf_counter()
        await self.loop.create_connection(lambda: self, "127.0.0.1", self.port)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.asked)

    def data_received(self, data: bytes) -> None:
        self.heard += data
        head, found, body = self.heard.partition(b"\r\n\r\n")
        if not found:
            return
        head = head.lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if len(body) < int(length):
            return
        if not head.startswith(b"http/1.1 200"):
            self.done.set_exception(SystemExit(f"{head!r} {body!r}"))
            return
        now = time.perf_counter()
        self.times.append(now - self.began)
        self.heard = b""
        if now > self.until or b"connection: close" in head:
            self.transport.close()
        else:
            self.began = now
            self.transport.write(self.asked)

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self.until:
            self.again = self.loop.create_task(self.connect())
        elif not self.done.done():
            self.done.set_result(None)


async def load(port: int, body: bytes, callers: int, seconds: float) -> tuple[list[float], float]:
    """The times of all requests that so many callers got answered, and how long that took."""
    times: list[float] = []
    began = time.perf_counter()
    made = [Caller(port, body, began + seconds, times) for _ in range(callers)]
    await asyncio.gather(*(one.connect() for one in made))
    await asyncio.gather(*(one.done for one in made))
    return times, time.perf_counter() - began


async def probed(port: int, how: str, path: str) -> float:
    """The 99th percentile of a probe's time while run() takes about a second."""
    size = 1
    if how == "holds on":  # as many as this machine sorts in a second
        began = time.perf_counter()
        sorted(range(500_000), key=int.__neg__)
        size = int(500_000 / (time.perf_counter() - began))
    document = json.dumps({"data": {"how": how, "size": size}}).encode()
    slow = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /score HTTP/1.1\r\n" + HEADERS + b"content-length: %d\r\n\r\n" % len(document)
    slow[1].write(head + document)
    busy = asyncio.ensure_future(slow[0].readuntil(b"\r\n\r\n"))
    await asyncio.sleep(0.05)
    times = []
    while not busy.done():
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\n".encode() + HEADERS + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        times.append(time.perf_counter() - began)
        await asyncio.sleep(0.002)
    if b" 200 " not in busy.result():
        raise SystemExit(busy.result().decode())
    slow[1].close()
    return sorted(times)[int(len(times) * 0.99)]


@contextlib.contextmanager
def ours(code: Path) -> Iterator[tuple[int, int]]:
    """Our host, with everything on: its port and process id."""
    port = free()
    spec = {"kind": "script", "code": str(code), "script": "score.py", "port": port}
    spec |= {"max_queue_wait_ms": 10_000, "request_timeout_ms": 60_000}
    (code / "serve.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "finery.serving.host", str(code / "serve.json")]
    more = {"FINERY_SERVING_SECRET": "s3cret", "FINERY_DEPLOYMENT": "blue"}
    with running(command, port, code, more) as pid:
        yield port, pid


@contextlib.contextmanager
def official(code: Path, python: str) -> Iterator[tuple[int, int]]:
    """Azure's, as it comes: one worker."""
    port = free()
    words = ["--entry_script", str(code / "score.py"), "--port", str(port)]
    command = [python, "-m", "azureml_inference_server_http", *words]
    with running(command, port, code, {"AML_APP_ROOT": str(code)}) as pid:
        yield port, pid


@contextlib.contextmanager
def running(command: list[str], port: int, code: Path, more: dict[str, str]) -> Iterator[int]:
    """A server that answers; it and its children are gone in the end."""
    environment = os.environ | more
    with (code / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=code, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while not answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit((code / "log").read_text())
            time.sleep(0.02)
        time.sleep(0.5)  # the official one listens before its worker is ready
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process and its children have used."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_time(int(child)) for child in children)


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
