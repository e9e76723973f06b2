"""The Blast product on CUDA by Triton kernels, forward and backward.

Two ways, both without a separate permutation of an activation:

- three batched matrix products over strided views; every kernel reads its
  operands and stores its tile in the order that the next one wants;
- the first two fused: a program owns a tile (rank x tokens), loops over the
  block columns j, and adds ``s_ij z_j`` to the tiles of all block rows at once,
  so that z is never written.

The pure-torch twin is ``product.feature_major``. With ``TRITON_INTERPRET=1``
in the environment the kernels run on the CPU, which is how they are tested.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["couple_fused", "matmul", "triton_product"]


@triton.jit
def _matmul_kernel(  # type: ignore[no-untyped-def]
    a, b, c, M, N, K,
    a_batch, a_row, a_column, b_batch, b_row, b_column, c_batch, c_row, c_column,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of ``C[batch] = A[batch] B[batch]``; all strides are free."""
    batch = tl.program_id(2).to(tl.int64)
    rows = (tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
    columns = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        inner = (start + tl.arange(0, BK)).to(tl.int64)
        left = tl.load(
            a + batch * a_batch + rows[:, None] * a_row + inner[None, :] * a_column,
            mask=(rows[:, None] < M) & (inner[None, :] < K),
            other=0.0,
        )
        right = tl.load(
            b + batch * b_batch + inner[:, None] * b_row + columns[None, :] * b_column,
            mask=(inner[:, None] < K) & (columns[None, :] < N),
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(
        c + batch * c_batch + rows[:, None] * c_row + columns[None, :] * c_column,
        total.to(c.dtype.element_ty),
        mask=(rows[:, None] < M) & (columns[None, :] < N),
    )


@triton.jit
def _couple_kernel(  # type: ignore[no-untyped-def]
    x, v, s, w, N, R, Q, B1, B2,
    x_token, x_feature, v_block, v_rank, v_feature, s_rank, s_row, s_column, w_block, w_rank, w_token,
    ROWS: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One (rank x token) tile of ``w_i = sum_j s_ij V_j x_j`` for ROWS block rows at once."""
    tokens = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)
    ranks = (tl.program_id(1) * BR + tl.arange(0, BR)).to(tl.int64)
    rows = (tl.program_id(2) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    total = tl.zeros((ROWS, BR, BN), dtype=tl.float32)
    for j in range(0, B2):
        z = tl.zeros((BR, BN), dtype=tl.float32)
        for start in range(0, Q, BK):
            inner = (start + tl.arange(0, BK)).to(tl.int64)
            left = tl.load(
                v + j * v_block + ranks[:, None] * v_rank + inner[None, :] * v_feature,
                mask=(ranks[:, None] < R) & (inner[None, :] < Q),
                other=0.0,
            )
            right = tl.load(
                x + tokens[None, :] * x_token + (j * Q + inner)[:, None] * x_feature,
                mask=(tokens[None, :] < N) & (inner[:, None] < Q),
                other=0.0,
            )
            z = tl.dot(left, right, z, input_precision=PRECISION)
        coupling = tl.load(
            s + ranks[None, :] * s_rank + rows[:, None] * s_row + j * s_column,
            mask=(ranks[None, :] < R) & (rows[:, None] < B1),
            other=0.0,
        )
        total += coupling.to(tl.float32)[:, :, None] * z[None, :, :]
    place = rows[:, None, None] * w_block + ranks[None, :, None] * w_rank + tokens[None, None, :] * w_token
    inside = (rows[:, None, None] < B1) & (ranks[None, :, None] < R) & (tokens[None, None, :] < N)
    tl.store(w + place, total.to(w.dtype.element_ty), mask=inside)


def _tile(size: int, largest: int) -> int:
    """Return a power of two between 16 (the least that tensor cores take) and `largest`."""
    return max(16, min(largest, triton.next_power_of_2(size)))


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def matmul(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write the batched product of ``(B, M, K)`` and ``(B, K, N)`` into ``out (B, M, N)``; any strides."""
    (batch, M, K), N = a.shape, b.shape[2]
    BM, BN, BK = _tile(M, 64), _tile(N, 64), _tile(K, 32)
    grid = (triton.cdiv(N, BN), triton.cdiv(M, BM), batch)
    _matmul_kernel[grid](
        a, b, out, M, N, K, *a.stride(), *b.stride(), *out.stride(),
        BM=BM, BN=BN, BK=BK, PRECISION=_precision(),
    )  # fmt: skip
    return out


def couple_fused(x: Tensor, S: Tensor, V: Tensor) -> Tensor:
    """Return ``w_i = sum_j S[:, i, j] * (V_j x_j)``, shape (b1, r, N), without writing any ``V_j x_j``."""
    (r, b1, b2), N, q = S.shape, x.shape[0], V.shape[2]
    w = x.new_empty(b1, r, N)
    rows = min(8, triton.next_power_of_2(b1))
    BR, BN, BK = _tile(r, 32), _tile(N, 32), _tile(q, 32)
    grid = (triton.cdiv(N, BN), triton.cdiv(r, BR), triton.cdiv(b1, rows))
    _couple_kernel[grid](
        x, V, S, w, N, r, q, b1, b2, *x.stride(), *V.stride(), *S.stride(), *w.stride(),
        ROWS=rows, BR=BR, BN=BN, BK=BK, PRECISION=_precision(),
    )  # fmt: skip
    return w


def _first(x: Tensor, V: Tensor) -> Tensor:
    """Return ``z_j = V_j x_j``, shape (b2, r, N)."""
    b2, r, q = V.shape
    return matmul(V, x.reshape(-1, b2, q).permute(1, 2, 0), x.new_empty(b2, r, x.shape[0]))


def _couple(z: Tensor, S: Tensor) -> Tensor:
    """Return ``w_i = sum_j S[:, i, j] * z_j`` as (b1, r, N): a product per rank component."""
    r, b1, _ = S.shape
    w = z.new_empty(b1, r, z.shape[2])
    matmul(S, z.transpose(0, 1), w.transpose(0, 1))
    return w


class _Product(torch.autograd.Function):
    """The product; its backward pass is five more products of the same kind (z is recomputed)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, U: Tensor, S: Tensor, V: Tensor, fused: bool) -> Tensor:
        b1, p, _ = U.shape
        w = couple_fused(x, S, V) if fused else _couple(_first(x, V), S)
        y = x.new_empty(x.shape[0], b1, p)
        matmul(U, w, y.permute(1, 2, 0))
        ctx.save_for_backward(x, U, S, V)
        return y.view(x.shape[0], b1 * p)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, U, S, V = ctx.saved_tensors
        (b1, p, r), (b2, _, q), N = U.shape, V.shape, x.shape[0]
        need_x, need_U, need_S, need_V = ctx.needs_input_grad[:4]
        dy = grad.reshape(N, b1, p).permute(1, 2, 0)  # (b1, p, N)
        z = _first(x, V) if need_U or need_S else None
        dx = dU = dS = dV = None
        if need_U and z is not None:
            dU = matmul(dy, _couple(z, S).transpose(1, 2), torch.empty_like(U))
        if need_x or need_S or need_V:
            dw = matmul(U.mT, dy, x.new_empty(b1, r, N))
            if need_S and z is not None:
                dS = matmul(dw.transpose(0, 1), z.permute(1, 2, 0), torch.empty_like(S))
            if need_x or need_V:
                dz = _couple(dw, S.mT)  # (b2, r, N)
                tokens = x.reshape(N, b2, q)
                if need_V:
                    dV = matmul(dz, tokens.transpose(0, 1), torch.empty_like(V))
                if need_x:
                    into = x.new_empty(N, b2, q)
                    matmul(V.mT, dz, into.permute(1, 2, 0))
                    dx = into.view(N, b2 * q)
        return dx, dU, dS, dV, None


def triton_product(x: Tensor, U: Tensor, S: Tensor, V: Tensor, *, fused: bool = False) -> Tensor:
    """Compute the Blast product of ``x (N, b2 q)`` by Triton.

    Parameters
    ----------
    x : Tensor of shape (N, b2 q)
    U, S, V : Tensor of shape (b1, p, r), (r, b1, b2), (b2, r, q)
        All of one dtype: float32, float16 or bfloat16.
    fused : bool
        Fuse the first product with the coupling. The authors of arXiv
        2512.20861 found three plain products to be faster; hence the default.

    Returns
    -------
    Tensor of shape (N, b1 p)
    """
    return _Product.apply(x, U, S, V, fused)
