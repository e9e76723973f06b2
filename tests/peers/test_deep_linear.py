"""Sharpness of deep linear networks against curvlinops, and trainings against torch.optim on nn.Linear."""

from itertools import pairwise

import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

from lowdim.algebra.seeds import gaussian
from lowdim.dynamics import dln, flatness

curvlinops = pytest.importorskip("curvlinops")
F64 = torch.float64


def as_modules(layers):
    modules = []
    for W in layers:
        linear = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=F64)
        linear.weight.data.copy_(W)
        modules.append(linear)
    return nn.Sequential(*modules)


def operator(model, M):
    """Hessian of 1/2 ||W_L ... W_1 - M||^2: the inputs are the columns of the identity."""
    data = [(torch.eye(M.shape[1], dtype=F64), M.mT.contiguous())]
    loss = nn.MSELoss(reduction="sum")
    return curvlinops.HessianLinearOperator(model, loss, list(model.parameters()), data)


@pytest.mark.parametrize("widths", [(4, 6, 3), (3, 4, 4, 3), (2, 3, 3, 3, 2)])
def test_sharpness_and_trace_equal_those_of_curvlinops(widths):
    source = torch.Generator().manual_seed(0)
    layers = [
        gaussian((after, before), seed=source, dtype=F64) / before**0.5 for before, after in pairwise(widths)
    ]
    H = operator(as_modules(layers), dln.product(layers)).to_scipy()
    found = flatness.at_minimum(layers)
    # Their loss has no half.
    top = eigsh(H, k=1, which="LA", return_eigenvectors=False, tol=1e-10)[0] / 2
    assert float(found.sharpness) == pytest.approx(float(top), rel=1e-8)
    trace = sum(float((H @ e)[k]) for k, e in enumerate(torch.eye(H.shape[0], dtype=F64).numpy())) / 2
    assert float(found.trace) == pytest.approx(trace, rel=1e-10)


def test_the_spectrum_away_from_the_minimum_equals_that_of_curvlinops():
    s = [3.0, 2.0]
    run = dln.DeepLinear(s, depth=3, scale=0.5).fit(0.1, steps=4, record=("factors",), last=1)
    H = operator(as_modules(run.layers), torch.tensor(s, dtype=F64).diag()).to_scipy()
    dense = torch.as_tensor(H @ torch.eye(H.shape[0], dtype=F64).numpy()) / 2
    found = dln.aligned_hessian_eigenvalues(run.factors[-1], target=s)
    torch.testing.assert_close(found, torch.linalg.eigvalsh(dense).flip(0), atol=1e-10, rtol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_training_equals_that_of_modules(momentum):
    M = gaussian((3, 5), seed=0, dtype=F64)
    net = dln.DeepLinear(M, depth=3, init="gaussian", scale=0.8, seed=1, width=4)
    model = as_modules(net.start())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=momentum)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(torch.eye(5, dtype=F64)).mT - M).square().sum() / 2
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    run = net.fit(0.03, steps=60, momentum=momentum)
    assert run.loss[:-1].tolist() == pytest.approx(losses, rel=1e-10)
    for W, module in zip(run.layers, model, strict=True):
        torch.testing.assert_close(W, module.weight.detach(), atol=1e-11, rtol=0)
