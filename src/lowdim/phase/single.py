"""Single: every frame by itself, by reshaped Wirtinger flow; what models of sequences are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowdim.phase.diffraction import CodedDiffraction
from lowdim.phase.measurement import DenseMeasurement, Measurement
from lowdim.phase.problem import SMALL, Problem
from lowdim.phase.wirtinger import rwf
from lowdim.threads import few_threads

__all__ = ["frame_by_frame", "matrix_of"]


def frame_by_frame(
    problem: Problem, *, max_iter: int = 300, callback: Callable[[int, int], None] | None = None
) -> Tensor:
    """Recover frames one by one, with nothing in common.

    Parameters
    ----------
    problem : Problem
        Weights multiply rows and magnitudes.
    max_iter : int
        Gradient steps per frame.
    callback : callable, optional
        Called with (frames done, frames).

    Returns
    -------
    Tensor, shape (q, n1, ..., nd)
    """
    with few_threads(problem.entries, small=SMALL):
        return _frame_by_frame(problem, max_iter=max_iter, callback=callback)


def _frame_by_frame(
    problem: Problem, *, max_iter: int, callback: Callable[[int, int], None] | None
) -> Tensor:
    found, shared = [], None if problem.A.frames is not None else matrix_of(problem.A, 0)
    for k, y in enumerate(problem.y):
        M = matrix_of(problem.A, k) if shared is None else shared
        if problem.weights is not None:
            root = problem.weights[k].sqrt()
            M, y = root.unsqueeze(-1) * M, root * y
        found.append(rwf(M, y, max_iter=max_iter, real=problem.real).reshape(problem.A.image_shape))
        if callback is not None:
            callback(k + 1, problem.frames)
    return torch.stack(found)


def matrix_of(A: Measurement, k: int) -> Tensor:
    """Return the matrix of one frame's measurement.

    Parameters
    ----------
    A : Measurement
    k : int
        Which frame.

    Returns
    -------
    Tensor, shape (m, n)

    Examples
    --------
    >>> matrix_of(CodedDiffraction(torch.ones(1, 1, 2, dtype=torch.complex64)), 0).real
    tensor([[ 1.,  1.],
            [ 1., -1.]])
    """
    if isinstance(A, DenseMeasurement):
        return A.matrix[0 if len(A.matrix) == 1 else k]
    if isinstance(A, CodedDiffraction) and A.frames is not None:
        masks = A.masks[k] if A.masks.ndim == 4 else A.masks
        kept = A.kept[k] if A.kept is not None and A.kept.ndim == 2 else A.kept
        A = CodedDiffraction(masks, kept=kept)
    pixels = torch.eye(A.pixels, dtype=A.dtype, device=A.device).reshape(-1, *A.image_shape)
    if A.frames is None:
        return A.forward(pixels.unsqueeze(1)).squeeze(1).mT
    # Maps that only know all frames at once see the pixel in each of them.
    seen = A.forward(pixels.unsqueeze(1).expand(-1, A.frames, *A.image_shape))
    return seen[:, k].mT
