"""The Blast product in plain torch: two orders of the same three steps.

    z_j = V_j x_j          b2 matrix products, q -> r
    w_i = sum_j s_ij z_j   the coupling, r b1 b2 multiplications per token
    y_i = U_i w_i          b1 matrix products, r -> p

The first and the last step are batched matrix products in either order. The
order decides how the coupling runs. *Feature-major* (features before tokens)
makes it a third batched product, one (b1, b2) x (b2, N) product per rank
component: fast when there are enough tokens. *Token-major* leaves the rank
last and couples elementwise: few, cheap passes when there are few tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Path", "choose_path", "feature_major", "token_major"]

Path = Literal["feature", "token", "triton", "fused"]

# Measured on CPUs (README.md of this folder): below 16 columns the vendor's batched product with
# tokens in the columns is slow, and below 400 multiplications per item torch does not call it at all.
_FEW_TOKENS = 16
_SMALL_PRODUCT = 400
# So few couplings (times tokens) are read in their stored order faster than they are transposed.
_FEW_COUPLINGS = 32
# Numbers of z and w together that still find room in the caches near one core (4 MB in float32).
_CACHED = 2**20


def choose_path(tokens: int, b1: int, b2: int) -> Path:
    """Return the faster order for so many tokens.

    Parameters
    ----------
    tokens : int
        Number N of vectors.
    b1, b2 : int
        Block rows and columns.
    """
    if torch.compiler.is_exporting():
        # One graph must serve every batch size: no branch on the token count.
        return "feature"
    return "feature" if tokens >= _FEW_TOKENS and b1 * b2 * tokens >= _SMALL_PRODUCT else "token"


def feature_major(x: Tensor, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
    """Compute the product with features before tokens: three batched matrix products.

    Parameters
    ----------
    x : Tensor of shape (N, b2 q)
    U, S, V : Tensor of shape (b1, p, r), (r, b1, b2), (b2, r, q)

    Returns
    -------
    Tensor of shape (N, b1 p), contiguous
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.is_cuda:
        # Training keeps z and w anyway, and its gradients are sums over all tokens at once.
        return _side_by_side(_feature_steps(x, U, S, V))
    r, b1, b2 = S.shape
    room = max(64, _CACHED // (r * (b1 + b2)) // 32 * 32)
    if x.shape[0] < 3 * room // 2:
        return _side_by_side(_feature_steps(x, U, S, V))
    parts = [_feature_steps(part, U, S, V).transpose(0, 1) for part in x.split(room)]
    return torch.cat(parts).view(x.shape[0], -1)


def _feature_steps(x: Tensor, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
    b2, _, q = V.shape
    z = torch.bmm(V, x.reshape(-1, b2, q).permute(1, 2, 0))  # (b2, r, N)
    w = torch.bmm(S, z.transpose(0, 1))  # (r, b1, N)
    # The last product returns to tokens first: its output needs only a copy of whole rows.
    return torch.bmm(w.permute(1, 2, 0), U.mT)  # (b1, N, p)


def token_major(x: Tensor, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
    """Compute the product with tokens before features and an elementwise coupling.

    Parameters, result: as :func:`feature_major`.
    """
    b2, _, q = V.shape
    z = torch.bmm(x.reshape(-1, b2, q).transpose(0, 1), V.mT)  # (b2, N, r)
    y = torch.bmm(_couple(z, S), U.mT)  # (b1, N, p)
    return _side_by_side(y)


def _couple(z: Tensor, S: Tensor) -> Tensor:
    """Return ``w[i, t] = sum_j S[:, i, j] * z[j, t]``, shape (b1, N, r)."""
    r, b1, b2 = S.shape
    if z.shape[1] == 1:
        return torch.bmm(S, z.permute(2, 0, 1).contiguous()).permute(1, 2, 0).contiguous()
    if z.shape[1] * b1 * b2 <= _FEW_COUPLINGS:
        return (S.permute(1, 2, 0).unsqueeze(2) * z).sum(1)
    # A transpose in two dimensions is the fast kind of copy; afterwards all passes run along the rank.
    couplings = S.reshape(r, b1 * b2).t().contiguous().view(b1, b2, 1, r)
    return (couplings * z).sum(1)


def _side_by_side(y: Tensor) -> Tensor:
    """Return ``(N, b1 p)`` of ``(b1, N, p)``."""
    return y.transpose(0, 1).reshape(y.shape[1], y.shape[0] * y.shape[2])
