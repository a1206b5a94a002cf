"""MLflow's own store of experiments and runs, with artifacts kept on this server.

A client may name a place for an experiment's artifacts, and MLflow would read
and write there as the server: any folder of the machine.  Here that place is
in the workspace's own files, and is chosen for whoever does not ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from finery.core import errors, ids
from finery.doors.mlflow import access, models


class Runs(SqlAlchemyStore):  # type: ignore[misc]  # MLflow's classes are untyped to us
    def __init__(self, url: str, workspace: Callable[[], str]) -> None:
        """`workspace` says where a new experiment's artifacts belong."""
        self._workspace = workspace
        super().__init__(url, access.artifacts(workspace(), "mlflow"))

    def create_experiment(
        self, name: str, artifact_location: str | None = None, tags: list[Any] | None = None
    ) -> str:
        place = artifact_location or access.artifacts(self._workspace(), f"mlflow/{ids.new()}")
        base = access.artifacts(self._workspace(), "")
        if not place.startswith(base) or "%" in place or ".." in place.split("/"):
            with models.said():
                raise errors.NotSupported(
                    f"artifacts are kept on this server, below {base}: {place!r} is elsewhere. "
                    "Leave artifact_location out",
                    target="artifact_location",
                )
        return str(super().create_experiment(name, place, tags))
