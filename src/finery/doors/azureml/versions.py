"""One version of an asset, as Azure spells it: in and out, a pair for each kind.

`version_in` turns a PUT's body into an `Asset`; `version_out` an `Asset` into
the resource.  A path is followed when it comes in, and must lead to something:
an asset is what its bytes were then.  The routes are in `assets.py`, the specs
of components in `components.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from finery.core import assets, references
from finery.core.assets import Asset
from finery.core.errors import Conflict, Invalid, NotFound, NotSupported
from finery.core.workspaces import Workspace
from finery.doors.azureml import components, ports, wire
from finery.doors.azureml import references as ids
from finery.doors.http import House

_COMMON = (
    *("description", "tags", "properties", "isAnonymous", "isArchived", "provisioningState"),
)
_DATA = ("uri_file", "uri_folder", "mltable")
_LARGEST_MANIFEST = 4 << 20  # bytes
_LARGEST_CONDA = 256 << 10  # characters
_MODELS = ("custom_model", "mlflow_model")


class _Plain(yaml.SafeLoader):
    """Merges no mapping into another: a few lines of that could take for ever."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a version is put: its name, and the workspace that paths are read in."""

    house: House
    workspace: Workspace
    kind: str
    name: str
    version: str
    by: str


def version_in(place: Place, body: Mapping[str, Any]) -> Asset:
    """Return the asset that a PUT's body describes."""
    given = wire.properties(body, place.kind)
    translate = _IN[place.kind]
    common = Asset(
        scope=place.workspace.id,
        kind=place.kind,
        name=place.name,
        version=place.version,
        description=str(given.get("description") or ""),
        tags=wire.texts(given.get("tags"), "tags"),
        properties=wire.texts(given.get("properties"), "properties"),
        archived=bool(given.get("isArchived")),
        anonymous=bool(given.get("isAnonymous")),
        created_by=place.by,
    )
    return translate(place, common, given)


def version_out(house: House, workspace: Workspace | None, asset: Asset) -> dict[str, Any]:
    """Return the resource; `workspace` is None for a registry's."""
    if workspace is None:
        id = ids.registry_id(asset.scope, asset.kind, asset.name, asset.version)
    else:
        id = ids.asset_id(workspace, asset.ref)
    return {
        "id": id,
        "name": asset.version,
        "type": f"{wire.PROVIDER}/workspaces/{ids.PLURAL[asset.kind]}/versions",
        "systemData": wire.system_data(
            asset.created_at, created_by=asset.created_by, modified_at=asset.modified_at
        ),
        "properties": {
            "description": asset.description,
            "tags": asset.tags,
            "properties": asset.properties,
            "isAnonymous": asset.anonymous,
            "isArchived": asset.archived,
            "provisioningState": "Succeeded",
            **_OUT[asset.kind](house, workspace, asset),
        },
    }


# Data


def _data_in(place: Place, asset: Asset, given: Mapping[str, Any]) -> Asset:
    wire.refuse_unknown(given, (*_COMMON, "dataType", "dataUri", "referencedUris"), "data")
    kind = str(given.get("dataType") or "uri_folder").lower()
    if kind not in _DATA:
        raise NotSupported(f"data of type {kind!r} is not supported here", target="dataType")
    location = _location(place, given.get("dataUri"), "dataUri")
    _of_shape(place, location, file=kind == "uri_file", what=f"data of type {kind}")
    extras = wire.keep(given, ("referencedUris",))
    return _with(asset, type=kind, location=location, extras=extras)


def _data_out(house: House, workspace: Workspace | None, asset: Asset) -> dict[str, Any]:
    return {
        "dataType": asset.type,
        "dataUri": _uri(house, workspace, asset),
        **asset.extras,
    }


# Models


def _model_in(place: Place, asset: Asset, given: Mapping[str, Any]) -> Asset:
    known = ("modelType", "modelUri", "flavors", "stage", "jobName", "systemMetadata")
    wire.refuse_unknown(given, (*_COMMON, *known), "model")
    kind = str(given.get("modelType") or "custom_model").lower()
    if kind not in _MODELS:
        raise NotSupported(f"models of type {kind!r} are not supported here", target="modelType")
    text = str(given.get("modelUri") or "")
    location = _location(place, text, "modelUri")
    extras = wire.keep(given, ("systemMetadata",))
    if text.startswith("azureml://jobs/"):
        extras["jobName"] = text.split("/")[3]
    if kind == "mlflow_model":
        manifest = _manifest(place, location)
        extras["flavors"] = _flavors(place, manifest)
        asset = _with(asset, tags={**_stand_in(manifest), **asset.tags})
    elif given.get("flavors"):
        extras["flavors"] = given["flavors"]
    stage = wire.text(given.get("stage"), "stage")
    return _with(asset, type=kind, location=location, stage=stage, extras=extras)


def _model_out(house: House, workspace: Workspace | None, asset: Asset) -> dict[str, Any]:
    return {
        "modelType": asset.type,
        "modelUri": _uri(house, workspace, asset),
        "flavors": asset.extras.get("flavors", {}),
        "stage": asset.stage or None,
        "jobName": asset.extras.get("jobName") or asset.maker or None,
        "systemMetadata": asset.extras.get("systemMetadata"),
    }


def _manifest(place: Place, location: str) -> dict[str, Any]:
    """Return what the model's file MLmodel says.  Raises `Invalid` where there is none."""
    if location.startswith("https:"):
        return {}
    folder = place.house.files.locate(place.workspace.id, location)
    file = folder / "MLmodel"
    if not file.is_file():
        raise Invalid(
            f"model {place.name!r} is said to be an MLflow model, and there is no file MLmodel "
            "in its folder; register it as a custom_model, or point to the folder that has one",
            target="modelUri",
        )
    if file.stat().st_size > _LARGEST_MANIFEST:
        raise Invalid(f"the MLmodel file of {place.name!r} is larger than 4 MiB", target="modelUri")
    try:
        manifest = dict(yaml.load(file.read_text(), Loader=_Plain) or {})
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as exc:
        raise Invalid(f"the MLmodel file of {place.name!r} is no MLmodel: {exc}") from exc
    if _written_out(manifest, most=_LARGEST_MANIFEST) > _LARGEST_MANIFEST:
        raise Invalid(
            f"the MLmodel file of {place.name!r} repeats itself to more than 4 MiB",
            target="modelUri",
        )
    return manifest


def _written_out(value: Any, *, most: int) -> int:
    """Return about how many characters it is as a text; counting ends soon after `most`.

    A few lines of YAML can name the same list again and again, or have it in itself.
    """
    left, size = [value], 0
    while left and size + len(left) <= most:
        one = left.pop()
        size += 1 + (len(one) if isinstance(one, (str, bytes)) else 0)
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, (list, tuple, set)):
            left += one
    return size + len(left)


def _flavors(place: Place, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the MLmodel file says that the model can be loaded as."""
    try:
        return {
            name: {"data": {key: str(value) for key, value in (flavor or {}).items()}}
            for name, flavor in (manifest.get("flavors") or {}).items()
        }
    except (AttributeError, ValueError) as exc:
        raise Invalid(f"the MLmodel file of {place.name!r} is no MLmodel: {exc}") from exc


def _stand_in(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a model that takes another's place, as the catalog has them."""
    metadata = manifest.get("metadata")
    stands_for = metadata.get("stand_in_for") if isinstance(metadata, dict) else None
    return {"stand_in": "true", "stand_in_for": str(stands_for)} if stands_for else {}


# Code


def _code_in(place: Place, asset: Asset, given: Mapping[str, Any]) -> Asset:
    wire.refuse_unknown(given, (*_COMMON, "codeUri"), "code")
    location = _location(place, given.get("codeUri"), "codeUri")
    digest = asset.properties.get("hash_sha256", "")
    return _with(asset, type="folder", location=location, hash=digest)


def _code_out(house: House, workspace: Workspace | None, asset: Asset) -> dict[str, Any]:
    return {"codeUri": _blob_uri(house, asset)}


# Environments


def _environment_in(place: Place, asset: Asset, given: Mapping[str, Any]) -> Asset:
    known = ("condaFile", "image", "build", "osType", "inferenceConfig", "environmentType")
    wire.refuse_unknown(given, (*_COMMON, *known, "stage", "autoRebuild"), "environment")
    if str(given.get("osType") or "Linux").lower() != "linux":
        raise NotSupported("environments for Windows are not supported here", target="osType")
    if given.get("autoRebuild") not in (None, "Disabled"):
        raise NotSupported("environments are not rebuilt by themselves here", target="autoRebuild")
    extras = wire.keep(given, ("inferenceConfig",))
    asset = _with(asset, type="user", extras=extras)
    if build := given.get("build"):
        wire.refuse_unknown(build, ("contextUri", "dockerfilePath"), "environment: build")
        location = _location(place, build.get("contextUri"), "build.contextUri")
        docker = str(build.get("dockerfilePath") or "Dockerfile")
        return _with(asset, location=location, spec={"kind": "build", "dockerfile": docker})
    return _with(asset, spec=environment_spec(given, place.name))


def environment_spec(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what an environment is made of, when it is not from a Docker context."""
    image = wire.text(given.get("image"), "image")
    conda = wire.text(given.get("condaFile"), "condaFile")
    if not image and not conda:
        raise Invalid(f"environment {name!r} has neither an image nor a build", target="image")
    if not conda:
        return {"kind": "image", "image": image}
    if len(conda) > _LARGEST_CONDA:
        raise Invalid(
            f"environment {name!r}: the conda file has more than {_LARGEST_CONDA} characters",
            target="condaFile",
        )
    try:
        if not isinstance(yaml.load(conda, Loader=_Plain), dict):
            raise Invalid(f"environment {name!r}: the conda file is no mapping", target="condaFile")
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise Invalid(f"environment {name!r}: the conda file is no YAML: {exc}") from exc
    return {"kind": "conda", "conda": conda, "image": image}


def _environment_out(house: House, workspace: Workspace | None, asset: Asset) -> dict[str, Any]:
    spec = asset.spec
    build = {
        "contextUri": f"{_blob_uri(house, asset)}/",
        "dockerfilePath": spec.get("dockerfile"),
    }
    return {
        "environmentType": "Curated" if spec["kind"] == "curated" else "UserCreated",
        "image": spec.get("image") or None,
        "condaFile": spec.get("conda"),
        "build": build if spec["kind"] == "build" else None,
        "osType": "Linux",
        "inferenceConfig": asset.extras.get("inferenceConfig"),
    }


# Components


def _component_in(place: Place, asset: Asset, given: Mapping[str, Any]) -> Asset:
    known = ("componentSpec", "hash")
    wire.refuse_unknown(given, (*_COMMON, *known, "stage"), "component")
    spec = given.get("componentSpec")
    if not isinstance(spec, dict):
        raise Invalid(f"component {place.name!r} has no componentSpec", target="componentSpec")

    def ref(kind: str, text: str) -> str:
        return ids.ref_in(place.house, place.workspace, text, kind=kind)

    core = components.component_in(spec, ref=ref, where=f"component {place.name!r}")
    for name, step in core.get("steps", {}).items():
        _fit(place, step, f"component {place.name!r}: jobs.{name}", ref)
    return _with(
        asset,
        type=core["kind"],
        spec=core,
        hash=asset.properties.get("client_component_hash", ""),
        description=asset.description or str(spec.get("description") or ""),
        tags=asset.tags or wire.texts(spec.get("tags"), "tags"),
        extras={"spec": spec},
    )


def _fit(place: Place, step: dict[str, Any], where: str, ref: components.Reader) -> None:
    """Read plain texts given to ports of data as the ids that they are; refuse unknown ports."""
    component = assets.by_ref(place.house.store, step["component"])
    taken = component.spec["inputs"]
    for name, value in step["inputs"].items():
        if name not in taken:
            raise Invalid(
                f"{where}: component {component.name!r} has no input {name!r} "
                f"(it has: {', '.join(taken) or 'none'})",
                target=name,
            )
        kind = taken[name]["type"]
        if kind in ports.PLACES and value["type"] == "literal" and "${{" not in value["value"]:
            what = "model" if kind in ports.MODELS else "data"
            value.update(type=kind, value=ref(what, value["value"]))
    for name in (*step["outputs"], *step["registered"]):
        if name not in component.spec["outputs"]:
            raise Invalid(
                f"{where}: component {component.name!r} has no output {name!r}", target=name
            )


def _component_out(house: House, workspace: Workspace | None, asset: Asset) -> dict[str, Any]:
    return {"componentSpec": components.component_out(asset)}


_IN: dict[str, Callable[[Place, Asset, Mapping[str, Any]], Asset]] = {
    "data": _data_in,
    "model": _model_in,
    "code": _code_in,
    "environment": _environment_in,
    "component": _component_in,
}
_OUT: dict[str, Callable[[House, Workspace | None, Asset], dict[str, Any]]] = {
    "data": _data_out,
    "model": _model_out,
    "code": _code_out,
    "environment": _environment_out,
    "component": _component_out,
}


def _with(asset: Asset, **changed: Any) -> Asset:
    return Asset(**{**vars(asset), **changed})


def _location(place: Place, text: Any, field: str) -> str:
    """Return where the bytes of a new version lie: what was given, followed to its end."""
    if not isinstance(text, str) or not text:
        raise Invalid(f"{place.kind} {place.name!r} has no {field}", target=field)
    try:
        ref = ids.ref_in(place.house, place.workspace, text, kind=place.kind)
        scope, location = references.location(place.house.store, ref)
        if scope not in ("", place.workspace.id):
            raise NotSupported(f"{text!r} is not in this workspace", target=field)
        if not location.startswith("https:"):
            place.house.files.locate(place.workspace.id, location)
        return location
    except (NotFound, Conflict) as exc:
        raise Invalid(f"{field} of {place.kind} {place.name!r}: {exc}", target=field) from exc


def _of_shape(place: Place, location: str, *, file: bool, what: str) -> None:
    """Raise `Invalid` where a file is a folder, or the other way round."""
    if location.startswith("https:"):
        return
    found = place.house.files.locate(place.workspace.id, location)
    if found.is_file() != file:
        is_it = "a file" if found.is_file() else "a folder"
        raise Invalid(f"{what} cannot be {is_it}: {location.partition('/')[2]}", target="dataUri")


def _uri(house: House, workspace: Workspace | None, asset: Asset) -> str:
    """Return where the bytes are, as a path that the SDK can take apart."""
    if workspace is None:
        return ids.registry_id(asset.scope, asset.kind, asset.name, asset.version)
    if asset.location.startswith("job:"):
        _, location = references.location(house.store, asset.location)
        return ids.uri_out(workspace, location)
    return ids.uri_out(workspace, asset.location)


def _blob_uri(house: House, asset: Asset) -> str:
    """Return where the bytes are, as an address that a storage client can take."""
    if not asset.location.startswith("file:"):
        return asset.location
    store, _, path = asset.location.removeprefix("file:").partition("/")
    return ids.blob_url(house, asset.scope, store, path)


def texts_only(old: Asset, new: Asset) -> Asset:
    """Return `old` with what may change of a version: what a second PUT may say anew."""
    return _with(old, extras={**old.extras, **new.extras}, modified_at=new.modified_at)


def put(house: House, asset: Asset) -> Asset:
    """Write a version down; a second PUT of the same thing brings its texts up to date."""
    kept = assets.create(house.store, asset)
    if kept.extras == asset.extras:
        return kept
    return assets.update(house.store, texts_only(kept, asset))
