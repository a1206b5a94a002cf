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
        """What a client asks for: for this request's workspace, and its artifacts there."""
        if not artifact_location:
            return self.create_in(self._workspace(), name, tags=tags)
        base = access.artifacts(self._workspace(), "")
        parts = artifact_location.split("/")
        if not artifact_location.startswith(base) or ".." in parts or "%" in artifact_location:
            with models.said():
                raise errors.NotSupported(
                    f"artifacts are kept on this server, below {base}: {artifact_location!r} "
                    "is elsewhere. Leave artifact_location out",
                    target="artifact_location",
                )
        return str(super().create_experiment(name, artifact_location, tags))

    def create_in(self, workspace: str, name: str, *, tags: list[Any] | None = None) -> str:
        """Create an experiment whose artifacts are kept in that workspace."""
        place = access.artifacts(workspace, f"mlflow/{ids.new()}")
        return str(super().create_experiment(name, place, tags))
