"""Losses, forms and the search for the smallest: slopes against autograd, the search against SciPy."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from lowdim.regress.forms import CPForm, FullForm, TuckerForm
from lowdim.regress.grid import Grid
from lowdim.regress.lbfgs import minimize
from lowdim.regress.losses import LOSSES
from lowdim.regress.samples import Samples
from lowdim.regress.smooth import Objective

FORMS = {
    "full": (FullForm(6), 6),
    "matrix": (CPForm((3, 4), 2), 14),
    "three modes": (CPForm((3, 4, 2), 2), 18),
    "four modes": (CPForm((3, 2, 2, 3), 3), 30),
    "tucker": (TuckerForm(1, (3, 4), (2, 2)), 18),
    "tucker, classes": (TuckerForm(3, (3, 4, 2), (2, 3, 1)), 6 + 12 + 2 + 18),
}


def draw(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("name", LOSSES)
def test_the_slope_of_a_loss_is_its_derivative(name):
    K = 3 if name == "multinomial" else 1
    scores = draw(5, 2, K).requires_grad_()
    targets = torch.nn.functional.one_hot(torch.arange(5) % 3).double()[:, None]
    targets = targets if K == 3 else 2 * targets[..., :1] - 1
    loss, slope = LOSSES[name](scores, targets)
    loss.sum().backward()
    torch.testing.assert_close(slope.detach(), scores.grad)
    assert loss.shape == (5, 2)


def test_losses_of_large_scores_are_finite():
    far = torch.tensor([[[1e3]], [[-1e3]]], dtype=torch.float64)
    for name, loss in LOSSES.items():
        targets = torch.ones(1, 1, 1, dtype=torch.float64)
        if name == "multinomial":
            value, slope = loss(torch.cat([far, -far], -1), torch.tensor([[[1.0, 0.0]]]).double())
        else:
            value, slope = loss(far, targets)
        assert value.isfinite().all()
        assert slope.isfinite().all()


@pytest.mark.parametrize("name", FORMS)
def test_a_form_pulls_gradients_back(name):
    form, P = FORMS[name]
    theta = draw(2, P).requires_grad_()
    W = form.dense(theta)
    G = draw(*W.shape, seed=1)
    (W * G).sum().backward()
    torch.testing.assert_close(form.pull(theta.detach(), G), theta.grad)
    assert torch.equal(form.pack(form.split(theta.detach())), theta.detach())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_of_the_objective(loss):
    N, K = 15, 3 if loss == "multinomial" else 1
    s = torch.as_tensor(np.random.default_rng(0).random((N, 2)))
    s = s / s.sum(0)
    X = draw(N, 12).numpy()
    samples = Samples(X, Grid((3, 4), 12), s.mean(1))
    hot = torch.nn.functional.one_hot(torch.arange(N) % 3).double()[:, None]
    targets = hot if K == 3 else 2 * hot[..., :1] - 1
    form = CPForm((3, 3, 4), 2) if K == 3 else CPForm((3, 4), 2)
    objective = Objective(samples, s, targets, torch.tensor([0.1, 0.3]).double(), form, loss, True)
    theta = draw(2, (20 if K == 3 else 14) + K)
    at = torch.arange(2)
    value, gradient = objective(theta, at)
    for j in range(theta.shape[1]):
        step = torch.zeros_like(theta)
        step[:, j] = 1e-6
        slope = (objective(theta + step, at)[0] - objective(theta - step, at)[0]) / 2e-6
        torch.testing.assert_close(gradient[:, j], slope, rtol=1e-5, atol=1e-7)
    assert (value > 0).all()
    # Asked for one problem only, it gives the numbers of that one.
    torch.testing.assert_close(objective(theta[1:], at[1:])[0], value[1:])


def rosenbrock(theta, at):
    x = theta.detach().requires_grad_()
    scale = 10.0 ** (1 + at % 2)
    value = (scale[:, None] * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


def test_the_search_finds_the_valley_of_rosenbrock():
    start = draw(4, 6) * 0.5
    found = minimize(rosenbrock, start, tol=1e-8, flat=0.0, max_iter=500)
    assert found.converged.all()
    torch.testing.assert_close(found.theta, torch.ones_like(start), rtol=0, atol=1e-6)
    for i in range(4):
        assert (np.diff(found.history[i]) <= 1e-12).all()
        assert len(found.history[i]) == int(found.steps[i]) + 1
        one = lambda x, at, i=i: rosenbrock(x, at + i)  # noqa: E731
        alone = minimize(one, start[i : i + 1], tol=1e-8, flat=0.0, max_iter=500)
        assert int(alone.steps) == int(found.steps[i])
        theirs = scipy_minimize(
            lambda x, i=i: [
                part.numpy().ravel() if part.ndim > 1 else float(part)
                for part in rosenbrock(torch.as_tensor(x)[None], torch.tensor([i]))
            ],
            start[i].numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"gtol": 1e-8, "ftol": 0, "maxiter": 500},
        )
        assert int(found.steps[i]) < 2 * theirs.nit + 20


def test_the_search_says_when_it_ran_out_of_steps():
    found = minimize(rosenbrock, draw(1, 6), tol=1e-12, flat=0.0, max_iter=3)
    assert not found.converged.any()
    assert found.steps.tolist() == [3]


def test_the_search_ends_where_rounding_errors_rule():
    bowl = lambda x, at: (1 + x.square().sum(1), 2 * x)  # noqa: E731
    found = minimize(bowl, draw(1, 3), tol=0.0, flat=0.0, max_iter=200)
    assert found.converged.all()
    assert float(found.theta.abs().max()) < 1e-6
