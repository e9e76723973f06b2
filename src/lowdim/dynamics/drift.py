"""How far the leading singular subspaces of a weight have turned since a reference step."""

from __future__ import annotations

from dataclasses import dataclass
from math import degrees, nan

import torch
from torch import Tensor

from lowdim.algebra import Subspace
from lowdim.dynamics.spectra import LIMIT, Spectrum, spectrum
from lowdim.errors import ShapeError

__all__ = ["Drift", "drift", "drift_between"]


@dataclass(frozen=True)
class Drift:
    """Principal angles between leading singular subspaces then and now.

    Parameters
    ----------
    angle_deg : float
        Largest principal angle of the left and right subspaces, in degrees. Where
        the last singular value that counts is close to the next, it is large for small changes.
    share : float
        ``|sin angles|_F^2 / k``, the mean of both sides: 0 for the same
        subspaces, 1 for orthogonal ones. It forgives one direction that turned.

    Examples
    --------
    >>> import torch
    >>> then = torch.diag(torch.tensor([3.0, 2.0, 0.0]))
    >>> now = torch.diag(torch.tensor([3.0, 0.0, 2.0]))
    >>> found = drift(then, now, rank=2)
    >>> round(found.angle_deg), round(found.share, 2)
    (90, 0.5)
    """

    angle_deg: float
    share: float


def drift(reference: Tensor, matrix: Tensor, *, rank: int = 4, limit: int = LIMIT) -> Drift:
    """Compare the leading singular subspaces of two matrices.

    Parameters
    ----------
    reference, matrix : Tensor, shape (m, n)
        Then and now.
    rank : int
        How many singular directions; fewer where the matrix has no more.
    limit : int
        See :func:`lowdim.dynamics.spectra.spectrum`.

    Returns
    -------
    Drift

    Raises
    ------
    ShapeError
        If the matrices differ in shape.

    Examples
    --------
    >>> import torch
    >>> A = torch.diag(torch.tensor([3.0, 2.0, 0.1]))
    >>> drift(A, 5 * A, rank=2)
    Drift(angle_deg=0.0, share=0.0)
    """
    if reference.shape != matrix.shape:
        raise ShapeError(
            f"drift: got matrices of shapes {tuple(reference.shape)} and {tuple(matrix.shape)}. Compare the "
            f"same weight at two steps."
        )
    count = min(rank, *matrix.shape)
    then, now = (spectrum(A, count=count, vectors=True, limit=limit) for A in (reference, matrix))
    return drift_between(then, now)


def drift_between(then: Spectrum, now: Spectrum) -> Drift:
    """Compare singular vectors that are known already.

    Parameters
    ----------
    then, now : Spectrum
        With as many singular vectors.

    Returns
    -------
    Drift
        NaN where one of the matrices is zero.
    """
    if then.left is None or now.left is None or not (then.energy and now.energy):
        return Drift(nan, nan)
    pairs = ((then.left, now.left), (then.right, now.right))
    angles = [Subspace(a).angles(Subspace(b.to(a))) for a, b in pairs if a is not None and b is not None]
    sines = torch.stack([angle.sin().square().mean() for angle in angles])
    return Drift(max(degrees(float(angle.max())) for angle in angles), float(sines.mean()))
