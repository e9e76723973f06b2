"""Grid: how the columns of X lie in a tensor, and which ranks fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from lowdim.errors import DataError, RankError, ShapeError

__all__ = ["DECOMPOSITIONS", "Grid", "Ranks", "check_ranks", "grid_of", "parameters"]

DECOMPOSITIONS = ("cp", "tucker")

Ranks = tuple[int, ...]
"""(R,) of a CP form, one number per mode of a Tucker form, () of plain vectors."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Modes of one sample, and which of its places the columns of X fill.

    Parameters
    ----------
    shape : tuple of int
        (n1, ..., nd).
    columns : int
        Number of columns of X, when it is laid flat.
    mask : ndarray of bool of shape (n1, ..., nd) or None
        Places that are looked at; a sample is zero elsewhere.

    Examples
    --------
    >>> Grid((2, 3), 6).size, Grid((4, 3, 5), 60).cut
    (6, 2)
    """

    shape: tuple[int, ...]
    columns: int
    mask: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of places, n1 n2 ... nd."""
        return prod(self.shape)

    @cached_property
    def cut(self) -> int:
        """Number of leading modes that make the rows when a sample is laid out as an almost square matrix."""
        sides = [max(prod(self.shape[:k]), prod(self.shape[k:])) for k in range(1, len(self.shape))]
        return 1 + min(range(len(sides)), key=lambda k: (sides[k], -k)) if sides else 1

    def spread(self, rows: Any) -> Any:
        """Put rows (m, columns) onto the grid: (m, size), zeros where the mask hides.

        Parameters
        ----------
        rows : Tensor of shape (m, columns)

        Returns
        -------
        Tensor of shape (m, size)
        """
        if self.mask is None:
            return rows
        import torch

        seen = torch.as_tensor(self.mask.reshape(-1)).to(rows.device)
        full = rows.new_zeros(len(rows), self.size)
        full[:, seen] = rows[:, seen] if self.columns == self.size else rows
        return full

    def visible(self, X: Any) -> Any:
        """Return the samples X (N, n1, ..., nd) or (N, columns) as rows (N, places) that are looked at.

        Examples
        --------
        >>> Grid((2, 2), 4, np.eye(2) > 0).visible(np.arange(4).reshape(1, 2, 2))
        array([[0, 3]])
        """
        rows = X.reshape(len(X), -1)
        return rows if self.mask is None or rows.shape[1] != self.size else rows[:, self.mask.reshape(-1)]


def grid_of(given: Sequence[int], *, shape: Sequence[int] | None, mask: Any, where: str) -> Grid:
    """Return the grid of samples, or refuse what does not fit.

    Parameters
    ----------
    given : sequence of int
        Shape of X without the samples: (n1, ..., nd), or (p,).
    shape : sequence of int, optional
        Modes that the user names; X may be flat.
    mask : array-like of bool, optional
        Places that are looked at; X may hold these only.
    where : str
        Name of the caller, for messages.

    Returns
    -------
    Grid

    Raises
    ------
    ShapeError
        If shape, mask and X do not fit together.
    DataError
        If the mask is not boolean or hides all.
    """
    given = tuple(int(n) for n in given)
    columns = prod(given)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != np.bool_:
            raise DataError(f"{where}: mask holds {mask.dtype}, expected bool. Give mask > 0, for instance.")
        if not mask.any():
            raise DataError(f"{where}: mask hides every place of its {mask.shape} grid. Mark some as True.")
        if shape is None:
            shape = mask.shape
        if tuple(shape) != mask.shape:
            raise ShapeError(
                f"{where}: mask has shape {mask.shape}, shape={tuple(shape)}. Give one of them, or make them "
                "equal."
            )
    if shape is None:
        return Grid(given, columns)
    modes = tuple(shape)
    if not modes or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1 for n in modes):
        raise ShapeError(f"{where}: shape={shape!r} must be positive integers, such as (32, 32).")
    modes = tuple(int(n) for n in modes)
    if len(given) > 1 and given != modes:
        raise ShapeError(
            f"{where}: samples of X have shape {given}, shape={modes}. Leave shape out, or reshape X."
        )
    if mask is not None and columns == int(mask.sum()):
        return Grid(modes, columns, mask)
    if columns != prod(modes):
        inside = "" if mask is None else f", or {int(mask.sum())} inside the mask"
        raise ShapeError(
            f"{where}: shape={modes} needs {prod(modes)} features per sample{inside}, X has {columns}. "
            "Correct shape, or the columns of X."
        )
    return Grid(modes, columns, mask)


def check_ranks(rank: Any, grid: Grid, *, decomposition: str, where: str) -> Ranks:
    """Return the ranks of the coefficients, or refuse them.

    Parameters
    ----------
    rank : int or sequence of int
        Of a CP form one number, of a Tucker form one for all modes or one per mode.
    grid : Grid
    decomposition : {"cp", "tucker"}
    where : str
        Name of the caller, for messages.

    Returns
    -------
    tuple of int
        (R,), (r1, ..., rd), or () for vectors, which have no rank.

    Raises
    ------
    DataError
        If there is no such decomposition.
    RankError
        If a rank is impossible.
    """
    if decomposition not in DECOMPOSITIONS:
        raise DataError(f"{where}: decomposition={decomposition!r} is unknown. Use 'cp' or 'tucker'.")
    several = isinstance(rank, (tuple, list, np.ndarray))
    given = tuple(rank) if several else (rank,)
    if any(isinstance(r, bool) or not isinstance(r, (int, np.integer)) or r < 1 for r in given) or not given:
        raise RankError(
            f"{where}: rank={rank!r} must be a positive integer, or one per mode of a Tucker form."
        )
    given, d = tuple(int(r) for r in given), len(grid.shape)
    if decomposition == "cp":
        if several:
            raise RankError(
                f"{where}: rank={rank!r}, but a CP form has one rank. Give one integer, or 'tucker'."
            )
        most = grid.size // max(grid.shape)
        if d > 1 and given[0] > most:
            raise RankError(
                f"{where}: rank={rank} is too large for a tensor of shape {grid.shape}: the modes beside the "
                f"largest have {most} places. Use at most {most}."
            )
        return given if d > 1 else ()
    ranks = given if several else given * d
    if len(ranks) != d:
        raise RankError(
            f"{where}: rank={rank!r} has {len(ranks)} Tucker ranks, {d} are needed for a tensor of shape "
            f"{grid.shape}."
        )
    if d == 1:
        return ()
    for mode, (r, n) in enumerate(zip(ranks, grid.shape, strict=True)):
        others = prod(ranks) // r
        if r > n or r > others:
            why = f"the mode has size {n}" if r > n else f"the other ranks have the product {others}"
            raise RankError(f"{where}: rank={rank!r}: rank {r} of mode {mode} is too large: {why}.")
    return ranks


def parameters(shape: Sequence[int], ranks: Ranks) -> int:
    """Return how many numbers a form of these ranks is made of.

    Parameters
    ----------
    shape : sequence of int
    ranks : tuple of int
        As `check_ranks` returns them.

    Returns
    -------
    int

    Examples
    --------
    >>> parameters((32, 32), (2,)), parameters((4, 5), (2, 2)), parameters((9,), ())
    (128, 22, 9)
    """
    if not ranks:
        return prod(shape)
    if len(ranks) == 1:
        return ranks[0] * sum(shape)
    return prod(ranks) + sum(n * r for n, r in zip(shape, ranks, strict=True))
