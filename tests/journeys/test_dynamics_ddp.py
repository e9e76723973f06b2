"""A Monitor over two processes: DDP and FSDP2 train the same with it, and the first process reports."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("distributed_training.py")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder, and what each of two processes had left."""
    folder, port = tmp_path_factory.mktemp("distributed"), free_port()
    processes = []
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
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes(kind, trained):
    folder, left = trained
    for process in left:
        watched, plain = process[kind, "watched"], process[kind, "plain"]
        assert all(torch.equal(a, b) for a, b in zip(watched["weights"], plain["weights"], strict=True))
        assert torch.equal(watched["draw"], plain["draw"])
    # All processes have the same sketches: of replicas without a word, of shards by their sum.
    first, second = (process[kind, "watched"] for process in left)
    assert torch.equal(first["states"], second["states"])

    lines = [json.loads(line) for line in (folder / f"{kind}.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 5, 10]  # one process has written
    assert lines[0]["parameters"] == sum(p.numel() for p in first["weights"])
    metrics = lines[2]["metrics"]
    assert metrics["dyn/sharpness"] > 0
    assert metrics["dyn/sharpness_ratio"] > 0
    assert -1 <= metrics["dyn/alternation"] <= 1
    assert 0 <= metrics["dyn/drift_deg/3.weight"] <= 90
    # Of the whole matrix, not of a shard.
    assert metrics["dyn/erank/3.weight"] == pytest.approx(effective_rank(first["weights"][2]), rel=1e-4)
    assert {name.split("/")[1] for name in metrics} >= {"erank_grad", "erank_update", "srank", "lr", "loss"}


def test_shards_give_the_metrics_of_the_whole(trained):
    """The same training in both ways: what is measured agrees as far as the order of sums allows."""
    folder, _ = trained
    ddp, fsdp = (
        json.loads((folder / f"{kind}.jsonl").read_text().splitlines()[1])["metrics"]
        for kind in ("ddp", "fsdp")
    )
    for name in ("dyn/erank/0.weight", "dyn/srank_update/3.weight", "dyn/sharpness", "dyn/loss"):
        assert fsdp[name] == pytest.approx(ddp[name], rel=2e-2)
    assert fsdp["dyn/alternation"] == pytest.approx(ddp["dyn/alternation"], abs=0.1)


def effective_rank(matrix):
    values = torch.linalg.svdvals(matrix.double())
    weights = values / values.sum()
    return float((-(weights * weights.log()).sum()).exp())
