"""Step 6: delete the endpoint.  Data, environments and the model stay."""

from connect import client, recall

client().online_endpoints.begin_delete(name=recall()["endpoint"]).wait()
print(f"Deleted: {recall()['endpoint']}")
