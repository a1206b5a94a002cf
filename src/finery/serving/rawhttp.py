"""The request and the response that a script with `@rawhttp` handles itself.

Scripts import these by the names of Azure's packages, where those are not
installed; `install` makes the names importable in this process and nowhere else.
They are werkzeug's classes, as Azure's are through Flask: werkzeug is imported
when a script asks for them, and not before.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from finery.serving.wire import Answer, Exchange

if TYPE_CHECKING:
    from werkzeug.wrappers import Request, Response

OFFICIAL = "azureml_inference_server_http.api"
CONTRIB = "azureml.contrib.services"
_MODULES = ("aml_request", "aml_response")
_OURS = frozenset((
    "content-length", "x-request-id", "x-ms-request-id", "x-ms-client-request-id",
    "x-finery-refused",  # says that it is not the script's answer
    # Of one connection: a script that passes on what another server said has those of another.
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
))  # fmt: skip
_PACKAGES = ("azureml_inference_server_http", OFFICIAL, "azureml", "azureml.contrib", CONTRIB)


def install() -> None:
    """Make the names importable: the real packages first, ours where there are none."""
    if not any(isinstance(finder, _Names) for finder in sys.meta_path):
        sys.meta_path.append(_Names())


def asked() -> bool:
    """Say whether a script has decorated something with `@rawhttp`."""
    names = [f"{package}.aml_request" for package in (OFFICIAL, CONTRIB)]
    return any(getattr(sys.modules.get(name), "_rawHttpRequested", False) for name in names)


def is_response(result: object) -> bool:
    """Say whether a script returned a response rather than something to be encoded."""
    wrappers = sys.modules.get("werkzeug.wrappers")
    return wrappers is not None and isinstance(result, wrappers.Response)


def request(exchange: Exchange) -> Request:
    """The request as Flask would show it."""
    from werkzeug.wrappers import Request

    made: Request = Request(environ(exchange))
    return made


def answer(response: Response, exchange: Exchange) -> Answer:
    """What the response says, whole or in pieces."""
    # The connection leaves the body of an answer to HEAD out, and needs its length.
    parts, status, headers = response.get_wsgi_response(
        environ(exchange) | {"REQUEST_METHOD": "GET"}
    )
    listed = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in headers
        if name.lower() not in _OURS
    ]
    code = int(status.split(" ", 1)[0])
    if code < 200:
        raise ValueError(f"run() gave the status {code}, after which clients wait for another")
    if response.is_streamed:
        return Answer(code, listed, b"", iter(_pieces(parts)))
    return Answer(code, listed, b"".join(parts))


def environ(exchange: Exchange) -> dict[str, Any]:
    """The request in WSGI's words."""
    host = exchange.header(b"host").decode("latin-1") or "localhost"
    name, _, port = host.rpartition(":") if ":" in host else (host, "", "80")
    found: dict[str, Any] = {
        "REQUEST_METHOD": exchange.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": exchange.path.encode("utf-8", "replace").decode("latin-1"),
        "QUERY_STRING": exchange.query.decode("latin-1"),
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": exchange.peer,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(exchange.body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for field, value in exchange.headers:
        if field == b"x-finery-secret" or b"_" in field:
            continue
        key = field.decode("latin-1").upper().replace("-", "_")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
        text = value.decode("latin-1")
        found[key] = f"{found[key]},{text}" if key in found else text
    return found


def _pieces(parts: Any) -> Iterator[bytes]:
    try:
        yield from parts
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()


class _Names(MetaPathFinder, Loader):
    """Finds the names of Azure's packages after everything else has failed to."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Known names are loaded by `self`."""
        if name in _PACKAGES:
            return ModuleSpec(name, self, is_package=True)
        package, _, module = name.rpartition(".")
        if package in (OFFICIAL, CONTRIB) and module in _MODULES:
            return ModuleSpec(name, self)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module of one of the names; None for a package, which is an empty one."""
        package, _, module = spec.name.rpartition(".")
        if package == CONTRIB:  # another name for the same, real or ours
            return importlib.import_module(f"{OFFICIAL}.{module}")
        return _provided(spec.name) if package == OFFICIAL else None

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it is filled when it is made."""


def _provided(name: str) -> ModuleType:
    made = ModuleType(name, "Provided by Finery's scoring host.")
    if name.endswith("aml_response"):
        made.AMLResponse = _response()  # type: ignore[attr-defined]
        return made

    from werkzeug.wrappers import Request

    class AMLRequest(Request):
        """What `run` is given is like this one."""

    def rawhttp(function: Callable[..., Any]) -> Callable[..., Any]:
        """Mark `run` as wanting the request itself."""
        made._rawHttpRequested = True  # type: ignore[attr-defined]
        return function

    made._rawHttpRequested = False  # type: ignore[attr-defined]
    made.AMLRequest, made.rawhttp = AMLRequest, rawhttp  # type: ignore[attr-defined]
    return made


def _response() -> type:
    from werkzeug.wrappers import Response

    class AMLResponse(Response):
        """A response with its status and headers, its body given as it is or to be encoded."""

        default_mimetype = "text/html"

        def __init__(
            self,
            message: Any,
            status_code: int,
            response_headers: Mapping[str, str] = {},
            json_str: bool = False,
            run_function_failed: bool = False,
        ) -> None:
            """`json_str`: encode the message; None is an empty object in any case."""
            if message is None or json_str:
                encoded = json.dumps({} if message is None else message)
                super().__init__(encoded, status=status_code, mimetype="application/json")
            else:
                super().__init__(message, status=status_code)
                if "Content-Type" in response_headers:
                    self.headers.remove("Content-Type")
            self.headers["x-ms-run-function-failed"] = run_function_failed
            for name, values in response_headers.items():
                for value in values.split(","):
                    self.headers.add(name, value.strip())

    return AMLResponse
