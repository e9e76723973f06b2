"""Random numbers from a seed: the same ones on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowdim.errors import DataError

__all__ = ["Seed", "gaussian", "generator", "phases"]

Seed = int | torch.Generator | None


def generator(seed: Seed = None) -> torch.Generator | None:
    """Turn a seed into a generator.

    Parameters
    ----------
    seed : int or torch.Generator or None
        An integer gives a fresh CPU generator; a generator is used as it is
        (and advanced); None stands for PyTorch's global generator.

    Returns
    -------
    torch.Generator or None

    Raises
    ------
    DataError
        If `seed` is something else.
    """
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DataError(f"seed={seed!r} is no seed. Give an int, a torch.Generator or None.")
    return torch.Generator().manual_seed(seed)


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.empty((), dtype=dtype).real.dtype if dtype.is_complex else dtype


def gaussian(
    shape: Sequence[int],
    *,
    seed: Seed = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw standard normal numbers; complex ones have unit variance too.

    Parameters
    ----------
    shape : sequence of int
        Shape of the result.
    seed : int or torch.Generator or None
        See :func:`generator`. With an int the numbers are drawn on the CPU and
        moved, so that every device sees the same ones.
    dtype : torch.dtype, optional
        Real or complex; PyTorch's default otherwise.
    device : torch.device or str, optional
        Where the result lives.

    Returns
    -------
    Tensor
        Of the given shape.
    """
    source = generator(seed)
    where = source.device if source is not None else (device or "cpu")
    return torch.randn(tuple(shape), generator=source, dtype=dtype, device=where).to(device or where)


def phases(
    shape: Sequence[int],
    *,
    seed: Seed = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw numbers of modulus one: random signs, or random phases when complex.

    Parameters
    ----------
    shape : sequence of int
        Shape of the result.
    seed : int or torch.Generator or None
        See :func:`generator`.
    dtype : torch.dtype, optional
        Real (then +1 and -1) or complex; PyTorch's default otherwise.
    device : torch.device or str, optional
        Where the result lives.

    Returns
    -------
    Tensor
        Of the given shape.
    """
    dtype = dtype or torch.get_default_dtype()
    source = generator(seed)
    where = source.device if source is not None else (device or "cpu")
    uniform = torch.rand(tuple(shape), generator=source, dtype=_real(dtype), device=where)
    if dtype.is_complex:
        angle = 2 * torch.pi * uniform
        drawn = torch.polar(torch.ones_like(angle), angle)
    else:
        drawn = 1 - 2 * (uniform < 0.5).to(dtype)
    return drawn.to(device or where)
