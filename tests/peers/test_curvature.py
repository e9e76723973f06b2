"""Curvature products, sharpness and trace against curvlinops and hessian-eigenthings."""

import numpy as np
import pytest
import torch
from torch import nn

from lowdim.dynamics import CrossEntropy, SplitLoss, flatness, gauss_newton, hessian, sharpness

curvlinops = pytest.importorskip("curvlinops")


def setting(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(20, 5, dtype=torch.float64)
    y = torch.randint(3, (20,))
    return model, x, y, lambda: nn.functional.cross_entropy(model(x), y)


def operator(kind, model, x, y):
    return kind(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], check_deterministic=False)


def test_hessian_products_are_those_of_curvlinops():
    model, x, y, loss = setting()
    v = torch.randn(75, 3, dtype=torch.float64)
    theirs = operator(curvlinops.HessianLinearOperator, model, x, y) @ v
    with hessian(model, loss) as H:
        torch.testing.assert_close(H @ v, theirs, rtol=1e-10, atol=1e-12)


def test_gauss_newton_products_are_those_of_curvlinops():
    model, x, y, _ = setting()
    v = torch.randn(75, dtype=torch.float64)
    theirs = operator(curvlinops.GGNLinearOperator, model, x, y) @ v
    with gauss_newton(model, SplitLoss(lambda: model(x), CrossEntropy(y))) as G:
        torch.testing.assert_close(G @ v, theirs, rtol=1e-10, atol=1e-12)


def test_curvatures_of_curvlinops_are_taken():
    model, x, y, loss = setting()
    H = operator(curvlinops.HessianLinearOperator, model, x, y)
    assert sharpness(H, tol=1e-8, steps=75).value == pytest.approx(
        sharpness(model, loss, tol=1e-8, steps=75).value, rel=1e-6
    )


def test_sharpness_is_that_of_hessian_eigenthings():
    things = pytest.importorskip("hessian_eigenthings")
    model, x, y, loss = setting()
    theirs = things.HessianOperator(model, [(x, y)], things.supervised_loss(nn.functional.cross_entropy))
    found = things.lanczos(theirs, k=1, max_iter=60, which="LA", seed=0)
    ours = sharpness(model, loss, tol=1e-8, steps=75).value
    assert ours == pytest.approx(float(found.eigenvalues[0]), rel=1e-4)


def test_estimates_of_flatness_are_those_of_the_dense_matrix():
    model, x, y, loss = setting()
    H = operator(curvlinops.HessianLinearOperator, model, x, y) @ torch.eye(75, dtype=torch.float64)
    found = flatness.estimate(model, loss, tol=1e-6, products=75)
    assert found.sharpness == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-4)
    assert found.trace == pytest.approx(float(H.trace()), rel=1e-8)
    size = torch.cat([p.detach().abs().reshape(-1) for p in model.parameters()])
    relative = flatness.estimate(model, loss, relative=True, tol=1e-6, products=75)
    D = size[:, None] * H * size
    assert relative.sharpness == pytest.approx(float(torch.linalg.eigvalsh(D)[-1]), rel=1e-4)
    assert relative.trace == pytest.approx(float(D.trace()), rel=1e-8)


def test_relative_flatness_does_not_see_how_layers_share_their_scale():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False)).double()
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)

    def loss():
        return (model(x) - y).square().mean()

    found = []
    for _ in range(2):
        plain, relative = (
            flatness.estimate(model, loss, what=["sharpness"], relative=flag, tol=1e-8).sharpness
            for flag in (False, True)
        )
        found.append((plain, relative))
        with torch.no_grad():
            model[0].weight *= 3
            model[2].weight /= 3
    assert not np.isclose(found[0][0], found[1][0], rtol=0.1)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
