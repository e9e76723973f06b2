"""Looking at a network in the middle of its training without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lowdim.errors import DataError

__all__ = ["Mode", "reseed", "undisturbed"]

Mode = Literal["eval", "batch-norm", "train"]
"""What the network does meanwhile: as in use, as in use but with the statistics of the batch, or as in
training."""


@contextmanager
def undisturbed(model: nn.Module, *, mode: Mode = "eval") -> Iterator[None]:
    """Put everything back at the end: gradients, buffers, random numbers, training flags, state of DDP.

    Inside, mixed precision is off and attention is computed by plain products, whose second derivative
    exists. Parameters are not saved: who moves them puts them back.

    Parameters
    ----------
    model : nn.Module
        The network.
    mode : {"eval", "batch-norm", "train"}
        "eval" switches dropout off and lets batch normalization use its running statistics;
        "batch-norm" lets it use those of the batch; "train" leaves every module as it is, for
        who seeds the random numbers before each evaluation.

    Yields
    ------
    None

    Raises
    ------
    DataError
        If `mode` is unknown.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Dropout()
    >>> with undisturbed(layer):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    if mode not in get_args(Mode):
        raise DataError(f"dynamics: mode={mode!r}, expected one of {', '.join(get_args(Mode))}.")
    with ExitStack() as stack:
        stack.enter_context(_random_numbers())
        stack.enter_context(_buffers(model))
        stack.enter_context(_gradients(model))
        stack.enter_context(_flags(model, mode))
        stack.enter_context(_own_forward(model))
        stack.enter_context(_local_gradients(model))
        for kind in {parameter.device.type for parameter in model.parameters()} | {"cpu"}:
            if kind != "meta" and torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        yield


def reseed(seed: int) -> None:
    """Seed the random numbers that `undisturbed` puts back, and no others.

    ``torch.manual_seed`` would also leave a seed for the GPUs of a process that uses none yet.

    Parameters
    ----------
    seed : int
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def _random_numbers() -> Iterator[None]:
    # All devices, not those of the network: data may be made on another one, and `reseed` reaches them all.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's loss may draw from it
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    before = [(module, dict(module._buffers)) for module in model.modules()]
    held = [(b, b.clone()) for _, buffers in before for b in buffers.values() if b is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, copy in held:
                # Always: batch normalization does not count its changes. Not counting ours leaves graphs
                # valid.
                buffer.data.copy_(copy)
        for module, buffers in before:
            # A forward pass may have put others in their place, or filled a cache.
            module._buffers.clear()
            module._buffers.update(buffers)


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    held: list[tuple[Tensor, Tensor | None]] = [(p, p.grad) for p in model.parameters()]
    for parameter, _ in held:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient


@contextmanager
def _flags(model: nn.Module, mode: Mode) -> Iterator[None]:
    held = [(module, module.training) for module in model.modules()]
    if mode != "train":
        for module, _ in held:
            # Not .eval(): some networks have overridden it, and only the flag is ours.
            normalizes = isinstance(module, nn.modules.batchnorm._BatchNorm)
            module.training = mode == "batch-norm" and normalizes
    try:
        yield
    finally:
        for module, training in held:
            module.training = training


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Take off the mixed precision that accelerate has put around ``forward``."""
    wrapped = [module for module in model.modules() if "_original_forward" in vars(module)]
    held: list[tuple[nn.Module, Any]] = [(m, vars(m)["forward"]) for m in wrapped if "forward" in vars(m)]
    for module, _ in held:
        module.forward = vars(module)["_original_forward"]
    try:
        yield
    finally:
        for module, forward in held:
            module.forward = forward


@contextmanager
def _local_gradients(model: nn.Module) -> Iterator[None]:
    """Keep DDP from waiting for gradients that never come: ours are averaged by ourselves."""
    replicas = [m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]
    state = ("require_backward_grad_sync", "require_forward_param_sync", "num_iterations")
    held = [(m, name, getattr(m, name)) for m in replicas for name in state if hasattr(m, name)]
    for module in replicas:
        module.require_backward_grad_sync = False
    try:
        yield
    finally:
        for module, name, value in held:
            setattr(module, name, value)
