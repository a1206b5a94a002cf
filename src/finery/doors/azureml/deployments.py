"""Online deployments: what an endpoint runs, as Azure writes it and as we do.

Bringing one up takes time; how that is told is in `operations.py`, and who
does it is the supervisor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import fastapi
from fastapi import APIRouter, Depends, Request, Response

from finery.core import assets, endpoints, instances
from finery.core import references as core_references
from finery.core import rollback as core_rollback
from finery.core.endpoints import Deployment, Endpoint
from finery.core.errors import Failure, Invalid, NotFound, NotSupported
from finery.core.serving import Probe, Serving
from finery.core.workspaces import Caller, Workspace
from finery.doors.azureml import durations, operations, references, scales, wire
from finery.doors.http import House

Body = Annotated[dict[str, Any], fastapi.Body()]

PATH = f"{wire.WORKSPACE}/onlineEndpoints/{{endpoint}}/deployments"
MOST_INSTANCES = 64
_SHORTEST = 0.1  # seconds between probes, and for an answer to one: with none, all would fail
_TOP = ("id", "name", "type", "systemData", "location", "tags", "properties", "identity", "kind")
_FIELDS = (
    "model",
    "codeConfiguration",
    "environmentId",
    "environmentVariables",
    "instanceType",
    "requestSettings",
    "livenessProbe",
    "readinessProbe",
    "scaleSettings",
    "endpointComputeType",
    "description",
    "properties",
    "provisioningState",  # only ever answered
)
# On Kubernetes the SDK lets a deployment scale with its load; here both kinds are processes.
_KINDS = {"managed": "Managed", "kubernetes": "Kubernetes"}
_KIND_WARNINGS = {
    "kubernetes": ("no Kubernetes is asked: its instances are processes of this server",)
}
_OPEN = "egress_public_network_access is not honoured: an instance calls whom this machine may"
_OURS = "finery."  # properties that we answer
_ECHOED = ("appInsightsEnabled", "egressPublicNetworkAccess", "privateNetworkConnection")


def add(routes: APIRouter, house: House) -> None:
    """Add the routes of deployments to those of endpoints."""
    need = Depends(wire.need(house))
    one = f"{PATH}/{{name}}"

    def there(request: Request, caller: Caller) -> tuple[Workspace, Endpoint]:
        workspace = wire.room(house, request, caller)
        return workspace, _endpoint(house, workspace, request.path_params["endpoint"])

    @routes.put(one)
    def put(request: Request, name: str, body: Body, caller: Caller = need) -> Response:
        workspace, endpoint = there(request, caller)
        wanted = deployment_in(house, workspace, endpoint.name, name, body, by=caller.name)
        return _deploy(house, request, workspace, wanted)

    @routes.get(one)
    def get(request: Request, name: str, caller: Caller = need) -> Response:
        workspace, endpoint = there(request, caller)
        found = endpoints.get_deployment(house.store, endpoint.name, name)
        return wire.answer(deployment_out(workspace, found))

    @routes.get(PATH)
    def list(request: Request, caller: Caller = need) -> Response:
        workspace, endpoint = there(request, caller)
        found = endpoints.deployments(house.store, endpoint.name)
        return wire.listed(request, [deployment_out(workspace, item) for item in found])

    @routes.patch(one)
    def change(request: Request, name: str, body: Body, caller: Caller = need) -> Response:
        workspace, endpoint = there(request, caller)
        old = endpoints.get_deployment(house.store, endpoint.name, name)
        merged = _merged(deployment_out(workspace, old), body)
        wanted = deployment_in(house, workspace, endpoint.name, name, merged, by=caller.name)
        return _deploy(house, request, workspace, wanted)

    @routes.delete(one)
    def delete(request: Request, name: str, caller: Caller = need) -> Response:
        _, endpoint = there(request, caller)
        if endpoints.delete_deployment(house.store, endpoint.name, name) is None:
            return wire.nothing()
        house.wake()
        return operations.accepted(request, "delete")

    @routes.get(f"{one}/operations/put")
    def deploying(request: Request, name: str, caller: Caller = need) -> Response:
        _, endpoint = there(request, caller)
        return _told(endpoints.find_deployment(house.store, endpoint.name, name), name)

    @routes.get(f"{one}/operations/delete")
    def deleting(request: Request, endpoint: str, name: str, caller: Caller = need) -> Response:
        wire.room(house, request, caller)  # the endpoint itself may be gone by now
        found = endpoints.find_deployment(house.store, endpoint, name)
        if found is not None and found.status == "deleting":
            return operations.accepted(request, "delete")
        return Response(status_code=200)

    @routes.post(f"{one}/getLogs")
    def logs(request: Request, name: str, body: Body, caller: Caller = need) -> Response:
        _, endpoint = there(request, caller)
        found = endpoints.get_deployment(house.store, endpoint.name, name)
        return wire.answer({"content": _log(house, found, body)})

    @routes.post(f"{one}/rollback")  # ours: Azure has no word for it
    def rollback(request: Request, name: str, caller: Caller = need) -> Response:
        workspace, endpoint = there(request, caller)
        made = core_rollback.deployment(house.store, endpoint.name, name)
        house.wake()
        return operations.started(request, deployment_out(workspace, made), "put", status=200)

    @routes.get(f"{one}/skus")
    def skus(request: Request, name: str, caller: Caller = need) -> Response:
        _, endpoint = there(request, caller)
        endpoints.get_deployment(house.store, endpoint.name, name)
        capacity = {"minimum": 1, "maximum": MOST_INSTANCES, "default": 1, "scaleType": "Manual"}
        kind = f"{wire.PROVIDER}/workspaces/onlineEndpoints/deployments"
        sku = {"name": "Default", "tier": "Standard"}
        return wire.listed(request, [{"resourceType": kind, "sku": sku, "capacity": capacity}])


def deployment_in(
    house: House,
    workspace: Workspace,
    endpoint: str,
    name: str,
    body: Mapping[str, Any],
    *,
    by: str = "",
) -> Deployment:
    """Return the deployment that a PUT asks for.  Raises where it could not work."""
    wire.refuse_unknown(body, (*_TOP, "sku"), "deployment")
    props = wire.properties(body, "deployment")
    kind = str(props.get("endpointComputeType") or "Managed")
    if kind.lower() not in _KINDS:
        raise NotSupported(
            f"deployments on {kind} are not supported here", target="endpointComputeType"
        )
    wire.refuse_unknown(props, (*_FIELDS, *_ECHOED), "deployment")
    spec = _serving_in(house, workspace, props, _instances_in(body))
    _check(house, workspace, spec)
    told = wire.texts(props.get("properties"), "properties")
    return Deployment(
        endpoint=endpoint,
        name=name,
        workspace=workspace.id,
        spec=spec,
        description=str(props.get("description") or ""),
        tags=wire.texts(body.get("tags"), "tags"),
        properties={key: text for key, text in told.items() if not key.startswith(_OURS)},
        warnings=[
            *_warnings(house, spec),
            *_KIND_WARNINGS.get(kind.lower(), ()),
            *[_OPEN] * (str(props.get("egressPublicNetworkAccess")).lower() == "disabled"),
        ],
        created_by=by,
        extras=wire.keep(props, _ECHOED)
        | wire.keep(body, ("identity",))
        | {"compute": _KINDS[kind.lower()]},
    )


def deployment_out(workspace: Workspace, deployment: Deployment) -> dict[str, Any]:
    """Return a deployment as Azure writes it."""
    spec = deployment.spec
    own = ("onlineEndpoints", deployment.endpoint, "deployments", deployment.name)
    code = {"codeId": _id(workspace, spec.code), "scoringScript": spec.script}
    return {
        "id": references.arm_id(workspace, *own),
        "name": deployment.name,
        "type": f"{wire.PROVIDER}/workspaces/onlineEndpoints/deployments",
        "location": wire.LOCATION,
        "kind": _kind(deployment),
        "tags": deployment.tags,
        "sku": {"name": "Default", "tier": "Standard", "capacity": spec.instances},
        "identity": deployment.extras.get("identity"),
        "systemData": wire.system_data(
            deployment.created_at,
            created_by=deployment.created_by,
            modified_at=deployment.changed_at,
        ),
        "properties": {
            "appInsightsEnabled": False,
            "egressPublicNetworkAccess": "Enabled",
            **{name: deployment.extras[name] for name in _ECHOED if name in deployment.extras},
            "endpointComputeType": _kind(deployment),
            "provisioningState": wire.DEPLOYMENT[deployment.status],
            "description": deployment.description or None,
            "properties": _properties_out(deployment),
            "model": _id(workspace, spec.model),
            "codeConfiguration": code if spec.script else None,
            "environmentId": _id(workspace, spec.environment),
            "environmentVariables": spec.env,
            "instanceType": spec.size or None,
            "scaleSettings": scales.rule_out(spec.scaling),
            "requestSettings": _requests_out(spec),
            # The SDK fails over a deployment on Kubernetes without the field.
            "containerResourceRequirements": {} if _kind(deployment) == "Kubernetes" else None,
            "livenessProbe": _probe_out(spec.liveness),
            "readinessProbe": _probe_out(spec.readiness),
        },
    }


def _serving_in(
    house: House, workspace: Workspace, props: Mapping[str, Any], instances: int
) -> Serving:
    code = wire.mapping(props.get("codeConfiguration"), "codeConfiguration")
    requests = wire.mapping(props.get("requestSettings"), "requestSettings")
    known = ("maxConcurrentRequestsPerInstance", "requestTimeout", "maxQueueWait")
    wire.refuse_unknown(code, ("codeId", "scoringScript"), "codeConfiguration")
    wire.refuse_unknown(requests, known, "requestSettings")
    return Serving(
        model=_ref(house, workspace, props.get("model"), "model", "model"),
        code=_ref(house, workspace, code.get("codeId"), "code", "codeConfiguration.codeId"),
        script=str(code.get("scoringScript") or ""),
        environment=_ref(
            house, workspace, props.get("environmentId"), "environment", "environmentId"
        ),
        env=wire.texts(props.get("environmentVariables"), "environmentVariables"),
        instances=instances,
        size=str(props.get("instanceType") or ""),
        max_concurrent_requests=_whole(
            requests.get("maxConcurrentRequestsPerInstance"), 1, known[0], least=1
        ),
        request_timeout_ms=_ms(requests.get("requestTimeout"), 5000, "requestTimeout", least=1),
        max_queue_wait_ms=_ms(requests.get("maxQueueWait"), 500, "maxQueueWait"),
        liveness=_probe_in(props.get("livenessProbe"), "livenessProbe"),
        readiness=_probe_in(props.get("readinessProbe"), "readinessProbe"),
        scaling=scales.rule_in(props.get("scaleSettings"), most=MOST_INSTANCES),
    )


def _check(house: House, workspace: Workspace, spec: Serving) -> None:
    """Refuse now what would only fail when it is started."""
    if not spec.model and not spec.script:
        raise Invalid("a deployment needs a model, or code with a scoring script", target="model")
    if bool(spec.code) != bool(spec.script):
        missing = "scoringScript" if spec.code else "codeId"
        raise Invalid(
            f"codeConfiguration needs both codeId and scoringScript: {missing} is missing",
            target=f"codeConfiguration.{missing}",
        )
    if spec.model:
        _there(house, workspace, spec.model, "", "model")
    if spec.script:
        _there(house, workspace, spec.code, spec.script, "codeConfiguration.scoringScript")
    elif spec.model.startswith("asset:"):
        model = assets.by_ref(house.store, spec.model)
        if model.type in ("custom_model", "triton_model"):
            raise Invalid(
                f"model {model.name!r} is a {model.type}: to serve it, give code with a scoring "
                "script (only an mlflow_model is served without one)",
                target="codeConfiguration",
            )


def _warnings(house: House, spec: Serving) -> list[str]:
    """Return what whoever looks at the deployment should know of its model."""
    if not spec.model.startswith("asset:"):
        return []
    stands_for = assets.by_ref(house.store, spec.model).tags.get("stand_in_for")
    return [f"the model is a stand-in for {stands_for}, to try things out"] if stands_for else []


def _there(house: House, workspace: Workspace, ref: str, inside: str, field: str) -> None:
    """Raise `Invalid` where what a reference leads to, or a file in it, is not there."""
    try:
        scope, location = core_references.location(house.store, ref)
        if location.startswith(("https:", "http:")) or not location:
            return
        found = house.files.locate(scope or workspace.id, location)
    except NotFound as exc:
        raise Invalid(f"{field}: {exc}", target=field) from exc
    if inside and not (found / inside).is_file():
        raise Invalid(f"{field}: the code has no file {inside!r}", target=field)


def _deploy(house: House, request: Request, workspace: Workspace, wanted: Deployment) -> Response:
    new = endpoints.find_deployment(house.store, wanted.endpoint, wanted.name) is None
    made = endpoints.deploy(house.store, wanted)
    house.wake()
    body = deployment_out(workspace, made)
    return operations.started(request, body, "put", status=201 if new else 200)


def _told(deployment: Deployment | None, name: str) -> Response:
    if deployment is None or deployment.status == "deleting":
        error = {"code": "ResourceNotFound", "message": f"deployment {name!r} was deleted"}
        return operations.told(name, "Canceled", error=error)
    match deployment.status:
        case "creating" | "updating":
            return operations.told(name, "InProgress")
        case "failed":
            why = instances.failure(deployment) or "no reason is known"
            message = f"deployment {name!r} failed: {why} (its log, with get_logs, has more)"
            error = {"code": "DeploymentFailed", "message": message, "target": name}
            return operations.told(name, "Failed", error=error)
    return operations.told(name, "Succeeded")


def _merged(old: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resource with what a PATCH changes: objects are merged, all else replaced."""
    found = dict(old)
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            found[name] = _merged(found[name], value)
        else:
            found[name] = value
    return found


def _log(house: House, deployment: Deployment, body: Mapping[str, Any]) -> str:
    """Return the last lines of what the deployment's processes wrote."""
    container = str(body.get("containerType") or "InferenceServer")
    if container.lower() == "storageinitializer":
        return "No storage initializer runs here: models and code are used where they lie.\n"
    return house.instance_logs(deployment, _whole(body.get("tail"), 100, "tail", least=1))


def _endpoint(house: House, workspace: Workspace, name: str) -> Endpoint:
    endpoint = endpoints.get(house.store, name)
    if endpoint.workspace != workspace.id:
        raise NotFound(f"no endpoint named {name!r} in this workspace", target=name)
    return endpoint


def _ref(house: House, workspace: Workspace, text: Any, kind: str, field: str) -> str:
    if not text:
        return ""
    given = text if isinstance(text, str) else str(wire.mapping(text, field).get("assetId") or "")
    read = references.ref_in if kind in ("model", "code") else references.asset_in
    try:
        return read(house, workspace, given, kind=kind)
    except NotSupported:
        raise
    except Failure as exc:
        raise Invalid(f"{field}: {exc}", target=field) from exc


def _kind(deployment: Deployment) -> str:
    return str(deployment.extras.get("compute") or "Managed")


def _id(workspace: Workspace, ref: str) -> str | None:
    return references.uri_out(workspace, ref) if ref else None


def _instances_in(body: Mapping[str, Any]) -> int:
    given = wire.mapping(body.get("sku"), "sku").get("capacity")
    count = _whole(given, 1, "sku.capacity", least=1)
    if count > MOST_INSTANCES:
        raise Invalid(f"at most {MOST_INSTANCES} instances run here", target="sku.capacity")
    return count


def _properties_out(deployment: Deployment) -> dict[str, str]:
    found = dict(deployment.properties)
    if deployment.warnings:
        found["finery.warnings"] = "\n".join(deployment.warnings)
    if deployment.spec.scaling:
        found["finery.instances"] = str(deployment.count)  # that its load asks for now
    if deployment.error:
        found["finery.error"] = instances.failure(deployment)
    return found


def _requests_out(spec: Serving) -> dict[str, Any]:
    return {
        "maxConcurrentRequestsPerInstance": spec.max_concurrent_requests,
        "requestTimeout": durations.seconds_out(spec.request_timeout_ms / 1000),
        "maxQueueWait": durations.seconds_out(spec.max_queue_wait_ms / 1000),
    }


def _probe_in(doc: Mapping[str, Any] | None, field: str) -> Probe:
    doc = doc or {}
    known = ("failureThreshold", "successThreshold", "timeout", "period", "initialDelay")
    wire.refuse_unknown(doc, known, field)
    usual = Probe()

    def seconds(name: str, default: float, *, least: float = _SHORTEST) -> float:
        given = doc.get(name)
        found = default if given is None else durations.seconds_in(given, field=f"{field}.{name}")
        if found < least:
            said = f"{field}.{name} is {found:g} s; it must be {least:g} s or more"
            raise Invalid(said, target=f"{field}.{name}")
        return found

    return Probe(
        failure_threshold=_whole(
            doc.get("failureThreshold"),
            usual.failure_threshold,
            f"{field}.failureThreshold",
            least=1,
        ),
        success_threshold=_whole(
            doc.get("successThreshold"),
            usual.success_threshold,
            f"{field}.successThreshold",
            least=1,
        ),
        timeout=seconds("timeout", usual.timeout),
        period=seconds("period", usual.period),
        initial_delay=seconds("initialDelay", usual.initial_delay, least=0),
    )


def _probe_out(probe: Probe) -> dict[str, Any]:
    return {
        "failureThreshold": probe.failure_threshold,
        "successThreshold": probe.success_threshold,
        "timeout": durations.seconds_out(probe.timeout),
        "period": durations.seconds_out(probe.period),
        "initialDelay": durations.seconds_out(probe.initial_delay),
    }


def _whole(value: Any, default: int, field: str, *, least: int = 0) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Invalid(
            f"{field} is {value!r}; it must be a whole number from {least} up", target=field
        )
    return value


def _ms(value: Any, default: int, field: str, *, least: int = 0) -> int:
    if value is None:
        return default
    found = round(durations.seconds_in(value, field=field) * 1000)
    if found < least:
        raise Invalid(f"{field} is {value!r}; it must be longer", target=field)
    return found
