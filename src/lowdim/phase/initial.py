"""Initial: spectral starts, of all frames together or of each by itself."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, gaussian
from lowdim.phase.measurement import DenseMeasurement, Measurement

__all__ = ["frame_spectrum", "joint_spectrum", "spectral_weights"]

DENSE = 2000
"""Pixels up to which the joint matrix is formed."""

POWER_STEPS = 10
"""Rounds of subspace iteration beyond."""


def spectral_weights(y: Tensor, *, trunc: float = 9.0, joint: bool = True) -> Tensor:
    """Return the intensities with those above `trunc` times their mean set to 0.

    Parameters
    ----------
    y : Tensor, shape (q, m)
        Magnitudes.
    trunc : float
        Multiple of the mean, of all measurements or (not `joint`) of the frame's.
    joint : bool
        See `trunc`.

    Returns
    -------
    Tensor, shape (q, m)
    """
    intensity = y.square()
    mean = intensity.mean() if joint else intensity.mean(-1, keepdim=True)
    return torch.where(intensity <= trunc * mean, intensity, torch.zeros_like(intensity))


def joint_spectrum(
    A: Measurement, weights: Tensor, rank: int, *, real: bool = False, seed: Seed = 0
) -> tuple[Tensor, Tensor]:
    """Return the top eigenpairs of ``S = (1/mq) sum_k A_k^H diag(w_k) A_k``.

    Frames in a common subspace make it stand out in S, which sees all m q measurements: far fewer per frame
    do than one frame would need.

    Parameters
    ----------
    A : Measurement
        Of images.
    weights : Tensor, shape (q, m)
        See `spectral_weights`.
    rank : int
        How many.
    real : bool
        Whether images are real although A is complex.
    seed : int or torch.Generator
        Of the subspace iteration that replaces the dense matrix for images of more than 2,000 pixels and for
        maps without a matrix.

    Returns
    -------
    values : Tensor, shape (rank,)
        Largest first.
    images : Tensor, shape (rank, n1, ..., nd)
        Orthonormal.
    """
    n, total = A.pixels, weights.numel()
    if isinstance(A, DenseMeasurement) and n <= DENSE:
        S = torch.zeros(n, n, dtype=A.dtype, device=A.device)
        if len(A.matrix) == 1:
            S = A.matrix[0].mH @ (weights.sum(0).unsqueeze(-1) * A.matrix[0])
        else:
            for matrix, w in zip(A.matrix, weights, strict=True):
                S = S + matrix.mH @ (w.unsqueeze(-1) * matrix)
        values, vectors = torch.linalg.eigh((S.real if real else S) / total)
        return values.flip(0)[:rank], vectors.flip(1)[:, :rank].mT.reshape(rank, *A.image_shape)
    dtype = weights.dtype if real or not A.dtype.is_complex else A.dtype
    width = min(n, rank + 10)
    V = gaussian((width, n), seed=seed, dtype=dtype, device=A.device)

    def apply(V: Tensor) -> Tensor:
        images = V.reshape(width, 1, *A.image_shape).expand(-1, len(weights), *A.image_shape)
        pulled = A.adjoint(weights * A.forward(images)).sum(1)
        return (pulled.real if real and pulled.is_complex() else pulled).reshape(width, n) / total

    V = torch.linalg.qr(V.mT).Q.mT
    for _ in range(POWER_STEPS):
        V = torch.linalg.qr(apply(V).mT).Q.mT
    quotient = V.conj() @ apply(V).mT
    values, turn = torch.linalg.eigh((quotient + quotient.mH) / 2)
    top = turn.flip(1)[:, :rank].mT @ V
    return values.flip(0)[:rank], top.reshape(rank, *A.image_shape)


def frame_spectrum(A: Measurement, weights: Tensor, *, real: bool = False, seed: Seed = 0) -> Tensor:
    """Return the top eigenvector of ``A_k^H diag(w_k) A_k`` for every frame, of norm 1.

    Parameters
    ----------
    A, weights, real, seed
        As in `joint_spectrum`.

    Returns
    -------
    Tensor, shape (q, n1, ..., nd)
    """
    q, n = len(weights), prod(A.image_shape)
    dtype = weights.dtype if real or not A.dtype.is_complex else A.dtype
    if isinstance(A, DenseMeasurement) and n <= DENSE:
        top = []
        for k, w in enumerate(weights):
            matrix = A.matrix[0 if len(A.matrix) == 1 else k]
            S = matrix.mH @ (w.unsqueeze(-1) * matrix)
            top.append(torch.linalg.eigh(S.real if real else S).eigenvectors[:, -1])
        return torch.stack(top).reshape(q, *A.image_shape)
    v = gaussian((q, *A.image_shape), seed=seed, dtype=dtype, device=A.device)
    axes = tuple(range(1, v.ndim))
    for _ in range(5 * POWER_STEPS):
        pulled = A.adjoint(weights * A.forward(v))
        v = pulled.real if real and pulled.is_complex() else pulled
        size = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
        v = v / torch.where(size == 0, torch.ones_like(size), size)
    return v
