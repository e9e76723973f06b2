"""Door: sizes, angles, noise and covariances that cannot work are refused here, before work is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, RankError, ShapeError

__all__ = [
    "check_angles",
    "check_count",
    "check_covariance",
    "check_matrix",
    "check_noise",
    "check_rank",
    "check_room",
    "check_weights",
]

_SLACK = 1e-6


def check_count(name: str, value: Any, *, where: str, least: int = 1) -> int:
    """Return an integer that is large enough.

    Raises
    ------
    DataError
        If it is no integer, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{where}: {name}={value!r} must be an integer >= {least}.")
    return value


def check_noise(noise: Any, *, where: str) -> float:
    """Return the standard deviation of label noise.

    Raises
    ------
    DataError
        If it is negative or no number.
    """
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise < math.inf:
        raise DataError(
            f"{where}: noise={noise!r} must be a standard deviation >= 0 (of the labels, not its square)."
        )
    return float(noise)


def check_angles(angle_deg: Any, *, where: str, columns: int | None = None) -> Tensor:
    """Return angles in degrees as a float64 tensor: one, or one per column of a basis.

    Raises
    ------
    DataError
        If one lies outside of [0, 90].
    ShapeError
        If there are neither one nor `columns`.
    """
    try:
        angles = torch.as_tensor(angle_deg, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{where}: angle_deg={angle_deg!r} is no angle. Give degrees in [0, 90].") from None
    if not bool(((angles >= 0) & (angles <= 90)).all()):
        raise DataError(
            f"{where}: angle_deg={angle_deg!r} must lie in [0, 90] degrees. (An angle in radians is "
            "math.degrees(angle).)"
        )
    if columns is not None and angles.ndim and angles.shape != (columns,):
        raise ShapeError(
            f"{where}: angle_deg has shape {tuple(angles.shape)}, expected one angle or {columns}, one per "
            "dimension of the subspace."
        )
    return angles


def check_room(d: int, r: int, *, where: str) -> None:
    """Refuse a rotation out of a subspace where there is no room for it.

    Raises
    ------
    RankError
        If 2 r > d.
    """
    if 2 * r > d:
        raise RankError(
            f"{where}: turning all {r} dimensions of a subspace by one angle needs 2 r <= d, got r={r} and "
            f"d={d}. Lower r to {d // 2}, or raise d to {2 * r}."
        )


def check_rank(rank: Any, d: int, *, where: str) -> int:
    """Return the rank of an update of a d by d matrix.

    Raises
    ------
    RankError
        If it is outside of [0, d].
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= d:
        raise RankError(f"{where}: rank={rank!r} must be an integer from 0 to {d}.")
    return rank


def check_matrix(name: str, matrix: Any, *, where: str, d: int | None = None) -> Tensor:
    """Return a square matrix of finite numbers (`d` by `d`).

    Raises
    ------
    DataError
        If it is no tensor of finite real numbers.
    ShapeError
        If it is not square, or not of size `d`.
    """
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        raise DataError(f"{where}: {name} must be a tensor of real numbers. Use torch.as_tensor(...).")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or d not in (None, matrix.shape[0]):
        wanted = "(d, d)" if d is None else f"({d}, {d})"
        raise ShapeError(f"{where}: {name} has shape {tuple(matrix.shape)}, expected {wanted}.")
    if not bool(torch.isfinite(matrix).all()):
        raise DataError(f"{where}: {name} holds NaN or infinity. Give finite numbers.")
    return matrix


def check_covariance(name: str, matrix: Any, *, where: str, d: int | None = None) -> Tensor:
    """Return a covariance: symmetric, without negative eigenvalues.

    Raises
    ------
    DataError
        If it is not symmetric, or has an eigenvalue below zero by more than rounding.
    ShapeError
        If it has a wrong shape.
    """
    found = check_matrix(name, matrix, where=where, d=d)
    size = float(found.abs().max())
    if float((found - found.mT).abs().max()) > _SLACK * size:
        raise DataError(f"{where}: {name} is not symmetric. A covariance is: (C + C.mT) / 2.")
    least = float(torch.linalg.eigvalsh(found)[0])
    if least < -_SLACK * size:
        raise DataError(
            f"{where}: {name} has the negative eigenvalue {least:.3g} and is no covariance. Give a positive "
            "semidefinite matrix, such as U @ U.mT."
        )
    return found


def check_weights(weights: Sequence[float] | Tensor | None, count: int, *, where: str) -> Tensor:
    """Return the probabilities of `count` subspaces, equal ones by default.

    Raises
    ------
    ShapeError
        If their number is wrong.
    DataError
        If one is negative, or they do not sum to 1.
    """
    if weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    found = torch.as_tensor(weights, dtype=torch.float64)
    if found.shape != (count,):
        raise ShapeError(
            f"{where}: weights have shape {tuple(found.shape)}, expected ({count},), one per subspace."
        )
    if bool((found < 0).any()) or not abs(float(found.sum()) - 1) <= _SLACK:
        raise DataError(
            f"{where}: weights {[round(float(w), 6) for w in found]} must be probabilities: not negative, "
            "and with sum 1. Divide them by their sum."
        )
    return found / found.sum()
