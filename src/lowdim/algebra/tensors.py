"""Tensors with structure: the CP and the Tucker form, real or complex, batched over leading axes.

Tensors are unfolded in row-major order: the columns of ``unfold(X, k)`` run through the other modes with
the last one fastest, which is TensorLy's convention, so that both speak of the same matrices. TensorLy
itself has no batch axis and chooses its arithmetic by a global setting; results are handed over to it by
``to_tensorly``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowdim.errors import RankError, ShapeError

if TYPE_CHECKING:
    from tensorly.cp_tensor import CPTensor
    from tensorly.tucker_tensor import TuckerTensor

__all__ = ["CP", "Tucker", "fold", "hosvd", "khatri_rao", "mode_product", "unfold"]


def unfold(tensor: Tensor, mode: int, *, order: int | None = None) -> Tensor:
    """Lay the fibers of one mode side by side: row i holds everything with index i in that mode.

    Parameters
    ----------
    tensor : Tensor, shape (..., n1, ..., nd)
        Real or complex.
    mode : int
        Of the d modes, 0 to d - 1.
    order : int, optional
        Number d of trailing axes that are modes; the axes before them are a batch. All axes otherwise.

    Returns
    -------
    Tensor, shape (..., n_mode, prod of the others)

    Raises
    ------
    ShapeError
        If there is no such mode.

    Examples
    --------
    >>> unfold(torch.arange(8).reshape(2, 2, 2), 1)
    tensor([[0, 1, 4, 5],
            [2, 3, 6, 7]])
    """
    order = _order("unfold", tensor.ndim, mode, order)
    batch = tensor.ndim - order
    return tensor.movedim(batch + mode, batch).flatten(batch + 1) if order > 1 else tensor.unsqueeze(-1)


def fold(matrix: Tensor, mode: int, shape: Sequence[int]) -> Tensor:
    """Undo `unfold`.

    Parameters
    ----------
    matrix : Tensor, shape (..., n_mode, prod of the others)
        An unfolding.
    mode : int
        The mode that its rows are.
    shape : sequence of int
        The modes (n1, ..., nd) of the tensor.

    Returns
    -------
    Tensor, shape (..., n1, ..., nd)

    Raises
    ------
    ShapeError
        If sizes do not fit.

    Examples
    --------
    >>> X = torch.arange(24).reshape(2, 3, 4)
    >>> bool((fold(unfold(X, 1), 1, X.shape) == X).all())
    True
    """
    shape = tuple(shape)
    _order("fold", len(shape), mode, None)
    rest = shape[:mode] + shape[mode + 1 :]
    if matrix.ndim < 2 or tuple(matrix.shape[-2:]) != (shape[mode], prod(rest)):
        raise ShapeError(
            f"fold: got a matrix of shape {tuple(matrix.shape)}, expected {shape[mode]} x {prod(rest)} for "
            f"mode {mode} of a tensor of shape {shape}."
        )
    batch = matrix.ndim - 2
    return matrix.reshape(*matrix.shape[:-1], *rest).movedim(batch, batch + mode)


def mode_product(tensor: Tensor, matrix: Tensor, mode: int, *, order: int | None = None) -> Tensor:
    """Multiply every fiber of one mode by a matrix: ``unfold(result, k) = M @ unfold(X, k)``.

    Parameters
    ----------
    tensor : Tensor, shape (..., n1, ..., nd)
        Real or complex.
    matrix : Tensor, shape (..., p, n_mode)
        The matrix, without conjugation.
    mode, order
        As in `unfold`.

    Returns
    -------
    Tensor, shape (..., n1, ..., p, ..., nd)

    Raises
    ------
    ShapeError
        If sizes do not fit.

    Examples
    --------
    >>> mode_product(torch.ones(2, 3, 4), torch.ones(5, 3), 1).shape
    torch.Size([2, 5, 4])
    """
    order = _order("mode_product", tensor.ndim, mode, order)
    at = tensor.ndim - order + mode
    if matrix.ndim < 2 or matrix.shape[-1] != tensor.shape[at]:
        raise ShapeError(
            f"mode_product: a matrix of shape {tuple(matrix.shape)} does not multiply mode {mode} of size "
            f"{tensor.shape[at]}. Its last axis must have that size."
        )
    modes = tuple(tensor.shape[tensor.ndim - order :])
    product = matrix @ unfold(tensor, mode, order=order)
    return fold(product, mode, (*modes[:mode], matrix.shape[-2], *modes[mode + 1 :]))


def khatri_rao(matrices: Sequence[Tensor]) -> Tensor:
    """Return the columnwise Kronecker product, the row of the last matrix running fastest.

    Parameters
    ----------
    matrices : sequence of Tensor, each of shape (..., n_k, rank)
        At least one.

    Returns
    -------
    Tensor, shape (..., prod n_k, rank)

    Raises
    ------
    ShapeError
        If there is none, or the numbers of columns differ.

    Examples
    --------
    >>> khatri_rao([torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [10.0]])]).T
    tensor([[ 1., 10.,  2., 20.]])
    """
    if not matrices or len({matrix.shape[-1] for matrix in matrices}) > 1:
        raise ShapeError(
            f"khatri_rao: got matrices of shapes {[tuple(m.shape) for m in matrices]}, expected at least "
            "one, all with the same number of columns."
        )
    product = matrices[0]
    for matrix in matrices[1:]:
        product = (product.unsqueeze(-2) * matrix.unsqueeze(-3)).flatten(-3, -2)
    return product


@dataclass(frozen=True, eq=False)
class CP:
    """A sum of outer products, ``X = sum_r f1_r o f2_r o ... o fd_r``.

    Parameters
    ----------
    factors : tuple of Tensor, each of shape (..., n_k, rank)
        One per mode; equal leading axes are a batch.

    Raises
    ------
    ShapeError
        If the numbers of columns differ.

    Examples
    --------
    >>> form = CP((torch.ones(2, 1), torch.ones(3, 1)))
    >>> form.shape, form.rank, form.parameters
    ((2, 3), 1, 5)
    """

    factors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        if not self.factors or len({factor.shape[-1] for factor in self.factors}) > 1:
            raise ShapeError(
                f"CP: got factors of shapes {[tuple(f.shape) for f in self.factors]}, expected at least one, "
                "all with the same number of columns."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The modes (n1, ..., nd)."""
        return tuple(factor.shape[-2] for factor in self.factors)

    @property
    def rank(self) -> int:
        """Number of outer products."""
        return self.factors[0].shape[-1]

    @property
    def parameters(self) -> int:
        """Numbers that one item is made of."""
        return self.rank * sum(self.shape)

    def dense(self) -> Tensor:
        """Return the tensor, of shape (..., n1, ..., nd)."""
        head, *rest = self.factors
        if not rest:
            return head.sum(-1)
        return (head @ khatri_rao(rest).transpose(-1, -2)).unflatten(-1, self.shape[1:])

    def to_tensorly(self) -> CPTensor:
        """Return it as TensorLy's, in numpy arrays and without a batch."""
        from tensorly.cp_tensor import CPTensor

        return CPTensor((None, [factor.detach().cpu().numpy() for factor in self.factors]))


@dataclass(frozen=True, eq=False)
class Tucker:
    """A small core multiplied by a matrix in every mode, ``X = G x1 F1 x2 F2 ... xd Fd``.

    Parameters
    ----------
    core : Tensor, shape (..., r1, ..., rd)
        G.
    factors : tuple of Tensor, each of shape (..., n_k, r_k)
        One per mode; leading axes are a batch, as those of the core.

    Raises
    ------
    ShapeError
        If core and factors do not fit.

    Examples
    --------
    >>> form = Tucker(torch.ones(1, 2), (torch.ones(3, 1), torch.ones(4, 2)))
    >>> form.shape, form.ranks, form.parameters, float(form.dense()[0, 0])
    ((3, 4), (1, 2), 13, 2.0)
    """

    core: Tensor
    factors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        ranks = tuple(factor.shape[-1] for factor in self.factors)
        if not ranks or tuple(self.core.shape[-len(ranks) :]) != ranks:
            raise ShapeError(
                f"Tucker: a core of shape {tuple(self.core.shape)} does not fit factors of shapes "
                f"{[tuple(f.shape) for f in self.factors]}. Its axes are their numbers of columns."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The modes (n1, ..., nd)."""
        return tuple(factor.shape[-2] for factor in self.factors)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Size of the core in every mode."""
        return tuple(factor.shape[-1] for factor in self.factors)

    @property
    def parameters(self) -> int:
        """Numbers that one item is made of."""
        return prod(self.ranks) + sum(n * r for n, r in zip(self.shape, self.ranks, strict=True))

    def dense(self) -> Tensor:
        """Return the tensor, of shape (..., n1, ..., nd)."""
        tensor = self.core
        for mode, factor in enumerate(self.factors):
            tensor = mode_product(tensor, factor, mode, order=len(self.factors))
        return tensor

    def orthonormal(self) -> Tucker:
        """Return the same tensor with orthonormal factors: what QR leaves over goes into the core."""
        core, factors = self.core, []
        for mode, factor in enumerate(self.factors):
            Q, R = torch.linalg.qr(factor)
            core = mode_product(core, R, mode, order=len(self.factors))
            factors.append(Q)
        return Tucker(core, tuple(factors))

    def to_tensorly(self) -> TuckerTensor:
        """Return it as TensorLy's, in numpy arrays and without a batch."""
        from tensorly.tucker_tensor import TuckerTensor

        return TuckerTensor(
            (self.core.detach().cpu().numpy(), [factor.detach().cpu().numpy() for factor in self.factors])
        )


def hosvd(tensor: Tensor, ranks: Sequence[int]) -> Tucker:
    """Cut a tensor down to multilinear ranks, one mode after the other.

    Every factor holds the leading left singular vectors of the unfolding that the modes before it have left
    (sequentially truncated HOSVD [1]_): at most sqrt(d) times the best error of these ranks.

    Parameters
    ----------
    tensor : Tensor, shape (..., n1, ..., nd)
        Real or complex; d is the number of ranks, axes before it are a batch.
    ranks : sequence of int
        r_k, 1 to n_k.

    Returns
    -------
    Tucker
        With orthonormal factors.

    Raises
    ------
    RankError
        If a rank exceeds its mode.

    References
    ----------
    .. [1] N. Vannieuwenhoven, R. Vandebril, K. Meerbergen, "A new truncation strategy for the higher-order
       singular value decomposition", SIAM J. Sci. Comput. 34, 2012, algorithm 1.

    Examples
    --------
    >>> X = Tucker(torch.ones(1, 1, 1), (torch.ones(3, 1), torch.ones(4, 1), torch.ones(5, 1))).dense()
    >>> bool(torch.allclose(hosvd(X, (1, 1, 1)).dense(), X))
    True
    """
    ranks = tuple(ranks)
    modes = tuple(tensor.shape[tensor.ndim - len(ranks) :])
    if (
        not ranks
        or tensor.ndim < len(ranks)
        or any(not 1 <= r <= n for r, n in zip(ranks, modes, strict=True))
    ):
        raise RankError(
            f"hosvd: ranks {ranks} do not fit a tensor of shape {tuple(tensor.shape)}. Give one rank per "
            "mode, from 1 to its size."
        )
    core, factors = tensor, []
    for mode, rank in enumerate(ranks):
        U = torch.linalg.svd(unfold(core, mode, order=len(ranks)), full_matrices=False).U[..., :rank]
        if U.shape[-1] < rank:
            # Modes cut before leave fewer columns than the rank: any orthonormal completion is exact.
            U = torch.linalg.qr(torch.cat([U, _completion(U, rank)], -1)).Q
        core = mode_product(core, U.mH, mode, order=len(ranks))
        factors.append(U)
    return Tucker(core, tuple(factors))


def _completion(U: Tensor, rank: int) -> Tensor:
    """Return columns that make U up to `rank` ones: those unit vectors that it holds least of."""
    missing = rank - U.shape[-1]
    held = (U.conj() * U).real.sum(-1)
    least = held.argsort(-1)[..., :missing]
    return torch.nn.functional.one_hot(least, U.shape[-2]).transpose(-1, -2).to(U.dtype)


def _order(where: str, axes: int, mode: int, order: int | None) -> int:
    order = axes if order is None else order
    if not 1 <= order <= axes or not 0 <= mode < order:
        raise ShapeError(
            f"{where}: there is no mode {mode} in {order} modes of a tensor with {axes} axes. Modes count "
            "from 0."
        )
    return order
