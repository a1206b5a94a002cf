"""Delete the endpoint.  The registered model stays."""

from connect import clients, recall

workspace, _ = clients()
workspace.online_endpoints.begin_delete(name=recall()["endpoint"]).wait()
print(f"Deleted: {recall()['endpoint']}")
