"""The Blast product in plain torch: two orders of the same three steps.

    z_j = V_j x_j          b2 matrix products, q -> r
    w_i = sum_j s_ij z_j   the coupling, r b1 b2 multiplications per token
    y_i = U_i w_i          b1 matrix products, r -> p

The first and the last step are batched matrix products in either order. The
order decides how the coupling runs. *Feature-major* (features before tokens)
makes it a third batched product, one (b1, b2) x (b2, N) product per rank
component: fast when there are enough tokens. *Token-major* keeps the tokens in
the rows of every product, and couples elementwise where there are few blocks.
"""

from __future__ import annotations

import math
import threading
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Path", "choose_path", "feature_major", "token_major", "unwatched"]

Path = Literal["feature", "token", "triton", "fused"]

# Measured on CPUs (README.md of this folder): below 16 columns the vendor's batched product with
# tokens in the columns is slow, and below 400 multiplications per item torch does not call it at all.
_FEW_TOKENS = 16
_SMALL_PRODUCT = 400
# So many couplings per component cost more to turn, rank last, than the activations of a few tokens.
_MANY_COUPLINGS = 128
# Rows p of a block below which the last product is faster with the tokens in the columns, too; and tokens
# up to which the transpose that follows stays in the cache.
_FEW_ROWS = 64
_SHORT_TRANSPOSE = 128
# Without gradients, so many tokens and more pass in parts whose z and w (so many numbers per thread) stay in
# the cache; parts below 64 tokens are too short for the products.
_MANY_TOKENS = 144
_CACHED, _SHORTEST_PART = 400_000, 64
# Numbers in the factors up to which one token is multiplied by one thread even where torch has several.
_SMALL_FACTORS = 1 << 19
_PLAIN = (Tensor, nn.Parameter)
# Numbers in a memory page, and a shift by a third of it in whole cache lines.
_PAGE, _SHIFT = 1024, 336


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


def feature_major(x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the product with features before tokens: three batched matrix products.

    Parameters
    ----------
    x : Tensor of shape (N, b2 q)
    U, S, V : Tensor of shape (b1, p, r), (r, b1, b2), (b2, r, q)
    bias : Tensor of shape (b1 p,), optional
        Added to every token, within the last product.

    Returns
    -------
    Tensor of shape (N, b1 p), contiguous
    """
    # In this order: an export must not see a question about the number of tokens.
    if unwatched(x, U, S, V) and x.shape[0] >= _MANY_TOKENS:
        return _feature_in_scratch(x, U, S, V, bias)
    b2, _, q = V.shape
    z = torch.bmm(V, x.reshape(-1, b2, q).permute(1, 2, 0))  # (b2, r, N)
    w = torch.bmm(S, z.transpose(0, 1))  # (r, b1, N)
    b1, p, _ = U.shape
    if p < _FEW_ROWS and (torch.compiler.is_exporting() or w.shape[2] <= _SHORT_TRANSPOSE):
        y = _product(U, w.transpose(0, 1), None if bias is None else bias.view(b1, p, 1))  # (b1, p, N)
        return y.view(b1 * p, y.shape[2]).t().contiguous()
    # With many rows per block the product itself may return to tokens first; the copy then moves whole rows.
    return _side_by_side(_product(w.permute(1, 2, 0), U.mT, _per_block(bias, U)))


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """Return the batched product, plus a bias that is spread over it."""
    return torch.bmm(left, right) if bias is None else torch.baddbmm(bias, left, right)


def _per_block(bias: Tensor | None, U: Tensor) -> Tensor | None:
    """Return the bias as (b1, 1, p)."""
    return None if bias is None else bias.view(U.shape[0], 1, U.shape[1])


class _Scratch(threading.local):
    """Memory that a thread keeps for z, w and y between products."""

    def __init__(self) -> None:
        self.memory: dict[torch.dtype, Tensor] = {}

    def take(self, dtype: torch.dtype, *shapes: tuple[int, int, int]) -> list[Tensor]:
        # Each begins elsewhere within a memory page: equal places would collide in the cache.
        sizes = [math.prod(shape) for shape in shapes]
        strides = [size + -size % _PAGE + _SHIFT for size in sizes]
        flat = self.memory.get(dtype)
        if flat is None or flat.numel() < sum(strides):
            with torch.inference_mode(False):
                flat = self.memory[dtype] = torch.empty(sum(strides), dtype=dtype, device="cpu")
        starts = [sum(strides[:k]) for k in range(len(shapes))]
        return [
            flat[start : start + size].view(shape)
            for start, size, shape in zip(starts, sizes, shapes, strict=True)
        ]


_scratch = _Scratch()


def unwatched(*tensors: Tensor) -> bool:
    """Return whether these are plain CPU tensors and nobody watches, transforms or differentiates.

    Then memory may be reused and results written in place.

    Parameters
    ----------
    *tensors : Tensor
        Of one dtype, float32 or float64.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    dtype = tensors[0].dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        return False
    for tensor in tensors:
        kind = type(tensor)
        if (
            (kind is not Tensor and kind is not nn.Parameter)
            or tensor.dtype is not dtype
            or not tensor.is_cpu
        ):
            return False
    return (
        not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.maybe_current_level() is None
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _feature_in_scratch(x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `feature_major` part by part in memory that is kept: fresh pages can cost half of the time."""
    (b1, p, r), (b2, _, q), tokens = U.shape, V.shape, x.shape[0]
    result = x.new_empty(tokens, b1, p)
    rows, N = bias if bias is None else bias.view(b1, p), 0
    step = max(_SHORTEST_PART, torch.get_num_threads() * _CACHED // ((b1 + b2) * r))
    for part, into in zip(x.reshape(tokens, b2, q).split(step), result.split(step), strict=True):
        if part.shape[0] != N:
            N = part.shape[0]
            z, w, y = _scratch.take(x.dtype, (b2, r, N), (r, b1, N), (b1, p, N))
        torch.bmm(V, part.permute(1, 2, 0), out=z)
        torch.bmm(S, z.transpose(0, 1), out=w)
        if p < _FEW_ROWS:
            torch.bmm(U, w.transpose(0, 1), out=y)
            into.view(N, b1 * p).copy_(y.view(b1 * p, N).t())
        else:
            torch.bmm(w.permute(1, 2, 0), U.mT, out=y.view(b1, N, p))
            into.copy_(y.view(b1, N, p).transpose(0, 1))
        if rows is not None:
            into.add_(rows)  # while the part is in the cache
    return result.view(tokens, b1 * p)


def token_major(x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the product with tokens before features and an elementwise coupling.

    Parameters, result: as :func:`feature_major`.
    """
    b2, _, q = V.shape
    z = torch.bmm(x.reshape(-1, b2, q).transpose(0, 1), V.mT)  # (b2, N, r)
    return _side_by_side(_product(_couple(z, S), U.mT, _per_block(bias, U)))  # of (b1, N, p)


def one_token(x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the three steps as products of matrices and a vector, which NumPy does faster than torch.

    `torch.bmm` takes a vector for a matrix of one row, or does the coupling in a scalar loop. NumPy calls
    the vendor's product for every block, with vectors of any stride: nothing is turned or copied.

    Parameters
    ----------
    x : Tensor with b2 q numbers
        The token; `unwatched`, like the factors.
    U, S, V, bias : Tensor
        As in :func:`feature_major`.

    Returns
    -------
    Tensor of shape (1, b1 p)
    """
    b2, _, q = V.shape
    z = np.matmul(V.numpy(force=True), x.reshape(b2, q, 1).numpy())  # (b2, r, 1)
    w = np.matmul(S.numpy(force=True), z.transpose(1, 0, 2))  # (r, b1, 1)
    y = np.matmul(U.numpy(force=True), w.transpose(1, 0, 2)).reshape(1, -1)
    if bias is not None:
        y += bias.numpy(force=True)
    return torch.from_numpy(y)


def suits_one_token(x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether `one_token`, which has one thread, may and should be used.

    Parameters
    ----------
    x, U, S, V, bias : Tensor
        As in :func:`one_token`.
    """
    if torch.compiler.is_compiling() or x.numel() != x.shape[-1]:
        return False
    if U.numel() + S.numel() + V.numel() > _SMALL_FACTORS and torch.get_num_threads() > 1:
        return False
    return unwatched(x, U, S, V) if bias is None else unwatched(x, U, S, V, bias)


def _couple(z: Tensor, S: Tensor) -> Tensor:
    """Return ``w[i, t] = sum_j S[:, i, j] * z[j, t]``, shape (b1, N, r)."""
    _, b1, b2 = S.shape
    if z.shape[1] == 1 or b1 * b2 >= _MANY_COUPLINGS:
        # Products with the tokens in the rows read S as it is stored; turning z and w is less work.
        return torch.bmm(z.permute(2, 1, 0).contiguous(), S.mT).permute(2, 1, 0).contiguous()
    # Once the rank is last, all passes run along it.
    return (S.permute(1, 2, 0).contiguous().unsqueeze(2) * z).sum(1)


def _side_by_side(y: Tensor) -> Tensor:
    """Return ``(N, b1 p)`` of ``(b1, N, p)``."""
    return y.transpose(0, 1).reshape(y.shape[1], y.shape[0] * y.shape[2])
