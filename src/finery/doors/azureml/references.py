"""Ids and paths: every way the SDK spells a thing, as one of the core's references, and back.

    azureml:NAME:VERSION  azureml:NAME@LABEL  NAME:VERSION  an ARM id  (AzureML-…: the registry's)
    azureml://registries/R/KIND/N/versions/V   azureml://locations/L/workspaces/ID/KIND/N/versions/V
        -> asset:<kind>/<scope>/<name>/<version>
    azureml://datastores/D/paths/P  azureml://subscriptions/…/datastores/D/paths/P
    https://HERE/blob/<workspace>/D/P   wasbs://D@HERE/…/P
        -> file:D/P
    azureml://jobs/J/outputs/O/paths/P  azureml://jobs/J/outputs/artifacts/paths/P  runs:/J/P
        -> job:J/O/P   job:J/artifacts/P
    https://…
        -> itself

A label or a missing version is looked up once, here: what a job was given is
what it keeps.  Where a reference lies on disk is the core's question.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote, urlsplit

from finery.core import assets, workspaces
from finery.core.errors import Invalid, NotFound, NotSupported
from finery.core.workspaces import Workspace
from finery.doors.azureml.wire import PROVIDER, STORAGE_SUFFIX
from finery.doors.http import House

# The core's kind -> the word in Azure's addresses.
PLURAL = {
    "data": "data",
    "model": "models",
    "environment": "environments",
    "component": "components",
    "code": "codes",
}
KIND = {plural: kind for kind, plural in PLURAL.items()} | {"datasets": "data"}

DATASTORES = {
    "workspaceblobstore": "AzureBlob",
    "workspaceartifactstore": "AzureBlob",
    "workspacefilestore": "AzureFile",
    "workspaceworkingdirectory": "AzureFile",
}

# Azure keeps this prefix for environments of its registry: they are named without it.
CURATED = "AzureML-"
_CURATOR = "azureml"

_ARM = re.compile(
    r"/?subscriptions/(?P<subscription>[^/]+)/resourcegroups/(?P<group>[^/]+)"
    r"(?:/providers/microsoft\.machinelearningservices)?/workspaces/(?P<workspace>[^/]+)"
    r"(?:/(?P<rest>.+))?",
    re.IGNORECASE,
)
_ASSET = re.compile(
    r"(?P<kind>[A-Za-z]+)/(?P<name>[^/]+)(?:/(?P<how>versions|labels)/(?P<version>[^/]+))?",
)
_JOB = re.compile(r"jobs/(?P<job>[^/]+)/outputs/(?P<output>[^/]+)(?:/paths(?:/(?P<path>.*))?)?")
_STORE = re.compile(r"datastores/(?P<store>[^/]+)(?:/paths(?:/(?P<path>.*))?)?")
_BINDING = re.compile(r"\$\{\{.+\}\}")


def is_binding(text: str) -> bool:
    """Say whether `text` is an expression such as `${{parent.inputs.x}}`."""
    return _BINDING.fullmatch(text.strip()) is not None


def ref_in(house: House, workspace: Workspace, text: str, *, kind: str) -> str:
    """Return the reference that `text` spells.

    `kind` says what a bare name is: data, model, environment, component or
    code.  Raises `NotFound` for an asset that is not there, `Invalid` for a
    text that is no id or path, `NotSupported` for a place that is not ours.
    """
    text = text.strip()
    lower = text.lower()
    if lower.startswith("azureml://"):
        return _uri_in(house, workspace, text[len("azureml://") :], text)
    if lower.startswith(("azureml:/subscriptions/", "/subscriptions/", "subscriptions/")):
        return _arm_in(house, workspace, text.removeprefix("azureml:"), text)
    if lower.startswith("runs:/"):
        job, _, path = text[len("runs:/") :].strip("/").partition("/")
        return _artifact(job, path)
    if lower.startswith(("https://", "http://", "wasbs://", "wasb://")):
        return _url_in(house, workspace, text)
    if lower.startswith(("asset:", "file:", "job:", "package:")) or "/" in text or not text:
        raise Invalid(f"{text!r} is neither an id nor a path of a {kind}", target=kind)
    return _named(house, workspace.id, kind, text.removeprefix("azureml:"))


def asset_in(house: House, workspace: Workspace, text: str, *, kind: str) -> str:
    """Return the reference of a registered asset: like `ref_in`, and nothing but an asset."""
    ref = ref_in(house, workspace, text, kind=kind)
    if not ref.startswith(f"asset:{kind}/"):
        raise Invalid(f"{text!r} is not the id of a registered {kind}", target=kind)
    return ref


def bare(name: str) -> str:
    """Return the name of an asset: the SDK leaves `azureml:NAME@latest` its prefix in addresses."""
    return name.removeprefix("azureml:")


def compute_in(text: str) -> str:
    """Return the name of the compute in a name or an id; `serverless` and bindings stay."""
    text = text.strip().removeprefix("azureml:")
    found = _ARM.fullmatch(text)
    if found and (found["rest"] or "").lower().startswith(("computes/", "virtualclusters/")):
        return found["rest"].split("/")[1]
    if "/" in text and not is_binding(text):
        raise Invalid(f"{text!r} is not the id of a compute of this workspace", target="computeId")
    return text


def split_in(ref: str) -> tuple[str, str, str, str]:
    """Return kind, scope, name and version of an `asset:` reference."""
    kind, scope, name, version = ref.removeprefix("asset:").split("/", 3)
    return kind, scope, name, version


# Out: ours as Azure spells it.


def arm_id(workspace: Workspace, *parts: str) -> str:
    """Return the ARM id of something in a workspace; of the workspace itself with no parts."""
    return "/".join(
        (
            f"/subscriptions/{workspace.subscription}/resourceGroups/{workspace.group}",
            f"providers/{PROVIDER}/workspaces/{workspace.name}",
            *parts,
        )
    )


def asset_id(workspace: Workspace, ref: str) -> str:
    """Return the id of an asset: an ARM id, or a registry's address."""
    kind, scope, name, version = split_in(ref)
    if scope == workspace.id:
        return arm_id(workspace, PLURAL[kind], name, "versions", version)
    return registry_id(scope, kind, name, version)


def registry_id(registry: str, kind: str, name: str, version: str) -> str:
    return f"azureml://registries/{registry}/{PLURAL[kind]}/{name}/versions/{version}"


def data_id(workspace: Workspace, ref: str) -> str:
    """Return an asset's id as a path that the SDK takes for a job's input: `azureml:…`."""
    text = asset_id(workspace, ref)
    return text if text.startswith("azureml:") else f"azureml:{text}"


def uri_out(workspace: Workspace, ref: str) -> str:
    """Return a reference as a path: what the SDK calls `uri` and `path`."""
    if ref.startswith("file:"):
        store, _, path = ref.removeprefix("file:").partition("/")
        return store_uri(workspace, store, path)
    if ref.startswith("job:"):
        job, _, rest = ref.removeprefix("job:").partition("/")
        output, _, path = rest.partition("/")
        return f"azureml://jobs/{job}/outputs/{output}" + (f"/paths/{path}" if path else "")
    if ref.startswith("asset:"):
        return asset_id(workspace, ref)
    return ref


def store_uri(workspace: Workspace, store: str, path: str) -> str:
    """Return the long address of a path in a datastore: the SDK takes only that one apart."""
    return (
        f"azureml://subscriptions/{workspace.subscription}/resourcegroups/{workspace.group}"
        f"/workspaces/{workspace.name}/datastores/{store}/paths/{path}"
    )


def account(house: House, scope: str) -> str:
    """Return the storage account's name of a workspace: `HOST:PORT/blob/SCOPE`.

    The SDK builds `https://{account}.blob.{suffix}` of it, which is an address
    on this very server: no name has to be known to any DNS.
    """
    return f"{urlsplit(house.https).netloc}/blob/{scope}"


def blob_url(house: House, scope: str, store: str, path: str = "") -> str:
    """Return the https address of a container or of what is in it."""
    base = f"https://{account(house, scope)}.blob.{STORAGE_SUFFIX}/{store}"
    return f"{base}/{path}" if path else base


# In, form by form.


def _uri_in(house: House, workspace: Workspace, rest: str, text: str) -> str:
    head = rest.partition("/")[0].lower()
    if head == "registries":
        registry, _, asset = rest.partition("/")[2].partition("/")
        if registry.lower() != _CURATOR:  # a workspace's id here would lead into that workspace
            said = f"no registry {registry!r}; the only one here is {_CURATOR!r}"
            raise NotFound(said, target=registry)
        return _asset(house, _CURATOR, asset, text)
    if head == "subscriptions":
        return _arm_in(house, workspace, rest, text)
    if head == "locations":
        scope, _, asset = "/".join(rest.split("/")[3:]).partition("/")
        _same(workspaces.by_id(house.store, scope), workspace, text)
        return _asset(house, workspace.id, asset, text)
    return _inside(house, workspace, rest, text)


def _arm_in(house: House, workspace: Workspace, rest: str, text: str) -> str:
    found = _ARM.fullmatch(rest)
    if not found or not found["rest"]:
        raise Invalid(f"{text!r} is not the id of something in a workspace", target="id")
    named = workspaces.get(house.store, found["subscription"], found["group"], found["workspace"])
    _same(named, workspace, text)
    return _inside(house, workspace, found["rest"], text)


def _inside(house: House, workspace: Workspace, rest: str, text: str) -> str:
    """Read what comes after the workspace: a path in a datastore, a job's output or an asset."""
    if found := _STORE.fullmatch(rest):
        if found["store"] not in DATASTORES:
            raise NotFound(f"no datastore {found['store']!r}", target=found["store"])
        return f"file:{found['store']}/{_tidy(found['path'] or '', text)}".rstrip("/")
    if found := _JOB.fullmatch(rest):
        return _output(found["job"], found["output"], _tidy(found["path"] or "", text))
    return _asset(house, workspace.id, rest, text)


def _output(job: str, output: str, path: str) -> str:
    if output in ("artifacts", "default"):
        return _artifact(job, path)
    return f"job:{job}/{output}" + (f"/{path}" if path else "")


def _artifact(job: str, path: str) -> str:
    path = _tidy(path, path)
    return f"job:{job}/artifacts" + (f"/{path}" if path else "")


def _asset(house: House, scope: str, rest: str, text: str) -> str:
    found = _ASSET.fullmatch(rest.strip("/"))
    kind = KIND.get(found["kind"].lower()) if found else None
    if found is None or kind is None:
        raise Invalid(f"{text!r} is not the id of an asset, a datastore path or a job's output")
    if found["how"] == "labels":
        return _labelled(house, scope, kind, bare(found["name"]), found["version"])
    return _version(house, scope, kind, bare(found["name"]), found["version"] or "latest")


def _named(house: House, scope: str, kind: str, text: str) -> str:
    name, at, label = text.partition("@")
    if not at:
        name, colon, version = text.partition(":")
    if kind == "environment" and name.startswith(CURATED):
        if assets.find_name(house.store, scope, kind, name) is None:
            scope = _CURATOR
    if at:
        return _labelled(house, scope, kind, name, label)
    return _version(house, scope, kind, name, version if colon else "latest")


def _version(house: House, scope: str, kind: str, name: str, version: str) -> str:
    """Return the reference of one version.

    Scripts name one of the many versions that Azure's curated environments have: the one that is
    here stands for them all.
    """
    # More digits than these are no version of theirs, and Python may not read them as a number.
    if (kind, scope) == ("environment", _CURATOR) and re.fullmatch(r"[0-9]{1,9}", version):
        newest = assets.find(house.store, scope, kind, name)
        if newest and newest.version.isdecimal() and int(version) < int(newest.version):
            return newest.ref
    return assets.get(house.store, scope, kind, name, version).ref


def _labelled(house: House, scope: str, kind: str, name: str, label: str) -> str:
    if label != "latest":
        raise NotFound(
            f"{kind} {name!r} has no label {label!r}; the only label here is 'latest'", target=label
        )
    return assets.get(house.store, scope, kind, name).ref


def _url_in(house: House, workspace: Workspace, text: str) -> str:
    try:
        parts = urlsplit(text)
    except ValueError as exc:
        raise Invalid(f"{text!r} is not an address: {exc}", target="uri") from exc
    ours = {urlsplit(house.https).netloc, urlsplit(house.http).netloc}
    if parts.netloc.rpartition("@")[2] not in ours:
        if parts.scheme.startswith("wasb"):
            raise NotSupported(f"{text!r} is in a storage account that is not this server's")
        return text
    words = unquote(parts.path).strip("/").split("/")
    if len(words) < 2 or words[0] != "blob":
        raise Invalid(f"{text!r} is not the address of a blob of this server", target="uri")
    scope, rest = words[1].split(".blob.")[0], words[2:]
    if scope in DATASTORES:  # the SDK drops the account from the address of a Docker context
        scope, rest = workspace.id, words[1:]
    store = parts.username or (rest.pop(0) if rest else "")
    if scope != workspace.id:
        raise NotSupported(f"{text!r} is in another workspace: copy the data to this one first")
    if store not in DATASTORES:
        raise NotFound(f"no datastore {store!r}", target=store)
    return f"file:{store}/{_tidy('/'.join(rest), text)}".rstrip("/")


def _same(named: Workspace, here: Workspace, text: str) -> None:
    if named.id != here.id:
        raise NotSupported(
            f"{text!r} is in workspace {named.name!r}; only things of the workspace "
            f"{here.name!r} and of registries can be used in it",
            target=named.name,
        )


def _tidy(path: str, text: str) -> str:
    """Return a relative path without `.` and doubled slashes; it may not climb out."""
    tidy = posixpath.normpath(path.strip("/")) if path.strip("/") else ""
    if tidy == ".." or tidy.startswith("../"):
        raise Invalid(f"{text!r} leaves its folder", target="path")
    return "" if tidy == "." else tidy
