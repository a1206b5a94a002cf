"""What is not supported is refused by name: every such operation of the official SDK is called.

A refusal is an error in Azure's own form, with our code `NotSupported` and the
name of what was asked for: no 500, no hang, no answer that says nothing.  What
the SDK ends by itself, before this server hears of it, is in `OTHERWISE`.
`docs/coverage.md` is made from what these tests and their neighbours see.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml import Input, MLClient, command, entities
from azure.ai.ml.data_transfer import Database
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities._feature_store_entity.data_column import DataColumn
from azure.ai.ml.entities._indexes.model_config import ModelConfiguration
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError, ServiceRequestError

WORKSPACE = "{workspace}"  # stands for the name of the workspace
ENVIRONMENT = "azureml://registries/azureml/environments/acft-hf-nlp-gpu/labels/latest"
SPECIFICATION = """
source: {type: parquet, path: x, timestamp_column: {name: t}}
features: [{name: f, type: string}]
index_columns: [{name: a, type: string}]
"""

# Operation -> its arguments, and what the refusal must name.
BY_NAME: dict[str, tuple[tuple[Any, ...], str]] = {
    "azure_openai_deployments.list": (("c",), "connections"),
    "batch_deployments.begin_delete": (("d", "b"), "batchEndpoints/b/deployments"),
    "batch_deployments.get": (("d", "b"), "batchEndpoints/b/deployments"),
    "batch_deployments.list": (("b",), "batchEndpoints/b/deployments"),
    "batch_deployments.list_jobs": (("b",), "batchEndpoints/b/deployments"),
    "batch_endpoints.begin_delete": (("b",), "batchEndpoints"),
    "batch_endpoints.get": (("b",), "batchEndpoints"),
    "batch_endpoints.list": ((), "batchEndpoints"),
    "batch_endpoints.list_jobs": (("b",), "batchEndpoints/b/jobs"),
    "capability_hosts.begin_delete": (("h",), "capabilityHosts"),
    "capability_hosts.get": (("h",), "capabilityHosts"),
    "compute.begin_restart": (("c",), "computes/c/restart"),
    "compute.begin_start": (("c",), "computes/c/start"),
    "compute.begin_stop": (("c",), "computes/c/stop"),
    "compute.list_nodes": (("c",), "computes/c/listNodes"),
    "compute.list_usage": ((), "usages"),
    "connections.delete": (("c",), "connections"),
    "connections.get": (("c",), "connections"),
    "connections.list": ((), "connections"),
    "datastores.delete": (("workspaceblobstore",), "workspaceblobstore"),
    "evaluators.list": (("e",), "properties"),
    "feature_sets.archive": (("f", "1"), "featuresets"),
    "feature_sets.get": (("f", "1"), "featuresets"),
    "feature_sets.list": ((), "featuresets"),
    "feature_sets.list_features": (("f", "1"), "featuresets"),
    "feature_sets.list_materialization_operations": (("f", "1"), "properties"),
    "feature_sets.restore": (("f", "1"), "featuresets"),
    "feature_store_entities.archive": (("f", "1"), "featurestoreEntities"),
    "feature_store_entities.get": (("f", "1"), "featurestoreEntities"),
    "feature_store_entities.list": ((), "featurestoreEntities"),
    "feature_store_entities.restore": (("f", "1"), "featurestoreEntities"),
    "indexes.list": ((), "indexes"),
    "marketplace_subscriptions.begin_delete": (("s",), "marketplaceSubscriptions"),
    "marketplace_subscriptions.get": (("s",), "marketplaceSubscriptions"),
    "marketplace_subscriptions.list": ((), "marketplaceSubscriptions"),
    "schedules.begin_delete": (("s",), "schedules"),
    "schedules.begin_disable": (("s",), "schedules"),
    "schedules.begin_enable": (("s",), "schedules"),
    "schedules.get": (("s",), "schedules"),
    "schedules.list": ((), "schedules"),
    "schedules.trigger": (("s",), "schedules/s/trigger"),
    "serverless_endpoints.begin_delete": (("s",), "serverlessEndpoints"),
    "serverless_endpoints.begin_regenerate_keys": (("s",), "serverlessEndpoints"),
    "serverless_endpoints.get": (("s",), "serverlessEndpoints"),
    "serverless_endpoints.get_keys": (("s",), "serverlessEndpoints"),
    "serverless_endpoints.list": ((), "serverlessEndpoints"),
    "workspace_outbound_rules.begin_remove": ((WORKSPACE, "r"), "outboundRules"),
    "workspace_outbound_rules.get": ((WORKSPACE, "r"), "outboundRules"),
    "workspace_outbound_rules.list": ((WORKSPACE,), "outboundRules"),
    "workspaces.begin_diagnose": ((WORKSPACE,), "diagnose"),
    "workspaces.begin_sync_keys": ((WORKSPACE,), "resyncKeys"),
    "workspaces.get_keys": ((WORKSPACE,), "listKeys"),
}

Call = Callable[[MLClient, Path], Any]
SHARED = {"share_with_name": "a", "share_with_version": "1", "registry_name": "azureml"}
RULE = entities.FqdnDestination(name="r", destination="example.org")

# The same for those that need more than texts.  The path is a folder with files.
WITH_BODY: dict[str, tuple[Call, str]] = {
    "batch_deployments.begin_create_or_update": (
        lambda ml, _: ml.batch_deployments.begin_create_or_update(
            entities.BatchDeployment(name="d", endpoint_name="b", model="azureml:m:1", compute="c")
        ),
        "batchEndpoints/b",
    ),
    "batch_endpoints.begin_create_or_update": (
        lambda ml, _: ml.batch_endpoints.begin_create_or_update(
            entities.BatchEndpoint(name="batches")
        ),
        "batchEndpoints/batches",
    ),
    "batch_endpoints.invoke": (
        lambda ml, _: ml.batch_endpoints.invoke(
            "b", input=Input(path="azureml://datastores/workspaceblobstore/paths/x")
        ),
        "batchEndpoints",
    ),
    "compute.begin_attach": (
        lambda ml, _: ml.compute.begin_attach(
            entities.KubernetesCompute(name="k", resource_id="/subscriptions/s/resourceGroups/g")
        ),
        "Kubernetes",
    ),
    "compute.enable_sso": (lambda ml, _: ml.compute.enable_sso(name="c"), "enableSso"),
    "connections.create_or_update": (
        lambda ml, _: ml.connections.create_or_update(
            entities.OpenAIConnection(name="c", api_key="k")
        ),
        "connections",
    ),
    "data.import_data": (
        lambda ml, _: ml.data.import_data(
            entities.DataImport(
                name="d",
                path="azureml://datastores/workspaceblobstore/paths/x",
                source=Database(query="select 1", connection="azureml:c"),
            )
        ),
        "data_transfer",
    ),
    "data.share": (lambda ml, _: ml.data.share("d", "1", **SHARED), "read-only"),
    "environments.share": (lambda ml, _: ml.environments.share("e", "1", **SHARED), "read-only"),
    "feature_sets.begin_backfill": (
        lambda ml, _: ml.feature_sets.begin_backfill(name="f", version="1"),
        "featuresets/f/versions/1/backfill",
    ),
    "feature_sets.begin_create_or_update": (
        lambda ml, folder: ml.feature_sets.begin_create_or_update(
            entities.FeatureSet(
                name="f",
                version="1",
                entities=["azureml:e:1"],
                specification=entities.FeatureSetSpecification(path=str(folder)),
            )
        ),
        "featuresets",
    ),
    "feature_sets.get_feature": (
        lambda ml, _: ml.feature_sets.get_feature("f", "1", feature_name="x"),
        "featuresets",
    ),
    "feature_store_entities.begin_create_or_update": (
        lambda ml, _: ml.feature_store_entities.begin_create_or_update(
            entities.FeatureStoreEntity(
                name="f", version="1", index_columns=[DataColumn(name="a", type="string")]
            )
        ),
        "featurestoreEntities",
    ),
    "feature_stores.begin_create": (
        lambda ml, _: ml.feature_stores.begin_create(
            entities.FeatureStore(name="features", location="local")
        ),
        "featurestore",
    ),
    "feature_stores.begin_provision_network": (
        lambda ml, _: ml.feature_stores.begin_provision_network(feature_store_name="features"),
        "provisionManagedNetwork",
    ),
    "indexes.create_or_update": (
        lambda ml, folder: ml.indexes.create_or_update(
            entities.Index(name="i", version="1", path=str(folder))
        ),
        "indexes/i",
    ),
    "indexes.get": (lambda ml, _: ml.indexes.get("i", version="1"), "indexes/i"),
    "jobs.begin_delete": (lambda ml, _: ml.jobs.begin_delete(_job(ml)), "archive it instead"),
    "marketplace_subscriptions.begin_create_or_update": (
        lambda ml, _: ml.marketplace_subscriptions.begin_create_or_update(
            entities.MarketplaceSubscription(name="s", model_id="azureml://registries/x/models/y")
        ),
        "marketplaceSubscriptions",
    ),
    "models.package": (
        lambda ml, folder: ml.models.package(
            _model(ml, folder),
            "1",
            entities.ModelPackage(
                target_environment="e",
                inferencing_server=entities.AzureMLOnlineInferencingServer(),
            ),
        ),
        "package",
    ),
    "models.share": (lambda ml, _: ml.models.share("m", "1", **SHARED), "read-only"),
    "registries.begin_create": (
        lambda ml, _: ml.registries.begin_create(
            entities.Registry(
                name="mine",
                location="local",
                replication_locations=[entities.RegistryRegionDetails(location="local")],
            )
        ),
        "registries",
    ),
    "registries.begin_delete": (
        lambda ml, _: ml.registries.begin_delete(name="azureml"),
        "registries",
    ),
    "schedules.begin_create_or_update": (
        lambda ml, _: ml.schedules.begin_create_or_update(
            entities.JobSchedule(
                name="s", trigger=entities.CronTrigger(expression="0 0 * * *"), create_job=_steps()
            )
        ),
        "schedules/s",
    ),
    "serverless_endpoints.begin_create_or_update": (
        lambda ml, _: ml.serverless_endpoints.begin_create_or_update(
            entities.ServerlessEndpoint(name="s", model_id="azureml://registries/x/models/y")
        ),
        "serverlessEndpoints",
    ),
    "workspace_outbound_rules.begin_create": (
        lambda ml, _: ml.workspace_outbound_rules.begin_create(ml.workspace_name, RULE),
        "outboundRules",
    ),
    "workspace_outbound_rules.begin_update": (
        lambda ml, _: ml.workspace_outbound_rules.begin_update(ml.workspace_name, RULE),
        "outboundRules",
    ),
    "workspaces.begin_provision_network": (
        lambda ml, _: ml.workspaces.begin_provision_network(workspace_name=ml.workspace_name),
        "provisionManagedNetwork",
    ),
}

# What ends otherwise, in a table of its own so that the coverage can say why.
AZURES = "goes to an address of Azure's that the SDK has built in, not to this server"
NO_STORE = "says that there is none: feature stores cannot be made here"
OTHERWISE: dict[str, str] = {
    "capability_hosts.begin_create_or_update": "the SDK wants a hub or a project first",
    "data.list_materialization_status": "fails inside the SDK (1.35) before it asks",
    "data.mount": "the SDK wants a package of its own, `azureml-dataprep-rslex`",
    "datastores.mount": "the SDK wants a package of its own, `azureml-dataprep-rslex`",
    "deployment_templates.archive": AZURES,
    "deployment_templates.create_or_update": AZURES,
    "deployment_templates.delete": AZURES,
    "deployment_templates.get": AZURES,
    "deployment_templates.list": AZURES,
    "deployment_templates.restore": AZURES,
    "feature_stores.begin_delete": NO_STORE,
    "feature_stores.begin_update": NO_STORE,
    "feature_stores.get": NO_STORE,
    "indexes.build_index": "says that the registry has no component for it (`llm_rag_…`)",
}


def _job(ml: MLClient) -> str:
    return str(ml.jobs.create_or_update(command(command="true", environment=ENVIRONMENT)).name)


def _model(ml: MLClient, folder: Path) -> str:
    made = entities.Model(name=f"packaged-{os.getpid()}", version="1", path=str(folder))
    return str(ml.models.create_or_update(made).name)


def _steps() -> Any:
    step = command(command="true", environment=ENVIRONMENT, compute="c")

    @pipeline(name="scheduled")
    def made():
        step()

    return made()


def _ended(answer: Any) -> Any:
    """Wait for what is answered bit by bit or later."""
    if hasattr(answer, "by_page") or hasattr(answer, "__next__"):
        return list(answer)
    return answer.result() if hasattr(answer, "polling_method") else answer


def _refused(call: Callable[[], Any], name: str) -> None:
    with pytest.raises(HttpResponseError) as failed:
        _ended(call())
    assert failed.value.status_code == 501, failed.value
    assert failed.value.error is not None and failed.value.error.code == "NotSupported"
    assert name in failed.value.error.message


@pytest.mark.parametrize("operation", BY_NAME)
def test_refused(ml: MLClient, operation: str) -> None:
    group, method = operation.split(".")
    arguments, name = BY_NAME[operation]
    given = [str(ml.workspace_name) if word == WORKSPACE else word for word in arguments]
    _refused(lambda: getattr(getattr(ml, group), method)(*given), name)


@pytest.mark.parametrize("operation", WITH_BODY)
def test_refused_with_its_body(ml: MLClient, folder: Path, operation: str) -> None:
    (folder / "FeatureSetSpec.yaml").write_text(SPECIFICATION)
    call, name = WITH_BODY[operation]
    _refused(lambda: call(ml, folder), name)


def test_a_feature_store_that_cannot_be_made_is_not_found(ml: MLClient) -> None:
    store = entities.FeatureStore(name="features", location="local")
    for call in (
        lambda: ml.feature_stores.get("features"),
        lambda: ml.feature_stores.begin_update(store),
        lambda: ml.feature_stores.begin_delete("features"),
    ):
        with pytest.raises(ResourceNotFoundError, match="no workspace 'features'"):
            _ended(call())
    assert list(ml.feature_stores.list()) == []


def test_these_end_before_anything_is_asked_for(ml: MLClient, folder: Path) -> None:
    """When one of these fails, the SDK has changed: see what it asks for now."""
    host = entities.CapabilityHost(name="h")
    with pytest.raises(Exception, match="either 'Hub' or 'Project'"):
        _ended(ml.capability_hosts.begin_create_or_update(host))
    with pytest.raises(TypeError, match="asset_name"):
        _ended(ml.data.list_materialization_status("d"))
    model = ModelConfiguration(
        api_base=None,
        api_key=None,
        api_version=None,
        connection_name="c",
        connection_type=None,
        model_name="m",
        deployment_name="m",
        model_kwargs={},
    )
    with pytest.raises(Exception, match="no component .llm_rag_"):
        ml.indexes.build_index(name="i", embeddings_model_config=model, input_source=str(folder))
    for mount, path in (
        (ml.data.mount, "azureml:d:1"),
        (ml.datastores.mount, "workspaceblobstore"),
    ):
        with pytest.raises(Exception, match="rslex|no_personal_data_message"):
            mount(path)


def test_deployment_templates_go_to_an_address_of_azures(
    registry: MLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This server is never asked; here no address but this machine's is looked up."""
    asked, look_up = [], socket.getaddrinfo

    def only_here(host: Any, *rest: Any, **more: Any) -> Any:
        if host in ("127.0.0.1", "localhost"):
            return look_up(host, *rest, **more)
        asked.append(str(host))
        raise OSError("nothing but this machine in this test")

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    templates, once = registry.deployment_templates, {"retry_total": 0}
    wanted = entities.DeploymentTemplate(name="t", version="1", environment=ENVIRONMENT)
    for call in (
        lambda: templates.list(**once),
        lambda: templates.get("t", "1", **once),
        lambda: templates.archive("t", "1", **once),
        lambda: templates.restore("t", "1", **once),
        lambda: templates.delete("t", "1", **once),
        lambda: templates.create_or_update(wanted, **once),
    ):
        asked.clear()
        with pytest.raises((ServiceRequestError, ResourceNotFoundError)):
            _ended(call())
        assert {host.partition(".")[2] for host in asked} == {"api.azureml.ms"}
