"""Step 3: an endpoint, a deployment of the model with our scoring script, traffic, a first call."""

import json
import os
from pathlib import Path

from azure.ai.ml import MLClient
from azure.ai.ml.entities import (
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    OnlineRequestSettings,
    ProbeSettings,
)
from connect import CONFIG, HERE, client, get_or_create_environment, recall, remember
from evaluate import held_back, request_for

SERVE = CONFIG["serve"]
ENDPOINT, DEPLOYMENT = SERVE["azure_endpoint_name"], SERVE["azure_deployment_name"]
REQUEST = Path("inference-test") / "sample-request.json"


def get_or_create_endpoint(ml_client: MLClient, name: str) -> ManagedOnlineEndpoint:
    try:
        endpoint = ml_client.online_endpoints.get(name)
        print(f"Endpoint: {name} was there already")
    except Exception:
        endpoint = ManagedOnlineEndpoint(name=name, description="Questions about documents")
    ml_client.begin_create_or_update(endpoint).wait()
    return ml_client.online_endpoints.get(name)


def deployment(ml_client: MLClient) -> ManagedOnlineDeployment:
    """What is served and how. Probes are patient, so that a slow start can be looked into."""
    probe = ProbeSettings(failure_threshold=30, success_threshold=1, period=100, initial_delay=500)
    return ManagedOnlineDeployment(
        name=DEPLOYMENT,
        endpoint_name=ENDPOINT,
        model=ml_client.models.get(recall()["model_name"], version=recall()["model_version"]),
        environment=get_or_create_environment(
            ml_client,
            SERVE["azure_env_name"],
            HERE / CONFIG["config"]["CLOUD_DIR"] / "serve",
        ),
        code_path=str(HERE / "src_serve"),
        scoring_script="score.py",
        instance_type=SERVE["azure_serving_cluster_size"],
        instance_count=1,
        request_settings=OnlineRequestSettings(
            max_concurrent_requests_per_instance=3,
            request_timeout_ms=90000,
            max_queue_wait_ms=60000,
        ),
        liveness_probe=probe,
        readiness_probe=probe,
    )


def first_call(ml_client: MLClient) -> None:
    row = held_back(1)[0]
    os.makedirs(REQUEST.parent, exist_ok=True)
    REQUEST.write_text(json.dumps(request_for(row)))
    answer = ml_client.online_endpoints.invoke(
        endpoint_name=ENDPOINT, deployment_name=DEPLOYMENT, request_file=str(REQUEST)
    )
    print(f"  {row['question']}\n    -> {json.loads(answer)['result']}")


if __name__ == "__main__":
    ml_client = client()
    endpoint = get_or_create_endpoint(ml_client, ENDPOINT)
    remember(endpoint=ENDPOINT, deployment=DEPLOYMENT, request=str(REQUEST))
    ml_client.begin_create_or_update(deployment(ml_client)).wait()
    endpoint.traffic = {DEPLOYMENT: 100}
    ml_client.online_endpoints.begin_create_or_update(endpoint).wait()
    print(f"Deployment: {DEPLOYMENT} gets all calls to\n  {endpoint.scoring_uri}")
    first_call(ml_client)
