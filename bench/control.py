"""The control plane beside what else there is: start, requests, jobs, with peers in the same run.

    python bench/control.py [--json] [--quick] [--only start,wire,jobs,recipe]

start: processor seconds and wall time to `ready:`, memory and processor use when idle.
wire: `jobs.get`, `jobs.list` and `jobs.create_or_update` as they go over the wire, with 100
and with 100,000 jobs in the store; the load comes from this process, over plain sockets.
jobs: from the PUT to the first line of the user's code, and trivial jobs a second.
recipe: from the PUT to a fine-tuning's first lines, by the warm parent and by hand.

Peers: MLflow's own server for start and requests, a bare process for jobs and recipes,
and the same HTTP server answering the same bytes without doing anything (the ceiling).
Processor times hold on a busy machine; wall times want a quiet one.  Gates and goals are
compared by `run.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PYTHON = Path(sys.executable)
ROOM = (
    "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/finery/providers"
    "/Microsoft.MachineLearningServices/workspaces/main"
)
VERSION = "?api-version=2024-10-01"
BARE = """
import asyncio, sys, uvicorn
body = sys.stdin.buffer.read()
async def app(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
config = uvicorn.Config(app, port=int(sys.argv[1]), access_log=False, lifespan="off", ws="none")
asyncio.run(uvicorn.Server(config).serve())
"""
FIRST_LINE = "python -c 'import time; print(\"at\", time.time(), flush=True)'"


class Row(NamedTuple):
    name: str
    value: float
    unit: str
    peer: float | None = None
    peer_name: str = ""


@dataclass(frozen=True)
class Server:
    """A Finery server that this program started."""

    process: subprocess.Popen[str]
    home: Path
    port: int
    key: str
    wall: float  # seconds until `ready:`

    def cpu(self) -> float:
        return processor_time(self.process.pid)


@dataclass(frozen=True)
class Load:
    rate: float  # requests a second
    cpu: float  # microseconds of the server's processor time a request
    body: bytes  # of the last answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="shorter, and no MLflow server")
    parser.add_argument("--only", default=",".join(PARTS))
    given = parser.parse_args()
    rows: list[Row] = []
    for part in given.only.split(","):
        with tempfile.TemporaryDirectory(prefix="finery-bench-") as folder:
            for row in PARTS[part](Path(folder), given.quick):
                rows.append(row)
                if not given.json:
                    show(row)
    if given.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    return 0


def show(row: Row) -> None:
    beside = ""
    if row.peer:
        beside = f"  {row.peer_name}: {row.peer:.4g} ({row.value / row.peer:.3g} x)"
    print(f"{row.name:58s} {row.value:10.4g} {row.unit:7s}{beside}", flush=True)


# -- start -----------------------------------------------------------------------------


def start(folder: Path, quick: bool) -> Iterator[Row]:
    with serving(folder / "home"):
        pass  # the first start makes the database and the certificates: once in a home's life
    walls, spent = [], []
    for _ in range(3):
        with serving(folder / "home") as server:
            walls.append(server.wall)
            spent.append(server.cpu())
    peer: dict[str, float | None] = {"wall": None, "cpu": None, "memory": None, "idle": None}
    if not quick:
        with mlflow(folder) as (process, _, wall):
            begun = tree_cpu(process.pid)
            peer = {"wall": wall, "cpu": None, "memory": memory(process.pid)}
            time.sleep(4)
            peer["idle"] = (tree_cpu(process.pid) - begun) / 4 * 100
    with serving(folder / "home") as server:
        begun = server.cpu()
        time.sleep(5)
        idle = (server.cpu() - begun) / 5 * 100
        held = memory(server.process.pid)
    name = "mlflow server" if not quick else ""
    yield Row("ready after", statistics.median(walls), "s", peer["wall"], name)
    yield Row("ready after, CPU", statistics.median(spent), "CPU-s", peer["cpu"], name)
    yield Row("memory when idle", held, "MB", peer["memory"], name)
    yield Row("processor use when idle", idle, "%", peer["idle"], name)
    yield help_row()


def help_row() -> Row:
    def spent(words: list[str]) -> float:
        before = os.times()
        for _ in range(5):
            subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        children = after.children_user + after.children_system
        return (children - before.children_user - before.children_system) / 5 * 1000

    bare = spent([str(PYTHON), "-c", "pass"])
    return Row("finery --help", spent([finery(), "--help"]), "CPU-ms", bare, "python -c pass")


# -- the wire --------------------------------------------------------------------------


def wire(folder: Path, quick: bool) -> Iterator[Row]:
    """A small store and a large one in turns, so that a busy moment meets both."""
    seconds = 1.0 if quick else 2.0
    peers = {} if quick else mlflow_rates(folder, seconds)
    counts = (100, 100_000)
    found: dict[tuple[str, int], list[Load]] = {}
    with contextlib.ExitStack() as stack:
        servers = {}
        for count in counts:
            home = folder / f"home-{count}"
            with serving(home) as server:
                settle(server)
            fill(home, count)
            servers[count] = stack.enter_context(serving(home))
            occupy(servers[count])
        for turn in range(3):
            for count, server in servers.items():
                asked = {"get": getting(server), "list": listing(server)}
                asked["put"] = putting(server, f"put{turn}")
                for name, make in asked.items():
                    found.setdefault((name, count), []).append(load(server, make, seconds))
        waiting = {count: while_queued(server) for count, server in servers.items()}
    ceiling = bare(found["get", counts[0]][0].body, seconds)
    for count in counts:
        get, listed, put = (middle(found[name, count]) for name in ("get", "list", "put"))
        yield from told(f"jobs.get, {count:,} jobs", get, peers.get("get"), ceiling)
        yield from told(f"jobs.list of 100, {count:,} jobs", listed, None, None)
        yield from told(f"jobs.create_or_update, {count:,} jobs", put, peers.get("put"), None)
        yield Row(
            f"processor use, 1 running, thousands queued, {count:,} jobs", waiting[count], "%"
        )


def while_queued(server: Server) -> float:
    """Per cent of a processor that the server uses while one job runs and many wait."""
    begun = server.cpu()
    time.sleep(3)
    return (server.cpu() - begun) / 3 * 100


def middle(loads: list[Load]) -> Load:
    pairs = [(load.rate, load.cpu) for load in loads]
    rate, cpu = (statistics.median(each) for each in zip(*pairs, strict=True))
    return Load(rate, cpu, loads[-1].body)


def told(name: str, load: Load, peer: Load | None, ceiling: Load | None) -> Iterator[Row]:
    beside = (peer.rate, "mlflow server") if peer else (None, "")
    yield Row(name, load.rate, "req/s", *beside)
    beside = (ceiling.cpu, "answering only") if ceiling else (None, "")
    yield Row("  server's processor time", load.cpu, "us/req", *beside)


def getting(server: Server) -> Callable[[], bytes]:
    asked = request(server, "GET", f"{ROOM}/jobs/done-1{VERSION}")
    return lambda: asked


def listing(server: Server) -> Callable[[], bytes]:
    asked = request(server, "GET", f"{ROOM}/jobs{VERSION}")
    return lambda: asked


def putting(server: Server, prefix: str) -> Callable[[], bytes]:
    """Each a new job, for a compute that is taken: it stays in the queue."""
    number = 0

    def next_one() -> bytes:
        nonlocal number
        number += 1
        body = command("true", compute="one")
        return request(server, "PUT", f"{ROOM}/jobs/{prefix}-{number}{VERSION}", body)

    return next_one


def settle(server: Server) -> None:
    """Leave one finished job in the store: what the others are copies of."""
    answer(server, "PUT", f"{ROOM}/jobs/done-0{VERSION}", command("true"))
    finished(server, ["done-0"])


def fill(home: Path, count: int) -> None:
    """Copy the finished job until there are `count`."""
    with contextlib.closing(sqlite3.connect(home / "finery.db")) as database:
        names = [row[1] for row in database.execute("pragma table_info(jobs)")]
        given = {"seq": "jobs.seq + n", "name": "'done-' || n", "root": "'done-' || n"}
        columns = ", ".join(f'"{name}"' for name in names)
        values = ", ".join(given.get(name, f'jobs."{name}"') for name in names)
        database.execute(
            f"with recursive numbers(n) as (select 1 union all select n + 1 from numbers "
            f"where n < {count - 1}) insert into jobs ({columns}) select {values} "
            "from jobs, numbers where jobs.name = 'done-0'"
        )
        database.commit()


def occupy(server: Server) -> None:
    """Make a compute with one place and a job that keeps it."""
    compute = {
        "location": "local",
        "properties": {
            "computeType": "AmlCompute",
            "properties": {
                "vmSize": "STANDARD_D2_V2",
                "scaleSettings": {"minNodeCount": 0, "maxNodeCount": 1},
            },
        },
    }
    answer(server, "PUT", f"{ROOM}/computes/one{VERSION}", compute)
    body = command("sleep 600", compute="one")
    answer(server, "PUT", f"{ROOM}/jobs/keeps-it{VERSION}", body)
    until(lambda: status(server, "keeps-it") == "Running", 30)


def load(server: Server, make: Callable[[], bytes], seconds: float) -> Load:
    answer(server, "GET", f"{ROOM}/jobs{VERSION}")
    return asyncio.run(_load(server.port, server.process.pid, make, seconds))


def bare(body: bytes, seconds: float) -> Load:
    """The ceiling: the same HTTP server, answering `body` to everything."""
    port = free_port()
    words = [str(PYTHON), "-c", BARE, str(port)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(body)
    process.stdin.close()
    try:
        until(lambda: reachable(port), 20)
        asked = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
        return asyncio.run(_load(port, process.pid, lambda: asked, seconds))
    finally:
        process.terminate()
        process.wait()


async def _load(port: int, pid: int, make: Callable[[], bytes], seconds: float) -> Load:
    """Eight callers, each with one request on its way at a time."""
    loop = asyncio.get_running_loop()
    callers = []
    for _ in range(8):
        _, caller = await loop.create_connection(lambda: Caller(make), "127.0.0.1", port)
        callers.append(caller)
    for caller in callers:
        caller.ask()
    await asyncio.sleep(0.3)  # the first ones find caches empty
    before, begun = tree_cpu(pid), time.perf_counter()
    counted = sum(caller.count for caller in callers)
    await asyncio.sleep(seconds)
    count = sum(caller.count for caller in callers) - counted
    took, spent = time.perf_counter() - begun, tree_cpu(pid) - before
    for caller in callers:
        caller.over = True
    await asyncio.sleep(0.05)
    for caller in callers:
        if caller.failed:
            raise SystemExit(f"an answer was not expected: {caller.failed!r}")
        assert caller.transport is not None
        caller.transport.close()
    return Load(count / took, spent / max(count, 1) * 1e6, callers[0].body)


class Caller(asyncio.Protocol):
    """One connection that asks as soon as it is answered."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make, self._left, self._parts = make, -1, b""
        self.transport: asyncio.Transport | None = None
        self.count, self.over, self.failed, self.body = 0, False, b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self) -> None:
        assert self.transport is not None
        self.transport.write(self._make())

    def data_received(self, data: bytes) -> None:
        self._parts += data
        head, blank, body = self._parts.partition(b"\r\n\r\n")
        if not blank:
            return
        if self._left < 0:
            at = head.lower().index(b"content-length:") + 15
            self._left = int(head[at:].split(b"\r\n", 1)[0])
        if len(body) < self._left:
            return
        if not self._parts.startswith(b"HTTP/1.1 20"):
            self.failed = self._parts
            return
        self.body, self._left, self._parts = body, -1, b""
        self.count += 1
        if not self.over:
            self.ask()


# -- jobs ------------------------------------------------------------------------------


def jobs(folder: Path, quick: bool) -> Iterator[Row]:
    runs = 10 if quick else 25
    with serving(folder / "home") as server:
        _run(server, ["first"], FIRST_LINE)  # loads MLflow into the server: once
        times, floor = [], []
        for number in range(runs):
            floor.append(one_bare())
            begun = time.time()
            _run(server, [f"one-{number}"], FIRST_LINE)
            times.append(said(server, f"one-{number}") - begun)
            time.sleep(0.2)
        middle, bare = statistics.median(times) * 1e3, statistics.median(floor) * 1e3
        yield Row("PUT to first line of user code, median", middle, "ms", bare, "bash and python")
        worst = sorted(times)[int(len(times) * 0.95)] * 1e3
        yield Row("PUT to first line of user code, 95th percentile", worst, "ms")
        count = 40 if quick else 100
        names = [f"many-{number}" for number in range(count)]
        before, begun = server.cpu(), time.time()
        _run(server, names, "true")
        rate = count / (time.time() - begun)
        spent = (server.cpu() - before) / count * 1e3
        begun = time.time()
        for _ in range(count):
            subprocess.run(["bash", "-c", "true"], check=True)
        peer = count / (time.time() - begun)
        yield Row("trivial jobs, submit to Completed", rate, "jobs/s", peer, "bash -c true")
        yield Row("  server's processor time", spent, "ms/job")


def _run(server: Server, names: list[str], line: str) -> None:
    for name in names:
        answer(server, "PUT", f"{ROOM}/jobs/{name}{VERSION}", command(line))
    finished(server, names)


def finished(server: Server, names: list[str]) -> None:
    for name in names:
        until(lambda name=name: status(server, name) in ("Completed", "Failed"), 120)
    for name in names:
        if (found := status(server, name)) != "Completed":
            raise SystemExit(f"job {name} is {found}: {log_of(server, name)}")


def said(server: Server, name: str) -> float:
    """The time that the job's first line tells."""
    return float(log_of(server, name).split()[1])


def log_of(server: Server, name: str) -> str:
    path = log_path(server, name)
    return path.read_text() if path else ""


def log_path(server: Server, name: str) -> Path | None:
    pattern = f"*/*/ExperimentRun/dcid.{name}/user_logs/std_log.txt"
    return next((server.home / "files").glob(pattern), None)


def one_bare() -> float:
    begun = time.time()
    words = ["bash", "-c", FIRST_LINE]
    path = f"{PYTHON.parent}:/usr/bin:/bin"
    told = subprocess.run(words, stdout=subprocess.PIPE, check=True, env={"PATH": path})
    return float(told.stdout.split()[1]) - begun


# -- recipes ---------------------------------------------------------------------------


def recipe(folder: Path, quick: bool) -> Iterator[Row]:
    """Fine-tuning the stand-in for two steps: by the warm parent, and by hand."""
    line = prepared(folder)
    by_hand = [first_step(folder / "by-hand.txt", hand(line, folder)) for _ in range(2)]
    with serving(folder / "home") as server:
        _run(server, ["cold"], line)  # comes too early for the warm parent, and wakes it
        until(lambda: warm(server), 120)
        _run(server, ["warm-0"], line)
        times = []
        for number in range(1, 4 if quick else 8):
            name = f"warm-{number}"
            times.append(
                first_step(lambda name=name: log_path(server, name), job(server, name, line))
            )
            finished(server, [name])
    beside = (statistics.median(by_hand), "a fresh process")
    yield Row("PUT to a recipe's first training step, warm", statistics.median(times), "s", *beside)


def prepared(folder: Path) -> str:
    """Import the stand-in, encode a few rows, and return the command that trains on them."""
    rows = folder / "rows.jsonl"
    roles = ("user", "assistant")
    turns = [{"role": role, "content": "Where is my order?"} for role in roles]
    rows.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(16)))
    standin = package() / "catalog" / "standins" / "phi3"
    given = [f"--{name}_file_path={rows}" for name in ("train", "validation", "test")]
    steps = (
        ["model_import", f"--mlflow_model_path={standin}", f"--output_dir={folder}/base"],
        ["preprocess", f"--model_selector_output={folder}/base", f"--output_dir={folder}/data"],
    )
    for name, *flags in (steps[0], [*steps[1], *given]):
        words = [str(PYTHON), "-m", f"finery.recipes.{name}", *flags]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (
        f"python -m finery.recipes.finetune --preprocess_output={folder}/data "
        f"--model_selector_output={folder}/base --pytorch_model_folder=tuned "
        "--max_steps=2 --logging_steps=1 --evaluation_strategy=disable"
    )


def hand(line: str, folder: Path) -> Callable[[], None]:
    def begin() -> None:
        place = tempfile.mkdtemp(dir=folder)
        words = [str(PYTHON), *line.replace("=tuned", f"={place}").split()[1:]]
        with (folder / "by-hand.txt").open("w") as log:
            subprocess.Popen(words, stdout=log, stderr=log)

    return begin


def job(server: Server, name: str, line: str) -> Callable[[], None]:
    return lambda: answer(server, "PUT", f"{ROOM}/jobs/{name}{VERSION}", command(line))


def first_step(log: Path | Callable[[], Path | None], begin: Callable[[], None]) -> float:
    """Seconds from `begin` until the log tells of the first of two steps; waits for the end."""
    begun = time.time()
    begin()
    took = 0.0
    while True:
        path = log if isinstance(log, Path) else log()
        text = path.read_text() if path and path.exists() else ""
        if not took and " 1/2 " in text:
            took = time.time() - begun
        if "saved to" in text:
            return took
        if "rror" in text or time.time() - begun > 120:
            raise SystemExit(f"the recipe did not train: {text[-2000:]}")
        time.sleep(0.002)


def warm(server: Server) -> bool:
    """Say whether the warm parent has imported all and waits."""
    for pid in tree(server.process.pid):
        with contextlib.suppress(OSError):
            if b"finery.engines.warm" in Path(f"/proc/{pid}/cmdline").read_bytes():
                before = processor_time(pid)
                time.sleep(0.5)
                return before > 1 and processor_time(pid) == before
    return False


PARTS: dict[str, Callable[[Path, bool], Iterator[Row]]] = {
    "start": start,
    "wire": wire,
    "jobs": jobs,
    "recipe": recipe,
}


# -- the servers and how they are asked --------------------------------------------------


@contextlib.contextmanager
def serving(home: Path) -> Iterator[Server]:
    begun = time.perf_counter()
    words = [finery(), "up", "--home", str(home), "--port", "0", "--tls-port", "0"]
    process = subprocess.Popen([*words, "--models", "tiny"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = next((line for line in process.stdout if line.startswith("ready:")), "")
        wall = time.perf_counter() - begun
        if not line:
            raise SystemExit("the server did not start")
        port = int(line.split()[1].rpartition(":")[2])
        yield Server(process, home, port, (home / "admin.key").read_text().strip(), wall)
    finally:
        down = [finery(), "down", "--home", str(home)]
        subprocess.run(down, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def mlflow(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, float]]:
    """MLflow's server as its own command line starts it, with one worker."""
    port, begun = free_port(), time.perf_counter()
    store = f"sqlite:///{folder / 'mlflow.db'}"
    words = [str(PYTHON), "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    process = subprocess.Popen(
        [*words, "--backend-store-uri", store, "--artifacts-destination", str(folder / "mlruns")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: reachable(port), 120)
        wall = time.perf_counter() - begun
        for _ in range(30):  # what it starts beside itself is still loading
            before = tree_cpu(process.pid)
            time.sleep(1)
            if tree_cpu(process.pid) - before < 0.1:
                break
        yield process, port, wall
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def mlflow_rates(folder: Path, seconds: float) -> dict[str, Load]:
    """What MLflow's server does with the same load: a run read, and runs made."""
    with mlflow(folder) as (process, port, _):
        base, body = "/api/2.0/mlflow/runs", b'{"experiment_id": "0", "run_name": "bench"}'
        make = plain("POST", f"{base}/create", body)
        made = asyncio.run(_load(port, process.pid, lambda: make, seconds))
        id = json.loads(made.body)["run"]["info"]["run_id"]
        get = plain("GET", f"{base}/get?run_id={id}")
        got = asyncio.run(_load(port, process.pid, lambda: get, seconds))
    return {"get": got, "put": made}


def command(line: str, *, compute: str = "") -> dict[str, Any]:
    """A command job as the SDK sends it."""
    properties: dict[str, Any] = {
        "jobType": "Command",
        "command": line,
        "displayName": "bench",
        "experimentName": "bench",
        "tags": {"made": "by a benchmark"},
        "properties": {},
        "inputs": {
            "epochs": {"jobInputType": "literal", "value": "3"},
            "rate": {"jobInputType": "literal", "value": "0.0001"},
        },
        "environmentVariables": {"MODE": "bench"},
        "resources": {"instanceCount": 1, "properties": {}},
    }
    if compute:
        properties["computeId"] = f"{ROOM}/computes/{compute}"
    return {"properties": properties}


def request(server: Server, method: str, path: str, body: Any = None) -> bytes:
    sent = b"" if body is None else json.dumps(body).encode()
    return plain(method, path, sent, f"authorization: Bearer {server.key}\r\n")


def plain(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}"
    if body:
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def answer(server: Server, method: str, path: str, body: Any = None) -> Any:
    """One request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", server.port), 60) as link:
        link.sendall(request(server, method, path, body))
        with link.makefile("rb") as file:
            first, length = file.readline(), 0
            while (line := file.readline().lower()) not in (b"\r\n", b""):
                if line.startswith(b"content-length:"):
                    length = int(line[15:])
            told = file.read(length)
    if b" 20" not in first[:12]:
        raise SystemExit(f"{method} {path}: {first!r} {told!r}")
    return json.loads(told) if told else None


def status(server: Server, name: str) -> str:
    found = answer(server, "GET", f"{ROOM}/jobs/{name}{VERSION}")
    return str(found["properties"]["status"])


def until(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"not within {seconds:g} s")
        time.sleep(0.01)


def package() -> Path:
    """Where Finery is installed; not imported, since a name here is the same."""
    found = importlib.util.find_spec("finery")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


def finery() -> str:
    return str(PYTHON.parent / "finery")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def reachable(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as link:
            link.sendall(plain("GET", "/health"))
            return link.recv(12).startswith(b"HTTP/1.1 ")
    except OSError:
        return False


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found, at = [pid], 0
    while at < len(found):
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{found[at]}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        at += 1
    return found


def tree_cpu(pid: int) -> float:
    total = 0.0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            total += processor_time(one)
    return total


def memory(pid: int) -> float:
    """MB that a process and all below it hold; what they share is counted once."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


if __name__ == "__main__":
    sys.exit(main())
