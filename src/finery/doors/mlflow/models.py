"""A model of ours as MLflow's registry shows it, and where MLflow's models lie, in our words.

`registry.py` is the store that uses it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.entities.model_registry import (
    ModelVersion,
    ModelVersionTag,
    RegisteredModel,
    RegisteredModelAlias,
    RegisteredModelTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.store.artifact.utils.models import _parse_model_uri

from finery.core import assets, errors, references
from finery.core.assets import Asset, Name
from finery.doors.http import House
from finery.doors.mlflow.tracking import run_id as run_of

OURS = "mlflow"  # the part of `extras` that is this door's: aliases, run, link

_SCHEME = "mlflow-artifacts"
_CODES = {
    errors.NotFound: "RESOURCE_DOES_NOT_EXIST",
    errors.AlreadyExists: "RESOURCE_ALREADY_EXISTS",
    errors.Invalid: "INVALID_PARAMETER_VALUE",
    errors.NotSupported: "INVALID_PARAMETER_VALUE",
    errors.Forbidden: "PERMISSION_DENIED",
    errors.Conflict: "INVALID_STATE",
}


def name_out(name: Name, latest: list[Any]) -> Any:
    return RegisteredModel(
        name=name.name,
        creation_timestamp=_milliseconds(name.created_at),
        last_updated_timestamp=_milliseconds(name.modified_at),
        description=name.description,
        latest_versions=latest,
        tags=[RegisteredModelTag(key, str(value)) for key, value in name.tags.items()],
        aliases=[RegisteredModelAlias(*pair) for pair in aliases(name).items()],
    )


def version_out(house: House, asset: Asset, name: Name, *, short: bool) -> Any:
    """`short`: run ids are (see `tracking.run_id`)."""
    ours = asset.extras.get(OURS, {})
    maker = references.maker(asset)
    made_in = run_of(maker, short=short) if maker else None
    return ModelVersion(
        name=asset.name,
        version=asset.version,
        creation_timestamp=_milliseconds(asset.created_at),
        last_updated_timestamp=_milliseconds(asset.modified_at),
        description=asset.description,
        user_id=asset.created_by,
        current_stage=stage(asset),
        source=ours.get("source") or _shown_source(house, asset),
        run_id=ours.get("run_id") or made_in,
        run_link=ours.get("run_link"),
        model_id=ours.get("model_id"),
        tags=[ModelVersionTag(key, str(value)) for key, value in asset.tags.items()],
        aliases=[alias for alias, to in aliases(name).items() if to == asset.version],
    )


def source_out(house: House, asset: Asset) -> str:
    """Return where a client can fetch the bytes; a reference is followed first."""
    scope, location = references.location(house.store, asset.location)
    if not location.startswith("file:"):
        return location
    return f"{_SCHEME}:/{scope or asset.scope}/{location.removeprefix('file:').lstrip('/')}"


def source_in(
    house: House, runs: Any, workspace: str, *, source: str
) -> tuple[str, str | None, str]:
    """Return the location that MLflow's `source` means, the run that made it, and its type.

    Raises `NotSupported` for bytes that are not in this workspace's files,
    `NotFound` where there are none.
    """
    parsed = urlsplit(source)
    if parsed.scheme == "models":
        wanted = _parse_model_uri(source)
        if wanted.model_id is None:
            asset = assets.get(house.store, workspace, "model", wanted.name, wanted.version)
            return asset.location, asset.extras.get(OURS, {}).get("run_id"), asset.type
        logged = runs.get_logged_model(wanted.model_id)
        return _place(house, workspace, logged.artifact_location, run=logged.source_run_id)
    if parsed.scheme == "runs":
        run, _, path = parsed.path.strip("/").partition("/")
        uri = f"{runs.get_run(run).info.artifact_uri}/{path}"
        return _place(house, workspace, uri, run=run)
    return _place(house, workspace, source, run=None)


def stage(asset: Asset) -> str:
    return "Archived" if asset.archived else asset.stage or "None"


def staged(asset: Asset, stage: str) -> Asset:
    """Archived is a mark of its own; the other stages are one field, whichever door asks."""
    archived = stage == "Archived"
    return replace(asset, archived=archived, stage="" if stage in ("Archived", "None") else stage)


def aliases(name: Name) -> dict[str, str]:
    return dict(name.extras.get(OURS, {}).get("aliases", {}))


def tags_in(tags: list[Any] | None) -> dict[str, str]:
    return {tag.key: tag.value for tag in tags or []}


@contextmanager
def said() -> Iterator[None]:
    """Say the core's failures in MLflow's words."""
    try:
        yield
    except errors.Failure as failure:
        raise failed(failure) from failure


def failed(failure: errors.Failure) -> Exception:
    code = ErrorCode.Value(_CODES.get(type(failure), "INTERNAL_ERROR"))
    exc: Exception = MlflowException(str(failure), error_code=code)
    return exc


class Version(str):
    """A version in the order of its number; texts that are no numbers come before all numbers."""

    def __lt__(self, other: str) -> bool:
        return _rank(self) < _rank(other)

    def __gt__(self, other: str) -> bool:
        return _rank(self) > _rank(other)

    def __le__(self, other: str) -> bool:
        return not self > other

    def __ge__(self, other: str) -> bool:
        return not self < other

    def __eq__(self, other: object) -> bool:  # a filter compares it with a number
        return str(self) == str(other)

    def __ne__(self, other: object) -> bool:
        return str(self) != str(other)

    __hash__ = str.__hash__


def _rank(version: object) -> tuple[int, str]:
    text = str(version)
    return (int(text), "") if text.isdigit() else (-1, text)


def _shown_source(house: House, asset: Asset) -> str:
    try:
        return source_out(house, asset)
    except errors.Failure:  # the job has not made it, or is gone: still a line in a list
        return asset.location


def _place(
    house: House, workspace: str, uri: str, *, run: str | None
) -> tuple[str, str | None, str]:
    parsed = urlsplit(uri)
    if parsed.scheme != _SCHEME:
        raise errors.NotSupported(
            "a model's source must be on this server (a run's artifacts, a logged model or "
            f"{_SCHEME}:/…), and {uri!r} is not",
            target="source",
        )
    path = posixpath.normpath(unquote(parsed.path)).strip("/")
    found, _, rest = path.partition("/")
    if found != workspace:
        raise errors.NotSupported(
            f"{uri!r} lies in another workspace than the model: register it there",
            target="source",
        )
    folder = house.files.locate(workspace, f"file:{rest}")
    type = "mlflow_model" if (folder / "MLmodel").is_file() else "custom_model"
    return f"file:{rest}", run, type


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
