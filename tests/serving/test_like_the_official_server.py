"""The same script and the same requests, answered by Azure's own scoring host and by ours.

Real processes on both sides, because the bytes on the socket are what is compared: the
official server in an environment where Finery is not installed, ours in that same
environment (a user's own, with its old versions of much) and, for a script with raw
HTTP, also in ours, where nothing of Azure is importable.  `make setup` makes the
environment.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finery.engines import proc

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "official"
PYTHON = ROOT / ".venv-inference" / "bin" / "python"
JSON = {"content-type": "application/json"}
ORIGINS = {"plain": "", "schema": "http://one.example, http://two.example", "raw": "*"}


@dataclass(frozen=True)
class Row:
    """A request; with `why`, ours is answered differently on purpose, by `status` and `says`."""

    server: str
    name: str
    body: bytes | None = b""
    method: str = "POST"
    path: str = "/score"
    headers: dict[str, str] = field(default_factory=dict)
    why: str = ""
    status: int = 0
    says: str = ""

    def __str__(self) -> str:
        return f"{self.server}: {self.name}"


def plain(what: str, **more: Any) -> Row:
    return Row("plain", f"run() gives {what}", json.dumps({"what": what}).encode(), **more)


def raw(what: str, name: str = "", **more: Any) -> Row:
    return Row("raw", name or what, path=f"/score?what={what}", **more)


def schema(name: str, document: Any, **more: Any) -> Row:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Row("schema", name, body, headers=more.pop("headers", JSON), **more)


LONG = "a" * 101
FORM = (
    b'--b\r\ncontent-disposition: form-data; name="q"\r\n\r\nwhat is it?\r\n--b\r\n'
    b'content-disposition: form-data; name="file"; filename="a.jpg"\r\n\r\nbytes\r\n--b--\r\n'
)
ROWS = [
    Row("plain", "an object", b'{"data": [1, 2.5, "\xc3\xa9", null, true]}', headers=JSON),
    Row("plain", "a string", b'"text"', headers=JSON),
    Row("plain", "a number", b"17", headers=JSON),
    Row("plain", "text that is not JSON", b"just text"),
    Row("plain", "an empty body", b""),
    Row("plain", "no content type", b'{"a": 1}'),
    Row("plain", "not UTF-8", b"\xff\xfe"),
    Row("plain", "UTF-16", '{"a": 1}'.encode("utf-16")),
    Row("plain", "a large body", json.dumps({"image": "A" * 400_000}).encode(), headers=JSON),
    Row("plain", "a packed body that is not text", b"\x1f\x8b\x08", headers={"content-encoding": "gzip"}),
    Row(
        "plain",
        "a body called a form",
        b'{"a": 1}',
        headers={"content-type": "application/x-www-form-urlencoded"},
        why="curl calls every body a form; the official server then gives run() an empty string",
        status=200,
        says='{"a": 1}',
    ),
    *(plain(what) for what in ("none", "nan", "accents", "keys", "tuple", "empty", "deep", "large", "float64")),
    plain("raise"),
    plain("memory"),
    plain("headers", headers={**JSON, "X-Custom": "mine", "Accept": "*/*"}),
    plain("headers", path="/score?ignored=1"),
    *(
        plain(
            what,
            why="it is the script's failure, so it is marked as one and the way in says 424",
            status=500,
            says="An unexpected internal error occurred",
        )
        for what in ("bytes", "set", "array")
    ),
    plain(
        "generator",
        why="what the official server cannot encode is sent piece by piece",
        status=200,
        says="part 0\npart 1\npart 2\n",
    ),
    plain(
        "exit",
        why="the official server's worker ends and the caller gets no answer",
        status=500,
        says="An unexpected error occurred in scoring script",
    ),
    Row("plain", "GET becomes JSON", None, "GET", "/score?a=1&b=[1,2]&c=a&d=null&a=x&e=&f=%C3%A9+x"),
    Row("plain", "GET without a query", None, "GET"),
    Row("plain", "HEAD of a score", None, "HEAD"),
    Row("plain", "OPTIONS without CORS", None, "OPTIONS"),
    Row("plain", "PUT is not allowed", b"{}", "PUT"),
    Row("plain", "DELETE is not allowed", None, "DELETE"),
    Row("plain", "health", None, "GET", "/"),
    Row("plain", "health by HEAD", None, "HEAD", "/"),
    Row("plain", "OPTIONS of health", None, "OPTIONS", "/"),
    Row("plain", "POST to health", b"", "POST", "/"),
    Row("plain", "a path that is not there", None, "GET", "/nowhere"),
    Row("plain", "a slash too many", b"{}", "POST", "/score/"),
    Row("plain", "an escaped path", b"1", "POST", "/%73core"),
    Row(
        "plain",
        "a probe's path of ours",
        None,
        "GET",
        "/health",
        why="probes have a path of their own that is never logged",
        status=200,
        says="Healthy",
    ),
    Row("plain", "its own identifier", b"1", headers={"x-request-id": "mine"}),
    Row("plain", "a client's identifier", b"1", headers={"x-ms-client-request-id": "theirs"}),
    Row("plain", "the old identifier", b"1", headers={"x-ms-request-id": "old"}),
    Row(
        "plain",
        "all identifiers",
        b"1",
        headers={"x-ms-request-id": "o", "x-ms-client-request-id": "c", "x-request-id": "r"},
    ),
    *(
        Row("plain", f"{name} is too long", b"1", headers={name: LONG})
        for name in ("x-request-id", "x-ms-request-id", "x-ms-client-request-id")
    ),
    Row("plain", "Office's TraceId", b"1", headers={"TraceId": "t-1"}),
    *(
        Row("plain", f"swagger {query or 'without a version'}", None, "GET", f"/swagger.json{query}")
        for query in ("", "?version=2", "?version=3", "?version=3.1", "?version=2.0", "?version=4")
    ),
    schema("an array", {"data": [[1, 2], [3, 4]]}),
    schema("all that is declared", {"data": [1], "table": [{"a": 1, "b": "x"}], "factor": 3.0}),
    schema("more than is declared", {"data": [1], "unknown": 1}),
    schema("a content type with a charset", {"data": [1]}, headers={"content-type": "application/json; charset=utf-8"}),
    schema("a content type like JSON", {"data": [1]}, headers={"content-type": "application/x+json"}),
    schema("something is missing", {"factor": 1.0}),
    schema("of a wrong type", {"data": "text"}),
    schema("a list", [1, 2]),
    schema("not JSON", b'{"data": '),
    schema("nothing", b""),
    schema("not UTF-8", b'{"data": "\xff"}'),
    schema("nested too deeply", b"[" * 100_000),
    schema("no content type", {"data": [1]}, headers={}),
    Row("schema", "GET", None, "GET", "/score?data=[[1,2]]&factor=2"),
    Row("schema", "GET with something missing", None, "GET", "/score?factor=2"),
    Row("schema", "swagger 2", None, "GET", "/swagger.json?version=2"),
    Row("schema", "swagger 3", None, "GET", "/swagger.json?version=3"),
    schema("CORS, known", {"data": [1]}, headers={**JSON, "origin": "http://one.example"}),
    schema("CORS, unknown", {"data": [1]}, headers={**JSON, "origin": "http://three.example"}),
    Row(
        "schema",
        "CORS, before the request",
        None,
        "OPTIONS",
        headers={
            "origin": "http://two.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type, authorization",
        },
    ),
    Row("schema", "CORS, a method that is not allowed", None, "OPTIONS", headers={"origin": "http://two.example", "access-control-request-method": "PUT"}),
    raw("echo", "bytes", body=b"\x00\x01\xff"),
    raw("echo", "nothing", body=b""),
    raw("echo", "GET goes to run()", method="GET", body=None),
    raw("echo", "OPTIONS goes to run()", method="OPTIONS", body=None),
    raw("echo", "HEAD goes to run()", method="HEAD", body=None),
    raw("echo", "PUT does not", method="PUT"),
    raw("json", body=b'{"a": [1]}', headers=JSON),
    raw("json", "JSON that is none", body=b"{", headers=JSON),
    raw("form", body=FORM, headers={"content-type": "multipart/form-data; boundary=b"}),
    raw("headers", headers={**JSON, "X-Custom": "mine"}),
    *(raw(what) for what in ("picture", "encoded", "none", "teapot", "unavailable", "blamed")),
    *(raw(what) for what in ("nothing", "elsewhere", "stream", "plain", "raise", "own")),
    raw("picture", "CORS for everyone", headers={"origin": "http://any.example"}),
    raw("picture", "CORS without an origin"),
    Row("raw", "the script's own swagger 2", None, "GET", "/swagger.json"),
    Row("raw", "the script's own swagger 3", None, "GET", "/swagger.json?version=3"),
]  # fmt: skip


@dataclass
class Reply:
    status: int
    body: bytes
    headers: list[tuple[str, str]]


def ask(port: int, row: Row) -> Reply | None:
    """The answer; None when the connection was closed without one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(row.method, row.path)
        for name, value in row.headers.items():
            connection.putheader(name, value)
        if row.body is not None:
            connection.putheader("content-length", str(len(row.body)))
        connection.endheaders(row.body)
        answer = connection.getresponse()
        return Reply(answer.status, answer.read(), _relevant(answer.getheaders()))
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return None
    finally:
        connection.close()


def _relevant(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers without what belongs to the connection, made-up values by their shape, in order."""
    found = []
    for name, value in headers:
        name = name.lower()
        if name in ("server", "date", "connection", "ms-azureml-model-error-reason"):
            continue  # the last one is ours: what the way in tells the caller of a failure
        if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value):
            value = "a UUID"
        if name == "x-ms-run-fn-exec-ms":
            assert re.fullmatch(r"\d+\.\d{3}", value)
            value = "a time"
        if name == "x-ms-server-version":
            value = "a version"
        if name == "allow":
            value = ", ".join(sorted(value.split(", ")))
        found.append((name, value))
    return sorted(found)


Until = Callable[..., Any]


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory, until: Until) -> Iterator[dict[str, int]]:
    """All servers at once: `official plain`, `ours plain`, …, and `bare raw`, ours in our own."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is missing: `make setup` makes it")
    place = tmp_path_factory.mktemp("servers")
    found: dict[str, int] = {}
    started: list[subprocess.Popen[bytes]] = []
    held: list[socket.socket] = []

    def free() -> int:  # nobody else is given it, and a server may listen there all the same
        held.extend(proc.hold(1))
        return int(held[-1].getsockname()[1])

    try:
        for name in ORIGINS:
            found[f"official {name}"] = free()
            started.append(official(name, found[f"official {name}"], place))
            for who, python in (("ours", str(PYTHON)), ("bare", sys.executable)):
                if who == "ours" or name == "raw":
                    found[f"{who} {name}"] = free()
                    started.append(ours(name, found[f"{who} {name}"], place, who, python))
        until(lambda: all(map(up, found.values())) or any(one.poll() for one in started), 300)
        logs = "\n".join(file.read_text() for file in place.glob("*.log"))
        assert all(map(up, found.values())), logs
        yield found
    finally:
        for one in started:
            one.terminate()
        for one in started:
            one.wait(60)
        for port in held:
            port.close()


def up(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def official(name: str, port: int, place: Path) -> subprocess.Popen[bytes]:
    words = ["--entry_script", str(SCRIPTS / name / "score.py"), "--port", str(port)]
    command = [str(PYTHON), "-m", "azureml_inference_server_http", *words]
    return spawn(command, place / f"official-{name}", AML_APP_ROOT=str(SCRIPTS / name), name=name)


def ours(name: str, port: int, place: Path, who: str, python: str) -> subprocess.Popen[bytes]:
    folder = place / f"{who}-{name}"
    spec = {"kind": "script", "code": str(SCRIPTS / name), "script": "score.py", "port": port}
    file = place / f"{who}-{name}.json"
    file.write_text(json.dumps(spec | {"request_timeout_ms": 60_000}))
    command = [python, "-m", "finery.serving.host", str(file)]
    return spawn(command, folder, PYTHONPATH=str(ROOT / "src"), name=name)


def spawn(command: list[str], folder: Path, *, name: str, **more: str) -> subprocess.Popen[bytes]:
    folder.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON", "AML"))}
    env |= {"AML_CORS_ORIGINS": ORIGINS[name], "PYTHONDONTWRITEBYTECODE": "1", **more}
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_request_is_answered_as_by_the_official_server(ports: dict[str, int], row: Row) -> None:
    theirs = ask(ports[f"official {row.server}"], row)
    for who in ("ours", "bare"):
        if f"{who} {row.server}" not in ports:
            continue
        mine = ask(ports[f"{who} {row.server}"], row)
        assert mine is not None
        if row.why:
            assert mine.status == row.status and row.says in mine.body.decode()
            assert mine != theirs, "the difference is none any more"
            continue
        assert theirs is not None
        assert mine.status == theirs.status
        if "swagger" in row.path and mine.status == 200:
            assert undescribed(json.loads(mine.body)) == undescribed(json.loads(theirs.body))
            length = ("content-length", str(len(theirs.body)))
            theirs.headers[theirs.headers.index(length)] = ("content-length", str(len(mine.body)))
        else:
            assert mine.body == theirs.body
        assert mine.headers == theirs.headers


def undescribed(document: Any) -> Any:
    """A description without its prose, which is in our own words."""
    if isinstance(document, dict):
        kept = {k: v for k, v in document.items() if k != "description" or isinstance(v, dict)}
        return {name: undescribed(value) for name, value in kept.items()}
    return [undescribed(one) for one in document] if isinstance(document, list) else document
