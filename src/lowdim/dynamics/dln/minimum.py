r"""Minimum: sharpness and trace of the Hessian at any global minimum of a deep linear network, exactly.

At a minimum with residual 0 the Hessian is J^T J, and its nonzero eigenvalues are those of J J^T, a map on
matrices of the size of the product: ``X -> sum_l A_l X B_l`` with ``A_l = (W_L..W_{l+1}) (W_L..W_{l+1})^T``
and ``B_l = (W_{l-1}..W_1)^T (W_{l-1}..W_1)``. It is small however many weights there are. With measurements
``y_k = <A_k, W_L..W_1>`` it is the Gram matrix of the gradients of the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.spectrum import eigenpairs
from lowdim.dynamics.dln.door import as_depth, as_layers, as_target
from lowdim.dynamics.dln.observe import Observation, observe
from lowdim.errors import DataError

__all__ = ["balanced_layers", "product", "require_minimum", "sharpness", "trace"]

DENSE = 1600
"""Up to so many observed numbers J J^T is made as a matrix; above, it is only multiplied with."""


def product(layers: Sequence[Any]) -> Tensor:
    """Multiply the layers, the last one from the left.

    Parameters
    ----------
    layers : sequence of array-like, shapes (..., w_l, w_{l-1})
        W_1, ..., W_L, first layer first.

    Returns
    -------
    Tensor of float64, shape (..., w_L, w_0)

    Raises
    ------
    ShapeError
        If the shapes do not chain.

    Examples
    --------
    >>> product([[[1.0, 2.0]], [[3.0], [4.0]]])
    tensor([[3., 6.],
            [4., 8.]], dtype=torch.float64)
    """
    return _chain(as_layers(layers, "product"))


def balanced_layers(target: Any, *, depth: int) -> list[Tensor]:
    """Make the flattest minimum: every layer carries the L-th root of the singular values.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
        The matrix M, or its singular values (then M is their diagonal matrix).
    depth : int
        Number of layers L.

    Returns
    -------
    list of Tensor
        W_1 = S^(1/L) V^T, then S^(1/L), last W_L = U S^(1/L); the inner width is min(m, n).

    References
    ----------
    arXiv 2502.20531, proposition 1 and lemma 4.

    Examples
    --------
    >>> [layer.diagonal().tolist() for layer in balanced_layers([9.0, 4.0], depth=2)]
    [[3.0, 2.0], [3.0, 2.0]]
    """
    L = as_depth(depth, "balanced_layers")
    M = as_target(target, "balanced_layers")
    if L == 1:
        return [M if M.ndim == 2 else M.diag()]
    if M.ndim == 1:
        return [(M ** (1 / L)).diag() for _ in range(L)]
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    root = s ** (1 / L)
    return [root[:, None] * Vh, *(root.diag() for _ in range(L - 2)), U * root]


def sharpness(
    layers: Sequence[Any], *, target: Any = None, measurements: Any = None, gn: bool = False
) -> Tensor:
    """Largest eigenvalue of the Hessian at a global minimum, from matrices of the size of the product.

    Parameters
    ----------
    layers : sequence of array-like, shapes (..., w_l, w_{l-1})
        W_1, ..., W_L, first layer first; any widths, balanced or not.
    target : array-like, shape (m, n) or (d,), optional
        M, to make sure that this is a minimum; without it the product is taken for the target.
    measurements : array-like, optional
        What is seen of the product: matrices (k, m, n), or a mask of bool (m, n). All of it otherwise.
    gn : bool, default False
        Allow weights that are no minimum, and return the Gauss-Newton sharpness there.

    Returns
    -------
    Tensor of float64, shape (...)

    Raises
    ------
    DataError
        If the residual is above 1e-6 of the target and `gn` is off.

    References
    ----------
    Kamber, Parhi, arXiv 2509.25783 (sharpness of any minimum).

    Examples
    --------
    >>> round(float(sharpness(balanced_layers([8.0, 1.0], depth=3))), 9)
    48.0
    """
    Ws = as_layers(layers, "sharpness")
    seen = observe(measurements, Ws[-1].shape[-2], Ws[0].shape[-1], "sharpness")
    if target is not None and not gn:
        require_minimum(Ws, target, seen, "sharpness")
    if seen.count <= DENSE:
        return torch.linalg.eigvalsh(gram(Ws, seen))[..., -1]
    batch = Ws[0].shape[:-2]
    flat = [W.reshape(-1, *W.shape[-2:]) for W in Ws]
    found = [_by_lanczos([W[k] for W in flat], seen) for k in range(flat[0].shape[0])]
    return torch.stack(found).reshape(batch)


def trace(layers: Sequence[Any], *, target: Any = None, measurements: Any = None, gn: bool = False) -> Tensor:
    """Trace of the Hessian at a global minimum: ``sum_l tr(A_l) tr(B_l)`` if all of the product is seen.

    Parameters
    ----------
    layers, target, measurements, gn
        See `sharpness`.

    Returns
    -------
    Tensor of float64, shape (...)

    Raises
    ------
    DataError
        If the residual is above 1e-6 of the target and `gn` is off.

    Examples
    --------
    With two layers it is 2 d times the sum of the singular values:

    >>> round(float(trace(balanced_layers([8.0, 1.0], depth=2))), 9)
    36.0
    """
    Ws = as_layers(layers, "trace")
    seen = observe(measurements, Ws[-1].shape[-2], Ws[0].shape[-1], "trace")
    if target is not None and not gn:
        require_minimum(Ws, target, seen, "trace")
    ups, downs = sides(Ws)
    return torch.stack([seen.energy(up, down) for up, down in zip(ups, downs, strict=True)]).sum(0)


def require_minimum(layers: list[Tensor], target: Any, seen: Observation, where: str) -> None:
    """Refuse layers whose product misses what is observed of the target by more than 1e-6 of it.

    Parameters
    ----------
    layers : list of Tensor
    target : array-like, shape (m, n) or (d,)
    seen : Observation
    where : str

    Raises
    ------
    DataError
    """
    M = as_target(target, where)
    M = M.diag() if M.ndim == 1 else M
    P = _chain(layers)
    if M.shape != P.shape[-2:]:
        raise DataError(
            f"{where}: target of shape {tuple(M.shape)}, but the layers multiply to {tuple(P.shape[-2:])}."
        )
    miss = float((seen.of(P) - seen.of(M)).norm(dim=-1).max() / seen.of(M).norm())
    if not miss <= 1e-6:
        raise DataError(
            f"{where}: not a minimum: relative residual {miss:.1e}, expected at most 1e-6, for the formula "
            "is exact at residual 0. Train on, use gn=True for the Gauss-Newton matrix, or measure the "
            "Hessian itself with lowdim.dynamics.tracker."
        )


def gram(layers: list[Tensor], seen: Observation) -> Tensor:
    """Return ``J J^T`` of what is observed: entry (j, k) is the product of the gradients of y_j and y_k.

    Parameters
    ----------
    layers : list of Tensor
    seen : Observation

    Returns
    -------
    Tensor, shape (..., count, count)
    """
    total = torch.zeros((), dtype=layers[0].dtype, device=layers[0].device)
    for up, down in zip(*sides(layers), strict=True):
        total = total + seen.gram(up, down)
    return total


def _chain(layers: Sequence[Tensor]) -> Tensor:
    found = layers[0]
    for W in layers[1:]:
        found = W @ found
    return found


def sides(layers: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return for each layer the product of those above it, and of those below it.

    Parameters
    ----------
    layers : list of Tensor

    Returns
    -------
    list of Tensor, shapes (..., m, w_l)
    list of Tensor, shapes (..., w_{l-1}, n)
    """
    first, last = layers[0], layers[-1]
    eye_in = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device).expand(
        *first.shape[:-2], -1, -1
    )
    eye_out = torch.eye(last.shape[-2], dtype=last.dtype, device=last.device).expand(*last.shape[:-2], -1, -1)
    downs, ups = [eye_in], [eye_out]
    for W in layers[:-1]:
        downs.append(W @ downs[-1])
    for W in reversed(layers[1:]):
        ups.append(ups[-1] @ W)
    return ups[::-1], downs


def _by_lanczos(layers: list[Tensor], seen: Observation) -> Tensor:
    """Largest eigenvalue of J J^T from products alone."""
    pairs = [(up @ up.mT, down.mT @ down) for up, down in zip(*sides(layers), strict=True)]

    def multiply(y: Tensor) -> Tensor:
        X = seen.back(y)
        return seen.of(torch.stack([A @ X @ B for A, B in pairs]).sum(0))

    # Begin with X = u v^T that is best if the other side has its largest value: a third fewer products.
    u = _top(torch.stack([_largest(B) * A for A, B in pairs]).sum(0))
    v = _top(torch.stack([_largest(A) * B for A, B in pairs]).sum(0))
    found = eigenpairs(
        multiply,
        start=seen.of(u[:, None] * v),
        tol=1e-6,
        seed=0,
        size=seen.count,
        dtype=torch.float64,
        device=u.device,
    )
    return found.values[0]


def _top(A: Tensor) -> Tensor:
    """Return the eigenvector of the largest eigenvalue."""
    return torch.linalg.eigh(A).eigenvectors[:, -1]


def _largest(A: Tensor) -> Tensor:
    """Return the largest eigenvalue."""
    return torch.linalg.eigvalsh(A)[-1]
