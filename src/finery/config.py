"""Settings, read once; nothing else touches the server's environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DEFAULT_WORKSPACE = ("00000000-0000-0000-0000-000000000001", "finery", "main")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `finery up` was told, by flags or by the environment."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 8480
    tls_port: int = 8443
    models: Literal["full", "tiny"] = "full"
    database: str = ""  # a SQLAlchemy URL; empty: SQLite in the home
    warm_idle: float = 600  # seconds after which an idle warm parent ends
    strict: bool = False  # what an environment asks for and does not get is an error
    own_packages: bool = False  # models run with ours, whatever they ask for


def home(given: str | None) -> Path:
    """Return the home: the flag's, or FINERY_HOME's, or ~/.finery."""
    return Path(given or os.environ.get("FINERY_HOME") or Path.home() / ".finery").absolute()


def database() -> str:
    return os.environ.get("FINERY_DATABASE_URL", "")


def strict() -> bool:
    """Say whether FINERY_STRICT_ENVIRONMENTS asks for errors instead of warnings."""
    return os.environ.get("FINERY_STRICT_ENVIRONMENTS", "").lower() in ("1", "true", "yes", "on")


def own_packages() -> bool:
    """Say whether FINERY_MODEL_PACKAGES asks for ours in the place of a model's own."""
    return os.environ.get("FINERY_MODEL_PACKAGES", "").lower() == "own"
