"""The generalized Gauss-Newton matrix: curvature of the loss through a linearized network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdim.dynamics.curvature import Curvature
from lowdim.dynamics.distributed import Layout
from lowdim.dynamics.gradients import Losses
from lowdim.dynamics.parameters import FlatParameters, Select
from lowdim.dynamics.undisturbed import Mode, reseed, undisturbed
from lowdim.errors import DataError, ShapeError

__all__ = ["CrossEntropy", "SplitLoss", "gauss_newton"]


@dataclass(frozen=True, eq=False)
class SplitLoss:
    """A loss in its two parts: the outputs of the network, and what they cost.

    Called without arguments it returns the loss, so it stands wherever a `loss_fn` does.

    Parameters
    ----------
    outputs : callable
        ``outputs()`` returns the outputs of the network on a fixed batch, a tensor.
    criterion : callable
        ``criterion(outputs)`` returns the scalar loss. A `CrossEntropy` multiplies with its second
        derivative without building a graph, which matters for large vocabularies.

    Examples
    --------
    >>> import torch
    >>> layer, x = torch.nn.Linear(3, 2), torch.ones(4, 3)
    >>> loss = SplitLoss(lambda: layer(x), CrossEntropy(torch.tensor([0, 1, 0, 1])))
    >>> loss().shape
    torch.Size([])
    """

    outputs: Callable[[], Tensor]
    criterion: Callable[[Tensor], Tensor]

    def __call__(self) -> Tensor:
        """Return the loss."""
        return self.criterion(self.outputs())


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Mean cross entropy of logits, with the product with its Hessian in closed form.

    Parameters
    ----------
    targets : Tensor of int64, shape (...)
        Classes; -100 where nothing is asked.

    Raises
    ------
    ShapeError
        When called, if logits of shape (..., classes) do not fit.

    Examples
    --------
    >>> import torch
    >>> CrossEntropy(torch.tensor([0]))(torch.zeros(1, 2))
    tensor(0.6931)
    """

    targets: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the loss of logits (..., classes)."""
        if logits.shape[:-1] != self.targets.shape:
            raise ShapeError(
                f"CrossEntropy: logits of shape {tuple(logits.shape)} for targets of shape "
                f"{tuple(self.targets.shape)}, expected {(*self.targets.shape, 'classes')}."
            )
        return functional.cross_entropy(logits.flatten(0, -2), self.targets.flatten())

    def curvature(self, logits: Tensor, direction: Tensor) -> Tensor:
        """Multiply the Hessian by the logits with a direction: ``(p * u - p <p, u>) / n``.

        Parameters
        ----------
        logits : Tensor, shape (..., classes)
            Where.
        direction : Tensor, shape (..., classes)
            u.

        Returns
        -------
        Tensor, shape (..., classes)
        """
        asked = (self.targets != -100).unsqueeze(-1)
        p = logits.softmax(-1)
        weighted = p * direction
        return (weighted - p * weighted.sum(-1, keepdim=True)) * asked / asked.sum()


@contextmanager
def gauss_newton(
    model: nn.Module,
    loss: SplitLoss,
    *,
    select: Select = None,
    parameters: FlatParameters | None = None,
    mode: Mode = "eval",
    check: bool = True,
    seed: int = 0,
) -> Iterator[Curvature]:
    """Open the Gauss-Newton matrix ``J^T H_out J`` of a loss on a fixed batch.

    Positive semidefinite for convex criteria, and the Fisher matrix for cross entropy. J is the
    derivative of the outputs by the parameters, ``H_out`` that of the criterion, twice, by the outputs.

    Parameters
    ----------
    model : nn.Module
        The network.
    loss : SplitLoss
        Outputs and criterion.
    select, parameters, mode, check, seed
        As for :func:`~lowdim.dynamics.hessian`.

    Yields
    ------
    Curvature

    Raises
    ------
    DataError
        If the loss is not split, or the network is sharded.

    References
    ----------
    .. [1] N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent",
       Neural Computation 14, 2002.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> loss = SplitLoss(lambda: layer(torch.eye(2)), lambda z: z.square().sum())
    >>> with gauss_newton(layer, loss) as G:
    ...     G @ torch.tensor([1.0, 3.0])
    tensor([2., 6.])
    """
    if not isinstance(loss, SplitLoss):
        raise DataError(
            f"gauss_newton: got a {type(loss).__name__}, expected SplitLoss(outputs, criterion): the matrix "
            f"needs "
            f"to know where the network ends."
        )
    parameters = parameters or FlatParameters.of(model, select=select)
    if parameters.sharded:
        raise DataError("gauss_newton: the network is sharded (FSDP). Use operator='hessian'.")
    layout = Layout.of(model, parameters)
    with undisturbed(model, mode=mode), torch.enable_grad():
        losses = Losses(loss, parameters, seed=seed)
        with layout.together(parameters.device):
            if check:
                losses.check()
            reseed(seed)
            product = _Product(loss, parameters)
        yield Curvature(product, parameters, layout)


class _Product:
    """J v by differentiating ``u -> J^T u``, then H_out, then J^T: one forward pass for all products."""

    def __init__(self, loss: SplitLoss, parameters: FlatParameters) -> None:
        self._parameters = parameters
        self._outputs = loss.outputs()
        if not isinstance(self._outputs, Tensor):
            raise DataError(
                f"gauss_newton: outputs() returned a {type(self._outputs).__name__}, expected one tensor. "
                f"Pick it "
                f"there, such as model(**batch).logits."
            )
        self._dummy = torch.zeros_like(self._outputs, requires_grad=True)
        self._pulled = torch.autograd.grad(
            self._outputs, parameters.tensors, self._dummy, create_graph=True, allow_unused=True
        )
        self._hessian = _output_hessian(loss.criterion, self._outputs.detach())

    def __call__(self, vector: Tensor) -> Tensor:
        pairs = [
            (pulled, direction)
            for pulled, direction in zip(self._pulled, self._parameters.split(vector), strict=True)
            if pulled is not None
        ]
        (pushed,) = torch.autograd.grad(
            [pulled for pulled, _ in pairs],
            self._dummy,
            [direction for _, direction in pairs],
            retain_graph=True,
        )
        weighted = self._hessian(pushed)
        found = torch.autograd.grad(
            self._outputs, self._parameters.tensors, weighted, retain_graph=True, allow_unused=True
        )
        return self._parameters.flat(found)


def _output_hessian(criterion: Any, outputs: Tensor) -> Callable[[Tensor], Tensor]:
    if hasattr(criterion, "curvature"):
        return lambda direction: criterion.curvature(outputs, direction)
    at = outputs.requires_grad_()
    (slope,) = torch.autograd.grad(criterion(at), at, create_graph=True)

    def multiply(direction: Tensor) -> Tensor:
        (bent,) = torch.autograd.grad(slope, at, direction, retain_graph=True, allow_unused=True)
        return torch.zeros_like(direction) if bent is None else bent

    return multiply
