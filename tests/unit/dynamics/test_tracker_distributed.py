"""Sharpness of a network that several processes train: the same number as one process finds on all data."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from lowdim.dynamics.curvature import hessian
from lowdim.dynamics.tracker import SharpnessTracker, sharpness

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

# Shards are measured by differences of gradients.
KINDS = {"ddp": 1e-4, "fsdp": 5e-3}
X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def loss_of(model, part):
    return lambda: nn.functional.cross_entropy(model(X[part]), Y[part])


def wrapped(kind):
    model = network()
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def look(model, rank):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = loss_of(model, slice(6 * rank, 6 * rank + 6))
    tracker = SharpnessTracker(model, loss, optimizer=optimizer, tol=1e-6, count=2)
    looks = []
    for _ in range(3):
        optimizer.zero_grad()
        loss().backward()
        found = tracker.measure()
        optimizer.step()
        looks.append([found.value, found.ratio, found.products, float(found.values[1])])
    return looks


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    looks = {kind: look(wrapped(kind), rank) for kind in KINDS}
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(looks, file)
    dist.destroy_process_group()


def alone():
    model = network()
    loss = loss_of(model, slice(None))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        loss().backward()
        with hessian(model, loss) as H:
            values.append(sharpness(H, tol=1e-6, count=2).values.tolist())
        optimizer.step()
    return values


def test_processes_agree_with_one(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for kind, tolerance in KINDS.items():
        for (value, ratio, _, runner_up), want in zip(first[kind], alone(), strict=True):
            assert value == pytest.approx(want[0], rel=tolerance)
            assert runner_up == pytest.approx(want[1], rel=10 * tolerance)
            assert ratio == pytest.approx(value / 38.0)
