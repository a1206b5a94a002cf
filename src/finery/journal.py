"""The server's own log: one JSON object a line in the home, short lines on stderr.

Each request's line carries its id, the one that the answer carries too.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

import orjson

_EXTRAS = ("request", "method", "path", "status", "ms")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in _EXTRAS if hasattr(record, name)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class _File(RotatingFileHandler):
    """A file that looks at its size at every hundredth line only."""

    _lines = 0

    def shouldRollover(self, record: logging.LogRecord) -> int:
        self._lines += 1
        return int(self._lines % 100 == 0 and super().shouldRollover(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose a line that finds no room: warnings are on stderr, and the next may find some."""
        with suppress(OSError):
            self.close()  # with what waits in it: it is opened again for the next line


def start(folder: Path) -> None:
    """Send every logger's lines to `folder`/server.log, and warnings to stderr too."""
    folder.mkdir(parents=True, exist_ok=True)
    file = _File(folder / "server.log", maxBytes=20_000_000, backupCount=3)
    file.setFormatter(_Json())
    shown = logging.StreamHandler()
    shown.setLevel(logging.WARNING)
    shown.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [file, shown]
    root.setLevel(logging.INFO)
    for noisy in ("httpx", "uvicorn.access", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
