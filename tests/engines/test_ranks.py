"""What ranks are told of one another, and that they find each other with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finery.core.compute import Process
from finery.engines import ranks
from finery.engines.local import LocalEngine

Make = Callable[..., Process]


def told(a_process: Make, name: str, **fields: object) -> list[str]:
    return [env.get(name, "-") for env in ranks.each(a_process("x", **fields))]


def test_ranks_are_spread_over_nodes_evenly(a_process: Make) -> None:
    given = {"ranks": 4, "nodes": 2, "distribution": "pytorch"}
    assert told(a_process, "RANK", **given) == ["0", "1", "2", "3"]
    assert told(a_process, "LOCAL_RANK", **given) == ["0", "1", "0", "1"]
    assert told(a_process, "NODE_RANK", **given) == ["0", "0", "1", "1"]
    assert set(told(a_process, "LOCAL_WORLD_SIZE", **given)) == {"2"}
    assert set(told(a_process, "WORLD_SIZE", **given)) == {"4"}


def test_mpi_is_told_in_the_words_of_its_launcher(a_process: Make) -> None:
    given = {"ranks": 4, "nodes": 2, "distribution": "mpi"}
    assert told(a_process, "OMPI_COMM_WORLD_RANK", **given) == ["0", "1", "2", "3"]
    assert told(a_process, "OMPI_COMM_WORLD_LOCAL_RANK", **given) == ["0", "1", "0", "1"]
    assert set(told(a_process, "OMPI_COMM_WORLD_SIZE", **given)) == {"4"}
    assert told(a_process, "OMPI_COMM_WORLD_SIZE", ranks=2) == ["-", "-"]


def test_each_worker_of_tensorflow_has_an_address_of_its_own(a_process: Make) -> None:
    process = a_process("x", ranks=2, distribution="tensorflow")
    one, two = (json.loads(env["TF_CONFIG"]) for env in ranks.each(process))
    assert one["cluster"] == two["cluster"] and len({*one["cluster"]["worker"]}) == 2
    assert (one["task"], two["task"]["index"]) == ({"type": "worker", "index": 0}, 1)
    assert ranks.ports(process) == 3


def test_a_node_sees_its_own_devices(a_process: Make) -> None:
    process = a_process("x", ranks=4, nodes=2, gpus=(0, 1, 2, 3))
    seen = [env["CUDA_VISIBLE_DEVICES"] for env in ranks.each(process, ["a", "b", "c", "d"])]
    assert seen == ["a,b", "a,b", "c,d", "c,d"]
    assert "CUDA_VISIBLE_DEVICES" not in ranks.each(a_process("x", ranks=2), ["a", "b"])[0]


@pytest.mark.parametrize("cpus, given, expected", [(8, 3, 2), (2, 4, 1), (8, 1, None)])
def test_ranks_share_the_processors(
    a_process: Make, cpus: int, given: int, expected: int | None
) -> None:
    assert ranks.threads(a_process("x", ranks=given), cpus) == expected


def test_a_port_is_kept_until_the_ranks_listen_and_given_to_nobody_else(
    engine: LocalEngine, a_process: Make, until: Callable[..., object], tmp_path: Path
) -> None:
    # Processes, because who may bind what is the kernel's to say.
    line = (
        "import os, socket\n"
        "port, found = int(os.environ['MASTER_PORT']), socket.socket()\n"
        "try:\n    found.bind(('127.0.0.1', port)); print('taken')\n"
        "except OSError: print('kept')\n"
        "found = socket.create_server(('127.0.0.1', port)); print('listens')\n"
    )
    (tmp_path / "listen.py").write_text(line)
    engine.start(a_process(f"[ $RANK = 1 ] || {sys.executable} listen.py", ranks=2))
    until(lambda: engine.report("p1").state == "exited")
    assert engine.log("p1") == b"kept\nlistens\n"


def test_the_rank_that_failed_is_known_and_its_log_is_at_hand(
    engine: LocalEngine, a_process: Make, until: Callable[..., object]
) -> None:
    # Processes, because it is the keeper that sees which one went first.
    line = "if [ $RANK = 2 ]; then echo the second is ill; exit 9; fi; exec sleep 600"
    engine.start(a_process(line, ranks=3))
    until(lambda: engine.report("p1").state == "exited")
    assert (engine.report("p1").rank, engine.log("p1", rank=2)) == (2, b"the second is ill\n")


REDUCE = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
mine = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(mine)
print(mine.item(), torch.get_num_threads(), os.environ["NODE_RANK"])
dist.destroy_process_group()
"""


def test_two_ranks_on_two_nodes_reduce_with_gloo(
    engine: LocalEngine, a_process: Make, until: Callable[..., object], tmp_path: Path
) -> None:
    # PyTorch itself, in two processes (some 5 s): that its rendezvous works with the port that
    # the keeper holds is what nothing smaller shows.
    (tmp_path / "reduce.py").write_text(REDUCE)
    line = f"exec {sys.executable} reduce.py"
    engine.start(a_process(line, ranks=2, nodes=2, distribution="pytorch"))
    until(lambda: engine.report("p1").state == "exited", seconds=300)
    said = [engine.log("p1", rank=rank).decode() for rank in (0, 1)]
    assert engine.report("p1").exit_code == 0, said
    share = max(1, engine.capacity().cpus // 2)
    assert [words.split() for words in said] == [["3.0", str(share), str(n)] for n in (0, 1)]
