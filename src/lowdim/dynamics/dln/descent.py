"""Descent: full-batch gradient descent on many deep linear networks at once.

A batch of networks is one run: every layer is a tensor (batch, w_l, w_{l-1}), and each network has its own
learning rate. Aligned and diagonal networks are tensors (batch, d) of diagonals, multiplied entry by entry;
their off-diagonal zeros then stay exact, as the theory wants.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Descent", "descend", "gradients"]

Residual = Callable[[Tensor], Tensor]


def gradients(layers: Sequence[Tensor], pull: Residual) -> tuple[Tensor, list[Tensor]]:
    """Return the product of the layers and ``(W_L..W_{l+1})^T R (W_{l-1}..W_1)^T`` for each layer.

    Parameters
    ----------
    layers : sequence of Tensor
        Matrices (..., w_l, w_{l-1}), first layer first.
    pull : callable
        From the product to the gradient R of the loss in it; ``P - M`` where all of it is seen.

    Returns
    -------
    Tensor
        The product.
    list of Tensor
        The gradients.
    """
    below = [layers[0]]
    for W in layers[1:]:
        below.append(W @ below[-1])
    upstream = pull(below[-1])
    found = []
    for k in range(len(layers) - 1, 0, -1):
        found.append(upstream @ below[k - 1].mT)
        upstream = layers[k].mT @ upstream
    found.append(upstream)
    return below[-1], found[::-1]


def diagonal_gradients(layers: Sequence[Tensor], pull: Residual) -> tuple[Tensor, list[Tensor]]:
    """Return the same for diagonals (..., d), multiplied entry by entry.

    Parameters
    ----------
    layers : sequence of Tensor
    pull : callable

    Returns
    -------
    Tensor
    list of Tensor
    """
    below = [layers[0]]
    for d in layers[1:]:
        below.append(d * below[-1])
    upstream = pull(below[-1])
    found = []
    for k in range(len(layers) - 1, 0, -1):
        found.append(upstream * below[k - 1])
        upstream = layers[k] * upstream
    found.append(upstream)
    return below[-1], found[::-1]


@dataclass(frozen=True, eq=False)
class Descent:
    """Where a batch of runs ended, and what was recorded on the way.

    Parameters
    ----------
    layers : list of Tensor, shapes (batch, ...)
        Last weights; of a diverged run, the last ones within the limit.
    steps : Tensor of int64, shape (batch,)
        Steps taken, or the step at which a run diverged.
    diverged, converged : Tensor of bool, shape (batch,)
    times : list of int
        Steps at which something was recorded.
    records : dict of Tensor, shapes (batch, len(times), ...)
        NaN after a run diverged; the last value after one converged.
    """

    layers: list[Tensor]
    steps: Tensor
    diverged: Tensor
    converged: Tensor
    times: list[int]
    records: dict[str, Tensor]


def descend(
    layers: Sequence[Tensor],
    *,
    lr: Tensor,
    steps: int,
    pull: Residual,
    loss: Callable[[Tensor], Tensor],
    records: dict[str, Callable[[list[Tensor], Tensor], Tensor]],
    diagonal: bool = False,
    momentum: float = 0.0,
    tol: float | None = None,
    limit: float = math.inf,
    every: int = 1,
    last: int | None = None,
) -> Descent:
    """Run gradient descent, or the heavy-ball method, on a batch of networks.

    Parameters
    ----------
    layers : sequence of Tensor, shapes (batch, w_l, w_{l-1}) or (batch, d)
        Where to begin.
    lr : Tensor, shape (batch,)
        Learning rate of each run.
    steps : int
        Largest number of steps.
    pull : callable
        From products to the gradients of the loss in them.
    loss : callable
        From products to losses (batch,).
    records : dict of callables
        ``f(layers, product)``, of which the values are kept.
    diagonal : bool, default False
        Whether layers are diagonals.
    momentum : float, default 0
        ``v <- momentum v - lr g``, ``W <- W + v``.
    tol : float, optional
        A run ends when its loss is below.
    limit : float
        A run has diverged when the norm of its product is above, or not finite.
    every : int, default 1
        Record every so many steps, from step 0 on.
    last : int, optional
        Keep only so many of the latest records.

    Returns
    -------
    Descent
    """
    step_of = diagonal_gradients if diagonal else gradients
    weights, batch = list(layers), lr.shape[0]
    kept, ended = [W.clone() for W in layers], torch.zeros(batch, dtype=torch.int64)
    diverged, converged = (torch.zeros(batch, dtype=torch.bool) for _ in range(2))
    active = torch.arange(batch)  # the runs that go on, as positions in the batch
    rate = _column(lr, weights[0])
    velocity = [torch.zeros_like(W) for W in weights]
    before = weights
    times: deque[int] = deque(maxlen=last)
    shown: dict[str, Tensor] = {}
    tape: dict[str, deque[Tensor]] = {name: deque(maxlen=last) for name in records}

    for t in range(steps + 1):
        P, grads = step_of(weights, pull)
        # One comparison is false for NaN, too.
        bad = ~(P.flatten(1).norm(dim=1) <= limit)
        done = loss(P) < tol if tol is not None else torch.zeros_like(bad)
        due = t % every == 0
        if due:
            times.append(t)
            for name, measure in records.items():
                value = measure(weights, P)
                if len(active) == batch:
                    shown[name] = value
                else:
                    shown[name] = shown[name].clone()
                    shown[name][active] = value
        if bool((bad | done).any()):
            bad, done = bad.cpu(), done.cpu() & ~bad.cpu()
            stay = ~(bad | done)
            for k in range(len(kept)):
                kept[k][active[bad]] = before[k][bad]
                kept[k][active[done]] = weights[k][done]
            diverged[active[bad]], converged[active[done]] = True, True
            ended[active[~stay]] = t
            for name in shown:
                shown[name] = shown[name].clone()
                shown[name][active[bad]] = math.nan
            active, rate = active[stay], rate[stay]
            weights, velocity, grads = ([W[stay] for W in Ws] for Ws in (weights, velocity, grads))
        if due:
            for name, value in shown.items():
                tape[name].append(value)
        if t == steps or not len(active):
            break
        before = weights
        if momentum:
            velocity = [momentum * v - rate * g for v, g in zip(velocity, grads, strict=True)]
            weights = [W + v for W, v in zip(weights, velocity, strict=True)]
        else:
            weights = [torch.addcmul(W, rate, g, value=-1) for W, g in zip(weights, grads, strict=True)]

    for k in range(len(kept)):
        kept[k][active] = weights[k]
    ended[active] = t
    stacked = {name: torch.stack(list(values), dim=1) for name, values in tape.items()}
    return Descent(kept, ended, diverged, converged, list(times), stacked)


def _column(lr: Tensor, like: Tensor) -> Tensor:
    """Give the learning rates the axes of a layer."""
    return lr.reshape(-1, *[1] * (like.ndim - 1)).to(like)
