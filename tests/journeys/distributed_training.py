"""One process of a training over two: ``python distributed_training.py FOLDER`` (see the test)."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from lowdim.dynamics.monitor import Monitor


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 32), nn.LayerNorm(32)),
        nn.Linear(32, 3),
    )


def wrapped(kind):
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(network())
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(kind, path):
    """Train once, with a Monitor that writes to `path` or without any; return all that is left."""
    model = wrapped(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
    torch.manual_seed(100 + dist.get_rank())  # other data and other dropout in each process
    x, y = torch.randn(64, 8), torch.randint(3, (64,))
    criterion = nn.CrossEntropyLoss()
    monitor = None
    if path is not None:
        monitor = Monitor(
            *(model, lambda: criterion(model(x[:16]), y[:16])),
            optimizer=optimizer,
            every=5,
            rank_of=("weight", "gradient", "update"),
            sink=path,
            strict=True,
        )
    for _ in range(10):
        batch = torch.randint(64, (16,))
        optimizer.zero_grad()
        loss = criterion(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor.step(loss=loss)
    left = {"draw": torch.rand(1)}
    if monitor is not None:
        monitor.close()
        left["states"] = next(p for p in monitor._active if p.name == "oscillation")._states
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return left | {"weights": [p.detach().clone() for p in whole]}


def main(folder):
    dist.init_process_group("gloo")
    saved = {}
    for kind in ("ddp", "fsdp"):
        saved[kind, "watched"] = train(kind, Path(folder) / f"{kind}.jsonl")
        saved[kind, "plain"] = train(kind, None)
    torch.save(saved, Path(folder) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(*sys.argv[1:])
