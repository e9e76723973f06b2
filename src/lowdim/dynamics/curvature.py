"""Curvature of a loss as a map that can only be multiplied with: Hessian and Gauss-Newton matrix."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from lowdim.dynamics.distributed import Layout
from lowdim.dynamics.gradients import Losses, LossFn
from lowdim.dynamics.parameters import FlatParameters, Select
from lowdim.dynamics.shards import local
from lowdim.dynamics.undisturbed import Mode, undisturbed
from lowdim.errors import DataError, LowdimWarning, ShapeError

__all__ = ["Curvature", "Method", "hessian"]

Method = Literal["auto", "reuse", "recompute", "difference"]
"""How a Hessian is multiplied with a vector; see :func:`hessian`."""


_COARSE = (
    "hessian: differences of gradients are lost in the rounding of parameters in half precision. Keep the "
    "parameters in float32 (autocast computes in half), or use method='reuse' on a network with second "
    "derivatives."
)


class Product(Protocol):
    """A way of multiplying."""

    def __call__(self, vector: Tensor) -> Tensor:
        """Map (size,) to (size,)."""
        ...


class Curvature:
    """A symmetric map on flat parameter vectors, known by its products.

    `lowdim.algebra.eigenpairs` and whatever takes an object with ``shape`` and
    ``@`` accepts it. It lives as long as the ``with`` block that made it.

    Parameters
    ----------
    product : callable
        ``(size,) -> (size,)``, on one process.
    parameters : FlatParameters
        What the vectors are made of.
    layout : Layout
        How the vectors lie over the processes.
    gradient : callable, optional
        Returns the flat gradient of this process where it is at hand without another pass.
    fallback : callable, optional
        Makes another `product` when the first one meets an operation without a second derivative.

    Examples
    --------
    >>> import torch
    >>> from lowdim.algebra.spectrum import eigenpairs
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> with hessian(layer, lambda: (layer.weight**2).sum()) as H:
    ...     H.shape, eigenpairs(H, seed=0).values.round(decimals=3)
    ((2, 2), tensor([2.]))
    """

    def __init__(
        self,
        product: Product,
        parameters: FlatParameters,
        layout: Layout,
        *,
        gradient: Callable[[], Tensor] | None = None,
        fallback: Callable[[RuntimeError], Product] | None = None,
    ) -> None:
        self._product = product
        self._gradient = gradient
        self._fallback = fallback
        self.parameters = parameters
        self.layout = layout
        self.shape = (parameters.size, parameters.size)
        self.dtype = parameters.dtype
        self.device = parameters.device
        self.products = 0

    def gradient(self) -> Tensor | None:
        """Return the gradient of the loss (size,) if it costs nothing, else None."""
        if self._gradient is None:
            return None
        known = None
        try:
            known = self._gradient()
        except Exception:  # such as no graph for a second derivative: the first product will tell
            self._give_up()
        return None if known is None else self.layout.mean(known)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply with one vector (size,) or with the columns of (size, k)."""
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.shape[0]:
            raise ShapeError(
                f"Curvature: got vectors of shape {tuple(vectors.shape)}, expected ({self.shape[0]},) or "
                f"({self.shape[0]}, k)."
            )
        if vectors.ndim == 1:
            return self._one(vectors)
        return torch.stack([self._one(column) for column in vectors.unbind(1)], dim=1)

    def _one(self, vector: Tensor) -> Tensor:
        try:
            image = self._local(vector.detach().to(dtype=self.dtype, device=self.device))
        except Exception:
            self._give_up()
            raise
        self.products += 1
        return self.layout.mean(image)

    def _local(self, vector: Tensor) -> Tensor:
        """Multiply with the curvature of the data of this process."""
        try:
            image = self._product(vector)
        except RuntimeError as error:
            if self._fallback is None or isinstance(error, torch.OutOfMemoryError):
                raise
            self._product, self._fallback = self._fallback(error), None
            image = self._product(vector)
        return image.detach()

    def _give_up(self) -> None:
        """Tell the other replicas to stop, which wait for a vector of this one: by numbers that are none."""
        if self.layout.group is not None:
            self.layout.mean(torch.full(self.shape[:1], float("nan"), dtype=self.dtype, device=self.device))


@contextmanager
def hessian(
    model: nn.Module,
    loss_fn: LossFn,
    *,
    batches: Sequence[Any] | None = None,
    weights: Sequence[float] | None = None,
    select: Select = None,
    parameters: FlatParameters | None = None,
    method: Method = "auto",
    mode: Mode = "eval",
    strict: bool = False,
    check: bool = True,
    seed: int = 0,
) -> Iterator[Curvature]:
    """Open the Hessian of a loss on a batch that does not change.

    Nothing of the network or the training is changed when the block is left:
    gradients, buffers, training flags, random numbers and parameters are as before.

    Parameters
    ----------
    model : nn.Module
        The network, with its DDP or FSDP2 wrapper where there is one.
    loss_fn : callable
        ``loss_fn()`` returns the scalar loss; with `batches`, ``loss_fn(batch)``.
    batches : sequence, optional
        Parts of the batch, looked at one after another to save memory.
    weights : sequence of float, optional
        Of the parts, whose losses are means; by default the length of the first tensor of each.
    select : str or callable, optional
        Only parameters whose name has this regular expression in it, or passes this function.
    parameters : FlatParameters, optional
        In place of `select`.
    method : {"auto", "reuse", "recompute", "difference"}
        "reuse" differentiates the gradient, whose graph is built once (about one gradient; a product costs
        1.5 to 2). "recompute" builds it for every product, part by part. "difference" takes central
        differences of two gradients, for networks without a second derivative (fused kernels, compiled
        networks, functions of others) and for shards. "auto" is "difference" for shards, "recompute" with
        `batches`, and otherwise "reuse", which turns into "difference" where it fails.
    mode : {"eval", "batch-norm", "train"}
        Dropout off and stored statistics; statistics of the batch; or all as in training, with the same
        random numbers in each evaluation.
    strict : bool
        Raise where "auto" would turn to differences.
    check : bool
        Evaluate the loss twice first, without a graph, to see that it stays the same.
    seed : int
        Of the random numbers during an evaluation.

    Yields
    ------
    Curvature
        The map, in units of loss per squared parameter.

    Raises
    ------
    DataError
        If there is nothing to differentiate, the loss is no finite scalar, or differs between two
        evaluations.

    References
    ----------
    .. [1] B. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> with hessian(layer, lambda: layer(torch.eye(2)).square().sum()) as H:
    ...     H @ torch.tensor([1.0, 3.0])
    tensor([2., 6.])
    """
    if method not in get_args(Method):
        raise DataError(f"hessian: method={method!r}, expected one of {', '.join(get_args(Method))}.")
    parameters = parameters or FlatParameters.of(model, select=select)
    layout = Layout.of(model, parameters)
    with undisturbed(model, mode=mode), torch.enable_grad():
        losses = Losses(loss_fn, parameters, batches=batches, weights=weights, seed=seed)
        with layout.together(parameters.device):
            if check:
                losses.check()
        chosen = method
        if method == "auto":
            chosen = "difference" if parameters.sharded else "recompute" if losses.several else "reuse"
        if parameters.sharded and chosen != "difference":
            raise DataError(f"hessian: method={method!r} cannot cross the shards of FSDP. Use 'difference'.")
        if chosen == "difference" and parameters.coarse:
            raise DataError(_COARSE)
        differences = _Difference(losses, parameters, layout)
        if chosen == "difference":
            yield Curvature(differences, parameters, layout)
            return

        def fall_back(error: RuntimeError) -> Product:
            if parameters.coarse:
                raise DataError(f"{_COARSE} (A second derivative failed: {_first_line(error)})") from error
            warnings.warn(
                f"hessian: no second derivative here ({_first_line(error)}); differences of gradients are "
                f"taken "
                f"instead, exact to about three digits. method='difference' says so without this warning.",
                LowdimWarning,
                stacklevel=2,
            )
            return differences

        fallback = fall_back if method == "auto" and not strict else None
        if chosen == "recompute":
            parts = _Recompute(losses, parameters, trusting=method != "auto")
            yield Curvature(parts, parameters, layout, fallback=fallback)
            return
        reuse = _Reuse(losses, parameters, trusting=method != "auto")
        yield Curvature(reuse, parameters, layout, gradient=reuse.gradient, fallback=fallback)


class _Reuse:
    """Differentiate the gradient, of which the graph is built once."""

    def __init__(self, losses: Losses, parameters: FlatParameters, *, trusting: bool) -> None:
        self._losses = losses
        self._parameters = parameters
        self._trusting = trusting
        self._built: list[Tensor] | None = None

    def _graph(self) -> list[Tensor]:
        if self._built is None:
            self._built = self._losses.gradient(
                self._losses.parts[0], create_graph=True, trusting=self._trusting
            )
        return self._built

    def gradient(self) -> Tensor:
        """Return the flat gradient."""
        return self._parameters.flat(self._graph())

    def __call__(self, vector: Tensor) -> Tensor:
        return _second(self._graph(), self._parameters, vector, retain=True)


class _Recompute:
    """Build and differentiate the gradient of one part after another."""

    def __init__(self, losses: Losses, parameters: FlatParameters, *, trusting: bool) -> None:
        self._losses = losses
        self._parameters = parameters
        self._trusting = trusting

    def __call__(self, vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for part in self._losses.parts:
            gradient = self._losses.gradient(part, create_graph=True, trusting=self._trusting)
            total += part.weight * _second(gradient, self._parameters, vector, retain=False)
        return total


def _second(
    gradient: Sequence[Tensor], parameters: FlatParameters, vector: Tensor, *, retain: bool
) -> Tensor:
    """Return the gradient of <gradient, vector>."""
    pairs = [
        (part, direction)
        for part, direction in zip(gradient, parameters.split(vector), strict=True)
        if part.requires_grad
    ]
    if not pairs:  # a loss that is linear in the parameters
        return torch.zeros_like(vector)
    found = torch.autograd.grad(
        [part for part, _ in pairs],
        parameters.tensors,
        [direction for _, direction in pairs],
        retain_graph=retain,
        allow_unused=True,
    )
    return parameters.flat(found)


class _Difference:
    """Central differences of gradients; the parameters are moved and put back to the bit."""

    def __init__(self, losses: Losses, parameters: FlatParameters, layout: Layout) -> None:
        self._losses = losses
        self._parameters = parameters
        self._layout = layout

    def __call__(self, vector: Tensor) -> Tensor:
        held = [local(tensor.data) for tensor in self._parameters.tensors]
        before = [tensor.clone() for tensor in held]
        directions = self._parameters.split(vector)
        step = self._step(before, directions)
        if step == 0:
            return torch.zeros_like(vector)
        try:
            sides = []
            for sign in (1, -1):
                for tensor, origin, direction in zip(held, before, directions, strict=True):
                    tensor.copy_(origin + sign * step * direction)
                sides.append(self._losses.whole_gradient())
        finally:
            for tensor, origin in zip(held, before, strict=True):
                tensor.copy_(origin)
        return (sides[0] - sides[1]) / (2 * step)

    def _step(self, weights: Sequence[Tensor], directions: Sequence[Tensor]) -> float:
        """Return the step that moves the tensors by a thousandth of their sizes; 0 for a zero direction.

        Each is measured by its own size, and one near zero by a third of what is usual: embeddings may be
        a hundred times as large as the layers that they feed, which a step of their size carries too far.
        """
        parts = [part.double().square().sum() for part in (*weights, *directions)]
        sizes, moves = self._layout.total(torch.stack(parts)).cpu().tensor_split(2)
        counts = torch.tensor([tensor.numel() for tensor in self._parameters.tensors], dtype=torch.float64)
        squares = (sizes / counts)[sizes > 0]  # the mean square of a weight, by tensors
        usual = squares.median() if len(squares) else 1 / counts.sum()
        relative = (moves / (sizes + 0.1 * usual * counts)).sum()
        return float(1e-3 / relative.sqrt()) if relative > 0 else 0.0


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
