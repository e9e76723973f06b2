"""Thresholds: an optimizer on a quadratic dies out just below and grows just above."""

import math

import pytest
import torch
from torch import nn

from lowdim.dynamics.parameters import FlatParameters
from lowdim.dynamics.thresholds import stability
from lowdim.errors import DataError

LR = 0.1
STILL = 1 - 1e-12  # second moments that do not move

OPTIMIZERS = {
    "gradient descent": lambda p: torch.optim.SGD(p, lr=LR),
    "weight decay": lambda p: torch.optim.SGD(p, lr=LR, weight_decay=0.5),
    "heavy ball": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9),
    "dampened": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.8, dampening=0.5),
    "nesterov": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=LR, betas=(0.9, STILL)),
    "Adam, coupled decay": lambda p: torch.optim.Adam(p, lr=LR, betas=(0.5, STILL), weight_decay=3.0),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.9, STILL), weight_decay=2.0),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=LR, betas=(0.9, STILL), amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=LR, betas=(0.9, STILL), momentum_decay=0.1),
    # Its share of the average has grown to a quarter of the way by then.
    "NAdam, early": lambda p: torch.optim.NAdam(p, lr=LR, betas=(0.9, STILL), momentum_decay=7e-6),
    "NAdamW, early": lambda p: torch.optim.NAdam(
        p, lr=LR, betas=(0.9, STILL), momentum_decay=7e-6, weight_decay=2.0, decoupled_weight_decay=True
    ),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=LR, betas=(0.8, STILL)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=LR, alpha=STILL),
    "RMSprop with momentum": lambda p: torch.optim.RMSprop(
        p, lr=LR, alpha=STILL, momentum=0.7, centered=True
    ),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=LR, lr_decay=1e-7),
}


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1e-13], dtype=torch.float64))


def prepared(name):
    """Return a point and its optimizer, late in a training, with second moments of 4."""
    point = Point()
    optimizer = OPTIMIZERS[name]([point.x])
    point.x.grad = torch.zeros(1, dtype=torch.float64)
    optimizer.step()
    state = optimizer.state[point.x]
    step = 1_000_000.0
    if "step" in state:
        state["step"] = torch.tensor(step, dtype=torch.float64)
    for key in ("exp_avg_sq", "max_exp_avg_sq"):
        if key in state:
            state[key] = torch.tensor([4 * (1 - STILL**step)], dtype=torch.float64)
    for key, value in (("exp_inf", 2.0), ("square_avg", 4.0), ("sum", 4.0)):
        if key in state:
            state[key] = torch.tensor([value], dtype=torch.float64)
    point.x.data.fill_(1e-13)  # so small that growing does not move the second moments
    return point, optimizer


def growth(name, h, steps=120):
    """Return |x| after many steps on h x^2 / 2 over |x| in the middle; too few to grow out of the start."""
    point, optimizer = prepared(name)
    track = []
    for _ in range(steps):
        point.x.grad = h * point.x.detach()
        optimizer.step()
        track.append(abs(float(point.x)))
    return max(track[-20:]) / max(track[steps // 2 - 20 : steps // 2])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_threshold_is_where_it_starts_to_grow(name):
    point, optimizer = prepared(name)
    limit = stability(optimizer, FlatParameters.of(point))
    scale = 1.0 if limit.scale is None else float(limit.scale)
    # scale (h + decay) scale = threshold, solved for h
    h = limit.threshold / scale**2 - float(limit.decay)
    assert growth(name, 0.99 * h) < 1
    assert growth(name, 1.01 * h) > 1


def test_rules_are_those_of_the_textbook():
    layer = nn.Linear(2, 1)
    parameters = FlatParameters.of(layer)
    for options, threshold, rule in (
        ({}, 20.0, "2 / lr"),
        ({"momentum": 0.9}, 38.0, "3.8 / lr"),
        ({"momentum": 0.9, "nesterov": True}, 38 / 2.8, "3.8 / (2.8 lr)"),
    ):
        found = stability(torch.optim.SGD(layer.parameters(), lr=0.1, **options), parameters)
        assert found.threshold == pytest.approx(threshold)
        assert found.rule == rule
        assert found.label == "sharpness"
        assert found.scale is None


def test_adam_is_38_over_lr_in_its_own_metric():
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01, eps=0.0)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = stability(optimizer, FlatParameters.of(layer))
    assert found.threshold == pytest.approx(3800)
    assert found.label == "preconditioned sharpness"
    torch.testing.assert_close(found.scale, torch.ones(3))  # all gradients are 1


def test_groups_are_put_on_one_scale():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": model[1].parameters(), "lr": 0.4, "weight_decay": 0.3},
    ]
    found = stability(torch.optim.SGD(groups), FlatParameters.of(model))
    assert found.threshold == pytest.approx(5.0)
    assert found.lr == 0.4
    torch.testing.assert_close(found.scale, torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(found.decay, torch.tensor([0.0, 0.3]))


def test_no_learning_rate_bears_everything():
    layer = nn.Linear(1, 1)
    assert (
        stability(torch.optim.SGD(layer.parameters(), lr=0.0), FlatParameters.of(layer)).threshold == math.inf
    )


def test_refusals():
    layer = nn.Linear(2, 1)
    parameters = FlatParameters.of(layer)
    with pytest.raises(DataError, match="LBFGS is not known"):
        stability(torch.optim.LBFGS(layer.parameters()), parameters)
    with pytest.raises(DataError, match="maximizes"):
        stability(torch.optim.SGD(layer.parameters(), lr=0.1, maximize=True), parameters)
    with pytest.raises(DataError, match="Probe after its first step"):
        stability(torch.optim.Adam(layer.parameters()), parameters)
    with pytest.raises(DataError, match="weight is not in the SGD"):
        stability(torch.optim.SGD([layer.bias], lr=0.1), parameters)
