"""Compute with the official SDK, as the guides use it."""

from __future__ import annotations

import ast

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.entities import AmlCompute, ComputeInstance
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError


def test_a_cluster_is_there_when_its_making_has_ended(ml: MLClient, name: str) -> None:
    with pytest.raises(ResourceNotFoundError):
        ml.compute.get(name)
    wanted = AmlCompute(
        name=name, size="Standard_ND40rs_v2", tier="Dedicated", min_instances=0, max_instances=2
    )
    ml.compute.begin_create_or_update(wanted).wait()
    found = ml.compute.get(name)
    assert found.provisioning_state == "Succeeded" and found.size == "Standard_ND40rs_v2"
    assert (found.min_instances, found.max_instances, found.tier) == (0, 2, "dedicated")
    assert name in [item.name for item in ml.compute.list()]
    ml.compute.begin_delete(name).wait()
    with pytest.raises(ResourceNotFoundError):
        ml.compute.get(name)


def test_a_low_priority_cluster_and_its_limits(ml: MLClient, name: str) -> None:
    wanted = AmlCompute(
        name=name, size="Standard_NC6s_v3", tier="LowPriority", idle_time_before_scale_down=180
    )
    made = ml.compute.begin_create_or_update(wanted).result()
    assert made.tier == "low_priority" and made.idle_time_before_scale_down == 180
    made.max_instances = 3
    assert ml.compute.begin_update(made).result().max_instances == 3
    assert ml.compute.get(name).max_instances == 3


def test_sizes_tell_their_gpus_and_hold_what_the_guide_names(
    ml: MLClient, registry: MLClient
) -> None:
    sizes = {size.name.lower(): size.gpus for size in ml.compute.list_sizes()}
    assert sizes["standard_nd40rs_v2"] == 8 and sizes["standard_ds3_v2"] == 0
    model = registry.models.get("Phi-3-mini-4k-instruct", label="latest")
    for tag in ("finetune_compute_allow_list", "inference_compute_allow_list"):
        assert {size.lower() for size in ast.literal_eval(model.tags[tag])} <= set(sizes)


def test_an_unknown_size_is_refused_with_what_was_meant(ml: MLClient, name: str) -> None:
    with pytest.raises(HttpResponseError, match="Standard_ND40rs_v2") as failed:
        ml.compute.begin_create_or_update(AmlCompute(name=name, size="Standard_ND40_v2"))
    assert failed.value.status_code == 400


def test_an_instance_is_a_queue_that_is_not_started_or_stopped(ml: MLClient, name: str) -> None:
    made = ml.compute.begin_create_or_update(ComputeInstance(name=name, size="Standard_DS3_v2"))
    assert made.result().type == "computeinstance"
    with pytest.raises(HttpResponseError, match="not supported"):
        ml.compute.begin_stop(name)
