"""Put the registered model behind an online endpoint: no scoring code, no environment."""

from azure.ai.ml.entities import (
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    OnlineRequestSettings,
    ProbeSettings,
)
from connect import CONFIG, clients, recall, remember, timestamp

workspace, _ = clients()
name = f"{CONFIG['endpoint']}-{timestamp()}"

endpoint = ManagedOnlineEndpoint(name=name, description="A fine-tuned chat model", auth_mode="key")
workspace.begin_create_or_update(endpoint).wait()
remember(endpoint=name)

deployment = ManagedOnlineDeployment(
    name="demo",
    endpoint_name=name,
    model=recall()["model"],
    instance_type=CONFIG["serving_size"],
    instance_count=1,
    liveness_probe=ProbeSettings(initial_delay=600),
    request_settings=OnlineRequestSettings(request_timeout_ms=90000),
)
workspace.online_deployments.begin_create_or_update(deployment).wait()
endpoint.traffic = {"demo": 100}
workspace.begin_create_or_update(endpoint).result()
print(f"Endpoint: {name}: {workspace.online_endpoints.get(name).scoring_uri}")
