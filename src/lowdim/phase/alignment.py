"""Alignment: frames from magnitudes are known up to a unit factor each, real or complex."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import ShapeError

__all__ = ["align", "phase", "phase_distance", "relative_error", "smooth_phases", "turned"]

Array = TypeVar("Array", np.ndarray, Tensor)


def phase(z: Tensor) -> Tensor:
    """Return ``z / |z|`` entry by entry, and 1 where z is 0: signs of real numbers.

    Parameters
    ----------
    z : Tensor
        Real or complex.

    Returns
    -------
    Tensor

    Examples
    --------
    >>> phase(torch.tensor([-2.0, 0.0, 3.0]))
    tensor([-1.,  1.,  1.])
    """
    if not z.is_complex():
        return torch.where(z < 0, -1.0, 1.0).to(z.dtype)
    return torch.where(z == 0, torch.ones_like(z), torch.sgn(z))


def turned(y: Tensor, z: Tensor) -> Tensor:
    """Return ``y ph(z)`` entry by entry, faster than by `phase`; where z is a real -0 it counts as negative.

    Parameters
    ----------
    y : Tensor
        Magnitudes.
    z : Tensor
        Real or complex, of a shape that y broadcasts to.

    Returns
    -------
    Tensor

    Examples
    --------
    >>> turned(torch.tensor([1.0, 2.0]), torch.tensor([-5.0, 0.0]))
    tensor([-1.,  2.])
    """
    if not z.is_complex():
        return torch.copysign(y, z)
    return y * torch.where(z == 0, torch.ones_like(z), torch.sgn(z))


def align(x: Array, ref: Array, *, dim: int | tuple[int, ...] = -1) -> Array:
    """Turn signals by the unit factor that brings each nearest to its reference.

    Parameters
    ----------
    x : Tensor or ndarray
        Signals.
    ref : Tensor or ndarray, of the same shape
        References.
    dim : int or tuple of int
        Axes that make up one signal; every position of the others has its own factor.

    Returns
    -------
    Tensor or ndarray
        ``c x`` with ``c = ph(x^H ref)``, which minimizes ``||c x - ref||``.

    Raises
    ------
    ShapeError
        If shapes differ.

    Examples
    --------
    >>> align(torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, -2.1]]))
    tensor([[-1., -2.]])
    """
    if isinstance(x, np.ndarray):
        return align(torch.as_tensor(x), torch.as_tensor(ref), dim=dim).numpy()
    if x.shape != ref.shape:
        raise ShapeError(
            f"align: signals of shape {tuple(x.shape)} and references of shape {tuple(ref.shape)} differ. "
            "Give one reference for every signal."
        )
    return phase((x.conj() * ref).sum(dim, keepdim=True)) * x


def phase_distance(x: Array, ref: Array, *, dim: int | tuple[int, ...] = -1) -> Array:
    """Measure how far signals are from references, up to a unit factor each.

    Parameters
    ----------
    x, ref, dim
        As in `align`.

    Returns
    -------
    Tensor or ndarray
        ``min over |c| = 1 of ||c x - ref||``, over the axes `dim`.

    Raises
    ------
    ShapeError
        If shapes differ.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> phase_distance(-x, x)
    tensor([0., 0.])
    """
    if isinstance(x, np.ndarray):
        return phase_distance(torch.as_tensor(x), torch.as_tensor(ref), dim=dim).numpy()
    return torch.linalg.vector_norm(align(x, ref, dim=dim) - ref, dim=dim)


def smooth_phases(frames: Array) -> Array:
    """Turn every frame by a unit factor so that it is as near to the frame before as it can be.

    Magnitudes say nothing of the phase from one frame to the next; a film that flickers between signs is
    as good a solution as one that does not, and harder to watch. Real films are made positive in sum.

    Parameters
    ----------
    frames : Tensor or ndarray of shape (q, ...)
        A sequence of frames.

    Returns
    -------
    Tensor or ndarray

    Examples
    --------
    >>> smooth_phases(torch.tensor([[1.0, 2.0], [-1.0, -2.0], [2.0, 1.0]]))
    tensor([[1., 2.],
            [1., 2.],
            [2., 1.]])
    """
    if isinstance(frames, np.ndarray):
        return smooth_phases(torch.as_tensor(frames)).numpy()
    flat = frames.flatten(1)
    # ph(x_k^H x_{k-1}) of neighbors, multiplied up: the factor of a frame carries that of those before it.
    turns = phase((flat[1:].conj() * flat[:-1]).sum(-1))
    factors = torch.cat([torch.ones_like(flat[:1, 0]), turns.cumprod(0)])
    turned = factors.reshape(-1, *[1] * (frames.ndim - 1)) * frames
    return turned * phase(turned.sum()).conj()


def relative_error(frames: Array, ref: Array) -> float:
    """Return ``sqrt(sum_k min |c_k x_k - ref_k|^2) / ||ref||_F`` over all frames.

    Parameters
    ----------
    frames, ref : Tensor or ndarray of shape (q, ...)
        Recovered and true frames.

    Returns
    -------
    float
        0 for frames that are equal up to a unit factor each; frames of 0 have 1, wrong ones about 1.2.

    Raises
    ------
    ShapeError
        If shapes differ.

    Examples
    --------
    >>> relative_error(-torch.eye(3), torch.eye(3))
    0.0
    """
    x, z = torch.as_tensor(frames), torch.as_tensor(ref)
    if x.shape != z.shape:
        raise ShapeError(
            f"relative_error: frames of shape {tuple(x.shape)} and {tuple(z.shape)} differ. Give both alike."
        )
    x, z = x.flatten(1), z.flatten(1)
    size = float(torch.linalg.vector_norm(z))
    return float(torch.linalg.vector_norm(phase_distance(x, z))) / (size or 1.0)
