"""What this machine is said to have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finery.engines import machine


def test_processors_and_memory_are_those_that_are_there(tmp_path: Path) -> None:
    assert 1 <= machine.cpus() <= len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.memory() <= total
    assert machine.memory(tmp_path) == total, "no control group, no limit"


@pytest.mark.parametrize("version", ["one", "two"])
def test_the_limits_of_a_control_group_count(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_groups", lambda root, controller: [tmp_path])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    if version == "two":
        (tmp_path / "cpu.max").write_text("350000 100000\n")
        (tmp_path / "memory.max").write_text("1048576\n")
    else:
        (tmp_path / "cpu.cfs_quota_us").write_text("350000")
        (tmp_path / "cpu.cfs_period_us").write_text("100000")
        (tmp_path / "memory.limit_in_bytes").write_text("1048576")
    assert machine.cpus() == 3
    assert machine.memory() == 1 << 20


@pytest.mark.parametrize("word", ["max 100000", "max"])
def test_a_group_without_a_limit_sets_none(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_groups", lambda root, controller: [tmp_path])
    (tmp_path / "cpu.max").write_text(word)
    (tmp_path / "memory.max").write_text("max")
    assert machine.cpus() == len(os.sched_getaffinity(0))
    assert machine.memory() > 1 << 20


def test_a_server_hands_out_only_the_devices_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_present", lambda: ["0", "1", "2", "3"])
    assert machine.devices({}) == ["0", "1", "2", "3"]
    assert machine.devices({"CUDA_VISIBLE_DEVICES": "2, 3"}) == ["2", "3"]
    assert machine.devices({"CUDA_VISIBLE_DEVICES": "1,-1,2"}) == ["1"]
    assert machine.devices({"CUDA_VISIBLE_DEVICES": ""}) == []
    monkeypatch.setattr(machine, "_present", list)
    assert machine.devices({"CUDA_VISIBLE_DEVICES": "0"}) == []
