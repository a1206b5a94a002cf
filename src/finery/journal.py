"""The server's own log: one JSON object a line in the home, short lines on stderr.

Each request's line carries its id, the one that the answer carries too.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

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
        return json.dumps(line)


def start(folder: Path) -> None:
    """Send every logger's lines to `folder`/server.log, and warnings to stderr too."""
    folder.mkdir(parents=True, exist_ok=True)
    file = RotatingFileHandler(folder / "server.log", maxBytes=20_000_000, backupCount=3)
    file.setFormatter(_Json())
    shown = logging.StreamHandler()
    shown.setLevel(logging.WARNING)
    shown.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [file, shown]
    root.setLevel(logging.INFO)
    for noisy in ("httpx", "uvicorn.access", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
