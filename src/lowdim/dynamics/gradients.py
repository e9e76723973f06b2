"""The loss on a batch that does not change, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowdim.dynamics.parameters import FlatParameters
from lowdim.dynamics.shards import local
from lowdim.dynamics.undisturbed import reseed
from lowdim.errors import DataError

__all__ = ["LossFn", "Losses", "Part"]

LossFn = Callable[..., Tensor]
"""``loss_fn()`` or, with batches, ``loss_fn(batch)``: a scalar with a graph."""


@dataclass(frozen=True)
class Part:
    """One part of the batch.

    Parameters
    ----------
    evaluate : callable
        Returns the loss of the part.
    weight : float
        Its share of the whole loss; the weights sum to one.
    """

    evaluate: Callable[[], Any]
    weight: float


class Losses:
    """The loss, in one part or several, evaluated with the same random numbers each time.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn()`` or ``loss_fn(batch)``.
    parameters : FlatParameters
        What is differentiated by.
    batches : sequence, optional
        The parts.
    weights : sequence of float, optional
        Of the parts; by default the number of samples, read off the first tensor of each.
    seed : int
        Of the random numbers.

    Raises
    ------
    DataError
        If the parts or weights make no sense.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        parameters: FlatParameters,
        *,
        batches: Sequence[Any] | None = None,
        weights: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        if not callable(loss_fn):
            raise DataError(
                f"dynamics: loss_fn is a {type(loss_fn).__name__}, expected a function that returns the "
                f"loss on a "
                f"fixed batch, such as lambda: criterion(model(x), y)."
            )
        self._parameters = parameters
        self._seed = seed
        self.several = batches is not None
        if batches is None:
            if weights is not None:
                raise DataError("dynamics: weights are given without batches. Give both, or none.")
            self.parts = [Part(loss_fn, 1.0)]
            return
        batches = list(batches)
        shares = _shares(batches, weights)
        self.parts = [
            Part(lambda batch=batch: loss_fn(batch), share)  # type: ignore[misc]
            for batch, share in zip(batches, shares, strict=True)
        ]

    def value(self, part: Part) -> Tensor:
        """Evaluate the loss of a part, as a scalar with a graph.

        Parameters
        ----------
        part : Part
            One of `parts`.

        Returns
        -------
        Tensor, shape ()

        Raises
        ------
        DataError
            If it is no scalar, or does not depend on the parameters.
        """
        reseed(self._seed)
        loss = part.evaluate()
        loss = getattr(loss, "loss", loss)  # the outputs of transformers
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            got = (
                f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            )
            raise DataError(
                f"dynamics: loss_fn returned {got}, expected a real scalar tensor. Take its mean."
            )
        if not loss.requires_grad:
            raise DataError(
                "dynamics: the loss of loss_fn has no graph. Do not use torch.no_grad() or .item() in it."
            )
        return loss.reshape(())

    def check(self) -> float:
        """Evaluate everything twice: it must be finite, and the same.

        Returns
        -------
        float
            The loss.

        Raises
        ------
        DataError
            If it is not.
        """
        with torch.no_grad():
            first, second = (self._sum() for _ in range(2))
        if not math.isfinite(first):
            raise DataError(
                f"dynamics: the loss is {first}. Training has diverged, or the batch has such numbers."
            )
        if abs(first - second) > 1e-6 * max(abs(first), abs(second)):
            raise DataError(
                f"dynamics: loss_fn gave {first:.9g} and then {second:.9g}. It must look at the same batch "
                f"each "
                f"time: draw nothing from a data loader or generator in it, switch dropout off or seed it."
            )
        return first

    def _sum(self) -> float:
        total = 0.0
        for part in self.parts:
            reseed(self._seed)
            loss = part.evaluate()
            loss = getattr(loss, "loss", loss)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                with torch.enable_grad():
                    self.value(part)  # says what is wrong
            total += part.weight * float(loss)
        return total

    def gradient(self, part: Part, *, create_graph: bool = False, trusting: bool = True) -> list[Tensor]:
        """Differentiate the loss of a part.

        Parameters
        ----------
        part : Part
            One of `parts`.
        create_graph : bool
            Whether the gradient will be differentiated again.
        trusting : bool
            Whether to believe in the second derivative of functions with a backward pass of their own.

        Returns
        -------
        list of Tensor
            One per parameter.

        Raises
        ------
        RuntimeError
            If there is such a function, and it is not to be believed.
        """
        loss = self.value(part)
        if not trusting:
            _distrust(loss)
        found = torch.autograd.grad(
            loss, self._parameters.tensors, create_graph=create_graph, allow_unused=True
        )
        return [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(self._parameters.tensors, found, strict=True)
        ]

    def whole_gradient(self) -> Tensor:
        """Return the gradient of the whole loss as a flat vector, detached.

        By ``backward``: shards are reduced by hooks that act on it alone, and checkpoints of the old
        kind leave out their parameters otherwise. Not where hooks would make an optimizer step.

        Returns
        -------
        Tensor, shape (size,)

        Raises
        ------
        RuntimeError
            If neither way is safe.
        """
        tensors = self._parameters.tensors
        total = self._parameters.flat([None] * len(tensors))
        hooked = any(tensor._post_accumulate_grad_hooks for tensor in tensors)
        for part in self.parts:
            if hooked and not self._parameters.sharded:
                found: Sequence[Tensor | None] = self.gradient(part, trusting=False)
            else:
                found = self._backward(part)
            total += part.weight * self._parameters.flat(found)
        return total

    def _backward(self, part: Part) -> list[Tensor | None]:
        tensors = self._parameters.tensors
        for tensor in tensors:
            tensor.grad = None
        self.value(part).backward()
        found = [None if tensor.grad is None else local(tensor.grad).clone() for tensor in tensors]
        for tensor in tensors:
            tensor.grad = None
        return found


def _distrust(loss: Tensor) -> None:
    """Refuse graphs with functions whose second derivative may silently be zero.

    Kernels that write their own backward pass (and checkpoints of the old kind) often return
    gradients without a graph, which autograd takes for constants.
    """
    seen: set[Any] = set()
    stack: list[Any] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        owner = getattr(node, "_forward_cls", None)
        if owner is not None and owner.__name__ != "_DDPSink":
            raise RuntimeError(f"{owner.__name__} has a backward pass of its own")
        stack.extend(following for following, _ in node.next_functions)


def _shares(batches: Sequence[Any], weights: Sequence[float] | None) -> list[float]:
    if not batches:
        raise DataError("dynamics: batches is empty. Give at least one.")
    if weights is None:
        counts = [_length(batch) for batch in batches]
    else:
        counts = [float(weight) for weight in weights]
        if len(counts) != len(batches):
            raise DataError(f"dynamics: {len(counts)} weights for {len(batches)} batches. Give one for each.")
    if not all(math.isfinite(count) and count > 0 for count in counts):
        raise DataError(f"dynamics: weights={counts[:5]}, expected positive numbers.")
    return [count / sum(counts) for count in counts]


def _length(batch: Any) -> float:
    if isinstance(batch, Tensor):
        return float(batch.shape[0]) if batch.ndim else 1.0
    entries = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, Sequence) else ()
    for entry in entries:
        if isinstance(entry, Tensor) and entry.ndim:
            return float(entry.shape[0])
    raise DataError(
        f"dynamics: how many samples a {type(batch).__name__} has is unknown. Give weights=, one for each "
        f"batch."
    )
