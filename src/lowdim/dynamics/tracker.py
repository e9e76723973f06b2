"""The sharpness of a loss: its largest curvature, measured once or followed through a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from time import perf_counter
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from lowdim.algebra.seeds import gaussian
from lowdim.dynamics.curvature import Curvature, Method, hessian
from lowdim.dynamics.foreign import Foreign
from lowdim.dynamics.gauss_newton import SplitLoss, gauss_newton
from lowdim.dynamics.gradients import LossFn
from lowdim.dynamics.lanczos import Top, climb
from lowdim.dynamics.parameters import FlatParameters, Select
from lowdim.dynamics.thresholds import Stability, stability, trained_by
from lowdim.dynamics.undisturbed import Mode
from lowdim.errors import DataError, RankError

__all__ = ["Sharpness", "SharpnessTracker", "sharpness"]

Kind = Literal["hessian", "ggn"]


@dataclass(frozen=True, eq=False)
class Sharpness:
    """The top of the spectrum of a curvature.

    Parameters
    ----------
    value : float
        Largest eigenvalue, in loss per squared parameter; NaN if a product was not finite.
    values : Tensor, shape (count,)
        The largest eigenvalues.
    vectors : Tensor, shape (size, count)
        Their eigenvectors as flat vectors; of the local shard under FSDP.
    lowest : float
        Smallest Ritz value: a free indicator of negative curvature, not converged.
    products : int
        Products with the curvature that were spent.
    converged : bool
        Whether the last product added no more than the tolerance.
    increment : float
        What it added, relatively.
    residual : float
        ``||H v - value v||``.
    seconds : float
        Time spent.
    label : str
        "sharpness", or "preconditioned sharpness" (adaptive optimizers).
    threshold : float or None
        What the optimizer can bear, in the same unit.
    ratio : float or None
        ``value / threshold``: above 1 the training is unstable along the first eigenvector.
    raw : float or None
        Largest eigenvalue without the preconditioner, where it was asked for.
    rule : str
        The threshold as a formula.

    Examples
    --------
    >>> import torch
    >>> look = sharpness(torch.diag(torch.tensor([1.0, 5.0])))
    >>> round(look.value, 3), look.converged, look.ratio
    (5.0, True, None)
    """

    value: float
    values: Tensor
    vectors: Tensor
    lowest: float
    products: int
    converged: bool
    increment: float
    residual: float
    seconds: float
    label: str = "sharpness"
    threshold: float | None = None
    ratio: float | None = None
    raw: float | None = None
    rule: str = ""


class SharpnessTracker:
    """Follow the sharpness through a training at a few Hessian products per look.

    Each look starts from the eigenvector of the last one, with a little noise so that a new top direction is
    noticed; every `cold_every` looks from noise and the gradient, which is at hand, alone. With an optimizer
    the curvature is that of its preconditioned problem, and the result says how much of it the optimizer can
    bear.

    Parameters
    ----------
    model : nn.Module
        The network, with its DDP or FSDP2 wrapper where there is one.
    loss_fn : callable
        ``loss_fn()``, the scalar loss on a fixed batch, or ``loss_fn(batch)`` with `batches`; a
        :class:`SplitLoss` for ``operator="ggn"``.
    optimizer : torch.optim.Optimizer, optional
        The optimizer of the training, for the threshold.
    batches, weights, select, method, mode, strict
        As for :func:`hessian`.
    count : int
        How many eigenvalues.
    tol : float
        Stop when one more product adds no more than this, relatively.
    ratio_tol : float
        Stop as well when it adds no more than this part of the threshold: far below the edge of stability
        digits of the sharpness say little. 0 by default.
    operator : {"hessian", "ggn"}
        The Hessian, or the Gauss-Newton matrix.
    steps : int
        At most this many products per look.
    basis_size : int, optional
        At most this many vectors of the size of the network are held at a time before the iteration is
        restarted with the best ones: by default 32, and 8 for networks of more than 16 million parameters.
    cold_every : int
        Look without memory this often.
    raw : bool
        Also follow the sharpness without the preconditioner of an adaptive optimizer, at extra products.
    start : Tensor, shape (size,) or (size, k), optional
        Eigenvectors to begin with.
    seed : int
        Of start vectors.

    Raises
    ------
    DataError
        If an option is unknown, or there is nothing to look at.

    References
    ----------
    .. [1] J. Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability",
       ICLR 2021.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> scales = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> tracker = SharpnessTracker(layer, lambda: layer(scales).square().sum(), optimizer=optimizer)
    >>> look = tracker.measure()
    >>> round(look.value, 3), round(look.ratio, 3)
    (18.0, 0.9)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        batches: Sequence[Any] | None = None,
        weights: Sequence[float] | None = None,
        select: Select = None,
        count: int = 1,
        tol: float = 1e-3,
        ratio_tol: float = 0.0,
        operator: Kind = "hessian",
        method: Method = "auto",
        mode: Mode = "eval",
        steps: int = 30,
        basis_size: int | None = None,
        cold_every: int = 20,
        raw: bool = False,
        strict: bool = False,
        start: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if operator not in get_args(Kind):
            raise DataError(f"sharpness: operator={operator!r}, expected 'hessian' or 'ggn'.")
        _check(count=count, tol=tol, steps=steps, cold_every=cold_every, ratio_tol=ratio_tol)
        if operator == "ggn" and not isinstance(loss_fn, SplitLoss):
            raise DataError("sharpness: operator='ggn' needs loss_fn=SplitLoss(outputs, criterion).")
        if operator == "ggn" and batches is not None:
            raise DataError("sharpness: operator='ggn' takes one batch, in the outputs of its SplitLoss.")
        self._select = select
        self.parameters = FlatParameters.of(model, select=select, among=trained_by(optimizer))
        if count > self.parameters.size and not self.parameters.sharded:
            raise RankError(f"sharpness: count={count} of {self.parameters.size} eigenvalues is impossible.")
        self.optimizer = optimizer
        self._model, self._loss_fn = model, loss_fn
        self._open: dict[str, Any] = {
            "batches": batches,
            "weights": weights,
            "method": method,
            "strict": strict,
        }
        self._operator, self._mode, self._raw, self._seed = operator, mode, raw, seed
        self._climb: dict[str, Any] = {"count": count, "steps": steps, "basis_size": basis_size}
        self._tol, self._ratio_tol = tol, ratio_tol
        self._cold_every = cold_every
        self._looks, self._checked = 0, False
        self._last: dict[str, Tensor] = {} if start is None else {"scaled": start}

    def measure(self) -> Sharpness:
        """Look once.

        Returns
        -------
        Sharpness

        Raises
        ------
        DataError
            If the loss cannot be used, or the optimizer has no known threshold.
        """
        began = perf_counter()
        self._follow()
        limit = None if self.optimizer is None else stability(self.optimizer, self.parameters)
        try:
            with self._opened() as curvature:
                self._checked = True
                floor = 0.0 if limit is None else self._ratio_tol * limit.threshold
                top = self._look("scaled", _scaled(curvature, limit), floor=floor)
                raw = None
                products = top.products
                if self._raw and top.finite and limit is not None and limit.scale is not None:
                    plain = self._look("raw", curvature)
                    raw, products = float(plain.values[0]), products + plain.products
        finally:
            # Also where this process alone failed: the start vectors of all are made from it.
            self._looks += 1
        value = float(top.values[0])
        return Sharpness(
            value=value,
            values=top.values,
            vectors=top.vectors,
            lowest=float(top.ritz[0]),
            products=products,
            converged=top.converged,
            increment=top.increment,
            residual=top.residual,
            seconds=perf_counter() - began,
            label="sharpness" if limit is None else limit.label,
            threshold=None if limit is None else limit.threshold,
            ratio=None if limit is None else value / limit.threshold,
            raw=raw,
            rule="" if limit is None else limit.rule,
        )

    def _follow(self) -> None:
        """Look at what is trained now: layers may have been frozen or thawed since."""
        now = FlatParameters.of(
            self._model, select=self._select, among=trained_by(self.optimizer), quiet=True
        )
        if not now.same(self.parameters):
            self.parameters = now
            self._last = {}

    @contextmanager
    def _opened(self) -> Iterator[Curvature]:
        # That the loss is the same each time is looked at once; it costs two evaluations.
        shared: dict[str, Any] = {
            "parameters": self.parameters,
            "mode": self._mode,
            "check": not self._checked,
            "seed": self._seed,
        }
        if self._operator == "ggn":
            with gauss_newton(self._model, cast(SplitLoss, self._loss_fn), **shared) as curvature:
                yield curvature
        else:
            with hessian(self._model, self._loss_fn, **self._open, **shared) as curvature:
                yield curvature

    def _look(self, name: str, curvature: Any, *, floor: float = 0.0) -> Top:
        cold = self._looks > 0 and self._looks % self._cold_every == 0
        last = None if cold else self._last.get(name)
        start = _start(last, curvature, seed=curvature.layout.seed(self._seed + 7919 * self._looks))
        # A plateau is likelier on the way up from noise: a third of the tolerance halves the misses there.
        part = 1.0 if last is not None else 1 / 3
        top = climb(curvature, start, tol=part * self._tol, floor=part * floor, **self._climb)
        if top.finite:
            self._last[name] = top.vectors
        return top


def sharpness(
    model: Any,
    loss_fn: LossFn | None = None,
    **options: Any,
) -> Sharpness:
    """Measure the sharpness once.

    Parameters
    ----------
    model : nn.Module, or an object with ``shape`` and ``@``
        A network; or a curvature of another library, such as those of curvlinops.
    loss_fn : callable, optional
        The loss of the network on a fixed batch.
    **options
        Those of :class:`SharpnessTracker`; for an object with ``@`` only `count`, `tol`, `steps`,
        `basis_size`, `start` and `seed`.

    Returns
    -------
    Sharpness

    Raises
    ------
    DataError
        If the arguments do not fit together.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(3, 1, bias=False)
    >>> round(sharpness(layer, lambda: layer(torch.eye(3)).square().sum()).value, 4)
    2.0
    >>> round(sharpness(torch.diag(torch.tensor([1.0, 5.0]))).value, 4)
    5.0
    """
    if isinstance(model, nn.Module):
        if loss_fn is None:
            raise DataError(
                "sharpness: loss_fn is missing: a function that returns the loss on a fixed batch."
            )
        return SharpnessTracker(model, loss_fn, **options).measure()
    if loss_fn is not None or not (hasattr(model, "shape") and hasattr(model, "__matmul__")):
        raise DataError(
            f"sharpness: got a {type(model).__name__}, expected a torch.nn.Module and its loss, or one "
            f"object with "
            f"shape and @ (a matrix, a curvature of curvlinops)."
        )
    return _of_map(model, **options)


def _of_map(
    given: Any,
    *,
    count: int = 1,
    tol: float = 1e-3,
    steps: int = 30,
    basis_size: int | None = None,
    start: Tensor | None = None,
    seed: int = 0,
) -> Sharpness:
    began = perf_counter()
    _check(count=count, tol=tol, steps=steps, cold_every=1)
    if len(given.shape) != 2 or given.shape[0] != given.shape[1] or count > given.shape[0]:
        raise RankError(
            f"sharpness: {count} eigenvalues of a map of shape {tuple(given.shape)}, expected a square one, "
            f"at least "
            f"as large."
        )
    curvature = Foreign(given)
    first = _start(start, curvature, seed=seed)
    top = climb(curvature, first, count=count, tol=tol, steps=steps, basis_size=basis_size)
    return Sharpness(
        value=float(top.values[0]),
        values=top.values,
        vectors=top.vectors,
        lowest=float(top.ritz[0]),
        products=top.products,
        converged=top.converged,
        increment=top.increment,
        residual=top.residual,
        seconds=perf_counter() - began,
    )


class _Scaled:
    """``D^(1/2) (H + decay) D^(1/2)``: what an optimizer with steps D sees of the curvature H."""

    def __init__(self, curvature: Curvature, limit: Stability) -> None:
        self._curvature = curvature
        self._scale = 1.0 if limit.scale is None else limit.scale
        self._decay = limit.decay
        self._plain = isinstance(limit.decay, float) and limit.decay == 0
        self.layout, self.shape = curvature.layout, curvature.shape
        self.dtype, self.device = curvature.dtype, curvature.device
        self._inner: Tensor | None = None

    def gradient(self) -> Tensor | None:
        known = self._curvature.gradient()
        return None if known is None else self._scale * known

    def __matmul__(self, vector: Tensor) -> Tensor:
        # Into the same memory each time: a new vector of a large network takes longer than the product.
        inner = self._inner = torch.mul(vector, self._scale, out=self._inner)
        image = self._curvature @ inner
        if not self._plain:
            image += inner.mul_(self._decay)
        image *= self._scale
        return image


def _scaled(curvature: Curvature, limit: Stability | None) -> Any:
    if limit is None or (limit.scale is None and isinstance(limit.decay, float) and limit.decay == 0):
        return curvature
    return _Scaled(curvature, limit)


def _start(last: Tensor | None, curvature: Any, *, seed: int) -> Tensor:
    """Return one vector: the sum of the last eigenvectors and a little of everything, or all of it."""
    size = curvature.shape[0]
    noise = gaussian((size,), seed=seed, dtype=curvature.dtype, device=curvature.device)
    if last is None:
        return noise.add_(_gradient(curvature))
    last = last.detach().to(noise)
    last = last[:, None] if last.ndim == 1 else last
    if last.ndim != 2 or last.shape[0] != size:
        raise DataError(f"sharpness: start has shape {tuple(last.shape)}, expected ({size},) or ({size}, k).")
    # Under FSDP the length of the whole vector counts, not that of the shard.
    length = float(curvature.layout.total(torch.tensor(float(size), device=noise.device)))
    noise *= 0.02 * sqrt(last.shape[1] / length)
    for column in last.unbind(1):
        noise += column
    return noise


def _gradient(curvature: Any) -> Tensor | float:
    """Return the gradient, which is rich in the top directions, at the length of the noise."""
    known = getattr(curvature, "gradient", lambda: None)()
    if known is None:
        return 0.0
    squares = curvature.layout.total(torch.stack([known.square().sum(), torch.ones_like(known).sum()]))
    norm, length = (float(value) ** 0.5 for value in squares)
    return known * (length / norm) if norm > 0 and isfinite(norm) else 0.0


def _check(*, count: int, tol: float, steps: int, cold_every: int, ratio_tol: float = 0.0) -> None:
    for name, value in (("count", count), ("steps", steps), ("cold_every", cold_every)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataError(f"sharpness: {name}={value!r}, expected an integer.")
    if count < 1:
        raise RankError(f"sharpness: count={count}, expected at least 1.")
    if not 0 < tol < inf:
        raise DataError(f"sharpness: tol={tol}, expected a positive relative increment such as 1e-3.")
    if not 0 <= ratio_tol < inf:
        raise DataError(
            f"sharpness: ratio_tol={ratio_tol}, expected a part of the threshold such as 0.01, or 0."
        )
    if steps < count + 1:
        raise DataError(
            f"sharpness: steps={steps}, expected at least {count + 1}: {count} values and one to compare."
        )
    if cold_every < 1:
        raise DataError(f"sharpness: cold_every={cold_every}, expected at least 1.")
