"""Door: options and ranks that cannot work are refused here, and doubtful ends are told."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import prod
from operator import index
from typing import Any

import numpy as np

from lowdim.errors import DataError, LowdimWarning, RankError
from lowdim.phase.problem import Problem, count_unknowns

__all__ = ["check_options", "check_ranks", "seed_of", "warn_about"]

INITS = ("auto", "joint", "grow", "frame", "random")
SOLVERS = ("auto", "direct", "cg")

DOUBTFUL = 1e-2
"""Loss above which the end is called doubtful: a tenth of the magnitudes is unexplained."""

ENOUGH = 1.5
"""Measurements per unknown below which a recovery cannot be expected."""


def check_options(model: Any, where: str) -> None:
    """Refuse options out of range.

    Parameters
    ----------
    model : estimator
        With the options of `TuckerPhaseRetrieval` that it has.
    where : str
        Its name.

    Raises
    ------
    DataError
    """
    given = model.get_params(deep=False)
    for name, allowed in (("init", INITS), ("solver", SOLVERS)):
        if name in given and given[name] not in allowed:
            raise DataError(f"{where}: {name}={given[name]!r} is unknown. Use one of {', '.join(allowed)}.")
    for name, least in (("n_init", 1), ("max_iter", 1), ("n_refine", 0), ("chunk_bytes", 1)):
        value = given.get(name, least)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise DataError(f"{where}: {name}={value!r} must be an integer >= {least}.")
    for name in ("tol", "ridge"):
        value = given.get(name, 0.0)
        if not 0 <= value < np.inf:
            raise DataError(f"{where}: {name}={value!r} must be a number >= 0.")


def check_ranks(ranks: Sequence[int], problem: Problem, where: str) -> tuple[int, ...]:
    """Refuse ranks that do not fit images and frames.

    Parameters
    ----------
    ranks : sequence of int
        (r1, ..., rd, rf).
    problem : Problem
    where : str

    Returns
    -------
    tuple of int

    Raises
    ------
    RankError
    """
    shape = problem.A.image_shape
    given = ranks.tolist() if isinstance(ranks, np.ndarray) else ranks
    try:
        found = tuple(index(rank) for rank in given)
    except TypeError:
        found = ()
    if len(found) != len(shape) + 1 or any(rank < 1 for rank in found):
        raise RankError(
            f"{where}: ranks={ranks!r} do not fit images {shape}. Give {len(shape) + 1} positive numbers: "
            "one per axis of an image, and that of the frames."
        )
    for axis, (rank, size) in enumerate(zip(found[:-1], shape, strict=True)):
        others = prod(found) // rank
        if rank > min(size, others):
            raise RankError(
                f"{where}: rank {rank} of image axis {axis} exceeds {min(size, others)}, the smaller of its "
                f"{size} pixels and the product of the other ranks. Lower it."
            )
    most = min(problem.frames, prod(found[:-1]), problem.A.samples)
    if found[-1] > most:
        raise RankError(
            f"{where}: rank {found[-1]} of the frames exceeds {most}, the smallest of {problem.frames} "
            f"frames, the product {prod(found[:-1])} of the other ranks, and {problem.A.samples} "
            "measurements per frame, which must determine as many coefficients. Lower it, or measure more."
        )
    return found


def seed_of(random_state: Any, where: str) -> int:
    """Return a seed; None draws one.

    Parameters
    ----------
    random_state : int or None
    where : str

    Returns
    -------
    int

    Raises
    ------
    DataError
        If it is something else.
    """
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if isinstance(random_state, bool) or not isinstance(random_state, (int, np.integer)):
        raise DataError(f"{where}: random_state={random_state!r} is no seed. Give an integer or None.")
    return int(random_state)


def warn_about(loss: float, problem: Problem, ranks: Sequence[int] | None, where: str) -> None:
    """Warn of too few measurements, and of an end that explains them badly.

    Parameters
    ----------
    loss : float
        At the end.
    problem : Problem
    ranks : sequence of int or None
        As in `count_unknowns`.
    where : str
    """
    unknowns = count_unknowns(
        ranks, problem.A.image_shape, problem.frames, is_complex=problem.dtype.is_complex
    )
    data = problem.y.numel() if problem.weights is None else int((problem.weights > 0).sum())
    if data < ENOUGH * unknowns:
        warnings.warn(
            f"{where}: {data:,} measurements for {unknowns:,} unknowns are too few to determine the frames. "
            "Lower the ranks, or measure more.",
            LowdimWarning,
            stacklevel=3,
        )
    if loss > DOUBTFUL:
        warnings.warn(
            f"{where}: {loss**0.5:.0%} of the magnitudes stay unexplained: the ranks are too "
            "low, the data hold outliers (robust=True), or the iteration ended in a wrong place (raise "
            "n_init). The "
            "frames may be far from the truth.",
            LowdimWarning,
            stacklevel=3,
        )
