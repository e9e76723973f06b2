"""One geodesic, against Riemannian optimization of the same loss by pymanopt."""

import numpy as np
import pytest
import torch

from lowdim.track import Curve
from lowdim.track.majorize import descend
from lowdim.track.observations import Masked
from lowdim.track.static import start_curve

pymanopt = pytest.importorskip("pymanopt", reason="pymanopt is not installed (pip install 'lowdim[peers]')")

D, K, T = 8, 1, 30


def frames(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy frames of a planted geodesic, and their times."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, T)
    Q = np.linalg.qr(rng.normal(size=(D, 2 * K)))[0]
    U = Q[:, :K] * np.cos(1.2 * t)[:, None, None] + Q[:, K:] * np.sin(1.2 * t)[:, None, None]
    X = np.einsum("tdk,tk->td", U, rng.normal(size=(T, K))) + 0.1 * rng.normal(size=(T, D))
    return torch.as_tensor(X), torch.as_tensor(t)


def loss_of(Q: torch.Tensor, theta: torch.Tensor, X: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return ``sum ||x_i||^2 - ||U(t_i)^T x_i||^2``, written out."""
    angle = t[:, None] * theta
    U = Q[:, :K] * angle.cos()[:, None] + Q[:, K:] * angle.sin()[:, None]
    return X.square().sum() - torch.einsum("tdk,td->tk", U, X).square().sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_is_that_of_riemannian_conjugate_gradients(seed):
    X, t = frames(seed)
    start = start_curve(Masked(X), t, K, kind="static", source=torch.Generator().manual_seed(0))
    ours = descend(Masked(X), t, start, steps=2000, tol=1e-14)
    direct = loss_of(ours.curve.Q, ours.curve.theta, X, t)
    assert ours.loss == pytest.approx(float(direct), rel=1e-10)
    space = pymanopt.manifolds.Product(
        [pymanopt.manifolds.Stiefel(D, 2 * K), pymanopt.manifolds.Euclidean(K)]
    )

    @pymanopt.function.pytorch(space)
    def cost(Q, theta):
        return loss_of(Q, theta, X, t)

    optimizer = pymanopt.optimizers.ConjugateGradient(
        verbosity=0, max_iterations=2000, min_gradient_norm=1e-9, min_step_size=1e-14
    )
    point = [start.Q.numpy(), start.theta.numpy()]
    theirs = optimizer.run(pymanopt.Problem(space, cost), initial_point=point)
    assert ours.loss == pytest.approx(theirs.cost, rel=1e-6)
    Q, theta = (torch.as_tensor(part) for part in theirs.point)
    apart = ours.curve.subspace(t).distance(Curve(Q, theta).subspace(t))
    assert float(apart.max()) < 1e-3
