"""Smooth: classifiers of low tensor rank, all factors at once, many fits over shared samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from sklearn import get_config
from torch import Tensor

from lowdim.regress.forms import CPForm, Form, FullForm, TuckerForm
from lowdim.regress.grid import Ranks
from lowdim.regress.lbfgs import Minimum, minimize
from lowdim.regress.losses import LOSSES
from lowdim.regress.samples import Samples
from lowdim.regress.squared import Fit
from lowdim.regress.starts import aligned_cp, bounded, gaussian, orthonormal_tucker

__all__ = ["Objective", "fit_smooth"]


@dataclass(frozen=True, eq=False)
class Objective:
    r"""``sum_i s_i loss(t_i, b + <W, X_i>) + alpha / 2 sum of squares of the factors``, for C problems.

    With ``G = sum_i s_i loss'(t_i, f_i) X_i`` the gradient in factor k is that of the form at G, plus
    ``alpha`` times the factor. The intercept b is not penalized. With two modes the penalty is, at the
    optimum, alpha times the nuclear norm of W.

    Parameters
    ----------
    samples : Samples
    weights : Tensor of shape (N, C)
        s, with sum 1 per problem.
    targets : Tensor of shape (N, C or 1, K)
    alpha : Tensor of shape (C,)
    form : Form
    loss : str
        A name of `LOSSES`.
    center : bool
        Whether there is an intercept.
    """

    samples: Samples
    weights: Tensor
    targets: Tensor
    alpha: Tensor
    form: Form
    loss: str
    center: bool

    def __call__(self, theta: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (C,) and gradients (C, P + K) of the problems `at`; one read of X."""
        C, K = len(theta), self.targets.shape[2]
        inner, b = theta[:, :-K], theta[:, -K:]
        W = self.form.dense(inner)
        flat = W.reshape(C * K, -1).mT.to(self.samples.dtype)
        weights = self.weights if len(at) == self.weights.shape[1] else self.weights[:, at]
        targets = self.targets
        if targets.shape[1] > 1 and len(at) != targets.shape[1]:
            targets = targets[:, at]
        value, shift, G = theta.new_zeros(C), torch.zeros_like(b), W.new_zeros(flat.shape)
        for rows, piece in self.samples.pieces():
            scores = (piece @ flat).double().view(-1, C, K) + b
            loss, slope = LOSSES[self.loss](scores, targets[rows])
            value += (weights[rows] * loss).sum(0)
            slope = slope * weights[rows].unsqueeze(-1)
            shift += slope.sum(0)
            G += (piece.mT @ slope.reshape(-1, C * K).to(piece.dtype)).double()
        alpha = self.alpha[at]
        value = value + 0.5 * alpha * inner.square().sum(1)
        gradient = self.form.pull(inner, G.mT.reshape(C, -1)) + alpha.unsqueeze(1) * inner
        return value, torch.cat([gradient, shift if self.center else torch.zeros_like(shift)], 1)


def fit_smooth(
    samples: Samples,
    weights: Tensor,
    targets: Tensor,
    alpha: Tensor,
    ranks: Sequence[Ranks],
    *,
    loss: str,
    center: bool = True,
    n_init: int = 1,
    tol: float = 1e-5,
    max_iter: int = 200,
    random: np.random.RandomState,
) -> list[Fit]:
    """Fit B classifiers of possibly different sample weights, targets, penalties and ranks.

    Parameters
    ----------
    samples : Samples
    weights : Tensor of shape (B, N)
        s, with sum 1.
    targets : Tensor of shape (B or 1, N, K)
        K = 1: classes -1 and 1. Else 1 at the class of the sample, 0 at others.
    alpha : Tensor of shape (B,)
    ranks : sequence of tuple of int
        B of them, see `fit_squared`. With K > 1 the classes are a mode of a CP form, and have cores of their
        own in a Tucker form.
    loss : {"logistic", "multinomial", "squared_hinge"}
    center : bool
        Whether there is an intercept.
    n_init : int
        Starts; the first from the moment tensor, others Gaussian. The best is returned.
    tol, max_iter
        See `minimize`.
    random : RandomState

    Returns
    -------
    list of Fit
    """
    B, shared = len(ranks), len(targets) == 1
    each = 24 * samples.count * targets.shape[2] * n_init + 24 * samples.grid.size * targets.shape[2] * n_init
    step = max(1, int(get_config()["working_memory"] * 2**20 / each))
    fits: list[Fit | None] = [None] * B
    seed = random.randint(2**31 - 1)  # the same for every batch, however the problems are cut into them
    # Problems of one form share a batch: ranks of another size are another form.
    for rank in dict.fromkeys(ranks):
        own = [i for i in range(B) if ranks[i] == rank]
        for begin in range(0, len(own), step):
            at = own[begin : begin + step]
            chosen = torch.as_tensor(at, device=samples.device)
            found = _together(
                samples,
                weights[chosen],
                targets if shared else targets[chosen],
                alpha[chosen],
                rank,
                (loss, center, n_init, tol, max_iter),
                np.random.RandomState(seed),
            )
            for i, fit in zip(at, found, strict=True):
                fits[i] = fit
    return [fit for fit in fits if fit is not None]


def _together(
    samples: Samples,
    weights: Tensor,
    targets: Tensor,
    alpha: Tensor,
    rank: Ranks,
    options: tuple[str, bool, int, float, int],
    random: np.random.RandomState,
) -> list[Fit]:
    loss, center, n_init, tol, max_iter = options
    B, K = len(weights), targets.shape[2]
    form = _form(samples, K, rank)
    drawn = [
        _start(samples, weights, targets, rank, form, center, random, first=i == 0) for i in range(n_init)
    ]
    theta = torch.cat(drawn)
    turned = targets.transpose(0, 1)
    objective = Objective(
        samples,
        weights.T.repeat(1, n_init),
        turned.repeat(1, n_init, 1) if turned.shape[1] > 1 else turned,
        alpha.repeat(n_init),
        form,
        loss,
        center,
    )
    flat = min(1e-11, 1e-6 * tol) if samples.dtype == torch.float64 else 1e-7
    found = minimize(objective, theta, tol=tol, flat=flat, max_iter=max_iter)
    best = found.value.view(n_init, B).argmin(0).tolist()
    return [_fit_of(samples, found, form, start * B + i, K) for i, start in enumerate(best)]


def _form(samples: Samples, classes: int, rank: Ranks) -> Form:
    shape = samples.grid.shape
    if not rank:
        return FullForm(classes * samples.grid.size)
    if len(rank) == 1:
        return CPForm((classes, *shape) if classes > 1 else shape, rank[0])
    return TuckerForm(classes, shape, rank)


def _start(
    samples: Samples,
    weights: Tensor,
    targets: Tensor,
    rank: Ranks,
    form: Form,
    center: bool,
    random: np.random.RandomState,
    *,
    first: bool,
) -> Tensor:
    """Return parameters (B, P + K): near the moment tensor, or Gaussian; the scores have size 1."""
    (B, N), K, shape = weights.shape, targets.shape[2], samples.grid.shape
    share = torch.einsum("bn,bnk->bk", weights, targets.expand(B, -1, -1))
    base = share.unsqueeze(1) if center else 0
    D = weights.unsqueeze(-1) * (targets - base)
    M = bounded(samples.moment(D.transpose(0, 1).reshape(N, B * K))).T.reshape(B, K, *shape)
    if not first:
        M = gaussian(M.shape, random, M)
    if not rank:
        parts = [M * 0]
    elif len(rank) == 1:
        parts = aligned_cp(M if K > 1 else M[:, 0], rank[0], random)
        if not first:
            parts = [gaussian(part.shape, random, part) for part in parts]
    else:
        ranks = (min(K, prod(rank)), *rank)
        core, factors = orthonormal_tucker(M, ranks, random)
        core = torch.einsum("bck,bk...->bc...", factors[0], core)
        parts = [*factors[1:], core]
    if rank:
        W = form.dense(form.pack(parts)).reshape(B * K, -1)
        scores = samples.against(W.T).view(N, B, K)
        size = torch.einsum("bn,nbk->b", weights, scores.square()).div(K).sqrt().clamp_min(1e-150)
        scale = size ** (-1 / len(parts))
        parts = [part * scale.view(-1, *[1] * (part.ndim - 1)) for part in parts]
        parts = _balanced(parts) if len(rank) > 1 else parts
    theta = form.pack(parts)
    return torch.cat([theta, theta.new_zeros(B, K)], 1)


def _balanced(parts: list[Tensor]) -> list[Tensor]:
    """Return factors and core of equal norm, with the same product."""
    norms = torch.stack([part.flatten(1).norm(dim=1) for part in parts]).clamp_min(1e-150)
    shared = norms.log().mean(0).exp()
    return [
        part * (shared / norm).view(-1, *[1] * (part.ndim - 1))
        for part, norm in zip(parts, norms, strict=True)
    ]


def _fit_of(samples: Samples, found: Minimum, form: Form, at: int, K: int) -> Fit:
    theta = found.theta[at : at + 1]
    parts = [part[0] for part in form.split(theta[:, :-K])]
    W = form.dense(theta[:, :-K]).view(K, -1)
    intercept = theta[0, -K:] - W @ samples.mean.double()
    core = parts.pop() if isinstance(form, TuckerForm) else None
    return Fit(
        parts,
        core,
        intercept,
        float(found.value[at]),
        int(found.steps[at]),
        bool(found.converged[at]),
        found.history[at],
    )
