"""Latent consistency: move latents as little as it takes for their images to fit the measurements.

Two ways. Adam walks down the misfit with a small step. Gauss-Newton linearizes ``A(D(z))`` and solves for the
step by conjugate gradients, started at 0 and stopped at the noise level, so that the step is a short one; it
ends where the tangent promises little more, which is soon where the noise level cannot be reached.
In both every image stops by itself, and images that have stopped are decoded no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowdim.algebra.solve import cgls
from lowdim.errors import DataError, Diverged
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.problem import Problem

__all__ = ["METHODS", "Fit", "LatentMethod", "fit_latents"]

LatentMethod = Literal["adam", "gn"]

METHODS = ("adam", "gn")

PLATEAU = 200
"""Adam gives up where the misfit is no smaller than so many iterations ago."""

GROWN = 1e6
"""A misfit grown by this factor has diverged."""

HALVINGS = 4
"""Shortenings of a Gauss-Newton step at most."""

INNER = 8
"""Conjugate gradients per Gauss-Newton step at most; more fit the noise in what the data hardly tell."""

PROGRESS = 0.05
"""Gauss-Newton is done with an image where the tangent promises to lower its misfit by no larger a share."""

AIM = 0.9
"""Share of its target that a step of Gauss-Newton aims at."""

_FLAT = (
    "latent consistency: the gradient of ||y - A(D(z))||^2 is {}, so A or the decoder is not differentiable. "
    "Write it in differentiable operations of torch, without rounding or detach()."
)


@dataclass(frozen=True, eq=False)
class Fit:
    """Latents that fit, and what it took.

    Parameters
    ----------
    z : Tensor, shape (B, c, h, w)
    misfit : Tensor, shape (B,)
        Mean squared residual of each at the end.
    iterations : Tensor of int64, shape (B,)
        Steps of Adam, or of Gauss-Newton, per image.
    decoded : Tensor of int64, shape (B,)
        Evaluations of the decoder per image; a product with its Jacobian, on either side, counts as one.
    """

    z: Tensor
    misfit: Tensor
    iterations: Tensor
    decoded: Tensor


def fit_latents(
    z: Tensor,
    problem: Problem,
    prior: LatentPrior,
    *,
    target: float,
    method: LatentMethod = "adam",
    max_iter: int = 500,
    lr: float = 5e-3,
) -> Fit:
    """Fit latents to the measurements of a problem.

    Parameters
    ----------
    z : Tensor, shape (B, c, h, w)
        Where to start.
    problem : Problem
    prior : LatentPrior
        Its decoder is used.
    target : float
        Image b stops when ``mean |y_b - A(D(z_b))|^2 <= target``.
    method : {"adam", "gn"}
    max_iter : int
        Steps at most; of "gn" those of its conjugate gradients, counted together.
    lr : float
        Of Adam.

    Returns
    -------
    Fit

    Raises
    ------
    DataError
        If the gradient of ``A(D(z))`` vanishes for all images.
    Diverged
        If a misfit is no number any more or has grown a millionfold.
    """
    if method not in METHODS:
        raise DataError(f"latent consistency: method={method!r} is unknown. Use one of {', '.join(METHODS)}.")
    run = _Running(z.detach().clone(), problem, prior, target)
    if method == "adam":
        _adam(run, max_iter=max_iter, lr=lr)
    else:
        _gauss_newton(run, max_iter=max_iter)
    return Fit(run.z, run.misfit, run.iterations, run.decoded)


class _Running:
    """Latents on their way, and which of them still move."""

    def __init__(self, z: Tensor, problem: Problem, prior: LatentPrior, target: float) -> None:
        self.z, self.problem, self.prior, self.target = z, problem, prior, target
        B = len(z)
        self.counts = problem.operator.count(problem.y)
        self.images = torch.zeros(problem.shape, dtype=z.dtype, device=z.device)
        self.misfit = torch.full((B,), torch.inf, device=z.device, dtype=z.dtype)
        self.first: Tensor | None = None
        self.iterations, self.decoded = torch.zeros(2, B, dtype=torch.int64, device=z.device)
        self.rows = torch.arange(B, device=z.device)
        """Images that have not stopped."""

    def measured(self, z: Tensor) -> Tensor:
        """Return ``A(D(z))`` of all images where `z` are the latents of those that still move.

        Images are clamped to their range, as those that a solver returns: what fits must fit then. The
        operator sees the whole batch, since it may differ from image to image (masks, say); the decoder,
        which is the expensive part, sees only what moves.
        """
        decoded = self.prior.clip(self.prior.decode(z)).to(self.images.dtype)
        x = self.images.index_copy(0, self.rows, decoded)
        self.images[self.rows] = decoded.detach()
        return self.problem.operator.A(x)

    def residual(self, measured: Tensor) -> Tensor:
        """Return ``y - A(D(z))`` of those that still move, real, flat, shape (rows, m)."""
        left = (self.problem.y - measured)[self.rows]
        return (torch.view_as_real(left) if left.is_complex() else left).flatten(1)

    def misfits(self, measured: Tensor) -> Tensor:
        """Return the mean squared residual of those that still move."""
        return self.residual(measured).square().sum(1) / self.counts[self.rows]

    def note(self, misfit: Tensor) -> Tensor:
        """Keep the misfit of those that still move; say which have arrived."""
        misfit = misfit.detach()
        self.decoded[self.rows] += 1
        self.misfit[self.rows] = misfit.to(self.misfit.dtype)
        if self.first is None:
            self.first = misfit.clone()
        limit = GROWN * self.first[self.rows].clamp(min=self.target)
        if not bool((misfit <= limit).all()):
            raise Diverged(
                f"latent consistency: the mean squared residual went from {float(self.first.max()):.3g} to "
                f"{float(misfit.max()):.3g}. Lower lr, or use method='gn'.",
                last=float(self.first.max()),
            )
        return misfit <= self.target

    def leave(self, stopped: Tensor, z: Tensor) -> Tensor:
        """Take those that have stopped out; return which rows of `z` go on."""
        self.z[self.rows] = z.detach()
        self.rows = self.rows[~stopped]
        return ~stopped


def _adam(run: _Running, *, max_iter: int, lr: float) -> None:
    """Adam without weight decay, whose moments are of every number by itself, so of every image, too."""
    z = run.z.clone()
    m, v = torch.zeros_like(z), torch.zeros_like(z)
    past: list[Tensor] = []
    for step in range(max_iter + 1):
        z = z.detach().requires_grad_(step < max_iter)
        with torch.set_grad_enabled(step < max_iter):
            misfit = run.misfits(run.measured(z))
        stopped = run.note(misfit)
        past.append(run.misfit.clone())
        if step >= 2 * PLATEAU:
            stopped = stopped | (misfit.detach() >= past[step - PLATEAU][run.rows])
        if step == max_iter:
            run.leave(stopped, z)
            return
        gradient = _gradient(misfit, z, first=step == 0)
        stay = run.leave(stopped, z)
        if len(run.rows) == 0:
            return
        z, gradient, m, v = z.detach()[stay], gradient[stay], m[stay], v[stay]
        run.iterations[run.rows] += 1
        m = m.lerp(gradient, 0.1)
        v = v.lerp(gradient.square(), 0.001)
        fast, scale = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        z = z - lr * fast / (scale.sqrt() + 1e-8)


def _gradient(misfit: Tensor, z: Tensor, *, first: bool) -> Tensor:
    found: Tensor | None = None
    if misfit.requires_grad:
        (found,) = torch.autograd.grad(misfit, z, torch.ones_like(misfit), allow_unused=True)
    if found is None or (first and not bool(found.any()) and bool(misfit.detach().any())):
        raise DataError(_FLAT.format("None" if found is None else "zero everywhere"))
    return found


def _gauss_newton(run: _Running, *, max_iter: int) -> None:
    """Gauss-Newton whose linear problems are solved by conjugate gradients from 0 down to the noise level."""
    z, spent = run.z.clone(), torch.zeros_like(run.iterations)
    with torch.no_grad():
        stopped = run.note(run.misfits(run.measured(z)))
    z = z[run.leave(stopped, z)]
    while len(run.rows):
        step, inner, promised = _newton_step(run, z)
        spent[run.rows] += inner
        # Around the conjugate gradients: decoding, pulling back the probe and the residual, a product with
        # J for the length of the step, and one on either side where `cgls` checks what it returns.
        run.decoded[run.rows] += 6 + 2 * inner
        run.iterations[run.rows] += 1
        z, stopped = _walk(run, z, step)
        done = stopped | (promised <= PROGRESS) | (spent[run.rows] >= max_iter)
        z = z[run.leave(done, z)]


def _newton_step(run: _Running, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the step that ``||r - J d||`` asks for, conjugate gradients taken, and the promised progress.

    That is by what share of it the misfit of each image falls where ``A(D(z))`` is its tangent.

    ``J d`` is the derivative in u of the pulled-back ``J^T u``: two reverse sweeps, which every decoder has,
    in the place of a forward one, which some have not.
    """
    z = z.detach().requires_grad_()
    # Attention in its plain form: the fused ones have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        measured = -run.residual(run.measured(z))  # up to y
        probe = torch.zeros_like(measured, requires_grad=True)
        pulled: Tensor | None = None
        if measured.requires_grad:
            (pulled,) = torch.autograd.grad(measured, z, probe, create_graph=True, allow_unused=True)
    if pulled is None or not pulled.requires_grad:
        raise DataError(_FLAT.format("None"))

    def push(d: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, probe, d.reshape(z.shape), retain_graph=True)[0]

    def pull(u: Tensor) -> Tensor:
        return torch.autograd.grad(measured, z, u, retain_graph=True)[0].flatten(1)

    r = -measured.detach()
    # Latents have variance 1: as prior of the step, which keeps what the data do not tell where it is. The
    # number of conjugate gradients is not cut short by the noise, as rounding would decide by how many.
    solved = cgls(push, r, adjoint=pull, damping=run.target, tol=1e-5, steps=INNER, batch_axes=1)
    Jd = push(solved.x)
    length = _until_noise(r, Jd, AIM * run.target * run.counts[run.rows])
    promised = 1 - (r - length[:, None] * Jd).square().sum(1) / r.square().sum(1).clamp(min=1e-30)
    return length.reshape(-1, *(1,) * (z.ndim - 1)) * solved.x.reshape(z.shape), solved.steps, promised


def _until_noise(r: Tensor, Jd: Tensor, aim: Tensor) -> Tensor:
    """Return the shortest lengths s in (0, 1] with ``||r - s J d||^2 = aim``; 1 where there is none."""
    a, b, c = Jd.square().sum(1), (r * Jd).sum(1), r.square().sum(1) - aim
    root = b.square() - a * c
    found = (b - root.clamp(min=0).sqrt()) / a.clamp(min=1e-30)
    return torch.where((root >= 0) & (found > 0), found, 1.0).clamp(max=1.0)


@torch.no_grad()
def _walk(run: _Running, z: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Take steps, halved where the misfit would grow; say which latents have arrived or are stuck."""
    before, each = run.misfit[run.rows], (-1, *(1,) * (z.ndim - 1))
    length, worse = torch.ones_like(before), torch.ones_like(before, dtype=torch.bool)
    for _ in range(HALVINGS + 1):
        moved = z + length.reshape(each) * step
        misfit = run.misfits(run.measured(moved)).nan_to_num(nan=torch.inf)
        run.decoded[run.rows[worse]] += 1
        worse = misfit >= before
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    run.misfit[run.rows] = torch.where(worse, before, misfit)
    return torch.where(worse.reshape(each), z, moved), worse | (misfit <= run.target)
