"""Estimate: how flat the loss of any network is, by products with its Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lowdim.algebra.spectrum import estimate_trace
from lowdim.dynamics.curvature import Curvature, Method, hessian
from lowdim.dynamics.gradients import LossFn
from lowdim.dynamics.parameters import Select
from lowdim.dynamics.shards import local
from lowdim.dynamics.tracker import sharpness
from lowdim.dynamics.undisturbed import Mode
from lowdim.errors import DataError

__all__ = ["FlatnessEstimate", "estimate"]


@dataclass(frozen=True)
class FlatnessEstimate:
    """Estimates of the Hessian of a loss; smaller is flatter.

    Parameters
    ----------
    sharpness : float or None
        Largest eigenvalue; of D H D with ``D = diag(abs(weights))`` if `relative`.
    trace : float or None
        Sum of the eigenvalues, of the same matrix.
    trace_error : float or None
        Standard error of `trace`.
    relative : bool
        Whether weights are taken for the unit of length. Layers of ReLU networks can be scaled against
        each other without changing the function; the plain measures then change, these do not.
    products : int
        Products with the Hessian.

    Examples
    --------
    >>> FlatnessEstimate(2.0, 6.0, 0.1, False, 30).trace
    6.0
    """

    sharpness: float | None
    trace: float | None
    trace_error: float | None
    relative: bool
    products: int


def estimate(
    model: nn.Module,
    loss_fn: LossFn,
    *,
    what: Sequence[str] = ("sharpness", "trace"),
    relative: bool = False,
    products: int = 60,
    tol: float = 1e-3,
    batches: Sequence[Any] | None = None,
    weights: Sequence[float] | None = None,
    select: Select = None,
    method: Method = "auto",
    mode: Mode = "eval",
    seed: int = 0,
) -> FlatnessEstimate:
    """Estimate sharpness and trace of the Hessian where a network is.

    Parameters
    ----------
    model : nn.Module
        The network, whole in this process.
    loss_fn : callable
        ``loss_fn()``, the scalar loss on a batch that stays the same, or ``loss_fn(batch)`` with `batches`.
    what : sequence of {"sharpness", "trace"}
        What is wanted.
    relative : bool
        Measure D H D with ``D = diag(abs(weights))``: adaptive sharpness, which scaling layers of a ReLU
        network against each other does not change.
    products : int
        Products that the trace may cost (Hutch++).
    tol : float
        Of the sharpness; see :class:`lowdim.dynamics.SharpnessTracker`.
    batches, weights, select, method, mode
        As for :func:`lowdim.dynamics.hessian`.
    seed : int
        Of random vectors.

    Returns
    -------
    FlatnessEstimate

    Raises
    ------
    DataError
        If `what` names something else, the network is in shards, or the loss cannot be used.

    References
    ----------
    .. [1] J. Kwon, J. Kim, H. Park, I. Choi, "ASAM: adaptive sharpness-aware minimization", ICML 2021.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(3, 1, bias=False)
    >>> found = estimate(layer, lambda: layer(torch.eye(3)).square().sum())
    >>> round(found.sharpness, 3), round(found.trace, 3)
    (2.0, 6.0)
    """
    unknown = sorted(set(what) - {"sharpness", "trace"})
    if unknown or not what or isinstance(what, str):
        raise DataError(f"estimate: what={what!r}, expected some of 'sharpness', 'trace', in a list.")
    opened = hessian(
        *(model, loss_fn),
        batches=batches,
        weights=weights,
        select=select,
        method=method,
        mode=mode,
        seed=seed,
    )
    with opened as H:
        if H.layout.group is not None:
            raise DataError(
                "estimate: the network is in several processes. Use SharpnessTracker, or one process."
            )
        seen = _Relative(H) if relative else H
        top = sharpness(seen, tol=tol, seed=seed).value if "sharpness" in what else None
        total = estimate_trace(seen, products=products, seed=seed) if "trace" in what else None
        return FlatnessEstimate(
            sharpness=top,
            trace=None if total is None else total.value,
            trace_error=None if total is None else total.standard_error,
            relative=relative,
            products=H.products,
        )


class _Relative:
    """D H D with ``D = diag(abs(weights))``."""

    def __init__(self, curvature: Curvature) -> None:
        self._curvature = curvature
        parameters = curvature.parameters
        self._size = parameters.flat([local(tensor.data).abs() for tensor in parameters.tensors])
        self.shape, self.dtype, self.device = curvature.shape, curvature.dtype, curvature.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        size = self._size if vectors.ndim == 1 else self._size[:, None]
        return size * (self._curvature @ (size * vectors))
