"""The sockets that a server listens on, and the ports that its home had last.

A running job, and whoever read `finery env`, know the server by the address it
had when they began.  So port 0 is the port that this home had last, wherever
that is still free, and any free one otherwise.  Who answers is `app.py`.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

from finery.core.errors import Invalid

_LAST = "ports.json"


@contextlib.contextmanager
def pair(home: Path, host: str, port: int, tls_port: int) -> Iterator[list[socket.socket]]:
    """Yield the two sockets, http and https.  Raises `Invalid` for a port in use."""
    last = _last(home)
    with (
        _bound(host, port, last.get("http", 0)) as plain,
        _bound(host, tls_port, last.get("https", 0)) as tls,
    ):
        taken = {"http": plain.getsockname()[1], "https": tls.getsockname()[1]}
        with contextlib.suppress(OSError):  # a full disk is no reason not to serve
            (home / _LAST).write_text(json.dumps(taken))
        yield [plain, tls]


def address(host: str) -> str:
    """Return how clients on this machine reach `host`."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _last(home: Path) -> dict[str, int]:
    try:
        found = json.loads((home / _LAST).read_text())
    except (OSError, ValueError):  # a first start, or one that was cut off while it wrote
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def _bound(host: str, port: int, last: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is said because asyncio leaves Nagle's delay (40 ms) on where it is not.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if port == 0 and last:
            with contextlib.suppress(OSError):  # someone else has it now
                sock.bind((host, last))
        if not sock.getsockname()[1]:
            _bind(sock, host, port)
        yield sock


def _bind(sock: socket.socket, host: str, port: int) -> None:
    try:
        sock.bind((host, port))
    except OSError as exc:
        raise Invalid(
            f"cannot listen on {host} port {port}: {exc.strerror}; choose another with "
            "--port and --tls-port (0 picks a free one)",
            target="port",
        ) from exc
