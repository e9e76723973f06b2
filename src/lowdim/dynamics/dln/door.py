"""Door: depths, learning rates and targets that make no sense are refused here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError

__all__ = ["as_depth", "as_layers", "as_rate", "as_rates", "as_singular_values", "as_target"]


def as_depth(depth: int, where: str, *, least: int = 1) -> int:
    """Return the number of layers, or refuse it.

    Parameters
    ----------
    depth : int
    where : str
        Name of the caller, for the message.
    least : int, default 1

    Returns
    -------
    int

    Raises
    ------
    DataError
    """
    if isinstance(depth, bool) or not isinstance(depth, (int, np.integer)) or depth < least:
        raise DataError(f"{where}: depth={depth!r}, expected a number of layers, an integer >= {least}.")
    return int(depth)


def as_rates(lr: Any, where: str, *, name: str = "lr", zero: bool = False) -> Tensor:
    """Return one or several positive finite numbers in float64, of the shape given.

    Parameters
    ----------
    lr : float or array-like
    where, name : str
        Of the caller and the argument, for the message.
    zero : bool, default False
        Whether zero is allowed.

    Returns
    -------
    Tensor

    Raises
    ------
    DataError
    """
    rates = _float64(lr, where, name)
    if rates.numel() == 0 or not bool(torch.isfinite(rates).all()) or bool((rates < 0).any()):
        raise DataError(f"{where}: {name}={lr!r}, expected positive finite numbers.")
    if not zero and bool((rates == 0).any()):
        raise DataError(f"{where}: {name}={lr!r} holds a zero. Give positive numbers.")
    return rates


def as_rate(lr: Any, where: str) -> float:
    """Return one positive finite learning rate, or refuse it.

    Parameters
    ----------
    lr : float
    where : str

    Returns
    -------
    float

    Raises
    ------
    DataError
    """
    rates = as_rates(lr, where)
    if rates.numel() != 1:
        raise DataError(f"{where}: lr={lr!r}, expected one learning rate. Call it once for each.")
    return float(rates)


def as_target(target: Any, where: str) -> Tensor:
    """Return a finite matrix or vector of singular values (then descending) in float64.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
    where : str

    Returns
    -------
    Tensor

    Raises
    ------
    ShapeError
        If it is neither matrix nor vector, or empty.
    DataError
        If it holds NaN, infinite numbers or negative singular values, or is zero.
    """
    found = _float64(target, where, "target")
    if found.ndim not in (1, 2) or found.numel() == 0:
        raise ShapeError(
            f"{where}: target of shape {tuple(found.shape)}, expected a matrix (m, n) or its singular values "
            "(d,). Reshape it, or loop over the batch."
        )
    if not bool(torch.isfinite(found).all()):
        raise DataError(f"{where}: target holds NaN or infinite numbers. Give finite ones.")
    if found.ndim == 1:
        if bool((found < 0).any()):
            raise DataError(f"{where}: target={target!r} as singular values, expected none below 0.")
        found = found.sort(descending=True).values
    if not bool(found.any()):
        raise DataError(f"{where}: target is zero, and has no edge of stability. Give another one.")
    return found


def as_singular_values(target: Any, where: str) -> Tensor:
    """Return the singular values of a matrix, or the vector given, descending.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
    where : str

    Returns
    -------
    Tensor, shape (min(m, n),) or (d,)
    """
    found = as_target(target, where)
    return torch.linalg.svdvals(found) if found.ndim == 2 else found


def as_layers(layers: Sequence[Any], where: str) -> list[Tensor]:
    """Return matrices W_1, ..., W_L, first layer first, that can be multiplied, in float64.

    Parameters
    ----------
    layers : sequence of array-like, shapes (..., w_l, w_{l-1})
    where : str

    Returns
    -------
    list of Tensor

    Raises
    ------
    ShapeError
        If the shapes do not chain.
    DataError
        If there are none, or numbers that are not finite.
    """
    found = [_float64(layer, where, "layers") for layer in layers]
    if not found:
        raise DataError(f"{where}: got no layers. Give at least one matrix.")
    shapes = [tuple(layer.shape) for layer in found]
    fits = all(len(shape) >= 2 and shape[:-2] == shapes[0][:-2] for shape in shapes) and all(
        after[-1] == before[-2] for before, after in pairwise(shapes)
    )
    if not fits:
        raise ShapeError(
            f"{where}: layers of shapes {shapes} do not chain. Give W_1, ..., W_L, first layer first, each "
            "with as many columns as the one before has rows, and equal batch axes."
        )
    if not all(bool(torch.isfinite(layer).all()) for layer in found):
        raise DataError(f"{where}: layers hold NaN or infinite numbers. Did the training diverge?")
    return found


def _float64(values: Any, where: str, name: str) -> Tensor:
    """Convert to a float64 tensor, on the device it lives on."""
    try:
        found = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {name}={values!r} are no numbers. Give an array of numbers.") from error
    if found.is_complex() or found.dtype == torch.bool:
        raise DataError(f"{where}: {name} of type {found.dtype}, expected real numbers.")
    return found.detach().to(torch.float64)
