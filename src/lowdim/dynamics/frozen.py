"""A part of a training batch, kept as it is: what a probe looks at again and again."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from torch import Tensor

from lowdim.errors import DataError

__all__ = ["SHARE", "freeze"]

SHARE = 0.25
"""Part of the first training batch that a probe looks at: a quarter of the cost of a training step."""


def freeze(batch: Any, *, share: float = SHARE) -> Any:
    """Copy the first samples of a batch.

    Parameters
    ----------
    batch : Tensor, or mapping, tuple, list of such
        Samples along the first axis. Tensors with another length there, and what is no tensor, are
        kept whole.
    share : float
        Part of the samples, in (0, 1]; at least one is kept.

    Returns
    -------
    same structure
        Detached copies.

    Raises
    ------
    DataError
        If `share` is out of range, or there is no tensor.

    Examples
    --------
    >>> import torch
    >>> freeze({"x": torch.zeros(8, 3), "name": "a"})["x"].shape
    torch.Size([2, 3])
    """
    if not 0 < share <= 1:
        raise DataError(f"freeze: share={share!r} is no part of a batch. Use a number in (0, 1], like 0.25.")
    samples = _samples(batch)
    if samples is None:
        raise DataError(
            f"freeze: a {type(batch).__name__} without tensors is no batch. Give loss_fn= instead."
        )
    return _taken(batch, samples, ceil(share * samples))


def _samples(batch: Any) -> int | None:
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((n for n in map(_samples, parts) if n is not None), None)


def _taken(batch: Any, samples: int, count: int) -> Any:
    if isinstance(batch, Tensor):
        whole = batch.ndim == 0 or len(batch) != samples
        return (batch if whole else batch[:count]).detach().clone()
    if isinstance(batch, Mapping):
        return {key: _taken(value, samples, count) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_taken(value, samples, count) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch
