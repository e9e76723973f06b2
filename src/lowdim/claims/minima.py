"""Minima: the minima of linear layers that several claims are measured on, and their Hessians."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CASES", "SPECTRA", "dense_hessian", "turned_minimum"]

CASES = (
    (2, [5.0, 3.0, 0.0, 0.0]),
    (3, [5.0, 3.0, 1.0, 0.0]),
    (3, [10.0, 9.5, 9.0, 0.0, 0.0]),
    (4, [2.0, 1.0, 0.5]),
    (4, [2.0, 1.0, 0.0, 0.0]),
)
SPECTRA = (
    "Depth 2 with s = (5, 3, 0, 0); 3 with (5, 3, 1, 0) and (10, 9.5, 9, 0, 0); 4 with (2, 1, 0.5) and"
    " (2, 1, 0, 0)"
)


def turned_minimum(s: list[float], depth: int, seed: int, *, uneven: float = 0.0) -> list[Tensor]:
    """Return a minimum: balanced layers turned by random orthogonal matrices, or random ones near them."""
    import torch

    from lowdim.algebra.seeds import gaussian
    from lowdim.dynamics import dln

    source, d = torch.Generator().manual_seed(seed), len(s)
    turns = [torch.linalg.qr(gaussian((d, d), seed=source, dtype=torch.float64)).Q for _ in range(depth + 1)]
    if uneven:
        turns[1:-1] = [
            Q @ torch.linalg.matrix_exp(uneven * gaussian((d, d), seed=source, dtype=torch.float64))
            for Q in turns[1:-1]
        ]
    layers = dln.balanced_layers(s, depth=depth)
    return [turns[k + 1] @ W @ torch.linalg.inv(turns[k]) for k, W in enumerate(layers)]


def dense_hessian(layers: list[Tensor]) -> Tensor:
    """Hessian of 1/2 ||W_L ... W_1 - M||^2 in all weights, M the product, by automatic differentiation."""
    import torch

    from lowdim.dynamics import dln

    M = dln.product(layers)
    sizes = [W.numel() for W in layers]

    def loss(flat: Tensor) -> Tensor:
        P = torch.eye(layers[0].shape[1], dtype=flat.dtype)
        for part, W in zip(flat.split(sizes), layers, strict=True):
            P = part.view_as(W) @ P
        return (P - M).square().sum() / 2

    return torch.func.hessian(loss)(torch.cat([W.flatten() for W in layers]))
