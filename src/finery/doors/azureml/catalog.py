"""The system registry as files: reads `finery/catalog/**.yaml` into the assets of `azureml`.

The files are in Azure ML's own YAML schema.  `load` is called at every start
and does nothing but read the files' bytes when they are the ones it knows.
A model may say what it is on a server with stand-ins (`x-tiny`: laid over the
rest).  Environments of the catalog are our own interpreter under a name.  What
the registry answers is in `registries.py`.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from finery.core import assets, files
from finery.core.assets import Asset, Name
from finery.core.errors import Invalid
from finery.core.store import Store
from finery.doors.azureml import components, references, wire

REGISTRY = "azureml"
FOLDERS = {"environments": "environment", "models": "model", "components": "component"}

_FORMAT = "1"  # raised when the same files mean something else to this module
_MARK = "catalog"  # the kind of the one row that says which files were read last
_SHORT = re.compile(r"azureml:(?P<name>[^:@/]+)(?::(?P<version>[^:@]+)|@(?P<label>.+))")
_LONG = re.compile(
    r"azureml://registries/(?P<registry>[^/]+)/[a-z]+/(?P<name>[^/]+)"
    r"/(?:versions/(?P<version>[^/]+)|labels/(?P<label>[^/]+))"
)

# (kind, name) -> its versions, oldest first
Found = dict[tuple[str, str], list[tuple[str, Path, dict[str, Any]]]]


def load(store: Store, *, tiny: bool, folder: Path = files.PACKAGE) -> bool:
    """Bring the registry up to the files; return whether anything had changed.

    Raises `Invalid`, naming the file, for one that makes no sense.
    """
    sources = {
        path: path.read_bytes()
        for name in FOLDERS
        for path in sorted((folder / name).glob("*.yaml"))
    }
    digest = _digest(sources, folder, tiny)
    known = assets.find_name(store, REGISTRY, _MARK, _MARK)
    if known is not None and known.extras.get("digest") == digest:
        return False
    found = _read(sources, tiny)
    with store.transaction():
        for (kind, name), versions in found.items():
            made = [_asset(found, folder, kind, name, *version) for version in versions]
            _replace(store, made)
        _remember(store, known, digest)
    return True


def _digest(sources: Mapping[Path, bytes], folder: Path, tiny: bool) -> str:
    total = hashlib.sha256(f"{_FORMAT} {tiny}".encode())
    for path, data in sources.items():
        total.update(f"\n{path.relative_to(folder)} {len(data)}\n".encode() + data)
    return total.hexdigest()


def _remember(store: Store, known: Name | None, digest: str) -> None:
    mark = Name(scope=REGISTRY, kind=_MARK, name=_MARK, extras={"digest": digest})
    if known is None:
        assets.create_name(store, mark)
    else:
        assets.update_name(store, mark)


def _read(sources: Mapping[Path, bytes], tiny: bool) -> Found:
    found: Found = {}
    for path, data in sources.items():
        try:
            doc = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as exc:
            raise Invalid(f"{path} is no YAML: {exc}", target=path.name) from exc
        kind = FOLDERS[path.parent.name]
        needed = ("name", "version", "path") if kind == "model" else ("name", "version")
        missing = [key for key in needed if not isinstance(doc, dict) or key not in doc]
        if missing:
            raise Invalid(f"{path} is no {kind}: it has no {' and no '.join(missing)}")
        stand_in = doc.pop("x-tiny", None) or {}
        doc = {**doc, **stand_in} if tiny else doc
        version = str(doc["version"]), path, doc
        found.setdefault((kind, str(doc["name"])), []).append(version)
    for versions in found.values():
        versions.sort(key=lambda version: _order(version[0]))
    return found


def _order(version: str) -> list[tuple[int, str]]:
    """Return what sorts `0.0.9` before `0.0.10`."""
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.-]", version)
    ]


def _replace(store: Store, made: list[Asset]) -> None:
    """Write the versions of a name down anew, so that the last one is the newest."""
    for asset in made:
        old = assets.find(store, asset.scope, asset.kind, asset.name, asset.version)
        if old is not None:
            asset = replace(asset, created_at=old.created_at)
            assets.delete(store, old)
        assets.create(store, asset)


def _asset(
    found: Found, folder: Path, kind: str, name: str, version: str, path: Path, doc: dict[str, Any]
) -> Asset:
    common = Asset(
        scope=REGISTRY,
        kind=kind,
        name=name,
        version=version,
        description=str(doc.get("description") or ""),
        tags=wire.texts(doc.get("tags"), "tags"),
        properties=wire.texts(doc.get("properties"), "properties"),
        created_by="finery",
    )
    if kind == "component":
        return _component(common, found, folder, path, doc)
    if kind == "model":
        extras: dict[str, Any] = {
            "flavors": {name: {"data": {}} for name in doc.get("flavors") or {}}
        }
        type = str(doc.get("type") or "custom_model")
        place = _place(folder, path, str(doc["path"]))
        return replace(common, type=type, location=place, extras=extras)
    spec = {"kind": "curated", "image": str(doc.get("image") or "")}
    return replace(common, type="curated", spec=spec)


def _place(folder: Path, file: Path, text: str) -> str:
    """Return where a path of a file of the catalog leads."""
    if text.startswith("https://"):
        return text
    return "package:" + posixpath.normpath((file.parent.relative_to(folder) / text).as_posix())


def _component(asset: Asset, found: Found, folder: Path, path: Path, doc: dict[str, Any]) -> Asset:
    def ref(kind: str, text: str) -> str:
        return _ref(found, folder, path, kind, text)

    spec = rest_spec(doc)
    core = components.component_in(spec, ref=ref, where=path.name)
    spec.pop("code", None)  # it is in the package; nobody can fetch it by an address
    if spec.get("environment"):
        spec["environment"] = _address(ref("environment", spec["environment"]))
    for node in (spec.get("jobs") or {}).values():
        node["componentId"] = _address(ref("component", node["componentId"]))
    digest = hashlib.sha256(repr(core).encode()).hexdigest()
    return replace(asset, type=core["kind"], spec=core, hash=digest, extras={"spec": spec})


def _ref(found: Found, folder: Path, path: Path, kind: str, text: str) -> str:
    """Return the reference that a text in the file `path` spells."""
    if kind == "code":
        return _place(folder, path, text)
    match = _SHORT.fullmatch(text) or _LONG.fullmatch(text)
    if match is None:
        raise Invalid(f"{path.name}: {text!r} is not the id of a {kind} of the registry")
    versions = [version for version, _, _ in found.get((kind, match["name"]), [])]
    version = match["version"] or (versions[-1] if versions else "")
    if version not in versions:
        raise Invalid(f"{path.name}: the catalog has no {kind} {text!r}", target=text)
    return f"asset:{kind}/{REGISTRY}/{match['name']}/{version}"


def _address(ref: str) -> str:
    kind, scope, name, version = references.split_in(ref)
    return references.registry_id(scope, kind, name, version)


def rest_spec(doc: Mapping[str, Any]) -> dict[str, Any]:
    """Return a component's YAML as the SDK would send it: texts for values, ids for components."""
    spec = {
        **{key: value for key, value in doc.items() if not key.startswith("x-")},
        "version": str(doc["version"]),
        "inputs": {name: _port(port) for name, port in (doc.get("inputs") or {}).items()},
        "outputs": {name: dict(port) for name, port in (doc.get("outputs") or {}).items()},
    }
    if doc.get("jobs"):
        spec["jobs"] = {name: _node(name, node) for name, node in doc["jobs"].items()}
    return spec


def _port(port: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(port)
    for key in ("default", "min", "max"):
        if key in made and made[key] is not None:
            made[key] = _text(made[key])
    if "enum" in made:
        made["enum"] = [_text(item) for item in made["enum"]]
    return made


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _node(name: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step of a pipeline in the SDK's words."""
    made = {key: value for key, value in node.items() if key not in ("component", "compute")}
    made["name"], made["componentId"] = name, str(node["component"])
    if node.get("compute"):
        made["computeId"] = node["compute"]
    made["inputs"] = {key: _value(value) for key, value in (node.get("inputs") or {}).items()}
    made["outputs"] = {key: _output(value) for key, value in (node.get("outputs") or {}).items()}
    return made


def _value(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {"job_input_type": "literal", "value": _text(value)}
    path = str(value.get("path") or "")
    if "${{" in path:
        made = {"job_input_type": "literal", "value": path}
    else:
        made = {"job_input_type": str(value.get("type") or "uri_folder"), "uri": path}
    return {**made, "mode": value["mode"]} if value.get("mode") else made


def _output(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {"value": str(value), "type": "literal"}
    path = str(value.get("path") or "")
    made = {"value": path, "type": "literal"} if "${{" in path else {"uri": path}
    if value.get("mode"):
        made["mode"] = str(value["mode"])
    return made
