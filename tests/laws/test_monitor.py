"""The Monitor leaves no trace: every training is the same to the last bit with and without it."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lowdim.dynamics.monitor import Monitor
from lowdim.errors import LowdimWarning


class Checkpointed(nn.Module):
    """A block whose activations are computed again in the backward pass, with dropout."""

    def __init__(self, width):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(0.2))

    def forward(self, x):
        return x + checkpoint(self.block, x, use_reentrant=False)


def plain():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def with_dropout():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def with_batch_norm():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def checkpointed():
    return nn.Sequential(nn.Linear(6, 16), Checkpointed(16), nn.Linear(16, 3))


def partly_frozen():
    net = with_dropout()
    net[0].requires_grad_(False)
    return net


def attention():
    layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(0, 1), nn.Linear(6, 3))


NETWORKS = {
    "plain": plain,
    "dropout": with_dropout,
    "batch norm": with_batch_norm,
    "gradient checkpointing": checkpointed,
    "frozen parameters": partly_frozen,
    "attention": attention,
}
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
}


def state(model, optimizer):
    """Everything that a training carries from one step to the next."""
    found = [p.detach().clone() for p in model.parameters()]
    found += [b.clone() for b in model.buffers()]
    found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    found += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return found


def run(network, optimizer, *, monitored, accumulate=1, half=False, steps=9, strict=True):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the state that a user's transforms draw from
    model = NETWORKS[network]()
    shape = (12, 4, 6) if network == "attention" else (12, 6)
    count = 48 if network == "attention" else 12
    probe, labels = torch.randn(shape), torch.randint(3, (count,))
    optimizer = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler("cpu", enabled=half, init_scale=2.0**40)
    criterion = nn.CrossEntropyLoss()
    monitor = None
    if monitored:
        monitor = Monitor(
            *(model, lambda: criterion(model(probe), labels)),
            optimizer=optimizer,
            every=2,
            rank_of=("weight", "gradient", "update"),
            sink=lambda step, metrics: None,
            strict=strict,
        )
    losses, reports = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            x, y = torch.randn(shape), torch.randint(3, (count,))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = criterion(model(x), y)
            scaler.scale(loss / accumulate).backward()
            losses.append(loss.detach())
        scaler.step(optimizer)
        scaler.update()
        if monitor is not None:
            flags = [m.training for m in model.modules()]
            grads = [(p.grad, p.grad is None or p.grad.clone()) for p in model.parameters()]
            reports.append(monitor.step(loss=loss))
            assert flags == [m.training for m in model.modules()]
            for parameter, (grad, copy) in zip(model.parameters(), grads, strict=True):
                assert parameter.grad is grad  # the same object, with the same numbers
                assert grad is None or torch.equal(grad, copy)
    draws = (torch.rand(1), random.random(), np.random.rand())  # noqa: NPY002
    return state(model, optimizer), losses, draws, [r for r in reports if r]


def assert_same(one, two):
    for a, b in zip(one[:2], two[:2], strict=True):
        assert len(a) == len(b)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert one[2] == two[2]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_bit_identical(network, optimizer):
    watched = run(network, optimizer, monitored=True)
    assert len(watched[3]) == 4
    assert all(np.isfinite(report["dyn/sharpness"]) for report in watched[3])
    assert_same(watched, run(network, optimizer, monitored=False))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_with_accumulation_and_mixed_precision(optimizer):
    # The first scales overflow: those optimizer steps are left out by the scaler.
    watched = run("dropout", optimizer, monitored=True, accumulate=3, half=True, strict=False)
    assert_same(watched, run("dropout", optimizer, monitored=False, accumulate=3, half=True))
    assert np.isfinite(watched[3][-1]["dyn/sharpness"])


def test_also_when_the_loss_fails_in_the_middle():
    def once(monitored):
        torch.manual_seed(0)
        model = with_dropout()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def fail():
            with torch.enable_grad():
                model(torch.randn(4, 6)).sum().backward()
            raise RuntimeError("of the user")

        monitor = Monitor(model, fail, optimizer=optimizer, every=1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            optimizer.step()
            if monitored:
                monitor.step()
        return [*state(model, optimizer), torch.rand(1)], [m.training for m in model.modules()]

    with pytest.warns(LowdimWarning, match="of the user"):
        watched, flags = once(True)
    plain, expected = once(False)
    assert flags == expected
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
