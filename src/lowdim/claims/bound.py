"""Bound: how well a subspace that moves can be known from what was seen of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["cramer_rao"]


def cramer_rao(
    Q: np.ndarray,
    theta: np.ndarray,
    t: np.ndarray,
    g: np.ndarray,
    seen: np.ndarray,
    *,
    noise: float,
    drawn: bool = False,
) -> float:
    r"""Return the Cramer-Rao bound on the mean squared sine of the angles to a geodesic.

    Frames are ``y_i = P_i (U_i g_i + noise)``. A change of the parameters, Q on the Stiefel manifold and
    theta, moves U_i by dU_i; the subspaces then differ by ``||(I - U_i U_i^T) dU_i||^2 / k``. The bound is
    the mean of that over the frames and over the inverse of the Fisher information

        ``sum_i dU_i g_i`` off the span of ``P_i U_i``, squared, over noise^2      (g unknown numbers)
        ``1/2 sum_i tr(C_i^-1 dC_i C_i^-1 dC_i)``, ``C_i = P_i (U_i U_i^T + noise^2) P_i``   (g drawn)

    where directions in which nothing changes are left out.

    Parameters
    ----------
    Q : ndarray of shape (d, 2 k)
    theta : ndarray of shape (k,)
    t : ndarray of shape (T,)
    g : ndarray of shape (T, k)
        Coefficients.
    seen : ndarray of bool of shape (T, d)
    noise : float
        Standard deviation.
    drawn : bool
        Whether the estimator may know that coefficients are standard normal, in place of estimating them.

    Returns
    -------
    float
    """
    import numpy as np

    d, m = Q.shape
    k = m // 2
    turns = _directions(Q)
    p = len(turns) + k
    information, change = np.zeros((p, p)), np.zeros((p, p))
    for i, time in enumerate(t):
        c, s = np.cos(theta * time), np.sin(theta * time)
        U = Q[:, :k] * c + Q[:, k:] * s
        dU = np.zeros((p, d, k))
        dU[:-k] = turns[..., :k] * c + turns[..., k:] * s
        dU[range(p - k, p), :, range(k)] = (time * (Q[:, k:] * c - Q[:, :k] * s)).T
        away = (dU - U @ (U.T @ dU)).reshape(p, -1)
        change += away @ away.T / (k * len(t))
        at = seen[i]
        if not at.any():
            continue
        if drawn:
            values, vectors = np.linalg.eigh(U[at] @ U[at].T + noise**2 * np.eye(at.sum()))
            root = (vectors / np.sqrt(values)) @ vectors.T
            half = root @ dU[:, at] @ (U[at].T @ root)
            rows = (half + half.transpose(0, 2, 1)).reshape(p, -1) / np.sqrt(2)
        else:
            left, sizes, _ = np.linalg.svd(U[at], full_matrices=False)
            left = left[:, sizes > 1e-10]
            rows = dU[:, at] @ g[i]
            rows = (rows - rows @ left @ left.T) / noise
        information += rows @ rows.T
    values, vectors = np.linalg.eigh(information)
    kept = values > 1e-12 * values[-1]
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    return float(np.trace(inverse @ change))


def _directions(Q: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the tangent space of the Stiefel manifold at Q, (p, d, 2 k)."""
    import numpy as np

    d, m = Q.shape
    found = []
    for a in range(m):
        for b in range(a):
            skew = np.zeros((m, m))
            skew[a, b], skew[b, a] = 0.5**0.5, -(0.5**0.5)
            found.append(Q @ skew)
    beside = np.linalg.svd(Q, full_matrices=True)[0][:, m:]
    for column in range(m):
        for vector in beside.T:
            step = np.zeros((d, m))
            step[:, column] = vector
            found.append(step)
    return np.array(found)
