"""DeepLinear: a deep linear network as a model problem, trained for many settings in one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lowdim.dynamics.dln.balance import balancing_gap
from lowdim.dynamics.dln.descent import descend
from lowdim.dynamics.dln.door import as_depth, as_rates, as_target
from lowdim.dynamics.dln.initialization import INITS, Init, given_layers, initial_layers
from lowdim.dynamics.dln.observe import observe
from lowdim.dynamics.dln.trajectory import Trajectory
from lowdim.errors import DataError
from lowdim.threads import few_threads

__all__ = ["DeepLinear"]

Record = Literal["loss", "values", "product", "gap", "factors"]
Measure = Callable[[list[Tensor], Tensor], Tensor]

LIMIT = 1e6
"""A run has diverged when its product is so many times larger than the target."""

SMALL = 10_000_000
"""Multiplications per step below which several threads only wait for each other."""


class DeepLinear:
    """A deep linear network that learns a matrix by gradient descent.

    The loss is ``1/2 ||W_L ... W_1 - M||_F^2``, with the half.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
        The matrix M, or its singular values (then M is their diagonal matrix, largest first).
    depth : int
        Number of layers L.
    init : {"aligned", "gaussian", "orthogonal", "identity"} or sequence of array-like
        "aligned" (default, the one of the theory): in the singular basis of M all layers are scale times the
        identity, and the last one is 0. Such weights stay diagonal, and are kept so, without rounding.
        "gaussian": normal entries of variance scale^2 / columns. "orthogonal", "identity": scale times an
        orthogonal matrix or the identity, in the basis of M as it is given. Or layers of your own, first
        layer first, matrices (..., w_l, w_{l-1}) or vectors (..., d) of a diagonal network; then scale,
        seed, width and perturb are not used.
    scale : float or sequence of float, default 0.01
        Initial scale.
    seed : int, generator, None or sequence of int, default 0
        Of the random starts. All scales start from the same random matrices.
    width : int, optional
        Of the inner layers; max(m, n) otherwise. Not for aligned and diagonal networks.
    diagonal : bool, default False
        A diagonal network instead: layers are vectors, multiplied entry by entry, and the target must be a
        vector. Its singular directions cannot mix.
    perturb : float, default 0
        Standard deviation of a random part of all weights. It takes aligned weights out of alignment.
    measurements : array-like, optional
        Matrices A_k (k, m, n) or a mask of bool (m, n): the loss is ``1/2 sum_k <A_k, W_L ... W_1 - M>^2``.

    Attributes
    ----------
    target : Tensor of float64
    singular_values : Tensor of float64, shape (min(m, n),) or (d,)

    Raises
    ------
    DataError, ShapeError
        If an argument makes no sense, or at scale 0 with two or more layers, a saddle that gradient descent
        never leaves.

    References
    ----------
    arXiv 2502.20531 (model and aligned start); float64 throughout.

    Examples
    --------
    Three layers, twenty learning rates at once: the first singular value oscillates from 2 / S_1 on.

    >>> rates = torch.linspace(0.026, 0.036, 20)
    >>> run = DeepLinear([10.0, 5.0, 1.0], depth=3).fit(rates, steps=1000, record=("values",), last=2)
    >>> swing = (run.values[:, 1] - run.values[:, 0]).abs()
    >>> bool((swing[rates > 0.0312, 0] > 0.5).all()), bool((swing[rates < 0.0307] < 0.01).all())
    (True, True)
    """

    def __init__(
        self,
        target: Any,
        *,
        depth: int,
        init: Init | Sequence[Any] = "aligned",
        scale: float | Sequence[float] | Tensor = 0.01,
        seed: Any = 0,
        width: int | None = None,
        diagonal: bool = False,
        perturb: float = 0.0,
        measurements: Any = None,
    ) -> None:
        self.depth = as_depth(depth, "DeepLinear")
        self.target = as_target(target, "DeepLinear")
        self.seed, self.perturb, self.diagonal = seed, perturb, diagonal
        self.init: str | None = init if isinstance(init, str) else None
        self.scale = as_rates(scale, "DeepLinear", name="scale", zero=True)
        # Aligned weights are trained as diagonals: the same numbers, and zeros that stay zeros.
        self._aligned = self.init == "aligned" and not perturb and not diagonal and measurements is None
        self._check(width, measurements)
        if self.target.ndim == 1:
            self.singular_values = self.target
            self._U = self._V = torch.eye(len(self.target), dtype=torch.float64, device=self.target.device)
        else:
            self._U, self.singular_values, Vh = torch.linalg.svd(self.target, full_matrices=False)
            self._V = Vh.mT
        m, n = self._U.shape[0], self._V.shape[0]
        self.width = max(m, n) if width is None else width
        self._seen = observe(measurements, m, n, "DeepLinear")
        ends = [n, *[self.width] * (self.depth - 1), m]
        self._shapes: list[tuple[int, ...]] = [(after, before) for before, after in pairwise(ends)]
        if self._flat:
            self._shapes = [(len(self.singular_values),)] * self.depth
        self._given = None if isinstance(init, str) else given_layers(init, (m, n), self.depth, diagonal)

    @property
    def _flat(self) -> bool:
        """Whether layers are vectors while they are trained."""
        return self.diagonal or self._aligned

    def _check(self, width: int | None, measurements: Any) -> None:
        where = "DeepLinear"
        if self.init is not None and self.init not in INITS:
            raise DataError(f"{where}: init={self.init!r} is unknown. Use one of {', '.join(INITS)}.")
        if not 0 <= self.perturb < math.inf:
            raise DataError(f"{where}: perturb={self.perturb!r}, expected a number >= 0.")
        if self.diagonal and self.target.ndim != 1:
            raise DataError(f"{where}: a diagonal network has a vector as target. Give singular values.")
        if self.scale.ndim > 1:
            raise DataError(
                f"{where}: scale of shape {tuple(self.scale.shape)}. Give a number or a sequence."
            )
        still = self.init is not None and self.depth > 1 and not self.perturb
        if still and bool((self.scale == 0).any()):
            raise DataError(
                f"{where}: scale=0 is a saddle, which gradient descent never leaves. Give a scale > 0."
            )
        if width is not None and (self._flat or isinstance(width, bool) or width < 1):
            raise DataError(f"{where}: width={width!r}, expected none, or >= 1 for matrices not aligned.")
        if self.diagonal and measurements is not None:
            raise DataError(f"{where}: measurements are for matrices. Leave out diagonal or measurements.")

    def start(self) -> list[Tensor]:
        """Return the layers to begin with, axes of scale and seed (if sequences) first.

        Returns
        -------
        list of Tensor, shapes (..., w_l, w_{l-1}), or (..., d) of a diagonal network
        """
        layers = self._start()
        return self._embed(layers) if self._aligned else layers

    def _start(self) -> list[Tensor]:
        if self._given is not None or self.init is None:
            return list(self._given or [])
        return initial_layers(
            self._shapes,
            init=self.init,
            scale=self.scale,
            seed=self.seed,
            perturb=self.perturb,
            right=self._V if self.target.ndim == 2 else None,
            device=self.target.device,
        )

    def loss(self, product: Tensor) -> Tensor:
        """Return the loss (...) of products (..., m, n); of a diagonal network, (..., d)."""
        return self._loss(self.target.ndim == 1 and self.diagonal)[1](product)

    def fit(
        self,
        lr: float | Sequence[float] | Tensor,
        *,
        steps: int,
        momentum: float = 0.0,
        tol: float | None = None,
        record: Sequence[Record] = ("loss",),
        every: int = 1,
        last: int | None = None,
    ) -> Trajectory:
        """Train by gradient descent with constant learning rates, all settings in one run.

        Parameters
        ----------
        lr : float or sequence of float
            Learning rates.
        steps : int
            Largest number of steps.
        momentum : float, default 0
            Of the heavy-ball method.
        tol : float, optional
            A run ends when its loss is below.
        record : sequence of {"loss", "values", "product", "gap", "factors"}
            What to keep; see `Trajectory`.
        every : int, default 1
            Record every so many steps.
        last : int, optional
            Keep only so many of the latest records.

        Returns
        -------
        Trajectory
            A run that diverges ends, and says so in `diverged` and `steps`; nothing is raised.

        Raises
        ------
        DataError
            If an option is out of range or unknown.
        """
        rates = as_rates(lr, "DeepLinear.fit").to(self.target.device)
        self._check_options(rates, steps, momentum, record, every, last)
        first = self._start()
        axes = len(self._shapes[0])
        inner = first[0].shape[: first[0].ndim - axes]
        shape = (*rates.shape, *inner)
        layers = [W.expand(*rates.shape, *W.shape).reshape(-1, *W.shape[len(inner) :]) for W in first]
        lane = rates.reshape([*rates.shape, *[1] * len(inner)]).expand(shape)
        scale = self.scale if self._given is None else torch.tensor(math.nan)
        scale = scale.reshape([*scale.shape, *[1] * (len(inner) - scale.ndim)]).expand(shape)
        pull, loss = self._loss(self._flat)
        work = sum(W.numel() for W in layers) * (1 if self._flat else self.width)
        with torch.no_grad(), few_threads(work, small=SMALL):
            found = descend(
                layers,
                lr=lane.reshape(-1),
                steps=steps,
                pull=pull,
                loss=loss,
                records={name: self._measure(name, loss) for name in record},
                diagonal=self._flat,
                momentum=momentum,
                tol=tol,
                limit=LIMIT * float(self.singular_values.norm()),
                every=every,
                last=last,
            )
        last_layers = self._embed(found.layers) if self._aligned else found.layers

        def unbatch(values: Tensor) -> Tensor:
            return values.reshape((*shape, *values.shape[1:]))

        return Trajectory(
            layers=[unbatch(W) for W in last_layers],
            lr=lane.clone(),
            scale=scale.clone(),
            steps=unbatch(found.steps),
            diverged=unbatch(found.diverged),
            converged=unbatch(found.converged),
            times=torch.tensor(found.times),
            records={name: unbatch(values) for name, values in found.records.items()},
        )

    def _check_options(
        self, rates: Tensor, steps: int, momentum: float, record: Sequence[str], every: int, last: int | None
    ) -> None:
        where = "DeepLinear.fit"
        if rates.ndim > 1:
            raise DataError(f"{where}: lr of shape {tuple(rates.shape)}. Give a number or a sequence.")
        counts = {"steps": (steps, 0), "every": (every, 1), "last": (1 if last is None else last, 1)}
        for name, (value, least) in counts.items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise DataError(f"{where}: {name}={value!r}, expected an integer >= {least}.")
        if not 0 <= momentum < 1:
            raise DataError(f"{where}: momentum={momentum!r}, expected a number in [0, 1).")
        known = get_args(Record)
        if isinstance(record, str) or not set(record) <= set(known):
            raise DataError(f"{where}: record={record!r}, expected a sequence of {', '.join(known)}.")
        if "factors" in record and not self._flat:
            raise DataError(f"{where}: only aligned and diagonal networks have factors. Record values.")

    def _loss(self, flat: bool) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """From products to gradients in them, and to losses."""
        seen, s = self._seen, self.singular_values
        M = s if flat else self.target if self.target.ndim == 2 else s.diag()
        if seen.full:
            axes = tuple(range(-M.ndim, 0))
            return lambda P: P - M, lambda P: (P - M).square().sum(axes) / 2
        y = seen.of(M)
        return lambda P: seen.back(seen.of(P) - y), lambda P: (seen.of(P) - y).square().sum(-1) / 2

    def _measure(self, name: Record, loss: Callable[[Tensor], Tensor]) -> Measure:
        """How one of the records is measured."""
        U, V, flat = self._U, self._V, self._flat
        measures: dict[str, Measure] = {
            "loss": lambda layers, P: loss(P),
            "values": lambda layers, P: P if flat else (U * (P @ V)).sum(-2),
            "product": lambda layers, P: U @ (P[..., None] * V.mT) if self._aligned else P,
            "gap": _vector_gap if flat else _matrix_gap,
            "factors": lambda layers, P: torch.stack(layers, dim=-2),
        }
        return measures[name]

    def _embed(self, diagonals: list[Tensor]) -> list[Tensor]:
        """Turn diagonals in the singular basis into matrices in that of the target."""
        layers = [torch.diag_embed(d) for d in diagonals]
        if self.target.ndim == 2:
            layers[0] = layers[0] @ self._V.mT
            layers[-1] = self._U @ layers[-1]
        return layers


def _matrix_gap(layers: list[Tensor], P: Tensor) -> Tensor:
    finite = torch.stack([W.flatten(1).isfinite().all(1) for W in layers]).all(0)
    gap = balancing_gap([W.nan_to_num(0.0, 0.0, 0.0) for W in layers])
    return torch.where(finite, gap, torch.nan)


def _vector_gap(layers: list[Tensor], P: Tensor) -> Tensor:
    """Balancing gap of the matrices that diagonals stand for."""
    gaps = [(after.square() - before.square()).norm(dim=-1) for before, after in pairwise(layers)]
    return torch.stack(gaps).amax(0) if gaps else layers[0].new_zeros(layers[0].shape[0])
