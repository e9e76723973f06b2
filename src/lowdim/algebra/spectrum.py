"""Eigenvalues, singular values and traces of maps that can only be multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lowdim.algebra.action import Action
from lowdim.algebra.history import History
from lowdim.algebra.krylov import Stop, first_block, krylov, rows
from lowdim.algebra.seeds import Seed, generator, phases
from lowdim.errors import DataError, Diverged, RankError, ShapeError

__all__ = ["Eigenpairs", "SingularTriplets", "TraceEstimate", "eigenpairs", "estimate_trace", "truncated_svd"]

Which = Literal["largest", "smallest", "magnitude"]


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Some eigenvalues and eigenvectors of a symmetric map.

    Parameters
    ----------
    values : Tensor, shape (count,)
        Eigenvalues, the wanted end first.
    vectors : Tensor, shape (n, count)
        Orthonormal eigenvectors; give them as `start` to look again at a map
        that has changed a little.
    residuals : Tensor, shape (count,)
        ``||A v - value v||``: an eigenvalue lies at least that near.
    ritz : Tensor, shape (k,)
        All eigenvalues of the compression to the Krylov space, ascending. Its
        other end is a free, not converged, indicator of the other end of the spectrum.
    products : int
        Products with the map, one per vector.
    history : History
        Objective: the sum of the wanted values; residual: the largest of
        `residuals`, relative to the spectral norm. One entry per block.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    ritz: Tensor
    products: int
    history: History


@dataclass(frozen=True, eq=False)
class SingularTriplets:
    """Leading singular values and vectors: ``A ~= U diag(S) Vh``.

    Parameters
    ----------
    U : Tensor, shape (m, rank)
        Left singular vectors.
    S : Tensor, shape (rank,)
        Singular values, largest first.
    Vh : Tensor, shape (rank, n)
        Right singular vectors, as rows, conjugated.
    residuals : Tensor, shape (rank,)
        ``||A^H u - s v||``.
    products : int
        Products with the map or its adjoint, one per vector.
    history : History
        Objective: the sum of the wanted squared values.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    residuals: Tensor
    products: int
    history: History


@dataclass(frozen=True)
class TraceEstimate:
    """A trace with its uncertainty.

    Parameters
    ----------
    value : float
        The estimate (real part).
    standard_error : float
        Of `value`, from the spread of the probes; 0 if the trace is exact.
    products : int
        Products with the map.
    """

    value: float
    standard_error: float
    products: int


def _enter(
    where: str,
    operator: Any,
    action: Action,
    size: int | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[int, torch.dtype, torch.device | str | None]:
    """Find length, dtype and device of the vectors that the map takes."""
    if getattr(operator, "ndim", 2) != 2:
        raise ShapeError(
            f"{where}: got matrices of shape {tuple(operator.shape)}, expected only one (m, n). "
            f"Loop over the batch."
        )
    size = action.shape[1] if action.shape is not None else size
    if size is None:
        raise DataError(f"{where}: the size of a map given as a function is unknown. Give size=n.")
    if size < 1:
        raise ShapeError(f"{where}: size={size}, expected at least 1.")
    dtype = dtype or action.dtype or torch.get_default_dtype()
    if dtype in (torch.float16, torch.bfloat16) or not (dtype.is_floating_point or dtype.is_complex):
        raise DataError(f"{where}: {dtype} is too coarse for a spectrum. Convert the map with .float().")
    return size, dtype, device or action.device


def _default_steps(size: int, block: int) -> int:
    """Enough to exhaust a small space; in a large one a basis of about 300 vectors."""
    return size if size <= 300 else max(300 // block, 20)


_ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "largest": lambda ritz: ritz.argsort(descending=True),
    "smallest": lambda ritz: ritz.argsort(),
    "magnitude": lambda ritz: ritz.abs().argsort(descending=True),
}


def eigenpairs(
    operator: Any,
    *,
    count: int = 1,
    which: Which = "largest",
    start: Tensor | None = None,
    perturb: float = 0.02,
    tol: float = 1e-5,
    stop: Stop = "residual",
    steps: int | None = None,
    seed: Seed = None,
    size: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Eigenpairs:
    """Find eigenvalues at one end of the spectrum by the block Lanczos method.

    The whole basis is kept and every new vector is orthogonalized against it
    twice: no ghost values, at n numbers of memory per product.

    Parameters
    ----------
    operator : Tensor (n, n), Operator, object with shape and @, or callable
        A symmetric (Hermitian) map; only one matrix, not a batch. A function maps
        vectors (k, n) to (k, n). Symmetry is not checked.
    count : int
        How many eigenvalues.
    which : {"largest", "smallest", "magnitude"}
        The algebraically largest or smallest, or the largest in modulus.
    start : Tensor, shape (n,) or (n, block), optional
        Warm start, for example the eigenvectors of a moment ago; `count` random
        vectors otherwise. The block size is that of `start`. A multiple eigenvalue
        is found at most block times.
    perturb : float
        Random part that is added to `start`, relative to its norm. Without any, an
        eigenvector that is no longer the leading one would be kept for ever.
    tol : float
        Stop when ``||A v - value v|| <= tol ||A||`` for all pairs; the error of
        a separated eigenvalue is of the order of tol squared.
    stop : {"residual", "increment"}
        "increment" stops when one more block changes the sum of the values by less
        than `tol` relatively: cheap, for values that are followed over time.
    steps : int, optional
        At most this many blocks. Otherwise as many as the space has dimensions, but
        no more than make a basis of about 300 vectors.
    seed : int or torch.Generator or None
        Of the random vectors.
    size, dtype, device : optional
        Of the vectors, where `operator` does not tell them.

    Returns
    -------
    Eigenpairs
        ``history.reason`` is "steps" if the tolerance was not reached: then read
        `residuals`. Not differentiable.

    Raises
    ------
    RankError
        If `count` is impossible.
    ShapeError
        If the map is not square, or `start` does not fit.
    DataError
        If an option is unknown or the size is.
    Diverged
        If a product is not finite.

    References
    ----------
    .. [1] G. Golub, C. Van Loan, "Matrix computations", 4th ed., section 10.3.
    .. [2] B. Parlett, "The symmetric eigenvalue problem", SIAM 1998, chapter 13.

    Examples
    --------
    >>> import torch
    >>> found = eigenpairs(torch.diag(torch.arange(50.0)), count=2, seed=0)
    >>> found.values.round(decimals=3)
    tensor([49., 48.])
    """
    if which not in get_args(Which) or stop not in get_args(Stop):
        raise DataError(
            f"eigenpairs: got which={which!r}, stop={stop!r}, expected which in {get_args(Which)} and "
            f"stop in {get_args(Stop)}."
        )
    action = Action.of(operator, where="eigenpairs")
    action.require_square("eigenpairs")
    size, dtype, device = _enter("eigenpairs", operator, action, size, dtype, device)
    if not 1 <= count <= size:
        raise RankError(f"eigenpairs: count={count} of {size} eigenvalues is impossible. Use 1 ... {size}.")
    source = generator(seed)
    first = first_block(
        "eigenpairs",
        start,
        width=count,
        size=size,
        perturb=perturb,
        source=source,
        dtype=dtype,
        device=device,
    )
    values, vectors, residuals, ritz, products, history = krylov(
        "eigenpairs",
        lambda columns: rows(action.forward, columns),
        first,
        count=count,
        order=_ORDERS[which],
        steps=_default_steps(size, first.shape[1]) if steps is None else steps,
        tol=tol,
        stop=stop,
        source=source,
    )
    return Eigenpairs(values, vectors, residuals, ritz, products, history)


def truncated_svd(
    operator: Any,
    *,
    rank: int = 1,
    adjoint: Any = None,
    start: Tensor | None = None,
    perturb: float = 0.02,
    tol: float = 1e-5,
    steps: int | None = None,
    seed: Seed = None,
    size: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> SingularTriplets:
    """Find the leading singular values and vectors from products alone.

    A randomized block Krylov method: block Lanczos on ``A^H A`` from a Gaussian
    block, then the singular value decomposition of ``A V``, which undoes most of the
    squaring. Values below ``sqrt(eps) ||A||`` are not resolved.

    Parameters
    ----------
    operator : Tensor (m, n), Operator, object with shape and @, or callable
        The map A; only one, not a batch.
    rank : int
        How many triplets.
    adjoint : same forms, optional
        The adjoint map, needed where `operator` is a function.
    start : Tensor, shape (n,) or (n, block), optional
        Warm start: right singular vectors of a moment ago.
    perturb : float
        Random part that is added to `start`.
    tol : float
        Stop when ``||A^H A v - s^2 v|| <= tol ||A||^2`` for all.
    steps : int, optional
        At most this many blocks; see :func:`eigenpairs`.
    seed : int or torch.Generator or None
        Of the random vectors.
    size, dtype, device : optional
        Of the vectors that A takes, where it does not tell them.

    Returns
    -------
    SingularTriplets
        Not differentiable.

    Raises
    ------
    RankError
        If `rank` is impossible.
    DataError
        If the adjoint or the size is unknown.
    Diverged
        If a product is not finite.

    References
    ----------
    .. [1] C. Musco, C. Musco, "Randomized block Krylov methods for stronger and
       faster approximate singular value decomposition", NeurIPS 2015, algorithm 2.

    Examples
    --------
    >>> import torch
    >>> A = torch.outer(torch.ones(4), torch.ones(9)) + 0.0
    >>> truncated_svd(A, seed=0).S.round(decimals=4)
    tensor([6.])
    """
    action = Action.of(operator, adjoint=adjoint, where="truncated_svd")
    pull = action.require_adjoint("truncated_svd")
    size, dtype, device = _enter("truncated_svd", operator, action, size, dtype, device)
    most = min(action.shape) if action.shape is not None else size
    if not 1 <= rank <= most:
        raise RankError(
            f"truncated_svd: rank={rank} of {most} singular values is impossible. Use 1 ... {most}."
        )
    source = generator(seed)
    first = first_block(
        "truncated_svd",
        start,
        width=rank,
        size=size,
        perturb=perturb,
        source=source,
        dtype=dtype,
        device=device,
    )
    _, right, _, _, products, history = krylov(
        "truncated_svd",
        lambda columns: rows(lambda x: pull(action.forward(x)), columns),
        first,
        count=rank,
        order=_ORDERS["largest"],
        steps=_default_steps(size, first.shape[1]) if steps is None else steps,
        tol=tol,
        stop="residual",
        source=source,
    )
    U, S, Wh = torch.linalg.svd(rows(action.forward, right), full_matrices=False)
    V = right @ Wh.mH
    residuals = torch.linalg.vector_norm(rows(pull, U) - V * S, dim=0)
    return SingularTriplets(U, S, V.mH, residuals, 2 * (products + right.shape[1]), history)


def estimate_trace(
    operator: Any,
    *,
    method: Literal["hutch++", "hutchinson"] = "hutch++",
    products: int = 99,
    seed: Seed = None,
    size: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TraceEstimate:
    """Estimate a trace from products with random vectors.

    Hutchinson averages ``z^H A z`` over random signs z. Hutch++ takes the trace on
    the range of ``A S`` exactly and lets Hutchinson see only the rest: for maps with
    decaying spectra the error falls like 1 / products instead of its square root.

    Parameters
    ----------
    operator : Tensor (n, n), Operator, object with shape and @, or callable
        A square map; Hutch++ is meant for (nearly) symmetric ones.
    method : {"hutch++", "hutchinson"}
        Which.
    products : int
        How many products may be spent; from n on the trace is computed exactly.
    seed : int or torch.Generator or None
        Of the random vectors.
    size, dtype, device : optional
        Of the vectors, where `operator` does not tell them.

    Returns
    -------
    TraceEstimate
        The value, its standard error, and the products spent.

    Raises
    ------
    ShapeError
        If the map is not square.
    DataError
        If the method is unknown or `products` are too few for an error bar.
    Diverged
        If a product is not finite.

    References
    ----------
    .. [1] M. Hutchinson, "A stochastic estimator of the trace of the influence
       matrix", Commun. Stat. Simul. Comput. 19, 1990.
    .. [2] R. Meyer, C. Musco, C. Musco, D. Woodruff, "Hutch++: optimal stochastic
       trace estimation", SOSA 2021, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> estimate = estimate_trace(torch.diag(torch.arange(10.0)), seed=0)
    >>> estimate.value, estimate.standard_error
    (45.0, 0.0)
    """
    if method not in ("hutch++", "hutchinson"):
        raise DataError(f"estimate_trace: method={method!r} is unknown. Use 'hutch++' or 'hutchinson'.")
    action = Action.of(operator, where="estimate_trace")
    action.require_square("estimate_trace")
    size, dtype, device = _enter("estimate_trace", operator, action, size, dtype, device)
    least = min(size, 6 if method == "hutch++" else 2)
    if products < least:
        raise DataError(f"estimate_trace: products={products} give no error bar. Use at least {least}.")
    source = generator(seed)

    def multiply(columns: Tensor) -> Tensor:
        return rows(action.forward, columns)

    def signs(width: int) -> Tensor:
        return phases((width, size), seed=source, dtype=dtype, device=device).mT

    if products >= size:
        eye = torch.eye(size, dtype=dtype, device=device)
        return TraceEstimate(_finite_trace(multiply(eye).diagonal()), 0.0, size)
    known, spent = 0.0, 0
    probes = signs(products)
    if method == "hutch++":
        third = products // 3
        basis = torch.linalg.qr(multiply(signs(third))).Q
        known = _finite_trace((basis.conj() * multiply(basis)).sum(0))
        probes = signs(products - 2 * third)
        probes = probes - basis @ (basis.mH @ probes)
        spent = 2 * third
    samples = (probes.conj() * multiply(probes)).sum(0).real
    value = known + _finite_trace(samples) / len(samples)
    error = float(samples.std()) / sqrt(len(samples))
    return TraceEstimate(value, error, spent + len(samples))


def _finite_trace(terms: Tensor) -> float:
    total = float(terms.sum().real)
    if not abs(total) < float("inf"):
        raise Diverged("estimate_trace: a product is not finite. Check the map for NaN and overflow.")
    return total
