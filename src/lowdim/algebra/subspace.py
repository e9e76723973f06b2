"""Subspace: a point of the Grassmannian as a value."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor

from lowdim.algebra.rank import energy_rank, numerical_rank
from lowdim.algebra.seeds import Seed, gaussian
from lowdim.errors import DataError, LowdimWarning, RankError, ShapeError

__all__ = ["Distance", "Geodesic", "Subspace"]

Distance = Literal["geodesic", "chordal", "projection", "spectral", "procrustes"]


def _require_numbers(where: str, matrix: Tensor) -> None:
    if not isinstance(matrix, Tensor):
        raise DataError(f"{where}: got a {type(matrix).__name__}, expected a tensor. Use torch.as_tensor.")
    if not (matrix.is_floating_point() or matrix.is_complex()):
        raise DataError(
            f"{where}: {matrix.dtype} cannot hold an orthonormal basis. Convert it with .float()."
        )
    if matrix.ndim < 2:
        raise ShapeError(
            f"{where}: got shape {tuple(matrix.shape)}, expected (..., n, k) with the spanning vectors as "
            f"columns. A single vector is v[:, None]."
        )


def _polished(basis: Tensor) -> Tensor:
    """One Newton-Schulz step to the nearest orthonormal columns; it squares a small error."""
    return 1.5 * basis - 0.5 * basis @ (basis.mH @ basis)


@dataclass(frozen=True, eq=False)
class Subspace:
    """A linear subspace, given by an orthonormal basis.

    Two bases that span the same subspace stand for the same point of the
    Grassmannian: compare subspaces by :meth:`distance`, never by ``==``.

    Parameters
    ----------
    basis : Tensor, shape (..., n, r)
        Orthonormal columns, real or complex, float32 or float64; leading axes
        are a batch of subspaces. Use :meth:`span` for columns that are not
        orthonormal.

    Raises
    ------
    ShapeError
        If `basis` is no (batch of) tall matrices.
    DataError
        If its columns are not orthonormal, or its dtype has no arithmetic for them.

    References
    ----------
    .. [1] A. Edelman, T. Arias, S. Smith, "The geometry of algorithms with
       orthogonality constraints", SIAM J. Matrix Anal. Appl. 20, 1998.
    .. [2] K. Ye, L.-H. Lim, "Schubert varieties and distances between subspaces
       of different dimensions", SIAM J. Matrix Anal. Appl. 37, 2016 (table 2).
    .. [3] T. Bendokat, R. Zimmermann, P.-A. Absil, "A Grassmann manifold
       handbook", Adv. Comput. Math. 50, 2024.

    Examples
    --------
    >>> import torch
    >>> plane = Subspace.span(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    >>> plane.project(torch.tensor([3.0, 4.0, 5.0]))
    tensor([3., 4., 0.])
    >>> tilted = Subspace.span(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    >>> plane.angles(tilted).rad2deg().round()
    tensor([ 0., 45.])
    >>> halfway = plane.geodesic(tilted)(0.5)
    >>> round(float(plane.distance(halfway) / plane.distance(tilted)), 4)
    0.5
    """

    basis: Tensor

    def __post_init__(self) -> None:
        _require_numbers("Subspace", self.basis)
        if self.r > self.n:
            raise ShapeError(
                f"Subspace: {self.r} columns cannot be orthonormal in dimension {self.n}. The basis is "
                f"(..., n, r) with r <= n: transpose it, or use Subspace.span."
            )
        if self.basis.is_meta:
            return
        eps = torch.finfo(self.basis.dtype).eps
        if eps > 1e-6:
            raise DataError(f"Subspace: {self.basis.dtype} is too coarse for a basis. Convert with .float().")
        gram = self.basis.detach().mH @ self.basis.detach()
        defect = (
            float((gram - torch.eye(self.r, dtype=gram.dtype, device=gram.device)).abs().amax())
            if self.r
            else 0.0
        )
        if not defect <= 100 * eps**0.75:
            raise DataError(
                f"Subspace: the columns are not orthonormal (|basis^H basis - I| is {defect:.1e}). "
                f"Use Subspace.span(matrix), which finds an orthonormal basis."
            )

    @classmethod
    def _of(cls, basis: Tensor) -> Subspace:
        """Wrap a basis that is orthonormal by construction (no check, no synchronization)."""
        new = object.__new__(cls)
        object.__setattr__(new, "basis", basis)
        return new

    @classmethod
    def span(cls, matrix: Tensor, *, rank: int | None = None, energy: float | None = None) -> Subspace:
        """Find the subspace that the columns of a matrix span, or its leading part.

        Parameters
        ----------
        matrix : Tensor, shape (..., n, k)
            The spanning vectors as columns. Half precision is computed, and
            returned, in float32.
        rank : int, optional
            Keep that many leading left singular vectors.
        energy : float, optional
            Keep the fewest whose squared singular values hold this fraction, in
            (0, 1]. Without `rank` and `energy`: the numerical rank.

        Returns
        -------
        Subspace
            With `r` = `rank`, or the rank that was found.

        Raises
        ------
        RankError
            If `rank` is impossible, or the items of a batch need different ranks.
        DataError
            If the matrix holds NaN or infinity, or both `rank` and `energy` are given.

        Warns
        -----
        LowdimWarning
            If `rank` exceeds the numerical rank: the last directions are arbitrary.
        """
        _require_numbers("Subspace.span", matrix)
        if rank is not None and energy is not None:
            raise DataError("Subspace.span: got rank and energy. Give one of them.")
        n, k = matrix.shape[-2:]
        if rank is not None and not 0 <= rank <= min(n, k):
            raise RankError(
                f"Subspace.span: rank={rank} is impossible for a {n} x {k} matrix. Use 0 ... {min(n, k)}."
            )
        if not torch.isfinite(matrix).all():
            raise DataError("Subspace.span: the matrix holds NaN or infinity. Remove or impute them first.")
        if matrix.dtype in (torch.float16, torch.bfloat16):
            matrix = matrix.float()
        left, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
        found = (
            numerical_rank(singular, shape=(n, k)) if energy is None else energy_rank(singular, energy=energy)
        )
        lowest, highest = (int(found.min()), int(found.max())) if found.numel() else (0, 0)
        if rank is None:
            if lowest != highest:
                raise RankError(
                    f"Subspace.span: the items of the batch need {lowest} to {highest} dimensions, but a "
                    f"batch has one. Give rank={highest} to keep at least as much of every item."
                )
            rank = highest
        elif rank > lowest:
            warnings.warn(
                f"Subspace.span: rank={rank}, but the columns span only {lowest} dimensions; the other "
                f"directions are arbitrary. Use rank={lowest} or less.",
                LowdimWarning,
                stacklevel=2,
            )
        return cls._of(left[..., :rank])

    @classmethod
    def random(
        cls,
        n: int,
        r: int,
        *,
        batch: Sequence[int] = (),
        seed: Seed = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Subspace:
        """Draw a subspace uniformly (invariant under rotations).

        Parameters
        ----------
        n, r : int
            Dimension of the space and of the subspace.
        batch : sequence of int
            Leading shape.
        seed : int or torch.Generator or None
            The same seed gives the same subspace on every device.
        dtype : torch.dtype, optional
            float32, float64, complex64 or complex128.
        device : torch.device or str, optional
            Where the basis lives.

        Returns
        -------
        Subspace
            With a basis of shape (*batch, n, r).

        Raises
        ------
        RankError
            If `r` is not between 0 and `n`.
        """
        if not 0 <= r <= n:
            raise RankError(f"Subspace.random: r={r} is impossible in dimension n={n}. Use 0 ... {n}.")
        drawn = gaussian((*batch, n, r), seed=seed, dtype=dtype)
        return cls._of(torch.linalg.qr(drawn).Q.to(device or drawn.device))

    @property
    def n(self) -> int:
        """Dimension of the surrounding space."""
        return self.basis.shape[-2]

    @property
    def r(self) -> int:
        """Dimension of the subspace."""
        return self.basis.shape[-1]

    @property
    def batch(self) -> torch.Size:
        """Leading shape: how many subspaces this is."""
        return self.basis.shape[:-2]

    def __repr__(self) -> str:
        """Say what matters about a point of the Grassmannian: its sizes."""
        batch = f", batch={tuple(self.batch)}" if self.batch else ""
        return (
            f"Subspace(n={self.n}, r={self.r}{batch}, dtype={self.basis.dtype}, device={self.basis.device})"
        )

    def __eq__(self, other: object) -> NoReturn:
        """Refuse: equality of floating-point subspaces is a matter of distance."""
        raise TypeError("Subspace: == is not defined: a subspace has many bases. Use a.distance(b) <= tol.")

    __hash__ = None  # type: ignore[assignment]

    def to(self, *args: Any, **kwargs: Any) -> Subspace:
        """Move or convert the basis, as ``Tensor.to`` does.

        Parameters
        ----------
        *args, **kwargs
            Passed to ``Tensor.to``.

        Returns
        -------
        Subspace
            A lower precision is checked anew; a higher one is re-orthonormalized.
        """
        moved = self.basis.to(*args, **kwargs)
        if torch.finfo(moved.dtype).eps < torch.finfo(self.basis.dtype).eps:
            moved = _polished(moved)
        return Subspace(moved)

    def project(self, x: Tensor) -> Tensor:
        """Project vectors orthogonally onto the subspace.

        Parameters
        ----------
        x : Tensor, shape (..., n)
            Vectors along the last axis. The batch of the subspaces broadcasts
            against the leading axes of `x`.

        Returns
        -------
        Tensor, shape (..., n)
            ``basis @ basis^H @ x``.

        Raises
        ------
        ShapeError
            If the last axis of `x` is not n.
        """
        if x.ndim == 0 or x.shape[-1] != self.n:
            raise ShapeError(
                f"Subspace.project: got vectors of shape {tuple(x.shape)}, expected (..., {self.n}) for a "
                f"subspace of dimension {self.r} in {self.n}."
            )
        if not self.batch:
            return (x @ self.basis.conj()) @ self.basis.mT
        try:
            return (self.basis @ (self.basis.mH @ x.unsqueeze(-1))).squeeze(-1)
        except RuntimeError as error:
            raise ShapeError(
                f"Subspace.project: vectors of shape {tuple(x.shape)} do not broadcast against a batch "
                f"{tuple(self.batch)} of subspaces. Put the batch axes last but one."
            ) from error

    def complement(self) -> Subspace:
        """Return the orthogonal complement, of dimension n - r."""
        return Subspace._of(torch.linalg.qr(self.basis, mode="complete").Q[..., self.r :])

    def align(self, reference: Subspace) -> Subspace:
        """Choose the basis of this subspace which is nearest to another basis.

        The orthogonal Procrustes problem: over all unitary R minimize
        ``||basis @ R - reference.basis||_F``.

        Parameters
        ----------
        reference : Subspace
            Of the same n and r.

        Returns
        -------
        Subspace
            The same subspace in the aligned basis.

        Raises
        ------
        ShapeError
            If the dimensions differ.
        """
        self._require_same(reference, "align", same_rank=True)
        left, _, right = torch.linalg.svd(self.basis.mH @ reference.basis, full_matrices=False)
        return Subspace._of(self.basis @ (left @ right))

    def angles(self, other: Subspace) -> Tensor:
        """Principal angles between two subspaces.

        Accurate over the whole range: ``atan2`` of the sines, which are exact for
        small angles, and the cosines, which are exact for large ones. (The
        arccosine alone loses half of the digits below 1e-4 in float32.)

        Parameters
        ----------
        other : Subspace
            In the same space; its dimension may differ.

        Returns
        -------
        Tensor, shape (..., min(r, other.r))
            In radians, ascending, within [0, pi / 2].

        Raises
        ------
        ShapeError
            If the surrounding dimensions or the batches do not fit.
        """
        self._require_same(other, "angles", same_rank=False)
        big, small = (self.basis, other.basis) if self.r >= other.r else (other.basis, self.basis)
        overlap = big.mH @ small
        cosines = torch.linalg.svdvals(overlap)
        sines = torch.linalg.svdvals(small - big @ overlap).flip(-1)
        return torch.atan2(sines[..., : cosines.shape[-1]], cosines)

    def distance(self, other: Subspace, *, kind: Distance = "geodesic") -> Tensor:
        """Distance on the Grassmannian, from the principal angles t_i.

        Parameters
        ----------
        other : Subspace
            Of the same n and r.
        kind : {"geodesic", "chordal", "projection", "spectral", "procrustes"}
            ``sqrt(sum t_i^2)``, ``sqrt(sum sin^2 t_i)``, ``max sin t_i`` (the
            spectral norm of the difference of the projections),
            ``2 max sin(t_i / 2)`` or ``2 sqrt(sum sin^2(t_i / 2))`` ([2]_, table 2).

        Returns
        -------
        Tensor, shape (...)
            Zero if and only if the subspaces are equal.

        Raises
        ------
        ShapeError
            If the dimensions differ; :meth:`angles` compares different r.
        DataError
            If `kind` is unknown.
        """
        if kind not in get_args(Distance):
            kinds = ", ".join(get_args(Distance))
            raise DataError(f"Subspace.distance: kind={kind!r} is unknown. Use one of {kinds}.")
        self._require_same(other, "distance", same_rank=True)
        angles = self.angles(other)
        if self.r == 0:
            return angles.sum(-1)
        match kind:
            case "geodesic":
                return torch.linalg.vector_norm(angles, dim=-1)
            case "chordal":
                return torch.linalg.vector_norm(angles.sin(), dim=-1)
            case "projection":
                return angles[..., -1].sin()
            case "spectral":
                return 2 * (angles[..., -1] / 2).sin()
            case _:
                return 2 * torch.linalg.vector_norm((angles / 2).sin(), dim=-1)

    def geodesic(self, other: Subspace) -> Geodesic:
        """Shortest curve to another subspace.

        Parameters
        ----------
        other : Subspace
            Of the same n and r. With a principal angle of pi / 2 several shortest
            curves exist; one of them is returned.

        Returns
        -------
        Geodesic
            ``curve(0.0)`` is this subspace, ``curve(1.0)`` the other.

        Raises
        ------
        ShapeError
            If the dimensions differ.
        """
        self._require_same(other, "geodesic", same_rank=True)
        # With Y aligned, C = basis^H Y is Hermitian with eigenvalues cos t_i, and |L| = |Y - basis C| with
        # sin t_i, in the same eigenvectors. Those of |L| - C are well determined everywhere: sin t - cos t
        # has a slope of at least 1, while sin t alone is flat at pi / 2 and cos t alone at 0.
        aligned = other.align(self).basis
        cosine = self.basis.mH @ aligned
        normal = aligned - self.basis @ cosine
        _, sines, right = torch.linalg.svd(normal, full_matrices=False)
        absolute = right.mH @ (sines.unsqueeze(-1) * right)
        difference = absolute - cosine
        _, vectors = torch.linalg.eigh((difference + difference.mH) / 2)
        tangents = normal @ vectors
        sin = torch.linalg.vector_norm(tangents, dim=-2)
        cos = ((cosine @ vectors) * vectors.conj()).sum(-2).real
        return Geodesic(
            start=self.basis @ vectors, normal=tangents, angles=torch.atan2(sin, cos), frame=vectors
        )

    def log(self, other: Subspace) -> Tensor:
        """Tangent whose :meth:`move` leads to another subspace.

        Parameters
        ----------
        other : Subspace
            Of the same n and r.

        Returns
        -------
        Tensor, shape (..., n, r)
            Orthogonal to the basis; its Frobenius norm is the geodesic distance.

        Raises
        ------
        ShapeError
            If the dimensions differ.
        """
        return self.geodesic(other).tangent

    def move(self, tangent: Tensor, *, step: float | Tensor = 1.0) -> Subspace:
        """Walk along a geodesic (the exponential map).

        Parameters
        ----------
        tangent : Tensor, shape (..., n, r)
            Direction in which each basis vector turns. Its part within the
            subspace changes nothing and is removed, so that a Euclidean gradient
            can be given.
        step : float or Tensor, shape (...)
            How far, in units of the tangent's norm; one number per batch item.

        Returns
        -------
        Subspace
            ``basis V cos(step S) V^H + U sin(step S) V^H`` with the thin SVD
            ``tangent = U S V^H`` ([1]_, theorem 2.3).

        Raises
        ------
        ShapeError
            If the tangent does not have the shape of the basis.
        """
        if tangent.ndim < 2 or tangent.shape[-2:] != self.basis.shape[-2:]:
            raise ShapeError(
                f"Subspace.move: got a tangent of shape {tuple(tangent.shape)}, expected "
                f"{tuple(self.basis.shape)} (one direction per basis vector)."
            )
        if self.r == 0:
            return self
        horizontal = tangent - self.basis @ (self.basis.mH @ tangent)
        left, speed, right = torch.linalg.svd(horizontal, full_matrices=False)
        turn = (
            torch.as_tensor(step, dtype=speed.dtype, device=speed.device).unsqueeze(-1) * speed
        ).unsqueeze(-2)
        moved = ((self.basis @ right.mH) * turn.cos() + left * turn.sin()) @ right
        return Subspace._of(_polished(moved))

    def _require_same(self, other: Subspace, verb: str, *, same_rank: bool) -> None:
        if not isinstance(other, Subspace):
            raise DataError(
                f"Subspace.{verb}: got a {type(other).__name__}, expected a Subspace. Use Subspace.span."
            )
        if self.n != other.n or (same_rank and self.r != other.r):
            remedy = " Principal angles (Subspace.angles) compare different r." if self.n == other.n else ""
            raise ShapeError(
                f"Subspace.{verb}: got dimension {self.r} in {self.n} and {other.r} in {other.n}, expected "
                f"{'equal dimensions' if same_rank else 'the same surrounding space'}.{remedy}"
            )
        if self.basis.dtype != other.basis.dtype or self.basis.device != other.basis.device:
            raise DataError(
                f"Subspace.{verb}: got {self.basis.dtype} on {self.basis.device} and {other.basis.dtype} on "
                f"{other.basis.device}. Bring them together with .to(...)."
            )
        try:
            torch.broadcast_shapes(self.batch, other.batch)
        except RuntimeError as error:
            raise ShapeError(
                f"Subspace.{verb}: batches {tuple(self.batch)} and {tuple(other.batch)} do not broadcast."
            ) from error


@dataclass(frozen=True, eq=False)
class Geodesic:
    """The shortest curve between two subspaces; see :meth:`Subspace.geodesic`.

    Parameters
    ----------
    start : Tensor, shape (..., n, r)
        Principal vectors of the starting subspace.
    normal : Tensor, shape (..., n, r)
        Mutually orthogonal directions orthogonal to `start`, of length sin(angles).
    angles : Tensor, shape (..., r)
        Principal angles that are traveled for t from 0 to 1, in radians.
    frame : Tensor, shape (..., r, r)
        Unitary; turns the principal vectors back into the starting basis.

    Examples
    --------
    >>> import torch
    >>> curve = Subspace.random(5, 2, seed=0).geodesic(Subspace.random(5, 2, seed=1))
    >>> curve(torch.linspace(0, 1, 3)).basis.shape
    torch.Size([3, 5, 2])
    """

    start: Tensor
    normal: Tensor
    angles: Tensor
    frame: Tensor

    def _ratio(self, t: Tensor) -> Tensor:
        """sin(t a) / sin(a), which is t at a = 0."""
        sine = self.angles.sin()
        tiny = sine == 0
        return torch.where(tiny, t, (t * self.angles).sin() / torch.where(tiny, torch.ones_like(sine), sine))

    def __call__(self, t: float | Tensor) -> Subspace:
        """Evaluate the curve.

        Parameters
        ----------
        t : float or Tensor
            Position; 0 is the start, 1 the end; other values extrapolate.

        Returns
        -------
        Subspace
            With the shape of `t` before the batch of the curve.
        """
        position = torch.as_tensor(t, dtype=self.angles.dtype, device=self.angles.device)
        position = position.reshape(position.shape + (1,) * self.angles.ndim)
        cosines = (position * self.angles).cos().unsqueeze(-2)
        moved = (self.start * cosines + self.normal * self._ratio(position).unsqueeze(-2)) @ self.frame.mH
        return Subspace._of(_polished(moved))

    @property
    def tangent(self) -> Tensor:
        """Derivative at t = 0 in the starting basis, shape (..., n, r)."""
        sine = self.angles.sin()
        slope = torch.where(sine == 0, torch.ones_like(sine), self.angles / torch.where(sine == 0, 1, sine))
        return (self.normal * slope.unsqueeze(-2)) @ self.frame.mH

    @property
    def length(self) -> Tensor:
        """Geodesic distance between the ends, shape (...)."""
        return torch.linalg.vector_norm(self.angles, dim=-1)
