"""Sharpness of a network that several processes train: the same number as one process finds on all data."""

import json
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from lowdim.dynamics.curvature import hessian
from lowdim.dynamics.tracker import SharpnessTracker, sharpness
from lowdim.errors import DataError

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


def failures(rank):
    """Let the loss of the second process fail at the first look, and at a later one; return what is said."""
    model = wrapped("ddp")
    right, broken = loss_of(model, slice(0, 6)), []

    def loss():
        if broken and rank == 1:
            raise ValueError("no more data")
        return right()

    said = []
    tracker = SharpnessTracker(model, loss)
    for fails in (True, False, True, False):
        broken[:] = ["yes"] if fails else []
        try:
            said.append(str(tracker.measure().value))
        except ValueError as error:
            said.append(str(error))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    part = network()
    fully_shard(part[0], mesh=init_device_mesh("cpu", (2,)))
    try:
        sharpness(part, loss_of(part, slice(0, 6)))
    except DataError as error:
        said.append(str(error))
    return said


def work(rank, folder):
    torch.set_num_threads(1)
    # Who waits in vain gives up after a minute.
    dist.init_process_group(
        *("gloo", f"file://{folder}/meet"), timeout=timedelta(minutes=1), rank=rank, world_size=2
    )
    looks = {kind: look(wrapped(kind), rank) for kind in KINDS} | {"failures": failures(rank)}
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
    told, own = (looks.pop("failures") for looks in (first, second))
    assert "another process" in told[0]
    assert own[0] == own[2] == "no more data"
    assert told[2] == "nan"
    assert told[1] == own[1]
    assert told[3] == own[3]
    assert float(told[3]) == pytest.approx(float(told[1]), rel=1e-2)
    assert "2.weight is a copy in each process" in told[4]
    assert first == second
    for kind, tolerance in KINDS.items():
        for (value, ratio, _, runner_up), want in zip(first[kind], alone(), strict=True):
            assert value == pytest.approx(want[0], rel=tolerance)
            assert runner_up == pytest.approx(want[1], rel=10 * tolerance)
            assert ratio == pytest.approx(value / 38.0)
