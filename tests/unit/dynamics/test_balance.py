"""The balancing gap: conserved by gradient flow, in the form that belongs to the network."""

import pytest
import torch
from torch import nn

from lowdim.dynamics.balance import balancing_gap, declared_chains, find_chains
from lowdim.errors import DataError, ShapeError


def gaps(net, kind):
    return balancing_gap([m for m in net if isinstance(m, nn.Linear)], kind=kind)


@pytest.mark.parametrize(
    ("activation", "kind", "bias"),
    [
        (nn.Identity, "matrix", False),
        (nn.Identity, "matrix", True),
        (nn.ReLU, "units", False),
        (nn.ReLU, "units", True),
        (lambda: nn.LeakyReLU(0.2), "units", True),
    ],
)
def test_gradient_flow_conserves_it(activation, kind, bias):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(4, 6, bias=bias), activation(), nn.Linear(6, 5, bias=bias), activation()),
        nn.Linear(5, 3, bias=bias),
    ).double()
    x, y = torch.randn(20, 4).double(), torch.randn(20, 3).double()
    before = gaps(net, kind)

    # The time derivative of every difference under the flow is zero: one tiny step changes it by lr^2 only.
    def change(lr):
        loss = (net(x) - y).square().mean()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.data -= lr * gradient
        after = gaps(net, kind)
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.data += lr * gradient
        return abs(after - before)

    assert change(1e-3) < 1e-4 * before
    assert change(1e-2) / change(1e-3) == pytest.approx(100, rel=0.2)  # of second order


def test_balanced_layers_have_no_gap():
    Q = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    root = torch.diag(torch.tensor([2.0, 1.5, 1.0, 0.5]))
    assert balancing_gap([Q @ root, root @ Q.mT]) < 1e-5
    assert balancing_gap([2 * Q @ root, root @ Q.mT]) > 1


def test_scalar_identity_of_one_step():
    # b(t+1) = b(t) (1 - lr^2 (pi - s)^2 pi^2 / (d_a d_c)^2) for two layers, exactly.
    a, c, s, lr = 1.5, 2.25, 5.0, 0.21
    before = balancing_gap(
        [torch.tensor([[a]], dtype=torch.float64), torch.tensor([[c]], dtype=torch.float64)]
    )
    a2, c2 = a - lr * (a * c - s) * c, c - lr * (a * c - s) * a
    after = balancing_gap(
        [torch.tensor([[a2]], dtype=torch.float64), torch.tensor([[c2]], dtype=torch.float64)]
    )
    assert after == pytest.approx(before * abs(1 - lr**2 * (a * c - s) ** 2), rel=1e-12)


def test_relative_gap_has_no_scale():
    W = [torch.randn(5, 4), torch.randn(3, 5)]
    once, scaled = balancing_gap(W, relative=True), balancing_gap([3 * w for w in W], relative=True)
    assert once == pytest.approx(scaled)


def test_chains_are_found_through_nested_sequentials():
    net = nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1)),
        nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU()),
        nn.LayerNorm(5),
        nn.Linear(5, 5),
        nn.Linear(7, 5),
        nn.Linear(5, 2),
    )
    assert [(c.name, c.kind, len(c.layers)) for c in find_chains(net)] == [
        ("0.0-1.2", "matrix", 3),
        ("4-5", "matrix", 2),
    ]
    attention = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("query", "key", "value", "out")})
    assert find_chains(attention) == []  # registered one after another is not acting one after another


def test_declared_chains():
    net = nn.ModuleDict({"up": nn.Linear(4, 8), "act": nn.ReLU(), "down": nn.Linear(8, 4)})
    chain = declared_chains(net, [["up", "down"]], kind="units")[0]
    assert (chain.name, chain.kind) == ("up-down", "units")
    with pytest.raises(DataError, match="no linear layer"):
        declared_chains(net, [["up", "act"]])
    with pytest.raises(DataError, match="no such module"):
        declared_chains(net, [["up", "sideways"]])
    with pytest.raises(DataError, match="is a text"):
        declared_chains(net, {"mlp": "up"})
    with pytest.raises(ShapeError, match="does not feed"):
        declared_chains(net, [["down", "down"]])


def test_refusals():
    with pytest.raises(ShapeError, match="two or more"):
        balancing_gap([torch.eye(2)])
    with pytest.raises(ShapeError, match="biases"):
        balancing_gap([torch.eye(2)] * 2, biases=[None])
    with pytest.raises(DataError, match="kind"):
        balancing_gap([torch.eye(2)] * 2, kind="diagonal")
