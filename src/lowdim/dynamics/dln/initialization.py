"""Initialization: where the training of a deep linear network begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lowdim.algebra.seeds import gaussian, generator
from lowdim.dynamics.dln.door import as_layers
from lowdim.errors import ShapeError

__all__ = ["INITS", "Init", "given_layers", "initial_layers"]

Init = Literal["aligned", "gaussian", "orthogonal", "identity"]
INITS: tuple[str, ...] = get_args(Init)


def initial_layers(
    shapes: Sequence[tuple[int, ...]],
    *,
    init: str,
    scale: Tensor,
    seed: Any,
    perturb: float = 0.0,
    right: Tensor | None = None,
    device: torch.device | str | None = None,
) -> list[Tensor]:
    """Draw the layers of one network, or of one for each scale and seed.

    Parameters
    ----------
    shapes : sequence of (rows, columns), or (d,)
        Of W_1, ..., W_L, or of the vectors of a diagonal network.
    init : {"aligned", "gaussian", "orthogonal", "identity"}
        See `DeepLinear`.
    scale : Tensor, shape () or (k,)
        What the fixed matrices are multiplied with.
    seed : int, generator, None, or sequence of int
        Of the fixed matrices.
    perturb : float
        Standard deviation of what is added to all entries.
    right : Tensor, shape (n, d), optional
        Right singular vectors of the target, which the first of aligned matrices takes up.
    device : torch.device or str, optional

    Returns
    -------
    list of Tensor of float64
        Axes of scale and seed first, where they are sequences.
    """
    several = isinstance(seed, (list, tuple, range, np.ndarray))
    networks = []
    for one in seed if several else [seed]:
        source = generator(int(one) if several else one)
        networks.append([_layer(k, shapes, init, source, perturb, right) for k in range(len(shapes))])
    found = []
    for layer in zip(*networks, strict=True):
        fixed, noise = (torch.stack(part) for part in zip(*layer, strict=True))
        factor = scale.cpu().reshape(-1, 1, *[1] * (fixed.ndim - 1))
        batch = factor * fixed + perturb * noise
        found.append(batch.reshape(*scale.shape, *fixed.shape[0 if several else 1 :]).to(device or "cpu"))
    return found


def given_layers(layers: Sequence[Any], shape: tuple[int, int], depth: int, diagonal: bool) -> list[Tensor]:
    """Check layers that somebody gives to begin with.

    Parameters
    ----------
    layers : sequence of array-like, matrices (..., w_l, w_{l-1}) or vectors (..., d)
    shape : (int, int)
        Of the product.
    depth : int
        How many there are.
    diagonal : bool
        Whether they are vectors.

    Returns
    -------
    list of Tensor of float64

    Raises
    ------
    ShapeError
        If they do not fit.
    DataError
        If they hold numbers that are not finite.
    """
    if diagonal:
        layers = [torch.diag_embed(torch.as_tensor(d)) for d in layers]
    found = as_layers(layers, "DeepLinear")
    ends = (found[-1].shape[-2], found[0].shape[-1])
    if len(found) != depth or ends != shape:
        raise ShapeError(
            f"DeepLinear: init has {len(found)} layers with a product of shape {ends}, expected {depth} and "
            f"{shape}."
        )
    return [W.diagonal(dim1=-2, dim2=-1).clone() for W in found] if diagonal else found


def _layer(
    k: int,
    shapes: Sequence[tuple[int, ...]],
    init: str,
    source: torch.Generator | None,
    perturb: float,
    right: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return what scale multiplies, and what perturb does, for one layer of one network."""
    shape, f64 = shapes[k], torch.float64
    fixed: Tensor
    if init == "gaussian":
        fixed = gaussian(shape, seed=source, dtype=f64) / math.sqrt(shape[-1] if len(shape) > 1 else 1)
    elif init == "orthogonal":
        fixed = _orthogonal(shape, source)
    elif init == "aligned" and k == len(shapes) - 1 and k > 0:
        fixed = torch.zeros(shape, dtype=f64)
    elif init == "aligned" and k == 0 and right is not None and len(shape) == 2:
        turned = right.mT.cpu()
        fixed = torch.cat([turned, turned.new_zeros(shape[0] - len(turned), shape[1])])
    else:
        fixed = torch.ones(shape, dtype=f64) if len(shape) == 1 else torch.eye(*shape, dtype=f64)
    noise = gaussian(shape, seed=source, dtype=f64) if perturb else torch.zeros(shape, dtype=f64)
    return fixed, noise


def _orthogonal(shape: tuple[int, ...], source: torch.Generator | None) -> Tensor:
    """Draw a random matrix with orthonormal rows or columns; of a vector, random signs."""
    if len(shape) == 1:
        return gaussian(shape, seed=source, dtype=torch.float64).sign()
    Q, R = torch.linalg.qr(gaussian((max(shape), min(shape)), seed=source, dtype=torch.float64))
    Q = Q * R.diagonal().sign()  # uniform among all
    return Q if shape[0] >= shape[1] else Q.mT
