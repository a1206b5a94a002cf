"""What the list of models tells `openai`'s client; chat itself is in test_life_of_a_job.py."""

from __future__ import annotations

from finery.core.endpoints import Deployment, Endpoint, Serving
from finery.doors.openai import chat

TOLD = "the model is a stand-in for some/model, to try things out"


def deployment(name: str, **given: object) -> Deployment:
    return Deployment(endpoint="ep", name=name, workspace="ws", spec=Serving(), **given)


def test_a_model_is_an_endpoint_with_what_is_to_know_of_its_deployments():
    behind = [deployment("blue", addresses={"p": "http://x"}), deployment("green", warnings=[TOLD])]
    told = chat.model_out(Endpoint(name="ep", workspace="ws"), behind)
    assert (told["id"], told["status"]) == ("ep", "succeeded")
    assert (told["deployments"], told["warnings"]) == (["blue", "green"], [TOLD])
    assert chat.model_out(Endpoint(name="ep", workspace="ws"), behind[1:])["status"] == "pending"
