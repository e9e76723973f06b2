"""Trial trainings: a few steps at some learning rate, after which everything is as it was."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.dynamics.frozen import freeze
from lowdim.dynamics.undisturbed import undisturbed
from lowdim.errors import DataError

__all__ = ["FORWARD", "Trials"]

FORWARD = 1 / 3
"""Cost of a loss without its gradient, in gradients."""

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class Trials:
    """Short trainings from the same start, on the same batches, with the same random numbers.

    Parameters
    ----------
    model : nn.Module
        The network.
    loss_fn : callable
        ``loss_fn(batch)``, or ``loss_fn()`` without `batches`.
    optimizer : torch.optim.Optimizer
        Of the training; the trials begin with its state.
    batches : iterable, optional
        Batches of the training; the first one is kept for looking at what a trial has reached.
    schedule : callable
        Factor of the learning rate by progress.
    share : float
        Part of each batch that a step sees.
    seed : int
        Of random numbers.

    Attributes
    ----------
    lr : float
        Learning rate of the optimizer, the largest of its groups.
    cost : float
        What was spent, in gradients of a whole batch.
    full : bool
        Whether there is one batch of all data.

    Raises
    ------
    DataError
        If there are no batches.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Any],
        optimizer: torch.optim.Optimizer,
        *,
        batches: Iterable[Any] | None,
        schedule: Callable[[float], float],
        share: float,
        seed: int,
    ) -> None:
        self.model, self.optimizer, self.share = model, optimizer, share
        self.lr = max(float(group["lr"]) for group in optimizer.param_groups)
        self.cost = 0.0
        self.full = batches is None
        self._loss_fn, self._schedule, self._seed = loss_fn, schedule, seed
        self._ratios = [float(group["lr"]) / self.lr if self.lr else 1.0 for group in optimizer.param_groups]
        self._parts: list[Any] = []
        self._count = 0
        self._source: Iterator[Any] | None = None
        if batches is not None:
            self._source = iter(batches)
            self._whole = next(self._source, None)
            if self._whole is None:
                raise DataError("recommend_rate: batches is empty. Give some batches of the training.")
            self._whole = freeze(self._whole, share=1.0)

    @contextmanager
    def untraced(self) -> Iterator[None]:
        """Put parameters, buffers, gradients, random numbers and the optimizer back at the end.

        Yields
        ------
        None
        """
        optimizer = self.optimizer
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        tensors = {id(tensor): tensor for tensor in [*self.model.parameters(), *trained]}
        self._tensors = [*tensors.values(), *self.model.buffers()]
        self._origin = [tensor.detach().clone() for tensor in self._tensors]
        self._state = optimizer.state
        groups = [dict(group) for group in optimizer.param_groups]
        hooks = {name: getattr(optimizer, name) for name in _HOOKS if hasattr(optimizer, name)}
        gradients = [(tensor, tensor.grad) for tensor in trained]
        for name in hooks:
            setattr(optimizer, name, OrderedDict())
        try:
            with undisturbed(self.model, mode="train"), torch.enable_grad():
                yield
        finally:
            self._back()
            optimizer.state = self._state
            for group, before in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update(before)
            for name, before in hooks.items():
                setattr(optimizer, name, before)
            for tensor, gradient in gradients:
                tensor.grad = gradient

    def run(self, lr: float, *, steps: int) -> float:
        """Train from the start, and return the loss reached; infinite if one is not finite.

        Parameters
        ----------
        lr : float
            Peak of the schedule.
        steps : int
            How many; the schedule is compressed to them.

        Returns
        -------
        float
            With full batches the loss at the end. Else the mean over the samples of the whole batch that was
            kept, at the end, and those of the second half of the steps, each before it was trained on.
        """
        self._back()
        self.optimizer.state = _copied(self._state)
        ahead = []
        for step in range(steps):
            factor = self._schedule((step + 0.5) / steps)
            for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
                group["lr"] = lr * ratio * factor
            seen: list[float] = []

            def closure(step: int = step, seen: list[float] = seen) -> Tensor:
                self.optimizer.zero_grad()
                loss = self._loss(step)
                loss.backward()
                self.cost += self.share
                seen.append(loss.item())
                return loss

            self.optimizer.step(closure)  # type: ignore[arg-type]
            if not all(map(math.isfinite, seen)):
                return math.inf
            ahead.append(seen[0])
        return self._reached(ahead[(steps + 1) // 2 :])

    def start(self, *, steps: int) -> float:
        """Return what `run` returns at a learning rate of zero, by evaluations alone.

        Parameters
        ----------
        steps : int
            Of the trials that it is compared with.

        Returns
        -------
        float
        """
        self._back()
        ahead = []
        if self._source is not None:
            with torch.no_grad():
                ahead = [self._loss(step).item() for step in range((steps + 1) // 2, steps)]
            self.cost += FORWARD * self.share * len(ahead)
        return self._reached(ahead)

    def _reached(self, ahead: list[float]) -> float:
        with torch.no_grad():
            last = self._loss(None).item()
        self.cost += FORWARD
        weight = 0.0 if self._source is None else self.share
        found = (last + weight * sum(ahead)) / (1 + weight * len(ahead))
        return found if math.isfinite(found) else math.inf

    def noise(self, *, rounds: int = 4, relative: bool) -> float:
        """Return the share of the mean squared gradient, at the start, that is noise of the batches.

        Parameters
        ----------
        rounds : int
            How many batches.
        relative : bool
            Whether each coordinate counts the same, as for optimizers that divide by its size.

        Returns
        -------
        float
            From 0 to 1; 0 for full batches.

        Notes
        -----
        With the mean g of m gradients, ``(m |g|^2 - mean |g_i|^2) / (m - 1)`` has the squared norm of the
        true gradient as expectation.
        """
        if self._source is None:
            return 0.0
        self._back()
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        sums = [torch.zeros_like(tensor) for tensor in trained]
        squares = [torch.zeros_like(tensor) for tensor in trained]
        for step in range(rounds):
            gradients = torch.autograd.grad(self._loss(step), trained, allow_unused=True)
            self.cost += self.share
            for total, square, gradient in zip(sums, squares, gradients, strict=True):
                if gradient is not None:
                    total += gradient
                    square += gradient.square()
        signal = size = 0.0
        for total, square in zip(sums, squares, strict=True):
            true = (total.square() - square) / (rounds * (rounds - 1))
            mean = square / rounds
            if relative:
                moving = mean > 0
                true, mean = true[moving] / mean[moving], torch.ones_like(mean[moving])
            signal += float(true.double().sum())
            size += float(mean.double().sum())
        return min(max(1 - signal / size, 0.0), 1.0) if size > 0 else 0.0

    def _loss(self, step: int | None) -> Tensor:
        """Evaluate the loss of a step on its part of a batch, or on the whole one that was kept."""
        torch.manual_seed(self._seed + (0 if step is None else step + 1))
        if self._source is None:
            found = self._loss_fn()
        else:
            found = self._loss_fn(self._whole if step is None else self._part(step))
        found = getattr(found, "loss", found)  # the outputs of transformers
        if not isinstance(found, Tensor) or found.numel() != 1 or found.is_complex():
            got = (
                f"a tensor of shape {tuple(found.shape)}"
                if isinstance(found, Tensor)
                else type(found).__name__
            )
            raise DataError(
                f"recommend_rate: loss_fn returned {got}, expected a real scalar tensor. Take its mean."
            )
        if torch.is_grad_enabled() and not found.requires_grad:
            raise DataError("recommend_rate: the loss has no graph. Do not use torch.no_grad() in loss_fn.")
        return found.reshape(())

    def _part(self, step: int) -> Any:
        while len(self._parts) <= step:
            batch = next(self._source, None) if self._source is not None else None
            if batch is not None:
                self._parts.append(freeze(batch, share=self.share))
            elif self._parts:  # they ran out
                self._parts.append(self._parts[len(self._parts) % self._count])
            else:
                self._parts.append(freeze(self._whole, share=self.share))
            self._count += batch is not None or self._count == 0
        return self._parts[step]

    @torch.no_grad()
    def _back(self) -> None:
        for tensor, origin in zip(self._tensors, self._origin, strict=True):
            tensor.copy_(origin)


def _copied(state: Any) -> defaultdict[Any, Any]:
    """Copy the state of an optimizer: of each parameter, which stays the key."""
    copies: defaultdict[Any, Any] = defaultdict(dict)
    for key, values in state.items():
        copies[key] = (
            {
                name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
                for name, value in values.items()
            }
            if isinstance(values, dict)
            else copy.deepcopy(values)
        )
    return copies
