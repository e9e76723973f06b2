"""The singular values of a weight, a gradient or an update, and the ranks that they give."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan

import torch
from scipy.linalg import eigh
from torch import Tensor

from lowdim.algebra.rank import effective_rank, energy_rank, participation_ratio, stable_rank
from lowdim.algebra.spectrum import truncated_svd
from lowdim.errors import DataError, RankError, ShapeError

__all__ = ["LIMIT", "Spectrum", "as_matrix", "spectrum"]

LIMIT = 1024
"""Smaller dimension up to which all singular values are computed; beyond, that takes seconds."""

PIECE = 1 << 22
"""Entries that are brought to float64 at a time."""

BLOCK = 80
"""Rows of a Gram matrix at a time at least: what lies below its diagonal need not be computed."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a matrix, all or the largest.

    Parameters
    ----------
    values : Tensor of float64, shape (k,)
        Largest first.
    energy : float
        Squared Frobenius norm, of all of them.
    complete : bool
        Whether these are all.
    left, right : Tensor of float64, shapes (m, count) and (n, count), or None
        Leading singular vectors, where they were asked for.

    Examples
    --------
    >>> import torch
    >>> found = spectrum(torch.diag(torch.tensor([2.0, 1.0, 0.0])))
    >>> found.stable_rank, round(found.effective_rank, 3)
    (1.25, 1.89)
    """

    values: Tensor
    energy: float
    complete: bool = True
    left: Tensor | None = None
    right: Tensor | None = None

    @property
    def stable_rank(self) -> float:
        """``|A|_F^2 / |A|_2^2``; it needs the largest value only."""
        if self.complete:
            return float(stable_rank(self.values))
        top = float(self.values[0])
        return self.energy / top**2 if top else 0.0

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the normalized values; NaN unless all are known."""
        return float(effective_rank(self.values)) if self.complete else nan

    @property
    def participation_ratio(self) -> float:
        """``(sum s^2)^2 / sum s^4``; NaN unless all values are known."""
        return float(participation_ratio(self.values)) if self.complete else nan

    def energy_rank(self, energy: float = 0.9) -> float:
        """Rank that holds this fraction of the squared norm; NaN where more values are needed than known.

        Parameters
        ----------
        energy : float
            In (0, 1].

        Returns
        -------
        float
        """
        if self.complete:
            return float(energy_rank(self.values, energy=energy))
        held = self.values.square().cumsum(0) >= energy * self.energy
        return float(held.int().argmax() + 1) if bool(held.any()) else nan


def as_matrix(tensor: Tensor) -> Tensor | None:
    """Return a weight as a matrix: kernels of convolutions as (out, in * height * width).

    Parameters
    ----------
    tensor : Tensor

    Returns
    -------
    Tensor, shape (m, n), or None
        None for vectors and numbers, and for a single row or column: no spectrum to speak of.

    Examples
    --------
    >>> import torch
    >>> as_matrix(torch.zeros(8, 3, 5, 5)).shape
    torch.Size([8, 75])
    """
    if tensor.ndim < 2 or tensor.numel() == 0:
        return None
    matrix = tensor.detach().flatten(1)
    return matrix if min(matrix.shape) > 1 else None


@torch.no_grad()
def spectrum(
    matrix: Tensor, *, count: int = 1, vectors: bool = False, limit: int = LIMIT, start: Tensor | None = None
) -> Spectrum:
    """Compute the singular values of a matrix at little cost.

    Up to `limit`, all of them from the eigenvalues of the smaller Gram matrix in float64: a few
    times faster than a singular value decomposition, and right to ``1e-8 |A|_2``. Beyond, the largest few by
    block Lanczos.

    Parameters
    ----------
    matrix : Tensor, shape (m, n)
        Of any floating dtype.
    count : int
        How many singular vectors, and values of a large matrix.
    vectors : bool
        Whether leading singular vectors are wanted.
    limit : int
        Smaller dimension up to which all values are computed.
    start : Tensor, shape (n, k), optional
        Right singular vectors of a moment ago, for a large matrix.

    Returns
    -------
    Spectrum

    Raises
    ------
    ShapeError
        If this is no matrix.
    RankError
        If there are not so many singular values.
    DataError
        If the matrix holds NaN or infinity.

    Examples
    --------
    >>> import torch
    >>> spectrum(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])).values
    tensor([4., 3.], dtype=torch.float64)
    """
    if matrix.ndim != 2:
        raise ShapeError(
            f"spectrum: got a tensor of shape {tuple(matrix.shape)}, expected a matrix. Use as_matrix."
        )
    short = min(matrix.shape)
    if not 1 <= count <= short:
        raise RankError(
            f"spectrum: count={count} of {short} singular values is impossible. Use 1 ... {short}."
        )
    # NaN and infinity show in the extremes, which are read without another matrix.
    least, most = (float(extreme) for extreme in torch.aminmax(matrix))
    if not (isfinite(least) and isfinite(most)):
        raise DataError(
            f"spectrum: a {matrix.shape[0]} x {matrix.shape[1]} matrix holds NaN or infinity. The training "
            f"has diverged, or an overflow was scaled away: look at another step."
        )
    # Of the wide form: the Gram matrix is the smaller one.
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    if short > limit:
        return _leading(matrix, count, vectors, start)
    double = _double(matrix)
    # Scaled, no square can overflow or vanish; those of numbers of a lower precision cannot anyway.
    scale = (max(abs(least), abs(most)) or 1.0) if double == matrix.dtype else 1.0
    gram = torch.zeros(short, short, dtype=double, device=matrix.device)
    pieces = wide.split(max(1, PIECE // short), dim=1)
    for piece in pieces:
        scaled = piece.to(double) if scale == 1 else piece / scale
        _add_gram(gram, scaled)
    if not vectors:
        values = torch.linalg.eigvalsh(gram).flip(0)
        return _spectrum(values, scale)
    values, near = _eigenpairs(gram, count)
    found = _spectrum(values.flip(0), scale)
    # A direction that the matrix maps to nothing has no partner: QR completes the basis there.
    images = (scaled.mT if len(pieces) == 1 else wide.mT.to(double)) @ near
    far = torch.linalg.qr(images)[0]
    left, right = (near, far) if wide is matrix else (far, near)
    return Spectrum(found.values, found.energy, True, left, right)


def _add_gram(gram: Tensor, rows: Tensor) -> None:
    """Add ``rows rows^T`` to a Gram matrix; what lies below blocks on its diagonal is not computed twice."""
    block = max(BLOCK, -(-len(rows) // 8))
    for a in range(0, len(rows), block):
        b = a + block
        gram[a:b, a:].addmm_(rows[a:b], rows[a:].mT)
        gram[b:, a:b] = gram[a:b, b:].mT


def _eigenpairs(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return all eigenvalues, ascending, and the vectors of the largest few, largest first."""
    if gram.device.type != "cpu" or 4 * count > len(gram):
        values, U = torch.linalg.eigh(gram)
        return values, U.flip(1)[:, :count]
    # The vectors that nobody asks for take most of the time of the others.
    array, last = gram.numpy(), len(gram) - 1
    values = torch.from_numpy(eigh(array, eigvals_only=True, driver="evr", check_finite=False))
    _, top = eigh(array, subset_by_index=(last - count + 1, last), driver="evr", check_finite=False)
    return values, torch.from_numpy(top).flip(1)


def _spectrum(squares: Tensor, scale: float) -> Spectrum:
    values = squares.clamp(min=0).sqrt() * scale
    return Spectrum(values.cpu(), float(values.square().sum()))


def _leading(matrix: Tensor, count: int, vectors: bool, start: Tensor | None) -> Spectrum:
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    energy = float(torch.linalg.vector_norm(matrix, dtype=matrix.dtype)) ** 2
    if energy == 0:
        return Spectrum(torch.zeros(count, dtype=torch.float64), 0.0, False)
    start = None if start is None else start.to(matrix)
    found = truncated_svd(matrix, rank=count, tol=1e-3, start=start, seed=0)
    values = found.S.double().cpu()
    if not vectors:
        return Spectrum(values, energy, False)
    # Orthonormal to the digits of float64.
    left, right = (torch.linalg.qr(basis.to(_double(basis)))[0] for basis in (found.U, found.Vh.mH))
    return Spectrum(values, energy, False, left, right)


def _double(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
