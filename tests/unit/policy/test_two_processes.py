"""Two processes with half the rollouts each train what one trains, replicated (DDP) or sharded (FSDP2)."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("trl")
pytest.importorskip("peft")

SCRIPT = Path(__file__).with_name("two_processes.py")
spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
two_processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(two_processes)

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::lowdim.errors.LowdimWarning"),
]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What each of two processes had left, and the trainer of one process that did the same."""
    folder, port, processes = tmp_path_factory.mktemp("two"), free_port(), []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(SCRIPT), str(folder)]
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        one = two_processes.train(folder / "one", rows=56)
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-4000:]
    finally:
        for process in processes:
            process.kill()
    return one, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def largest(one, other):
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does(kind, trained):
    one, left = trained
    for process in left:
        found = process[kind, "dealt"]
        assert found["sharded"] == (kind == "fsdp")
        assert largest(one.model.state_dict(), found["small"]) <= 1e-5
        assert largest(one.large.state_dict(), found["large"]) <= 1e-5
        costs = one.ledger.table().drop(columns=["seconds", "share"]).to_dict("list")
        assert found["costs"] == costs
    start = two_processes.tiny.network().state_dict()
    assert largest(start, left[0][kind, "dealt"]["small"]) > 1e-3


def test_two_processes_with_adapters_and_hints_resume_exactly(trained):
    for process in trained[1]:
        whole, resumed = process["fsdp", "whole"], process["fsdp", "resumed"]
        assert largest(whole["small"], resumed["small"]) == 0.0
        assert largest(whole["large"], resumed["large"]) == 0.0
        assert whole["costs"] == resumed["costs"]
        assert any(value.abs().max() > 0 for name, value in whole["large"].items() if "lora_B" in name)
    first, second = (process["fsdp", "whole"]["large"] for process in trained[1])
    assert largest(first, second) == 0.0
