"""Curve: a subspace that rotates along one geodesic of the Grassmannian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.algebra import Subspace

__all__ = ["Curve", "polar"]


@dataclass(frozen=True, eq=False)
class Curve:
    """The subspaces ``U(t) = H cos(theta t) + Y sin(theta t)``, t in [0, 1].

    Every U(t) has orthonormal columns. The curve is unique, the triple is
    not (order, signs): compare ``U(t)``.

    Parameters
    ----------
    Q : Tensor of shape (d, 2 k)
        Orthonormal columns [H Y], real or complex.
    theta : Tensor of shape (k,)
        Principal angles that are traveled from t = 0 to 1, in radians.

    References
    ----------
    Blocker, Raja, Fessler, Balzano, "Dynamic Subspace Estimation with
    Grassmannian Geodesics", arXiv 2303.14851: the model.

    Examples
    --------
    >>> import torch
    >>> curve = Curve(torch.eye(4)[:, :2], torch.tensor([torch.pi / 2]))
    >>> curve.basis(torch.tensor([1.0])).round()
    tensor([[[-0.],
             [1.],
             [0.],
             [0.]]])
    """

    Q: Tensor
    theta: Tensor

    @property
    def rank(self) -> int:
        """Dimension k of the subspaces."""
        return self.theta.shape[0]

    @property
    def H(self) -> Tensor:  # noqa: N802
        """Basis at t = 0, shape (d, k)."""
        return self.Q[:, : self.rank]

    @property
    def Y(self) -> Tensor:  # noqa: N802
        """Directions of travel, shape (d, k)."""
        return self.Q[:, self.rank :]

    def turns(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``cos(theta t)`` and ``sin(theta t)``, both of shape (T, k)."""
        angle = t[:, None] * self.theta
        return angle.cos(), angle.sin()

    def basis(self, t: Tensor) -> Tensor:
        """Return U(t), shape (T, d, k); values outside [0, 1] extrapolate."""
        cosine, sine = self.turns(t)
        return self.H * cosine[:, None] + self.Y * sine[:, None]

    def subspace(self, t: Tensor) -> Subspace:
        """Return the span of U(t) as a batch of subspaces."""
        return Subspace._of(self.basis(t))

    def sorted(self) -> Curve:
        """Return the same curve with angles that are not negative, largest first."""
        # cos is even and sin odd: a negative angle is the positive one with Y negated.
        sign = torch.where(self.theta < 0, -1.0, 1.0).to(self.theta)
        order = (self.theta * sign).argsort(descending=True)
        H, Y = self.H[:, order], (self.Y * sign)[:, order]
        return Curve(torch.cat([H, Y], dim=1), (self.theta * sign)[order])


def polar(M: Tensor) -> Tensor:
    """Return the matrix with orthonormal columns nearest to M, its polar factor.

    Parameters
    ----------
    M : Tensor of shape (d, c)
        d >= c.

    Returns
    -------
    Tensor of shape (d, c)
    """
    values, vectors = torch.linalg.eigh(M.mH @ M)
    if values[0] > 1e-7 * values[-1]:
        Q = M @ ((vectors * values.rsqrt()) @ vectors.mH)
        # One step of Newton and Schulz makes up for the squared condition number of the Gram matrix.
        return 1.5 * Q - 0.5 * (Q @ (Q.mH @ Q))
    W, _, V = torch.linalg.svd(M, full_matrices=False)
    return W @ V
